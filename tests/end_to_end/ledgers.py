"""The disclosure ledger of every silo against the bytes that passed on the wire."""

from crypto.frame import read_header
from protocol.envelope import Kind
from silo.disclosures import RunDisclosed, runs_disclosed
from silo.stages import STAGES
from tests.end_to_end.conftest import Harness


def ledgers(made: Harness) -> list[RunDisclosed]:
    """Return every silo's own ledger of the one run, by the order of the plan."""
    found = []
    for silo in made.plan.silos:
        (run,) = runs_disclosed(made.federation.silo(silo.name))
        found.append(run)
    return found


def check_ledgers(made: Harness) -> None:
    """Assert that the ledgers hold every byte of the wire, and describe all."""
    for silo, run in enumerate(ledgers(made)):
        wire = sum(len(reply) for index, _, reply in made.wire if index == silo)
        assert run.sent_bytes == wire > 0
        assert sum(line.sent_bytes for line in run.lines) == wire
        assert all(line.content is not None for line in run.lines)
        wrapped = {
            STAGES[read_header(request).kind]
            for index, request, reply in made.wire
            if index == silo and read_header(reply).kind == Kind.LEDGER
        }
        assert wrapped == {
            line.stage
            for line in run.lines
            if line.content is not None and "privacy ledger" in line.content.what
        }
