"""One setup as both sides see it: what is pinned, which headers and sizes it allows.

Every frame of a setup is opened here, against the one header that it must have.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from crypto.bfv.parameters import FRESH_BYTES, SEALED_KEY_BYTES, SUMMED_BYTES
from crypto.encoding import BytesLike
from crypto.errors import ProtocolViolation
from crypto.frame import (
    AGGREGATOR,
    EVERYONE,
    NO_SLOT,
    OVERHEAD_BYTES,
    Header,
    Kind,
    open_digested,
    open_expected,
    read_header,
    verify_frame,
)
from crypto.keys import KEY_BYTES
from crypto.secagg.checks import are_canonical, check_enough, has_twins
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import setup_digest
from crypto.secagg.messages import (
    DIGEST_BYTES,
    MASKED_PREFIX_BYTES,
    Advertise,
    Keys,
    Signed,
    advertise_bytes,
    bitmap_bytes,
    public_keys,
    sealed_shares_bytes,
)
from crypto.secagg.ready import READY_BYTES
from crypto.shamir import SHARE_BYTES
from crypto.signatures import SIGNATURE_BYTES

PASSED_ON = frozenset({Kind.ADVERTISE, Kind.READY, Kind.CONFIRM})
"""Messages of silos that other silos verify: they are addressed to everyone."""


@dataclass(frozen=True)
class Setup:
    """Parameters, roster, aggregator, run and number: fixed before the first message.

    Raises:
        ValueError: lengths are wrong, or two parties have one identity key.
    """

    config: SecAggConfig
    roster: tuple[bytes, ...]
    aggregator_public: bytes
    run: bytes
    number: int
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Compute T0."""
        digest = setup_digest(
            self.config, self.roster, self.aggregator_public, self.run, self.number
        )
        object.__setattr__(self, "digest", digest)

    def silo_header(self, kind: Kind, silo: int, slot: int = NO_SLOT) -> Header:
        """Return the header of a silo's message."""
        recipient = EVERYONE if kind in PASSED_ON else AGGREGATOR
        return Header(kind, self.run, self.number, slot, silo, recipient)

    def aggregator_header(
        self, kind: Kind, slot: int = NO_SLOT, recipient: int = EVERYONE
    ) -> Header:
        """Return the header of a message of the aggregator."""
        return Header(kind, self.run, self.number, slot, AGGREGATOR, recipient)

    def share_header(self, sender: int, recipient: int) -> Header:
        """Return the header that one silo's sealed shares for another are bound to."""
        return Header(Kind.SHARES, self.run, self.number, NO_SLOT, sender, recipient)

    def open_from_aggregator(
        self, data: BytesLike, expected: Header, num_ciphertexts: int = 0
    ) -> tuple[memoryview, bytes]:
        """Return the body of a frame of the aggregator with this header, and SHA-256.

        Raises:
            MalformedMessage, InvalidSignature, ProtocolViolation: as ``open_expected``.
        """
        limit = max_frame_bytes(
            Kind(expected.kind), self.config, num_ciphertexts=num_ciphertexts
        )
        return open_digested(self.aggregator_public, data, expected, max_bytes=limit)

    def open_from_silo(
        self,
        data: BytesLike,
        kind: Kind,
        slot: int = NO_SLOT,
        num_words: int = 0,
        *,
        num_ciphertexts: int = 0,
    ) -> tuple[int, Signed]:
        """Return who sent a frame of this kind and slot, its body and signature.

        The body of MASKED or ENCRYPTED is not copied: it is a view of the frame.

        Raises:
            MalformedMessage, InvalidSignature, ProtocolViolation: as ``open_expected``;
                or the sender is not in the roster.
        """
        silo = read_header(data).sender
        if silo >= self.config.num_silos:
            raise ProtocolViolation(f"{kind.name} of a sender who is not in the roster")
        limit = max_frame_bytes(
            kind, self.config, num_words, num_ciphertexts=num_ciphertexts
        )
        header = self.silo_header(kind, silo, slot)
        body = open_expected(self.roster[silo], data, header, max_bytes=limit)
        return silo, Signed(body, bytes(memoryview(data)[-SIGNATURE_BYTES:]))

    def verify_all(
        self, kind: Kind, slot: int, body: BytesLike, signatures: Mapping[int, bytes]
    ) -> None:
        """Return if each of these silos has signed this one body.

        Raises:
            InvalidSignature: one has not; the message names it.
        """
        for silo, signature in signatures.items():
            header = self.silo_header(kind, silo, slot)
            verify_frame(self.roster[silo], header, body, signature)

    def open_keys(self, body: BytesLike) -> dict[int, BytesLike]:
        """Return the bodies of ADVERTISE in a KEYS message, every one of them checked.

        They are views of the message: nothing of it is copied but its public keys.

        Raises:
            MalformedMessage: not a canonical message.
            InvalidSignature: an advertisement was not made by its silo for this setup.
            ProtocolViolation: too few silos, a public key that occurs twice, or one
                that is not canonical.
        """
        config = self.config
        message = Keys.from_bytes(body, config.num_silos, config.num_slot_keys)
        check_enough(config, message.advertisements, "KEYS")
        for silo, signed in message.advertisements.items():
            signatures = {silo: signed.signature}
            self.verify_all(Kind.ADVERTISE, NO_SLOT, signed.body, signatures)
        entries = dict(self._entries(body))
        for silo, entry in entries.items():
            if not are_canonical(public_keys(entry)):
                raise ProtocolViolation(f"KEYS of silo {silo} are not canonical")
        if has_twins(public_keys(entry) for entry in entries.values()):
            raise ProtocolViolation("KEYS holds one public key twice")
        return entries

    def channel_publics(self, body: BytesLike) -> dict[int, bytes]:
        """Return the keys that seal shares, by silo, of a KEYS checked before."""
        return {silo: bytes(entry[:KEY_BYTES]) for silo, entry in self._entries(body)}

    def slot_publics(
        self, body: BytesLike, slot: int, silos: Collection[int]
    ) -> dict[int, bytes]:
        """Return the agreement keys of one slot, by silo, of a KEYS checked before."""
        start = KEY_BYTES + slot * (KEY_BYTES + DIGEST_BYTES)
        return {
            silo: bytes(entry[start : start + KEY_BYTES])
            for silo, entry in self._entries(body)
            if silo in silos
        }

    def advertised(
        self, body: BytesLike, silos: Collection[int]
    ) -> dict[int, Advertise]:
        """Return what these silos advertised, of a KEYS checked before."""
        return {
            silo: Advertise.from_bytes(entry, self.config.num_slot_keys)
            for silo, entry in self._entries(body)
            if silo in silos
        }

    def _entries(self, body: BytesLike) -> Iterator[tuple[int, BytesLike]]:
        """Yield the bodies of ADVERTISE in a KEYS that was checked before."""
        num_slots = self.config.num_slot_keys
        message = Keys.from_bytes(body, self.config.num_silos, num_slots)
        for silo, signed in message.advertisements.items():
            yield silo, signed.body


