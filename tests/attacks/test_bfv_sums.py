"""The aggregator has silo 0 decrypt something else than the sum that was confirmed.

Each row is a ciphertext that anybody can make of those that the aggregator holds. What
is refused gives one constant line, lets no value out of the process that decrypts, and
was the silo's one DECRYPT of the round. Two parts, the first of two ciphertexts.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from crypto.bfv.parameters import (
    COEFF_MODULUS,
    MIN_NOISE_BUDGET_BITS,
    POLY_DEGREE,
)
from crypto.bfv.residues import pack_residues
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.sum_tags import SumTags
from crypto.bfv.workers import Workers
from crypto.errors import (
    DecryptionRefused,
    InvalidSignature,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.secagg.journal import Stage
from crypto.secagg.messages import Confirms
from crypto.secagg.parts import Part
from tests.attacks import ciphertexts as c
from tests.attacks.forging import BODY, resign
from tests.crypto.bfv.federation import TWO_CHUNKS, BfvFederation, whole_words

EVERYONE = (0, 1, 2, 3, 4)
PARTS = (Part(TWO_CHUNKS, EVERYONE), Part(40, EVERYONE), Part(40, EVERYONE))
"""Chunks 0 and 1 are the first part, 2 the second, 3 the third."""
REFUSED = "refused: not the sum that was confirmed"


@pytest.fixture(scope="module")
def made() -> Iterator[c.Material]:
    with Workers(num=1) as workers:
        f = BfvFederation(workers, parts=PARTS, layouts=whole_words)
        for words in f.words:  # Two parts of the same words.
            words[-40:] = words[-80:-40]
        yield c.gather(f)


def swapped(m: c.Material) -> np.ndarray:
    return m.total[[0, 1, 3, 2]]


def random_first(m: c.Material) -> np.ndarray:
    residues = np.zeros_like(m.total)
    rng = np.random.default_rng(2)
    residues[:, 0] = rng.integers(0, COEFF_MODULUS, residues[:, 0].shape, np.uint64)
    return residues


def scaled(residues: np.ndarray, factor: int) -> np.ndarray:
    return (residues.astype(object) * factor % COEFF_MODULUS).astype(np.uint64)


ADD, SUB = c.plus, c.minus
ROWS = {
    "one silo alone": lambda m: m.uploads[1],
    "its own upload": lambda m: m.uploads[0],
    "one silo twice": lambda m: ADD(m.total, m.uploads[1]),
    "one silo left out": lambda m: SUB(m.total, m.uploads[1]),
    "one silo in place of another": lambda m: ADD(
        SUB(m.total, m.uploads[1]), m.uploads[2]
    ),
    "the sum times two": lambda m: ADD(m.total, m.total),
    "the sum times minus one": lambda m: SUB(np.zeros_like(m.total), m.total),
    "one silo times three": lambda m: ADD(m.total, scaled(m.uploads[1], 2)),
    "a chunk of one silo alone": lambda m: c.with_chunk(m.total, 0, m.uploads[1]),
    "the tags' chunk of one silo": lambda m: c.with_chunk(m.total, 1, m.uploads[1]),
    "one silo left out of a chunk": lambda m: c.with_chunk(
        m.total, 0, SUB(m.total, m.uploads[1])
    ),
    "one silo twice in a chunk": lambda m: c.with_chunk(
        m.total, 0, ADD(m.total, m.uploads[1])
    ),
    "one silo left out of the last part": lambda m: c.with_chunk(
        m.total, 3, SUB(m.total, m.uploads[1])
    ),
    "chunks swapped": lambda m: m.total[[1, 0, 2, 3]],
    "parts swapped": swapped,
    "one part as two": lambda m: m.total[[0, 1, 2, 2]],
    "the sum of the round before": lambda m: m.old_total,
    "a part of the round before": lambda m: c.with_chunk(m.total, 2, m.old_total),
    "an upload of the round before": lambda m: ADD(
        SUB(m.total, m.uploads[1]), m.old[1]
    ),
    "what changed since the round before": lambda m: ADD(
        m.total, SUB(m.uploads[1], m.old[1])
    ),
    "a known plaintext added": lambda m: c.with_first(m.total, 0, np.array([c.DELTA])),
    "a plaintext in the last part": lambda m: c.with_first(
        m.total, 3, np.array([0, 7 * c.DELTA])
    ),
    "zeros": lambda m: np.zeros_like(m.total),
    "a chunk of zeros": lambda m: c.with_chunk(m.total, 0, np.zeros_like(m.total)),
    "no c1": random_first,
    "c0 and c1 swapped": lambda m: m.total[:, ::-1],
    "too much noise": lambda m: c.with_first(m.total, 0, c.noise(1 << 11)),
    "too much noise in the last part": lambda m: c.with_first(
        m.total, 3, c.noise(1 << 11)
    ),
    "noise that changes values": lambda m: c.with_first(m.total, 1, c.noise(1 << 20)),
}
HONEST = {
    "the sum": lambda m: m.total,
    "the sum with a little noise": lambda m: c.with_first(m.total, 0, c.noise(1 << 6)),
    "the same sum in another way": lambda m: sum_of(m),
}


def sum_of(m: c.Material) -> np.ndarray:
    total = m.uploads[4]
    for silo in (2, 0, 1, 3):
        total = c.plus(total, m.uploads[silo])
    return total


@pytest.mark.parametrize("name", ROWS)
def test_another_ciphertext_is_refused(made, name):
    f, victim = made.f, c.fresh_victim(made)
    progress, let_out = victim.latest_slot, f.workers.num_let_out
    forged = c.sign_decrypt(f, ROWS[name](made))
    for _ in range(2):
        with pytest.raises(DecryptionRefused) as raised:
            victim.decrypt(forged)
        assert str(raised.value) == REFUSED and raised.value.silo is None
    assert f.workers.num_let_out == let_out
    assert victim.latest_slot == progress
    # It was the one DECRYPT of the round, and the last of the setup.
    with pytest.raises(ProtocolViolation, match=r"REVEAL in slot 1.*otherwise"):
        victim.decrypt(f.frames["confirms"][0])
    with pytest.raises(ProtocolViolation, match="no further slot"):
        victim.ready(2, 2, f.model)
    with pytest.raises(ProtocolViolation, match="a ciphertext was refused in it"):
        victim.ready(2, 3, f.model)


@pytest.mark.parametrize("name", HONEST)
def test_the_sum_is_decrypted_however_it_was_made(made, name):
    victim = c.fresh_victim(made)
    reply = victim.decrypt(c.sign_decrypt(made.f, HONEST[name](made)))
    words = np.frombuffer(reply[BODY][40:], "<u8")
    assert (words == made.f.plain_sum(EVERYONE)).all()


def asking_the_key(m: c.Material, place: int) -> np.ndarray:
    """The sum, to whose noise 200 s is added, and 420 more at one coefficient."""
    noise = np.zeros((2, POLY_DEGREE), np.uint64)
    noise[0, place], noise[1, 0] = 420, 200
    return c.with_chunk(m.total, 0, c.plus(m.total[:1], noise[None]))


def test_noise_that_asks_for_a_digit_of_the_key_is_refused_once(made):
    """Whether a silo refuses tells if a coefficient of the key is 1, and for certain.

    So it answers such questions up to the first refusal, and no more under that key,
    also where its state, but not its journal, is put back.
    """
    answers = []
    for place in range(24):
        victim = c.fresh_victim(made)
        try:
            victim.decrypt(c.sign_decrypt(made.f, asking_the_key(made, place)))
        except DecryptionRefused:
            answers.append(1)
            break
        answers.append(0)
    assert answers[-1] == 1, "no coefficient of 24 is 1"
    arguments = (*made.f.silo_arguments(0)[:-1], victim._journal)
    back = BfvSiloSide(*arguments, **made.f.tools).restore(made.saved[0])
    with pytest.raises(ProtocolViolation, match="a ciphertext was refused in it"):
        back.ready(2, 3, made.f.model)
    with pytest.raises(ProtocolViolation, match="setup 1 is over"):
        back.receive_shares(made.f.frames["envelopes"][0])


@pytest.mark.parametrize("name", ["too much noise", "too much noise in the last part"])
def test_that_noise_is_refused_although_it_decrypts_right(made, name):
    f, victim = made.f, c.fresh_victim(made)
    f.workers.opened.clear()
    with pytest.raises(DecryptionRefused):
        victim.decrypt(c.sign_decrypt(f, ROWS[name](made)))
    tags = SumTags(victim._state.secret_key, victim.latest_slot.slot_digest)
    assert all(
        tags.is_sum(found.residuals, part, EVERYONE)
        for part, found in enumerate(f.workers.opened)
    )
    budgets = [found.noise_budget_bits for found in f.workers.opened]
    assert 0 < min(budgets) < MIN_NOISE_BUDGET_BITS <= max(budgets)


def test_a_known_plaintext_is_refused_for_its_tags_alone(made):
    f, victim = made.f, c.fresh_victim(made)
    f.workers.opened.clear()
    with pytest.raises(DecryptionRefused):
        victim.decrypt(c.sign_decrypt(f, ROWS["a known plaintext added"](made)))
    assert all(
        found.noise_budget_bits >= MIN_NOISE_BUDGET_BITS for found in f.workers.opened
    )


@pytest.mark.parametrize("place", [0, 5, 7])
def test_residues_out_of_range_are_refused_alike(made, place):
    """In the first chunk, or in the last when others have been decrypted."""
    f, victim = made.f, c.fresh_victim(made)
    packed = bytearray(pack_residues(made.total).tobytes())
    size = len(packed) // 8
    packed[place * size : (place + 1) * size] = b"\xff" * size
    let_out = f.workers.num_let_out
    with pytest.raises(DecryptionRefused, match=REFUSED):
        victim.decrypt(c.sign_packed(f, bytes(packed), len(made.total)))
    assert f.workers.num_let_out == let_out
    with pytest.raises(ProtocolViolation, match=r"REVEAL.*otherwise"):
        victim.decrypt(f.frames["confirms"][0])


# ------------------------------------------------------------------ before it counts


def wrong_bytes(m: c.Material) -> dict[str, bytes]:
    packed, number = pack_residues(m.total).tobytes(), len(m.total)
    return {
        "one byte less": c.sign_packed(m.f, packed[:-1], number),
        "one byte more": c.sign_packed(m.f, packed + b"\0", number),
        "one ciphertext less": c.sign_decrypt(m.f, m.total[:-1]),
        "one ciphertext more": c.sign_decrypt(m.f, m.total[[0, 1, 2, 3, 3]]),
        "another number": c.sign_packed(m.f, packed, number + 1),
        "no ciphertexts": c.sign_packed(m.f, b"", 0),
    }


def wrong_confirms(m: c.Material) -> dict[str, bytes]:
    slot = m.f.aggregator.slot
    honest = Confirms(slot._survivors(), slot._state.confirmed)
    few = {i: honest.signatures[i] for i in (0, 1, 2)}
    twice = few | {3: honest.signatures[2]}
    ready = m.f.frames["ready"][3][-64:]
    other = type(honest.confirm)(honest.confirm.slot_digest, (0, 1, 2, 3))
    body = other.to_bytes(5)
    signed = {i: resign(m.f, i, body, c.Kind.CONFIRM, slot=1) for i in EVERYONE}
    messages = {
        "three confirmations": Confirms(honest.confirm, few),
        "one confirmation for two": Confirms(honest.confirm, twice),
        "a READY for a CONFIRM": Confirms(honest.confirm, few | {3: ready}),
        "another list": Confirms(other, signed),
        "no confirmation": Confirms(honest.confirm, {}),
    }
    return {name: c.sign_decrypt(m.f, m.total, m_) for name, m_ in messages.items()}


BEFORE = [
    ("one byte less", MalformedMessage),
    ("one byte more", MalformedMessage),
    ("one ciphertext less", MalformedMessage),
    ("one ciphertext more", MalformedMessage),
    ("another number", MalformedMessage),
    ("no ciphertexts", MalformedMessage),
    ("three confirmations", ProtocolViolation),
    ("one confirmation for two", InvalidSignature),
    ("a READY for a CONFIRM", InvalidSignature),
    ("another list", ProtocolViolation),
    ("no confirmation", ProtocolViolation),
]


@pytest.mark.parametrize(("name", "raises"), BEFORE, ids=[name for name, _ in BEFORE])
def test_what_is_no_decrypt_is_refused_and_promises_nothing(made, name, raises):
    f, victim = made.f, c.fresh_victim(made)
    forged = (wrong_bytes(made) | wrong_confirms(made))[name]
    before, num_opened = victim.to_bytes(), len(f.workers.opened)
    with pytest.raises(raises):
        victim.decrypt(forged)
    assert victim.to_bytes() == before and len(f.workers.opened) == num_opened
    assert not victim._journal.has(Stage.REVEAL, 1, 1)
    assert victim.decrypt(f.frames["confirms"][0])


def test_a_second_decrypt_of_the_round_is_refused(made):
    """Even where it would give the very same sum."""
    victim = c.fresh_victim(made)
    first = victim.decrypt(made.f.frames["confirms"][0])
    other = c.sign_decrypt(made.f, HONEST["the sum with a little noise"](made))
    let_out = made.f.workers.num_let_out
    with pytest.raises(ProtocolViolation, match=r"REVEAL.*otherwise"):
        victim.decrypt(other)
    assert made.f.workers.num_let_out == let_out
    assert victim.decrypt(made.f.frames["confirms"][0]) == first
