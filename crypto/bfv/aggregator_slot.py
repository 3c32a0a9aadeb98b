"""The aggregator's part in one slot with encryption: from READY to one sum.

::

    add_ready … active → add_encrypted … survivors → add_confirm … confirms
      → decrypt_request → add_decrypted … decrypted_sum → sum_notice

The first polynomials of ciphertexts are added here, as they arrive; the second ones are
expanded from their seeds and added once the survivors stand, by the workers. The
aggregator holds no key.
"""

from collections.abc import Collection, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from crypto.bfv.digits import Layout, check_layouts, chunks_in
from crypto.bfv.messages import decrypt_prefix, read_encrypted
from crypto.bfv.parameters import (
    FRESH_BYTES,
    POLY_BYTES,
    POLY_DEGREE,
    SEED_BYTES,
    SUMMED_BYTES,
)
from crypto.bfv.residues import (
    Packed,
    add_residues,
    pack_residues,
    subtract_residues,
    unpack_rows,
)
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.frame import HEADER_BYTES, Kind, finish_frame
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_stages import AggregatorStages, digest_of
from crypto.secagg.aggregator_state import SlotState
from crypto.secagg.checks import check_part, is_new, naming, require_call
from crypto.secagg.digests import sum_digest
from crypto.secagg.messages import Confirms, Masked
from crypto.secagg.parts import check_groups, check_parts, within
from crypto.secagg.setup import Setup
from crypto.signatures import SIGNATURE_BYTES

Words = npt.NDArray[np.uint64]
Seeds = npt.NDArray[np.uint8]
_BLOCK_POLYS = 8
"""Polynomials unpacked and added together: 256 KiB, which stay in the cache."""


