"""What a silo must remember of one setup, and how it is written down. SECRET.

The state holds keys, seeds and shares. Whoever saves it uses mode 0600 and syncs it to
disk before the reply that it belongs to leaves the machine. An older state than the
last one saved does no harm as long as the journal is not older too: what the silo has
promised stands there.
"""

from dataclasses import dataclass, field, replace

from crypto import labels
from crypto.encoding import Reader, Writer, digest
from crypto.errors import MalformedMessage
from crypto.keys import KEY_BYTES, AgreementKey
from crypto.prg import MASK_SEED_BYTES
from crypto.secagg.masks import SlotSecrets
from crypto.secagg.messages import (
    DIGEST_BYTES,
    SHARE_PAIR_BYTES,
    bitmap_bytes,
    decode_silos,
    encode_silos,
)
from crypto.secagg.parts import Parts, decode_parts, encode_parts
from crypto.secagg.ready import HEAD_BYTES

MAX_STATE_FIELD_BYTES = 1 << 24
"""Above KEYS and SHARES of the largest setup (1000 silos, 64 slots: 4.2 MB each)."""


@dataclass(frozen=True, repr=False)
class SlotProgress:
    """How far the silo has come in its latest slot, and what it has promised there.

    Empty bytes and tuples stand for stages that have not been reached. ``parts`` have
    their contributors in the cohort; ``reveal`` is the frame that was sent, until the
    slot is closed by the digest of its sum.
    """

    slot: int
    round_number: int
    model_digest: bytes
    head: bytes
    slot_digest: bytes = b""
    cohort: tuple[int, ...] = ()
    parts: Parts = ()
    words_digest: bytes = b""
    survivors: tuple[int, ...] = ()
    reveal: bytes = b""
    sum_digest: bytes = b""

    @property
    def is_over(self) -> bool:
        """Whether this silo has revealed its shares, or was told of the sum."""
        return bool(self.reveal or self.sum_digest)


@dataclass(frozen=True, repr=False)
class StagesState:
    """What a silo remembers of a setup, whatever hides its vectors.

    Attributes:
        keys: the body of KEYS that was accepted.
        members: U2.
        progress: the latest slot.
        journal_link: the journal's last link when the state was written.
    """

    keys: bytes = b""
    members: tuple[int, ...] = ()
    progress: SlotProgress | None = None
    journal_link: bytes = b""


@dataclass(frozen=True, repr=False)
class SiloState(StagesState):
    """One silo's memory of one setup with masks.

    Attributes:
        advertisement: the ADVERTISE frame that was sent.
        channel: the key that opens envelopes; deleted when they have been opened.
        dealing_seed: what the shares are drawn from, so that they are dealt in one way
            even from an older state; deleted with the channel key.
        secrets: by slot, what masks; deleted when the slot is revealed or passed over.
        shares: the SHARES frame that was sent.
        envelopes_digest: digest of the ENVELOPES body that was accepted.
        held: by silo, the pairs of shares held of its secrets, own ones included: of
            the mask seed and of the agreement key, for every slot that is left.
    """

    advertisement: bytes = b""
    channel: AgreementKey | None = None
    dealing_seed: bytes = b""
    secrets: dict[int, SlotSecrets] = field(default_factory=dict)
    shares: bytes = b""
    envelopes_digest: bytes = b""
    held: dict[int, bytes] = field(default_factory=dict)


def pairs_of(state: SiloState, slot: int) -> dict[int, bytes]:
    """Return by silo the two shares of one slot, of its mask seed and of its key."""
    place = sorted(state.secrets).index(slot) * SHARE_PAIR_BYTES
    return {
        silo: shares[place : place + SHARE_PAIR_BYTES]
        for silo, shares in state.held.items()
    }


def forget_before(slot: int, state: SiloState) -> SiloState:
    """Return the state without the secrets and held shares of the slots below one."""
    gone = sum(earlier < slot for earlier in state.secrets) * SHARE_PAIR_BYTES
    return replace(
        state,
        secrets={s: own for s, own in state.secrets.items() if s >= slot},
        held={silo: shares[gone:] for silo, shares in state.held.items()},
    )


def encode_state(state: SiloState, owner: bytes, num_silos: int) -> bytes:
    """Return the state as bytes, with a digest at the end against torn writes.

    Args:
        owner: digest of setup and silo that the state belongs to.
    """
    writer = Writer().fixed(owner, DIGEST_BYTES)
    channel = state.channel.to_bytes() if state.channel else b""
    for data in (
        state.advertisement,
        channel,
        state.dealing_seed,
        state.keys,
        state.shares,
        state.envelopes_digest,
        encode_silos(state.members, num_silos),
    ):
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)
    writer.fixed(state.journal_link, DIGEST_BYTES)
    _write_secrets(writer, state)
    _write_held(writer, state, num_silos)
    write_progress(writer, state.progress, num_silos)
    return whole_state(writer)


