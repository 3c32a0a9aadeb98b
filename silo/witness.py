"""What one silo was shown of the aggregator's transcript, and that it is one and whole.

A silo accepts a head only if it extends the newest one that it has accepted, by a proof
from that very one. It then signs the head in READY, and refuses ACTIVE of a cohort that
signed another: so two silos that are told two stories never share a sum, and both know.

What it has accepted stands in its own transcript, and is read from there after a
restart. A head that contradicts it is recorded, with both signatures, as evidence.
"""

from pathlib import Path
from typing import NoReturn

from crypto.errors import ProtocolViolation
from crypto.frame import Header
from crypto.merkle import verify_consistency
from crypto.secagg.ready import Active
from crypto.secagg.silo_state import SlotProgress
from protocol.audit_records import HeadConflict
from protocol.heads import Head, ShownHead
from protocol.plan import AGGREGATOR_NAME, RunPlan
from protocol.records import HeadSeen
from protocol.transcript import read_records
from silo.errors import PolicyViolation, ProofBeginsElsewhere
from silo.evidence import Evidence


class Witness:
    """The heads that one silo has accepted in one run, each an extension of the last.

    Args:
        evidence: where it is recorded.
        folder: of this silo's transcript, which is read once.
    """

    def __init__(self, plan: RunPlan, evidence: Evidence, folder: Path) -> None:
        self._plan, self._evidence = plan, evidence
        self._accepted: list[Head] = []
        self._round = 0
        self._conflicts: set[HeadConflict] = set()
        for entry in read_records(folder):
            if isinstance(entry.record, HeadSeen):
                self._accepted.append(_head_of(entry.record))
                self._round = entry.record.round_number
            elif isinstance(entry.record, HeadConflict):
                self._conflicts.add(entry.record)

    def see(self, shown: ShownHead, round_number: int, stage: str) -> None:
        """Accept a head that extends all that was shown before; record it.

        The head that was accepted last is accepted again in its own round, whatever is
        proved with it. In another round it would say nothing of how the last one ended.

        Raises:
            TranscriptBroken: the aggregator of the plan did not sign it.
            ProofBeginsElsewhere: the proof is for who has seen another head.
            PolicyViolation: an earlier request again, or its head; or there are two
                transcripts, and that is recorded.
        """
        head, seen = shown.head, self._accepted[-1] if self._accepted else None
        head.check(self._plan.digest, self._plan.aggregator_key)
        if head == seen and round_number == self._round:
            return
        if not head.size:
            raise PolicyViolation("a head of no records")
        if head in self._accepted:
            raise PolicyViolation(f"a head over {head.size} records, of earlier on")
        if seen is not None and head.size <= seen.size:
            self._contradict(seen, head, round_number, stage)
        size = seen.size if seen is not None else 0
        if shown.old_size != size:
            raise ProofBeginsElsewhere(size)
        if seen is not None:
            self._verify(seen, shown, round_number, stage)
        self._evidence.see_head(head, round_number)
        self._accepted.append(head)
        self._round = round_number

    def check_cohort(self, header: Header, body: memoryview, own: SlotProgress) -> None:
        """Refuse ACTIVE of a cohort that was shown another head in the same slot.

        Args:
            header, body: of ACTIVE, signed by the aggregator, for the setup at hand.

        Raises:
            MalformedMessage: ACTIVE is malformed.
            TranscriptBroken: the aggregator did not sign that head.
            PolicyViolation: it did: there are two transcripts; that is recorded.
        """
        ready = Active.from_bytes(body, len(self._plan.silos)).ready
        place, mine = (header.slot, ready.round_number), (own.slot, own.round_number)
        if place != mine or ready.head == own.head:
            return
        other = _read_head(ready.head)
        other.check(self._plan.digest, self._plan.aggregator_key)
        stage = "encrypted" if self._plan.protection.is_encrypted else "masked"
        self._contradict(_read_head(own.head), other, own.round_number, stage)

    def _verify(
        self, seen: Head, shown: ShownHead, round_number: int, stage: str
    ) -> None:
        """Check the proof from the head that was seen to the one that is shown."""
        head = shown.head
        roots = bytes.fromhex(seen.root), bytes.fromhex(head.root)
        try:
            verify_consistency(seen.size, head.size, *roots, shown.proof)
        except ProtocolViolation:
            self._contradict(seen, head, round_number, stage)

    def _contradict(
        self, seen: Head, shown: Head, round_number: int, stage: str
    ) -> NoReturn:
        """Record two heads, once, and refuse."""
        conflict = HeadConflict(
            round_number=round_number,
            stage=stage,
            seen_size=seen.size,
            seen_root=seen.root,
            seen_signature=seen.signature,
            shown_size=shown.size,
            shown_root=shown.root,
            shown_signature=shown.signature,
        )
        if conflict not in self._conflicts:
            self._evidence.conflict(conflict)
            self._conflicts.add(conflict)
        raise PolicyViolation(
            f"the aggregator shows two transcripts: a head over {shown.size} records "
            f"that does not go with the one over {seen.size} that this silo has seen"
        )


def _read_head(data: bytes) -> Head:
    """Return the head that READY holds."""
    return Head.from_bytes(data, AGGREGATOR_NAME)


def _head_of(record: HeadSeen) -> Head:
    """Return the head that a record holds."""
    return Head(
        party=AGGREGATOR_NAME,
        size=record.size,
        root=record.root,
        signature=record.signature,
    )
