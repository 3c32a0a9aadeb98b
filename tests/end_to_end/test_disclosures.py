"""The disclosure ledger is the bytes on the wire, also where something goes wrong.

Runs in which nothing does, of every kind of plan, are in ``test_bytes.py``.
"""

from dataclasses import dataclass, replace

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.encoding import BytesLike
from crypto.frame import Kind
from protocol.disclosures import Form
from protocol.envelope import Kind as EnvelopeKind
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.session import SiloSession
from simulation.transport import InMemory, open_session
from tests.end_to_end.conftest import Crash, tiny_draft
from tests.end_to_end.ledgers import check_ledgers, ledgers

SPARE = ProtectionConfig(slots_per_setup=2, threshold=3, max_colluding=0)
QUANTISED = UpdateConfig(rounding="nearest", broadcast_bits=5)


def audit_failures(made):
    audit = run_audit(load_evidence(made.federation.root, None))
    return [f.statement for f in audit.with_severity(Severity.FAIL)]


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("before", Kind.ACTIVE),
        ("after", Kind.ACTIVE),
        ("after", Kind.SURVIVORS),
        ("before", EnvelopeKind.BROADCAST),
        ("after", EnvelopeKind.END),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_silo_that_drops_out(harness, moment, kind):
    """Asked in vain nothing leaves; a reply that is lost on its way has left."""
    made = harness(tiny_draft(protection=SPARE, update=QUANTISED), num_silos=4)
    made.run(lambda m, k, silo: (m, k, silo) == (moment, kind, 1))
    check_ledgers(made)
    assert audit_failures(made) == []


@pytest.mark.parametrize(
    ("moment", "kind"),
    [("before", Kind.KEYS), ("after", Kind.ACTIVE), ("after", Kind.CONFIRMS)],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_run_that_is_resumed(harness, moment, kind):
    """What is sent again after a crash is counted again."""
    made = harness(tiny_draft())
    deaths = iter([True])

    def fault(when, what, silo):
        if (when, what, silo) == (moment, kind, 1) and next(deaths, False):
            raise Crash

    with pytest.raises(Crash):
        made.run(fault)
    check_ledgers(made)
    made.run()
    check_ledgers(made)
    assert audit_failures(made) == []


@dataclass
class Counted:
    """A session that counts what passes, as the end of a wire would."""

    session: SiloSession
    sent: int = 0

    def handle(self, request: BytesLike) -> BytesLike:
        reply = self.session.handle(request)
        self.sent += len(reply)
        return reply


def test_refusals_and_what_was_never_a_request(harness):
    """In memory, by the transport of a simulation: refusals are lines of their own."""
    made = harness()
    made.run()
    before = [run.sent_bytes for run in ledgers(made)]
    sessions = {
        index: Counted(
            open_session(made.federation, made.plan, silo.name, lambda *_: None)
        )
        for index, silo in enumerate(made.plan.silos)
    }
    rest = made.wire[0][1]
    for request in (b"Cl" + bytes(200), rest, rest[:-1] + b"\x00"):
        asked = dict.fromkeys(sessions, request)
        list(InMemory(sessions).exchange(asked, deadline_seconds=1, max_reply_bytes=0))
    for counted in sessions.values():
        counted.session.close()
    for run, old, counted in zip(ledgers(made), before, sessions.values(), strict=True):
        assert counted.sent > 0
        assert run.sent_bytes == old + counted.sent
        (line,) = [line for line in run.lines if line.stage == "refusal"]
        assert line.sent_bytes == counted.sent
        assert line.content is not None and line.content.form == Form.PLAIN
    assert audit_failures(made) == []


def test_a_run_whose_plan_was_not_kept_is_still_counted(harness):
    made = harness(replace(tiny_draft(), num_rounds=1))
    made.run()
    first = made.federation.silo(made.plan.silos[0].name)
    (first.run(made.plan) / "plan.json").unlink()
    run = ledgers(made)[0]
    assert run.plan is None and run.lines == ()
    assert run.sent_bytes == sum(len(reply) for silo, _, reply in made.wire if not silo)
