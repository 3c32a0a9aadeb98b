"""One whole run, byte for byte: ours, a second computation, and a reader's checks."""

import hashlib
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from crypto.keys import AgreementKey, IdentityKey
from crypto.secagg import silo_setup
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.parts import Part
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload
from tests.crypto.references import header, keystream, labelled
from tests.crypto.secagg import references
from tests.crypto.secagg.make_vectors import given_run
from tests.crypto.secagg.reference_run import (
    AGGREGATOR,
    EVERYONE,
    KINDS,
    NO_SLOT,
    contributors,
    open_shares,
    play,
)
from tests.crypto.vectors import load

(CASE,) = load("secagg", "whole_run")


def test_the_second_computation_gives_the_file():
    assert play(given_run()) == CASE


# ------------------------------------------------------------------ our own code


class Draws:
    """Stands for the operating system's randomness while one silo draws."""

    def __init__(self, silo: dict) -> None:
        slots = range(CASE["slots_per_setup"])
        keys = [silo["channel_key"], *(silo["agreement_keys"][s] for s in slots)]
        draws = [*silo["mask_seeds"], silo["dealing_seed"]]
        self.keys, self.draws = iter(keys), iter(draws)

    def token_bytes(self, num_bytes: int) -> bytes:
        drawn = bytes.fromhex(next(self.draws))
        assert len(drawn) == num_bytes
        return drawn

    def generate(self) -> AgreementKey:
        return AgreementKey.from_bytes(bytes.fromhex(next(self.keys)))


class Replay:
    """Our silos and aggregator with the case's keys."""

    def __init__(self) -> None:
        names = ("num_silos", "threshold", "min_cohort", "max_colluding")
        config = SecAggConfig(
            **{name: CASE[name] for name in names},
            slots_per_setup=CASE["slots_per_setup"],
            trust=CASE["trust"],
        )
        run, setup = bytes.fromhex(CASE["run"]), CASE["setup"]
        roster = [bytes.fromhex(public) for public in CASE["roster"]]
        identity = IdentityKey.from_bytes(bytes.fromhex(CASE["aggregator_key"]))
        self.aggregator = AggregatorSide(config, roster, identity, run, setup)
        self.silos = [
            SiloSide(
                config,
                roster,
                identity.public,
                IdentityKey.from_bytes(bytes.fromhex(silo["identity_key"])),
                index,
                run,
                setup,
                Journal(None, b""),
            )
            for index, silo in enumerate(CASE["silos"])
        ]

    def advertise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for index, silo in enumerate(self.silos):
            draws = Draws(CASE["silos"][index])
            with monkeypatch.context() as patched:
                patched.setattr(silo_setup, "secrets", draws)
                patched.setattr(silo_setup.AgreementKey, "generate", draws.generate)
                frame = silo.advertise()
            assert frame.hex() == CASE["advertise"][index]
            self.aggregator.add_advertisement(frame)

    def set_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.advertise(monkeypatch)
        keys = self.aggregator.keys()
        assert keys.hex() == CASE["keys"]
        for index, silo in enumerate(self.silos):
            frame = silo.share(keys)
            assert frame.hex() == CASE["shares"][index]
            self.aggregator.add_shares(frame)
        for index, silo in enumerate(self.silos):
            frame = self.aggregator.envelopes(index)
            assert frame.hex() == CASE["envelopes"][index]
            silo.receive_shares(frame)

    def run_slot(self, case: dict) -> None:
        parts = tuple(
            Part(part["num_words"], tuple(part["contributors"]))
            for part in case["parts"]
        )
        asked = case["slot"], case["round_number"], bytes.fromhex(case["model_digest"])
        head = bytes.fromhex(case["head"])
        slot = self.aggregator.open_slot(*asked, parts, head)
        for i in map(int, case["ready"]):
            frame = self.silos[i].ready(*asked, head)
            slot.add_ready(same(frame, case["ready"][str(i)]))
        active = same(slot.active(), case["active"])
        for i in map(int, case["masked"]):
            upload = Upload.of(np.array(list(map(int, case["words"][i])), np.uint64))
            frame = bytes(self.silos[i].mask(active, upload, parts))
            slot.add_masked(same(frame, case["masked"][str(i)]))
        survivors = same(slot.survivors(), case["survivors"])
        for i in map(int, case["confirm"]):
            frame = self.silos[i].confirm(survivors)
            slot.add_confirm(same(frame, case["confirm"][str(i)]))
        confirms = same(slot.confirms(), case["confirms"])
        for i in map(int, case["reveal"]):
            frame = self.silos[i].reveal(confirms)
            slot.add_reveal(same(frame, case["reveal"][str(i)]))
        assert list(map(str, slot.unmask().tolist())) == case["total"]
        notice = same(slot.sum_notice(), case["sum"])
        for i in map(int, case["reveal"]):
            assert self.silos[i].close_slot(notice).hex() == case["sum_digest"]


