"""The aggregator keeps two transcripts, and shows different silos different ones.

Real sessions, driven by an aggregator that lies about nothing but its transcript. In
every row the silos find it in the round in which it happens, without an exchange of its
own; nothing is masked, and the evidence convicts the aggregator in the audit.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from audits.evidence import load_evidence
from audits.findings import Finding, Severity
from audits.integrity import check_integrity
from audits.witnesses import check_witnesses
from crypto.frame import Kind as SecAggKind
from crypto.frame import make_frame, read_header
from crypto.secagg.ready import Active, Ready
from protocol import records
from protocol.audit_records import HeadConflict
from protocol.envelope import Kind, Refusal
from protocol.heads import Head, ShownHead
from protocol.plan_files import save_plan
from protocol.transcript import TranscriptWriter
from protocol.update_settings import ProtectionConfig
from tests.silo.conftest import Federation, one_thread, tiny_plan, trainings

__all__ = ["one_thread", "trainings"]


class Forked:
    """A federation after one round, and a copy of its aggregator's transcript."""

    def __init__(self, folder: Path) -> None:
        protection = ProtectionConfig(slots_per_setup=4)
        self.f = Federation(folder / "run", tiny_plan(protection=protection))
        self.f.play("reveal")
        self.f.transcript.sync()
        shutil.copytree(folder / "run" / "aggregator", folder / "other")
        self.other = TranscriptWriter(
            folder / "other",
            party="aggregator",
            plan_digest=self.f.plan.digest,
            identity=self.f.aggregator,
        )
        self.f.transcript.append(records.RoundLost(round_number=1, reason="here"))
        self.other.append(records.RoundLost(round_number=1, reason="there"))
        self.f.next_round()

    def close(self) -> None:
        self.f.close()
        self.other.close()

    def show(self, writer: TranscriptWriter, old_size: int = 1) -> ShownHead:
        return writer.show(writer.sign_head(), old_size)

    def ask(self, silo: int, shown: ShownHead) -> bytes:
        """Send a silo ROUND 2 with a head of somebody's choice."""
        frame = self.f.round_envelope(shown=shown)
        return bytes(self.f.sessions[silo].handle(frame))

    def conflicts(self, silo: int) -> list[records.Record]:
        return self.f.records(silo, HeadConflict)

    def audit(self) -> list[Finding]:
        """Return what the audit says of witnesses, from the files."""
        for session in self.f.sessions:
            session._evidence.sign_head()
        run = self.f.root
        save_plan(run / "plan.toml", self.f.plan, self.f.aggregator)
        evidence = load_evidence(run)
        _, accounts = check_integrity(evidence)
        return check_witnesses(evidence, accounts)


@pytest.fixture
def forked(tmp_path: Path, trainings: list) -> Iterator[Forked]:
    made = Forked(tmp_path)
    trainings.clear()
    yield made
    made.close()


def refusal(forked: Forked, silo: int, reply: bytes) -> Refusal:
    return forked.f.refusal(reply, silo)


def convicted(findings: list[Finding]) -> Finding:
    """Return the one finding that fails; it accuses the aggregator."""
    (failed,) = [f for f in findings if f.severity == Severity.FAIL]
    assert failed.party == "aggregator"
    return failed


def active_for(forked: Forked, replies: dict[int, bytes], head: Head) -> bytes:
    """Return ACTIVE with all signatures, whatever they are for, and one head."""
    body = Ready.from_bytes(replies[0][32:-64])
    ready = dataclasses.replace(body, head=head.to_bytes())
    signatures = {silo: reply[-64:] for silo, reply in replies.items()}
    header = dataclasses.replace(
        read_header(replies[0]), kind=SecAggKind.ACTIVE, sender=0xFFFF
    )
    message = Active(ready, signatures).to_bytes(len(replies))
    return make_frame(forked.f.aggregator, header, message)