def decode_state(data: bytes, owner: bytes, num_silos: int) -> SiloState:
    """Return the state of :func:`encode_state`.

    Raises:
        MalformedMessage: torn, altered, or of another setup or silo.
    """
    reader = read_state(data, owner)
    advertisement, channel, dealing_seed, keys, shares, envelopes, members = (
        reader.prefixed(MAX_STATE_FIELD_BYTES) for _ in range(7)
    )
    journal_link = reader.fixed(DIGEST_BYTES)
    secrets = _read_secrets(reader)
    state = SiloState(
        advertisement=advertisement,
        channel=AgreementKey.from_bytes(channel) if channel else None,
        dealing_seed=dealing_seed,
        keys=keys,
        shares=shares,
        envelopes_digest=envelopes,
        members=decode_silos(members, num_silos),
        journal_link=journal_link,
        secrets=secrets,
        held=_read_held(reader, num_silos, len(secrets)),
        progress=read_progress(reader, num_silos),
    )
    reader.end()
    return state


def whole_state(writer: Writer) -> bytes:
    """Return a state that begins with its owner, with a digest at its end."""
    body = writer.to_bytes()
    return body + digest(labels.SILO_STATE, body)


def read_state(data: bytes, owner: bytes) -> Reader:
    """Return a reader of a whole state, behind its owner.

    Raises:
        MalformedMessage: torn, altered, or of another setup or silo.
    """
    body = data[:-DIGEST_BYTES]
    if digest(labels.SILO_STATE, body) != data[-DIGEST_BYTES:]:
        raise MalformedMessage("a silo state that is torn or of another version")
    reader = Reader(body)
    if reader.fixed(DIGEST_BYTES) != owner:
        raise MalformedMessage("a silo state of another setup or silo")
    return reader


def _write_secrets(writer: Writer, state: SiloState) -> None:
    """Append the secrets of every slot that is left."""
    writer.integer(len(state.secrets), 2)
    for slot, own in state.secrets.items():
        writer.integer(slot, 4).fixed(own.mask_seed, MASK_SEED_BYTES)
        writer.fixed(own.agreement.to_bytes(), KEY_BYTES)


def _read_secrets(reader: Reader) -> dict[int, SlotSecrets]:
    """Read what :func:`_write_secrets` wrote."""
    secrets = {}
    for _ in range(reader.integer(2)):
        slot, mask_seed = reader.integer(4), reader.fixed(MASK_SEED_BYTES)
        agreement = AgreementKey.from_bytes(reader.fixed(KEY_BYTES))
        secrets[slot] = SlotSecrets(mask_seed, agreement)
    return secrets


def _write_held(writer: Writer, state: SiloState, num_silos: int) -> None:
    """Append the shares that are held, for the slots whose secrets are left."""
    size = len(state.secrets) * SHARE_PAIR_BYTES
    writer.fixed(encode_silos(state.held, num_silos), bitmap_bytes(num_silos))
    for _, shares in sorted(state.held.items()):
        writer.fixed(shares, size)


def _read_held(reader: Reader, num_silos: int, num_slots: int) -> dict[int, bytes]:
    """Read what :func:`_write_held` wrote."""
    silos = decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)
    return {silo: reader.fixed(num_slots * SHARE_PAIR_BYTES) for silo in silos}


def write_progress(
    writer: Writer, progress: SlotProgress | None, num_silos: int
) -> None:
    """Append the latest slot, if there is one."""
    writer.integer(progress is not None, 1)
    if progress is None:
        return
    writer.integer(progress.slot, 4).integer(progress.round_number, 4)
    writer.fixed(progress.model_digest, DIGEST_BYTES)
    writer.fixed(progress.head, HEAD_BYTES)
    for data in (
        progress.slot_digest,
        encode_silos(progress.cohort, num_silos),
        encode_parts(progress.parts, num_silos),
        progress.words_digest,
        encode_silos(progress.survivors, num_silos),
        progress.reveal,
        progress.sum_digest,
    ):
        writer.prefixed(data, MAX_STATE_FIELD_BYTES)


def read_progress(reader: Reader, num_silos: int) -> SlotProgress | None:
    """Read what :func:`_write_progress` wrote."""
    if not reader.integer(1):
        return None
    slot, round_number = reader.integer(4), reader.integer(4)
    model_digest, head = reader.fixed(DIGEST_BYTES), reader.fixed(HEAD_BYTES)
    slot_digest, cohort, parts, words_digest, survivors, reveal, sum_digest = (
        reader.prefixed(MAX_STATE_FIELD_BYTES) for _ in range(7)
    )
    return SlotProgress(
        slot,
        round_number,
        model_digest,
        head,
        slot_digest,
        decode_silos(cohort, num_silos),
        decode_parts(parts, num_silos),
        words_digest,
        decode_silos(survivors, num_silos),
        reveal,
        sum_digest,
    )