class BfvSlot(AggregatorStages):
    """One slot of a setup whose members stand. Made by ``BfvAggregatorSide``.

    ``total`` are the summed ciphertexts ``[c, 2, N]`` of all parts, flat.
    """

    def __init__(
        self,
        setup: Setup,
        identity: IdentityKey,
        agreed: bytes,
        members: tuple[int, ...],
        state: SlotState,
        *,
        workers: Workers,
        layouts: tuple[Layout, ...],
    ) -> None:
        super().__init__(setup, identity, agreed, members, state)
        check_layouts(layouts, state.parts)
        self._workers, self._layouts = workers, layouts
        self._chunks = [chunks_in(layout) for layout in layouts]
        self._seeds: dict[int, Seeds] = {}
        self._sums: dict[bytes, Words] = {}

    def check_new(self) -> None:
        """Make room for the sum of a new slot.

        Raises:
            ValueError: the parts are none, too many or too long.
            ProtocolViolation: too few members contribute to a part.
        """
        parts = self._state.parts
        check_parts(parts)
        check_groups(parts, self._members, self._config.min_cohort, "the dealing")
        self._total = np.zeros(2 * POLY_DEGREE * self.num_ciphertexts, np.uint64)

    @property
    def num_ciphertexts(self) -> int:
        """The ciphertexts of all parts."""
        return sum(self._chunks)

    def upload_bytes(self, silo: int) -> int:
        """Return the bytes of a silo's ciphertexts."""
        return FRESH_BYTES * sum(size for _, size in self._places((silo,)))

    def add_encrypted(self, data: BytesLike) -> None:
        """Take one ENCRYPTED and add its ciphertexts to the sum.

        Raises:
            CryptoError: forged, malformed, of another length, a residue out of range,
                or encrypted for another cohort; of a silo outside the cohort; a second
                one; or SURVIVORS has been sent. The sum is unchanged.
        """
        state = self._state
        require_call(bool(state.active), "add_encrypted() before active()")
        silo, signed = self._setup.open_from_silo(
            data, Kind.ENCRYPTED, state.slot, num_ciphertexts=self.num_ciphertexts
        )
        with naming(silo):
            check_part((silo,), self.cohort, "ENCRYPTED")
            places = list(self._places((silo,)))
            number = sum(size for _, size in places)
            found, view = read_encrypted(signed.body, number)
            self._check_digest(found)
            if is_new(state.masked, silo, signed.signature, bool(state.survivors)):
                fresh = np.frombuffer(view, np.uint8).reshape(number, FRESH_BYTES)
                self._add(fresh[:, :POLY_BYTES], places)
                self._seeds[silo] = fresh[:, POLY_BYTES:].copy()
                state.masked[silo] = signed.signature

    @property
    def is_last(self) -> bool:
        """Whether silos may have confirmed, which they do once for a round."""
        return bool(self._state.survivors)

    def decrypt_request(self) -> memoryview:
        """Return the DECRYPT frame: CONFIRMS and the sum, for silos to decrypt.

        Every survivor may get it. It is made anew by each call, always the same.

        Raises:
            ProtocolViolation: fewer confirmations than the threshold.
        """
        self.confirms()
        total = self._total.reshape(-1, 2, POLY_DEGREE)
        prefix = decrypt_prefix(
            Confirms(self._survivors(), self._state.confirmed),
            self._config.num_silos,
            len(total),
        )
        at = HEADER_BYTES + len(prefix)
        size = at + len(total) * SUMMED_BYTES + SIGNATURE_BYTES
        frame = memoryview(bytearray(size))
        frame[HEADER_BYTES:at] = prefix
        packed = np.frombuffer(frame[at:-SIGNATURE_BYTES], np.uint8)
        pack_residues(total, packed.reshape(-1, 2, POLY_BYTES))
        header = self._setup.aggregator_header(Kind.DECRYPT, self._state.slot)
        finish_frame(self._identity, header, frame)
        return frame.toreadonly()

    def add_decrypted(self, data: BytesLike) -> None:
        """Take one DECRYPTED.

        Raises:
            CryptoError: forged, malformed, of another length or cohort; of a silo that
                is no survivor; or a second, different one.
        """
        state = self._state
        require_call(bool(state.confirms), "add_decrypted() before confirms()")
        num_words = sum(part.num_words for part in state.parts)
        silo, signed = self._setup.open_from_silo(
            data, Kind.DECRYPTED, state.slot, num_words
        )
        with naming(silo):
            check_part((silo,), self.survivor_indices, "DECRYPTED")
            message = Masked.from_bytes(signed.body, num_words)
            self._check_digest(message.slot_digest)
            found = sum_digest(self._slot_digest(), message.words)
            if is_new(state.reveals, silo, found, is_closed=False):
                state.reveals[silo] = found
            if found not in self._sums:
                words = np.frombuffer(message.words, "<u8").astype(np.uint64)
                self._sums[found] = words

    @property
    def num_witnesses(self) -> int:
        """How many silos must have decrypted the same sum: c + 1, at least two."""
        return max(2, self._config.max_colluding + 1)

    @property
    def agreeing_silos(self) -> tuple[int, ...]:
        """The silos that decrypted the sum that most have; () before any did."""
        groups = [self._silos_of(found) for found in self._sums]
        return max(groups, key=len, default=())

    @property
    def decrypted_silos(self) -> tuple[int, ...]:
        """The silos whose DECRYPTED was taken."""
        return tuple(sorted(self._state.reveals))

    def decrypted_sum(self) -> Words:
        """Return the sum of the survivors' packed vectors.

        Returns:
            uint64 ``[w]``, all parts in a row, as masks would give it.

        Raises:
            ProtocolViolation: fewer than ``num_witnesses`` silos agree on a sum, or on
                another than SUM has named.
        """
        agreeing = self.agreeing_silos
        if len(agreeing) < self.num_witnesses:
            raise ProtocolViolation(
                f"{len(agreeing)} silos agree on the sum, {self.num_witnesses} must"
            )
        found = self._state.reveals[agreeing[0]]
        if self._state.sum_digest not in (b"", found):
            raise ProtocolViolation("silos agree on another sum than the one announced")
        self._state.sum_digest = found
        return self._sums[found]

    def resume(self, total: Words | None) -> None:
        """Take up the sum again that was saved when the survivors were closed.

        What was decrypted is asked for again: silos give the identical answer.

        Raises:
            MalformedMessage: another sum, or none.
        """
        state = self._state
        if not state.survivors:
            self.check_new()
            return
        state.reveals.clear()
        if total is not None:
            expected = 2 * POLY_DEGREE * self.num_ciphertexts
            if total.size != expected or digest_of(total) != state.masked_digest:
                raise MalformedMessage("the saved sum is damaged, or of another slot")
            self._total = total
        elif not state.sum_digest:
            raise MalformedMessage("the saved sum of this slot is missing")

    def _close_total(self) -> None:
        """Expand and add the second polynomials of all that were taken.

        Raises:
            WorkerFailed: a process crashed; the sum can be closed once more.
        """
        second = self._total.reshape(-1, 2, POLY_DEGREE)[:, 1]
        survivors = within(self._state.parts, self._state.masked)
        at = 0
        for part, size in zip(survivors, self._chunks, strict=True):
            seeds = self._seeds_of(part.contributors, at, size)
            for first, residues in self._workers.expand_sum(seeds):
                begin = at + first
                second[begin : begin + len(residues)] = residues
            at += size

    def _seeds_of(self, silos: Collection[int], first: int, size: int) -> Seeds:
        """Return the seeds ``[silos, size, SEED_BYTES]`` of some chunks."""
        found = np.empty((len(silos), size, SEED_BYTES), np.uint8)
        for row, silo in enumerate(silos):
            own = 0
            for place, length in self._places((silo,)):
                if place == first:
                    found[row] = self._seeds[silo][own : own + length]
                own += length
        return found

    def _add(self, packed: Packed, places: list[tuple[int, int]]) -> None:
        """Add the first polynomials of a silo's ciphertexts.

        Raises:
            MalformedMessage: a residue out of range; the sum is as it was.
        """
        num_added = 0
        try:
            for rows, block in self._blocks(packed, places):
                add_residues(rows, unpack_rows(block))
                num_added += 1
        except MalformedMessage:
            for rows, block in islice(self._blocks(packed, places), num_added):
                subtract_residues(rows, unpack_rows(block))
            raise

    def _blocks(
        self, packed: Packed, places: list[tuple[int, int]]
    ) -> Iterator[tuple[Words, Packed]]:
        """Yield what is to be added to, and the packed polynomials, block by block."""
        first, own = self._total.reshape(-1, 2, POLY_DEGREE)[:, 0], 0
        for place, length in places:
            for at in range(0, length, _BLOCK_POLYS):
                size = min(_BLOCK_POLYS, length - at)
                yield first[place + at :][:size], packed[own : own + size]
                own += size

    def _places(self, silos: Collection[int]) -> Iterator[tuple[int, int]]:
        """Yield first chunk and number of chunks of the parts of these silos."""
        at = 0
        for part, size in zip(self._state.parts, self._chunks, strict=True):
            if set(silos) & set(part.contributors):
                yield at, size
            at += size

    def _silos_of(self, found: bytes) -> tuple[int, ...]:
        """Return the silos that decrypted one sum."""
        reveals = self._state.reveals.items()
        return tuple(sorted(silo for silo, digest in reveals if digest == found))