def max_frame_bytes(
    kind: Kind, config: SecAggConfig, num_words: int = 0, *, num_ciphertexts: int = 0
) -> int:
    """Return the length that a frame of this kind has when every silo takes part.

    No frame of the kind is longer; transports may use it as their limit.
    """
    n, num_slots = config.num_silos, config.num_slot_keys
    bitmap, sealed = bitmap_bytes(n), (n - 1) * sealed_shares_bytes(num_slots)
    body = {
        Kind.ADVERTISE: advertise_bytes(num_slots),
        Kind.KEYS: bitmap + n * (advertise_bytes(num_slots) + SIGNATURE_BYTES),
        Kind.SHARES: DIGEST_BYTES + sealed,
        Kind.ENVELOPES: DIGEST_BYTES + bitmap + sealed,
        Kind.READY: READY_BYTES,
        Kind.ACTIVE: READY_BYTES + bitmap + n * SIGNATURE_BYTES,
        Kind.MASKED: MASKED_PREFIX_BYTES + 8 * num_words,
        Kind.SURVIVORS: DIGEST_BYTES + bitmap,
        Kind.CONFIRM: DIGEST_BYTES + bitmap,
        Kind.CONFIRMS: DIGEST_BYTES + 2 * bitmap + n * SIGNATURE_BYTES,
        Kind.REVEAL: DIGEST_BYTES + n * SHARE_BYTES,
        Kind.SUM: 2 * DIGEST_BYTES + bitmap,
        Kind.DEALT: 2 * DIGEST_BYTES + (n - 1) * SEALED_KEY_BYTES,
        Kind.HANDED: 2 * DIGEST_BYTES + bitmap + SEALED_KEY_BYTES,
        Kind.ENCRYPTED: DIGEST_BYTES + 4 + num_ciphertexts * FRESH_BYTES,
        Kind.DECRYPT: DIGEST_BYTES
        + 2 * bitmap
        + n * SIGNATURE_BYTES
        + 4
        + num_ciphertexts * SUMMED_BYTES,
        Kind.DECRYPTED: DIGEST_BYTES + 8 + 8 * num_words,
    }
    return OVERHEAD_BYTES + body[kind]
