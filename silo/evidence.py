"""What a silo writes to its transcript: one method for each thing that happens.

Records hold digests, names and counts of bytes; never a secret, a path, or a value
that depends on this silo's images, but for what a mechanism spent on them, and the
scores of canaries, which their operator asked for.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from crypto.encoding import BytesLike
from crypto.keys import IdentityKey
from crypto.secagg.silo_state import SlotProgress
from protocol import model_records, records
from protocol.audit_records import (
    CanariesCommitted,
    CanariesOpened,
    Connected,
    HeadConflict,
)
from protocol.envelope import RoundRequest
from protocol.heads import Head
from protocol.measurement import MeasureRequest
from protocol.model_records import AuxiliarySent
from protocol.plan import RunPlan
from protocol.reference import ReferenceRequest
from protocol.stretches import Dealing, dealt_record
from protocol.sum_records import Decrypted, KeyShared
from protocol.traffic import broadcast_bytes
from protocol.transcript import TranscriptWriter, read_records
from protocol.version import SOFTWARE
from protocol.wire import PREFIX_BYTES

Place = Mapping[str, int]
"""Round number, setup and slot of a stage, by the names that records give them."""


class Evidence:
    """One silo's transcript of one run, begun or continued.

    Raises:
        TranscriptBroken: the transcript on disk cannot be continued.
    """

    def __init__(
        self, folder: Path, plan: RunPlan, silo: int, identity: IdentityKey
    ) -> None:
        self._plan, self._name, self._folder = plan, plan.silos[silo].name, folder
        self._transcript = TranscriptWriter(
            folder, party=self._name, plan_digest=plan.digest, identity=identity
        )
        first: records.Record = records.Resumed(software=SOFTWARE)
        if not self._transcript.size:
            first = records.Opened(
                plan=plan.digest.hex(), party=self._name, software=SOFTWARE
            )
        self._transcript.append(first)
        self._transcript.sign_head()

    def close(self) -> None:
        """Close the transcript."""
        self._transcript.close()

    def sign_head(self) -> Head:
        """Sign all that was recorded; it is on disk then."""
        return self._transcript.sign_head()

    def see_head(self, head: Head, round_number: int) -> None:
        """Record a head of the aggregator that this silo accepts.

        The record is on disk when this returns.
        """
        self._transcript.append(
            records.HeadSeen(
                round_number=round_number,
                size=head.size,
                root=head.root,
                signature=head.signature,
            )
        )
        self._transcript.sync()

    def conflict(self, conflict: HeadConflict) -> None:
        """Record two heads of two transcripts; that is signed when this returns."""
        self._transcript.append(conflict)
        self._transcript.sign_head()

    def share_key(self, setup: int, *, maker: int, commitment: bytes) -> None:
        """Record whose key all members of a setup share; it is on disk on return."""
        name = self._plan.silos[maker].name
        self._transcript.append(
            KeyShared(setup=setup, maker=name, commitment=commitment.hex())
        )
        self._transcript.sync()

    def cohort(self, round_number: int, silos: Iterable[int]) -> None:
        """Record whose READY, all alike, this silo has verified."""
        self._transcript.append(
            records.Cohort(round_number=round_number, silos=self._names(silos))
        )

    def enter_round(
        self,
        place: Place,
        request: RoundRequest | MeasureRequest | ReferenceRequest,
        model: bytes,
        field_bits: int,
    ) -> None:
        """Record what a round, the measurement or the reference began with."""
        self._transcript.append(
            records.RoundOpened(
                **place,
                attempt=request.attempt,
                model=model.hex(),
                field_bits=field_bits,
            )
        )

    def hold(self, round_number: int, model: str) -> None:
        """Record which model this silo holds; it is on disk when this returns."""
        self._transcript.append(
            model_records.ModelHeld(
                round_number=round_number, silo=self._name, parameters=model
            )
        )
        self._transcript.sync()

    def dealt(self, place: Place, dealing: Dealing) -> None:
        """Record which silos fill which stretch of the vector, as this silo sees it."""
        self._transcript.append(dealt_record(self._plan, place, dealing))

    def upload(self, place: Place, reply: BytesLike, protection: str) -> None:
        """Record that an update leaves, by the digest of the whole message.

        The record is on disk when this returns.
        """
        self._transcript.append(
            records.Masked(
                **place,
                silo=self._name,
                upload=hashlib.sha256(reply).hexdigest(),
                size_bytes=len(reply),
                protection=protection,
            )
        )
        self._transcript.sync()

    def auxiliary(self, label: str, sent: BytesLike) -> None:
        """Record that this silo's own model leaves, or samples of it.

        The record is on disk when this returns.
        """
        self._transcript.append(
            AuxiliarySent(
                silo=self._name,
                label=label,
                upload=hashlib.sha256(sent).hexdigest(),
                size_bytes=len(sent),
            )
        )
        self._transcript.sync()

    def open_ledger(self, opened: records.LedgerOpened) -> None:
        """Record which privacy ledger this silo keeps for the run."""
        self._transcript.append(opened)

    def has_canaries(self, kind: str, form: str) -> bool:
        """Return whether there is a record of this kind on canaries of this form."""
        return any(
            isinstance(entry.record, (CanariesCommitted, CanariesOpened))
            and (entry.record.kind, entry.record.form) == (kind, form)
            for entry in read_records(self._folder)
        )

    def canaries(self, record: CanariesCommitted | CanariesOpened) -> None:
        """Record a commitment or an opening, once; it is on disk on return."""
        if not self.has_canaries(record.kind, record.form):
            self._transcript.append(record)
        self._transcript.sync()

    def spend(self, spent: records.PrivacySpent | records.NoiseSpent) -> None:
        """Record what the mechanism has released; it is on disk when this returns."""
        self._transcript.append(spent)
        self._transcript.sync()

    def confirm(self, place: Place, survivors: Iterable[int]) -> None:
        """Record the list of survivors that this silo signs."""
        self._transcript.append(
            records.Survivors(**place, silos=self._names(survivors))
        )

    def confirmed(self, place: Place, signers: Iterable[int]) -> None:
        """Record who confirmed the survivors: nobody where the plan does without."""
        if names := self._names(signers):
            self._transcript.append(records.Confirmed(**place, silos=names))

    def reveal(
        self, place: Place, *, survivors: Iterable[int], lost: Iterable[int]
    ) -> None:
        """Record of whom this silo reveals which share."""
        self._transcript.append(
            records.Revealed(
                **place,
                silos=(self._name,),
                self_masks_of=self._names(survivors),
                slot_keys_of=self._names(lost),
            )
        )
        self._transcript.sign_head()

    def decrypt(
        self, place: Place, survivors: Iterable[int], sum_digest: bytes
    ) -> None:
        """Record which sum this silo has decrypted, over whose updates."""
        self._transcript.append(
            Decrypted(
                **place,
                silos=(self._name,),
                survivors=self._names(survivors),
                sum=sum_digest.hex(),
            )
        )
        self._transcript.sign_head()

    def sum(self, slot: SlotProgress, *, setup: int) -> None:
        """Record which sum the aggregator says it has of a slot."""
        self._transcript.append(
            records.Summed(
                round_number=slot.round_number,
                setup=setup,
                slot=slot.slot,
                sum=slot.sum_digest.hex(),
            )
        )

    def finish(self, round_number: int, parameters: str, average: str) -> Head:
        """Record the digests of the last model; return the head that says so."""
        self._transcript.append(
            records.Finished(
                round_number=round_number, parameters=parameters, average=average
            )
        )
        return self._transcript.sign_head()

    def refuse(self, round_number: int, stage: str, check: str) -> None:
        """Record a refusal."""
        self._transcript.append(
            records.Refused(round_number=round_number, stage=stage, check=check)
        )

    def connection(self, sent_bytes: int, received_bytes: int) -> None:
        """Record a handshake over a local socket, before its answer leaves."""
        self._transcript.append(
            Connected(
                transport="local-socket",
                sent_bytes=sent_bytes,
                received_bytes=received_bytes,
                frame_bytes=PREFIX_BYTES,
            )
        )

    def exchange(
        self,
        round_number: int,
        stage: str,
        request: BytesLike,
        reply: BytesLike,
        vector_bytes: int,
    ) -> None:
        """Record the bytes of one exchange, before the reply leaves."""
        self._transcript.append(
            records.Traffic(
                round_number=round_number,
                stage=stage,
                silo=self._name,
                sent_bytes=len(reply),
                received_bytes=len(request),
                vector_bytes=vector_bytes,
                broadcast_bytes=broadcast_bytes(request),
            )
        )

    def _names(self, silos: Iterable[int]) -> tuple[str, ...]:
        """Return the names of silos, in the order of the plan."""
        return tuple(self._plan.silos[silo].name for silo in sorted(silos))
