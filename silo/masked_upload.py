"""This silo's half of secure aggregation by masks."""

from typing import ClassVar

from crypto.encoding import BytesLike
from crypto.secagg.parts import Parts
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.upload import Upload
from silo.secure_upload import (
    Opened,
    SecureUpload,
    Sent,
    SideArguments,
    signers_of,
)


class MaskedUpload(SecureUpload[SiloSide]):
    """One silo's setups and slots in a run with masks.

    Raises:
        StateBroken: journal or state is damaged, or they do not belong together.
    """

    protection: ClassVar[str] = "mask"
    dealing: ClassVar[str] = "shares"
    handing: ClassVar[str] = "envelopes"
    handed: ClassVar[str] = "envelopes"

    def send(self, request: BytesLike, upload: Upload, parts: Parts | None) -> Sent:
        """Let a vector leave, masked where it stands; the slot is burnt before."""
        with self._in_order("masked") as side:
            reply = side.mask(request, upload, parts)
        self._save()
        return Sent(reply, side.latest_slot.cohort, upload.words.nbytes)

    def open_sum(self, request: BytesLike) -> Opened:
        """Reveal shares for the survivors; the round's update is destroyed."""
        with self._in_order("reveal") as side:
            reply = side.reveal(request)
        self._save()
        slot = side.latest_slot
        self._store.destroy_update(slot.round_number)
        return Opened(reply, slot, signers_of(request, len(self._plan.silos)))

    def _new_side(self, arguments: SideArguments) -> SiloSide:
        """Return the side of a setup that begins."""
        return SiloSide(*arguments)