@pytest.mark.parametrize("same_size", [True, False])
def test_two_silos_are_shown_two_heads(forked: Forked, same_size: bool) -> None:
    """Both prove that they extend what was shown in round 1; READY tells them apart."""
    if not same_size:
        forked.other.append(records.RoundLost(round_number=1, reason="there"))
    mine, theirs = forked.show(forked.f.transcript), forked.show(forked.other)
    shown = {0: mine, 1: mine, 2: theirs}
    replies = {silo: forked.ask(silo, head) for silo, head in shown.items()}
    assert {read_header(reply).kind for reply in replies.values()} == {5}
    for silo, other in ((0, theirs), (2, mine)):
        active = active_for(forked, replies, other.head)
        session = forked.f.sessions[silo]
        reply = bytes(session.handle(active))
        assert "two transcripts" in refusal(forked, silo, reply).check
        (record,) = forked.conflicts(silo)
        assert (record.seen_root, record.shown_root) == (
            shown[silo].head.root,
            other.head.root,
        )
        again = bytes(session.handle(active))
        assert "two transcripts" in refusal(forked, silo, again).check
        assert len(forked.conflicts(silo)) == 1
        assert len(forked.f.records(silo, records.Masked)) == 1  # Of round 1.
    forged = active_for(forked, replies, mine.head)  # Silo 2 never signed that.
    check = refusal(forked, 1, bytes(forked.f.sessions[1].handle(forged))).check
    assert "READY of silo 2" in check
    assert forked.conflicts(1) == []
    failed = [f for f in forked.audit() if f.severity == Severity.FAIL]
    assert {f.party for f in failed} == {"aggregator"}
    assert any("two versions" in f.statement for f in failed)
    roots = [line for f in failed for line in f.evidence]
    for head in (mine.head, theirs.head):
        assert any(head.root in line for line in roots)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("proof", ["none", "its own", "of the other"])
def test_a_silo_is_shown_a_rewritten_history(
    forked: Forked, trainings: list, proof: str, restart: bool
) -> None:
    """It has accepted one version, and is shown the other one, longer by a record."""
    first = forked.show(forked.f.transcript)
    assert read_header(forked.ask(0, first)).kind == SecAggKind.READY
    trainings.clear()
    forked.other.append(records.RoundLost(round_number=1, reason="more"))
    head = forked.other.sign_head()
    size = first.head.size
    shown = ShownHead(head=head, old_size=size)
    if proof == "its own":
        shown = forked.other.show(head, size)
    if proof == "of the other":
        forked.f.transcript.append(records.RoundLost(round_number=1, reason="more"))
        nodes = forked.f.transcript.show(forked.f.transcript.sign_head(), size).proof
        shown = dataclasses.replace(shown, proof=nodes)
    forked.f.slot += 1
    for _ in range(2):
        if restart:
            forked.f.restart(0)
        check = refusal(forked, 0, forked.ask(0, shown)).check
        assert check.startswith("the aggregator shows two transcripts")
        assert "names" not in check
    assert len(forked.conflicts(0)) == 1
    assert trainings == []
    refused = forked.f.records(0, records.Refused)
    assert "two transcripts" in refused[-1].check
    statement = convicted(forked.audit()).statement
    assert f"a head over {head.size} records that is none of its transc" in statement


def test_a_head_of_one_size_with_another_root(forked: Forked) -> None:
    forked.ask(0, forked.show(forked.f.transcript))
    other = forked.show(forked.other)
    assert "two transcripts" in refusal(forked, 0, forked.ask(0, other)).check
    failed = convicted(forked.audit())
    assert f"signed two heads over {other.head.size} records" in failed.statement
    assert other.head.signature in " ".join(failed.evidence)


def test_an_older_head_that_was_never_shown(forked: Forked) -> None:
    """Sizes never go back; whether there is one transcript is for the audit to say."""
    older = forked.show(forked.f.transcript)
    forked.f.transcript.append(records.RoundLost(round_number=1, reason="more"))
    newer = forked.show(forked.f.transcript)
    assert read_header(forked.ask(0, newer)).kind == SecAggKind.READY
    check = refusal(forked, 0, forked.ask(0, older)).check
    assert "two transcripts" in check
    assert len(forked.conflicts(0)) == 1
    found = [f for f in forked.audit() if "could not bring together" in f.statement]
    assert [f.severity for f in found] == [Severity.WARN]


