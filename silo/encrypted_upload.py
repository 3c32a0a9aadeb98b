"""This silo's half of secure aggregation by encryption.

What encrypts and decrypts are other processes (``crypto.bfv.workers``), which learn the
key that opens every silo's upload. They start when an answer takes them, in a tenth of
a second, and end with it: during the hours of a training no process but this one holds
the key, and none holds memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from crypto.bfv.messages import ENCRYPTED_PREFIX_BYTES
from crypto.bfv.silo_side import BfvSiloSide
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike
from crypto.errors import DecryptionRefused
from crypto.frame import OVERHEAD_BYTES
from crypto.keys import IdentityKey
from crypto.secagg.parts import Parts
from crypto.secagg.upload import Upload
from protocol.packing import layouts
from protocol.plan import RunPlan
from silo.secure_upload import (
    Opened,
    SecureUpload,
    Sent,
    SharedKey,
    SideArguments,
    signers_of,
)
from silo.store import RunStore


class EncryptedUpload(SecureUpload[BfvSiloSide]):
    """One silo's setups and slots in a run with encryption.

    Args:
        make_workers: the processes for one answer; they start nothing by themselves.

    Raises:
        StateBroken: journal or state is damaged, or they do not belong together.
    """

    protection: ClassVar[str] = "bfv"
    dealing: ClassVar[str] = "key"
    handing: ClassVar[str] = "handed"
    handed: ClassVar[str] = "key"

    def __init__(
        self,
        plan: RunPlan,
        store: RunStore,
        identity: IdentityKey,
        silo: int,
        make_workers: Callable[[], Workers],
    ) -> None:
        self._make_workers = make_workers
        self._workers = make_workers()
        self._layouts_of = partial(layouts, plan)
        super().__init__(plan, store, identity, silo)

    def close(self) -> None:
        """Close the journal, and end the processes if any work."""
        try:
            self._workers.close()
        finally:
            super().close()

    def check_setup(self, setup: int) -> None:
        """Refuse a round of a setup that is over for this silo, before it trains."""
        super().check_setup(setup)
        with self._in_order("ready") as side:
            side.check_unrefused()

    def send(self, request: BytesLike, upload: Upload, parts: Parts | None) -> Sent:
        """Let a vector leave, encrypted; the slot is burnt before.

        Asked again it is encrypted anew, from the very same words.

        Raises:
            WorkerFailed: a process crashed; asked again, it may succeed.
        """
        with self._at_work("encrypted") as side:
            reply = side.encrypt(request, upload.words, parts)
        self._save()
        size = reply.nbytes - OVERHEAD_BYTES - ENCRYPTED_PREFIX_BYTES
        return Sent(reply, side.latest_slot.cohort, size)

    def open_sum(self, request: BytesLike) -> Opened:
        """Decrypt the sum over the survivors; the round's update is destroyed.

        So it is if the ciphertext is another one: this round is over for this silo,
        and so is the setup.

        Raises:
            DecryptionRefused: what was to be decrypted is not that sum.
            WorkerFailed: a process crashed; asked again, it may succeed.
        """
        with self._at_work("decrypt") as side:
            try:
                reply = side.decrypt(request)
            except DecryptionRefused:
                self._store.destroy_update(side.latest_slot.round_number)
                raise
        self._save()
        slot = side.latest_slot
        self._store.destroy_update(slot.round_number)
        signers = signers_of(request, len(self._plan.silos))
        return Opened(reply, slot, signers, side.own_sum_digest)

    @property
    def shared_key(self) -> SharedKey | None:
        """The key that all members of this setup share, once this silo is one."""
        if self._side is None or not self._side.has_joined:
            return None
        return SharedKey(self._side.key_maker, self._side.commitment)

    @contextmanager
    def _at_work(self, stage: str) -> Iterator[BfvSiloSide]:
        """Lend the side; the processes that it starts end here, whatever happens."""
        try:
            with self._in_order(stage) as side:
                yield side
        finally:
            self._workers.close()
            self._workers = self._make_workers()
            if self._side is not None:
                self._side.work_with(self._workers)

    def _new_side(self, arguments: SideArguments) -> BfvSiloSide:
        """Return the side of a setup that begins."""
        return BfvSiloSide(
            *arguments, workers=self._workers, layouts_of=self._layouts_of
        )