def same(frame: bytes, expected: str) -> bytes:
    assert frame.hex() == expected
    return frame


def test_our_frames_are_the_files(monkeypatch):
    replay = Replay()
    replay.set_up(monkeypatch)
    for case in CASE["slots"]:
        replay.run_slot(case)


# ------------------------------------------------------------------ a reader's checks
# From public keys and frames alone: no secret of the file is used below.


def opened(name: str, frame: str, sender: int, slot=NO_SLOT, recipient=EVERYONE):
    """Return a frame's body, its header and signature checked."""
    data = bytes.fromhex(frame)
    run, setup = bytes.fromhex(CASE["run"]), CASE["setup"]
    assert data[:32] == header(KINDS[name], run, setup, slot, sender, recipient)
    key = CASE["aggregator"] if sender == AGGREGATOR else CASE["roster"][sender]
    said = data[:32] + hashlib.sha256(data[32:-64]).digest()
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    public.verify(data[-64:], labelled(b"cloister/1/frame-signature", said))
    return data[32:-64]


def advertised(silo: int, slot: int) -> tuple[bytes, bytes]:
    """Return a silo's public agreement key and its commitment, from ADVERTISE."""
    body = opened("advertise", CASE["advertise"][silo], silo)
    start = 32 + 64 * slot
    return body[start : start + 32], body[start + 32 : start + 64]


def test_the_setup_holds_together():
    n = CASE["num_silos"]
    keys = opened("keys", CASE["keys"], AGGREGATOR)
    entries = [bytes.fromhex(frame)[32:] for frame in CASE["advertise"]]
    assert keys == references.bitmap(range(n), n) + b"".join(entries)
    t0 = references.setup_digest(CASE)
    t1 = references.keys_digest(t0, keys)
    t2 = references.members_digest(t1, range(n), n)
    assert [t.hex() for t in (t0, t1, t2)] == [
        CASE[name] for name in ("setup_digest", "keys_digest", "members_digest")
    ]
    size = 16 + 66 * CASE["slots_per_setup"]
    sealed = {}
    for silo in range(n):
        body = opened("shares", CASE["shares"][silo], silo, recipient=AGGREGATOR)
        assert body[:32] == t1 and len(body) == 32 + (n - 1) * size
        for place, peer in enumerate(i for i in range(n) if i != silo):
            sealed[silo, peer] = body[32 + place * size :][:size]
    for silo in range(n):
        frame = CASE["envelopes"][silo]
        body = opened("envelopes", frame, AGGREGATOR, recipient=silo)
        expected = [sealed[peer, silo] for peer in range(n) if peer != silo]
        assert body == t1 + references.bitmap(range(n), n) + b"".join(expected)


@pytest.mark.parametrize("case", CASE["slots"], ids=lambda c: f"slot {c['slot']}")
def test_a_slot_holds_together(case):
    n, number = CASE["num_silos"], case["slot"]
    t3 = references.slot_digest(bytes.fromhex(CASE["members_digest"]), case, n)
    assert t3.hex() == case["slot_digest"]
    survivors = sorted(map(int, case["masked"]))
    counted = t3 + references.bitmap(survivors, n)
    said = bytes.fromhex(CASE["members_digest"]) + struct.pack(
        ">I", case["round_number"]
    )
    said += bytes.fromhex(case["model_digest"]) + bytes.fromhex(case["head"])
    bodies = {"ready": said, "confirm": counted}
    for name, body in bodies.items():
        for silo, frame in case[name].items():
            assert opened(name, frame, int(silo), number) == body
    for name, signed in (("active", "ready"), ("confirms", "confirm")):
        signers = sorted(map(int, case[signed]))
        table = [bytes.fromhex(case[signed][str(i)])[-64:] for i in signers]
        expected = bodies[signed] + references.bitmap(signers, n) + b"".join(table)
        assert opened(name, case[name], AGGREGATOR, number) == expected
    assert opened("survivors", case["survivors"], AGGREGATOR, number) == counted
    notice = opened("sum", case["sum"], AGGREGATOR, number)
    assert notice == counted + bytes.fromhex(case["sum_digest"])


