"""The silo's side of secure aggregation by encryption, bytes in and bytes out.

::

    advertise → share → receive_shares                  once for the setup
    ready → encrypt → confirm → decrypt → close_slot    once for each slot

The stages are those of ``crypto.secagg.silo_side``, and so are its rules 1, 2, 3 and 5.
In place of rule 4:

4. A silo confirms one list of survivors for each round, ever: READY of another slot of
   that round is refused afterwards. One silo that decrypts is enough to open the sum
   over a list with ``threshold`` confirmations, and any two such lists have an honest
   silo in common; so a round has one of them.
   A silo decrypts one ciphertext for each round, ever: the sum over that list. Before a
   value leaves the process that decrypts, both tags of every part and the noise that is
   left are checked; what fails is answered with the one word "refused", and was the
   last ciphertext of its setup: each refusal may tell a digit of the key.
   It accepts no other SUM than the one it has decrypted.

ENCRYPTED is made anew when it is asked for again, from the very same words.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.bfv.decrypted import Decrypted
from crypto.bfv.digits import (
    Layout,
    LayoutsOf,
    add_words,
    check_layouts,
    chunks_in,
    slot_blocks,
    values_in,
    words_in,
)
from crypto.bfv.messages import (
    ENCRYPTED_PREFIX_BYTES,
    Decrypt,
    encrypted_prefix,
)
from crypto.bfv.parameters import (
    BLOCK_CHUNKS,
    FRESH_BYTES,
    MIN_NOISE_BUDGET_BITS,
    SUMMED_BYTES,
    Residues,
)
from crypto.bfv.residues import unpack_residues
from crypto.bfv.silo_setup import BfvSiloSetup
from crypto.bfv.silo_state import BfvSiloState, decode_state, encode_state
from crypto.bfv.sum_tags import SumTags
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike, digest
from crypto.errors import (
    DecryptionRefused,
    MalformedMessage,
    ProtocolViolation,
)
from crypto.frame import HEADER_BYTES, Kind, finish_frame, make_frame
from crypto.keys import IdentityKey
from crypto.secagg.checks import (
    check_same,
)
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import sum_digest
from crypto.secagg.journal import Journal, Stage
from crypto.secagg.messages import DIGEST_BYTES, Masked, SumNotice, Survivors
from crypto.secagg.parts import Parts, own_places, whole, within, words_of
from crypto.secagg.ready import Active
from crypto.secagg.setup import Setup
from crypto.secagg.silo_slot import check_active, check_confirms
from crypto.secagg.silo_state import SlotProgress
from crypto.signatures import SIGNATURE_BYTES

Words = npt.NDArray[np.uint64]


class BfvSiloSide(BfvSiloSetup):
    """One silo's part in one setup with encryption, and its slots.

    Guarantees: an aggregator to which no silo gives the shared key learns of an honest
    silo's vector only sums over at least ``min_cohort`` silos, one for each round.

    Args: as for ``SiloSide``, and
        workers: the processes that encrypt and decrypt.
        layouts_of: how the parts of a round are read; it follows from the plan.

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        config: SecAggConfig,
        roster: Sequence[bytes],
        aggregator_public: bytes,
        identity: IdentityKey,
        index: int,
        run: bytes,
        setup: int,
        journal: Journal,
        *,
        workers: Workers,
        layouts_of: LayoutsOf,
    ) -> None:
        pinned = Setup(config, tuple(roster), aggregator_public, run, setup)
        super().__init__(pinned, identity, index, journal, workers)
        self._layouts_of = layouts_of

    def encrypt(
        self, active: BytesLike, words: Words, parts: Parts | None = None
    ) -> memoryview:
        """Return the ENCRYPTED frame that answers ACTIVE; the slot is burnt before.

        Args:
            active: the ACTIVE frame.
            words: the packed words of this silo's parts in a row, uint64 ``[w]``. For a
                resend after a crash they are the very same.
            parts: of the vector, as this silo computes them from the plan; by default
                one, to which every member contributes.

        Raises:
            ValueError: the words are not as long as this silo's parts, or do not fit
                their layout.
            CryptoError: as ``SiloSide.mask``.
            WorkerFailed: a process that encrypts crashed; asked again, it may succeed.
        """
        state, before = self._state, self._progress("encrypt")
        header = self._setup.aggregator_header(Kind.ACTIVE, before.slot)
        body = self._open(active, header)
        message = Active.from_bytes(body, self._config.num_silos)
        parts = parts or whole(words.size, state.members)
        check_layouts(self._layouts_of(before.round_number, parts), parts)
        if words.size != (expected := words_of(parts, self._index)):
            raise ValueError(f"words: {words.size}, this silo's parts have {expected}")
        ready = self._expected_ready(before)
        progress = check_active(
            self._setup, self._index, state.members, ready, before, message, parts
        )
        content = digest(labels.REQUEST_DIGEST, words.data)
        progress = replace(progress, words_digest=content)
        if before.slot_digest:
            same = progress == before
            check_same(same, "ACTIVE or vector", f"slot {before.slot}")
        if before.is_over:
            raise ProtocolViolation(f"slot {before.slot} has been decrypted")
        self._promise(Stage.MASKED, progress, progress.slot_digest + content)
        frame = self._make_encrypted(progress, words)
        self._state = replace(state, progress=progress)
        return frame

    def decrypt(self, request: BytesLike) -> bytes:
        """Return the DECRYPTED frame: the sum over the survivors, and nothing else.

        Guarantees: what leaves is the sum of the words of just those survivors that
        at least ``threshold`` silos have confirmed, except with a probability below
        2^-80 (``crypto.bfv.tags``); the silo answers one DECRYPT for each round, and
        only the very same one again.

        Raises:
            DecryptionRefused: another ciphertext than that sum, or too much noise in
                it; nothing of it leaves, round and setup are closed for this silo.
            CryptoError: this silo confirmed nothing, or another list; confirmations are
                too few, forged, or of silos outside the cohort; another DECRYPT was
                answered; or the slot was closed.
            WorkerFailed: a process that decrypts crashed; asked again, it may succeed.
        """
        progress = self._progress("decrypt")
        layouts = self._layouts_of(progress.round_number, progress.parts)
        num_ciphertexts = sum(chunks_in(layout) for layout in layouts)
        header = self._setup.aggregator_header(Kind.DECRYPT, progress.slot)
        body, body_digest = self._setup.open_from_aggregator(
            request, header, num_ciphertexts
        )
        message = Decrypt.from_bytes(body, self._config.num_silos, num_ciphertexts)
        check_confirms(self._setup, progress, message.confirms)
        if progress.sum_digest:
            raise ProtocolViolation(f"slot {progress.slot} is closed")
        content = digest(labels.REQUEST_DIGEST, body_digest)
        promised = self._survivors_body(progress) + content
        self._promise(Stage.REVEAL, progress, promised)
        try:
            words = self._decrypt_sum(progress, layouts, message.ciphertexts)
        except DecryptionRefused:
            self._promise(Stage.REFUSED, progress, promised)
            raise
        own_sum = sum_digest(progress.slot_digest, words.data.cast("B"))
        confirmed = Survivors(progress.slot_digest, progress.survivors)
        notice = SumNotice(confirmed, own_sum).to_bytes(self._config.num_silos)
        self._promise(Stage.SUM, progress, notice)
        self._state = replace(
            self._state, progress=replace(progress, reveal=content + own_sum)
        )
        header = self._setup.silo_header(Kind.DECRYPTED, self._index, progress.slot)
        reply = Masked(progress.slot_digest, words.data.cast("B"))
        return make_frame(self._identity, header, reply.prefix(), reply.words)

    @property
    def own_sum_digest(self) -> bytes:
        """Digest of the sum that this silo decrypted in its latest slot; b"" before."""
        return self._progress("own_sum_digest").reveal[DIGEST_BYTES:]

    def _make_encrypted(self, progress: SlotProgress, words: Words) -> memoryview:
        """Return ENCRYPTED: every part of this silo's, in a row."""
        layouts = self._layouts_of(progress.round_number, progress.parts)
        tags = SumTags(self._state.secret_key, progress.slot_digest)
        own = list(own_places(progress.parts, self._index))
        num_ciphertexts = sum(chunks_in(layouts[part]) for part, _, _ in own)
        size = ENCRYPTED_PREFIX_BYTES + num_ciphertexts * FRESH_BYTES
        frame = memoryview(bytearray(HEADER_BYTES + size + SIGNATURE_BYTES))
        at = HEADER_BYTES + ENCRYPTED_PREFIX_BYTES
        frame[HEADER_BYTES:at] = encrypted_prefix(progress.slot_digest, num_ciphertexts)
        for part, place, _ in own:
            blocks = slot_blocks(words[place], layouts[part])
            tagged = tags.with_tags(blocks, layouts[part], part, self._index)
            for made in self._workers.encrypt(self._state.secret_key, tagged):
                stop = at + memoryview(made).nbytes
                frame[at:stop] = memoryview(made).cast("B")
                at = stop
        header = self._setup.silo_header(Kind.ENCRYPTED, self._index, progress.slot)
        finish_frame(self._identity, header, frame)
        return frame.toreadonly()

    def _decrypt_sum(
        self,
        progress: SlotProgress,
        layouts: tuple[Layout, ...],
        ciphertexts: memoryview,
    ) -> Words:
        """Return the words of the sum, every part checked before any value is let out.

        Raises:
            DecryptionRefused: a check failed, whichever.
        """
        tags = SumTags(self._state.secret_key, progress.slot_digest)
        survivors = within(progress.parts, progress.survivors)
        is_right, at, opened = True, 0, []
        with ExitStack() as held:
            for part, layout in enumerate(layouts):
                size = chunks_in(layout) * SUMMED_BYTES
                try:
                    found = self._workers.decrypt(
                        self._state.secret_key,
                        summed_blocks(ciphertexts[at : at + size]),
                        tag_seed=tags.seed(part),
                        num_values=values_in(layout),
                    )
                except MalformedMessage:
                    raise DecryptionRefused from None
                held.callback(found.discard)
                opened.append(found)
                at += size
                group = survivors[part].contributors
                is_right &= tags.is_sum(found.residuals, part, group)
                is_right &= found.noise_budget_bits >= MIN_NOISE_BUDGET_BITS
            if not is_right:
                raise DecryptionRefused
            return _words_of(opened, layouts)

    def _encode(self, state: BfvSiloState) -> bytes:
        """Return a state as bytes. SECRET: the shared key."""
        return encode_state(state, self._owner(), self._config.num_silos)

    def _decode(self, data: bytes) -> BfvSiloState:
        """Return the state of :meth:`_encode`."""
        return decode_state(data, self._owner(), self._config.num_silos)

    def _check_sum(self, progress: SlotProgress, notice: SumNotice) -> SlotProgress:
        """Return the closed slot; SUM must be the sum that this silo decrypted."""
        own_sum = self.own_sum_digest
        if own_sum and own_sum != notice.sum_digest:
            raise ProtocolViolation("SUM is not the sum that this silo decrypted")
        return super()._check_sum(progress, notice)

    def _is_spent(self, slot: int) -> bool:
        """Return whether the slot is not above the latest."""
        progress = self._state.progress
        return progress is not None and slot <= progress.slot

    def _forget_before(self, slot: int, state: BfvSiloState) -> BfvSiloState:
        """Return the state: a slot has no secrets of its own."""
        return state


def summed_blocks(ciphertexts: memoryview) -> Iterator[Residues]:
    """Yield summed ciphertexts as residues ``[c, 2, N]``, block by block.

    Raises:
        MalformedMessage: a residue out of range.
    """
    for start in range(0, ciphertexts.nbytes, BLOCK_CHUNKS * SUMMED_BYTES):
        block = ciphertexts[start : start + BLOCK_CHUNKS * SUMMED_BYTES]
        number = block.nbytes // SUMMED_BYTES
        residues = unpack_residues(block, 2 * number)
        yield residues.reshape(number, 2, -1)


def _words_of(opened: Sequence[Decrypted], layouts: tuple[Layout, ...]) -> Words:
    """Return the words of all parts in a row, let out of the processes."""
    words = np.zeros(sum(words_in(layout) for layout in layouts), np.uint64)
    at = 0
    for found, layout in zip(opened, layouts, strict=True):
        size = words_in(layout)
        add_words(words[at : at + size], found.slots(), layout)
        at += size
    return words