def test_an_older_request_again_accuses_nobody(forked: Forked) -> None:
    older = forked.show(forked.f.transcript)
    forked.ask(0, older)
    forked.f.transcript.append(records.RoundLost(round_number=1, reason="more"))
    newer = forked.show(forked.f.transcript, older.head.size)
    forked.f.slot += 1
    assert read_header(forked.ask(0, newer)).kind == SecAggKind.READY
    assert "of earlier on" in refusal(forked, 0, forked.ask(0, older)).check
    assert forked.conflicts(0) == []


@pytest.mark.parametrize("restart", [False, True])
def test_a_head_says_nothing_of_a_later_round(forked: Forked, restart: bool) -> None:
    """Who shows one old head for ever could write all the rest as it likes."""
    f, old = forked.f, forked.show(forked.f.transcript)
    forked.ask(0, old)
    again = bytes(f.sessions[0].handle(f.round_envelope(shown=old)))
    assert read_header(again).kind == SecAggKind.READY
    f.round_number, f.slot = f.round_number + 1, f.slot + 1
    if restart:
        f.restart(0)
    assert "of earlier on" in refusal(forked, 0, forked.ask(0, old)).check
    assert forked.conflicts(0) == []


def test_an_honest_head_after_a_false_one_is_accepted(forked: Forked) -> None:
    first = forked.show(forked.f.transcript)
    forked.ask(0, first)
    forked.other.append(records.RoundLost(round_number=1, reason="more"))
    forked.f.slot += 1
    refusal(forked, 0, forked.ask(0, forked.show(forked.other, first.head.size)))
    forked.f.transcript.append(records.RoundLost(round_number=1, reason="more"))
    honest = forked.show(forked.f.transcript, first.head.size)
    assert read_header(forked.ask(0, honest)).kind == SecAggKind.READY


@pytest.mark.parametrize("restart", [False, True])
def test_a_proof_that_begins_elsewhere_is_asked_for_again(
    forked: Forked, trainings: list, restart: bool
) -> None:
    """As when a READY was lost: nothing is held against the aggregator."""
    first = forked.show(forked.f.transcript)
    forked.ask(0, first)
    trainings.clear()
    forked.f.transcript.append(records.RoundLost(round_number=1, reason="more"))
    forked.f.slot += 1
    if restart:
        forked.f.restart(0)
    before = len(forked.f.records(0, records.Refused))
    for old_size in (0, 1):
        reply = forked.ask(0, forked.show(forked.f.transcript, old_size))
        assert refusal(forked, 0, reply).seen == first.head.size
    right = forked.show(forked.f.transcript, first.head.size)
    assert read_header(forked.ask(0, right)).kind == SecAggKind.READY
    assert len(forked.f.records(0, records.Refused)) == before
    assert forked.conflicts(0) == []
    assert trainings == []


def test_a_head_of_no_records(forked: Forked) -> None:
    empty = TranscriptWriter(
        forked.f.root.parent / "empty",
        party="aggregator",
        plan_digest=forked.f.plan.digest,
        identity=forked.f.aggregator,
    )
    shown = ShownHead(head=empty.sign_head())
    empty.close()
    assert "no records" in refusal(forked, 0, forked.ask(0, shown)).check


def test_the_end_shows_a_rewritten_history(forked: Forked) -> None:
    forked.f.play("reveal", first="ready")
    forked.other.append(records.RoundLost(round_number=2, reason="there"))
    rewritten = forked.show(forked.other, forked.f.shown_size)
    request = dataclasses.replace(forked.f.end_request(), shown=rewritten)
    frame = forked.f.envelope(Kind.END, request.to_body())
    reply = bytes(forked.f.sessions[0].handle(frame))
    assert "two transcripts" in refusal(forked, 0, reply).check
    assert not forked.f.sessions[0].is_finished
    assert len(forked.conflicts(0)) == 1