def revealed(case: dict) -> dict[int, bytes]:
    """Open every contributor's secret from the REVEALs; check it as advertised."""
    t0, number = bytes.fromhex(CASE["setup_digest"]), case["slot"]
    survivors, found = set(map(int, case["masked"])), {}
    for place, silo in enumerate(sorted(contributors(case))):
        shares = {}
        for holder, frame in case["reveal"].items():
            body = opened("reveal", frame, int(holder), number, AGGREGATOR)
            assert len(body) == 32 + 33 * len(contributors(case))
            shares[int(holder)] = body[32 + 33 * place :][:33]
        found[silo] = open_shares(shares)
        public, commitment = advertised(silo, number)
        if silo in survivors:
            assert references.commitment(t0, silo, number, found[silo]) == commitment
        else:
            assert references.public_of(found[silo]) == public
    return found


@pytest.mark.parametrize("case", CASE["slots"], ids=lambda c: f"slot {c['slot']}")
def test_unmasking_from_the_frames_gives_the_sum(case):
    """Add the masked words, take away the masks that the revealed secrets give."""
    number, t3 = case["slot"], bytes.fromhex(case["slot_digest"])
    secrets, survivors = revealed(case), set(map(int, case["masked"]))
    left = {}
    for silo in survivors:
        frame = case["masked"][str(silo)]
        body = opened("masked", frame, silo, number, AGGREGATOR)
        assert body[:32] == t3
        (count,) = struct.unpack(">Q", body[32:40])
        left[silo] = list(struct.unpack(f"<{count}Q", body[40:]))
    total = []
    for index, part in enumerate(case["parts"]):
        size, group = part["num_words"], set(part["contributors"]) & set(case["cohort"])
        words = [0] * size
        for silo in group & survivors:
            own, left[silo] = left[silo][:size], left[silo][size:]
            mask = references.self_mask(secrets[silo], t3, index, silo, size)
            words = [w + o - m for w, o, m in zip(words, own, mask, strict=True)]
            for lost in group - survivors:
                shared = references.exchange(secrets[lost], advertised(silo, number)[0])
                pair = (silo, lost)
                mask = references.pairwise_mask(shared, t3, index, pair, size)
                sign = 1 if silo < lost else -1
                words = [w - sign * m for w, m in zip(words, mask, strict=True)]
        total += [word % 2**64 for word in words]
    assert not any(left.values())
    assert [str(word) for word in total] == case["total"]
    assert references.sum_digest(t3, total).hex() == case["sum_digest"]


def test_the_mask_seeds_are_those_of_the_masked_words():
    """Slot 0, silo 0: its words plus its own keystream plus those with 1, 2 and 3."""
    case = CASE["slots"][0]
    seeds = case["masks"][0]
    streams = [seeds["self"]["0"], *(seeds["pairs"][f"0-{j}"] for j in (1, 2, 3))]
    words = np.array(list(map(int, case["words"][0])), np.uint64)
    for seed in streams:
        words = words + keystream(bytes.fromhex(seed), 3)
    body = bytes.fromhex(case["masked"]["0"])[32:-64]
    assert body[40:] == words.astype("<u8").tobytes()


def test_slots_differ_in_what_they_show():
    """Slot 0 loses silo 3 before its upload; slot 1 is dealt in two parts."""
    first, second = CASE["slots"]
    assert sorted(first["masked"]) == ["0", "1", "2"] and len(first["ready"]) == 4
    assert len(second["parts"]) == 2 and sorted(second["reveal"]) == ["0", "2", "3"]
    assert len(bytes.fromhex(second["masked"]["3"])) == 96 + 40  # No words at all.
