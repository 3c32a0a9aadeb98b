"""A silo's ledger over local sockets: every byte of the wire, the connection's too."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

import silo.service
from protocol import disclosures as d
from protocol.errors import TransportFailed
from protocol.tally import CONNECTION
from protocol.transport import LocalSockets
from silo.cli import cli
from silo.config import SiloFolder
from silo.disclosures import explain_disclosed, keep_plan, runs_disclosed
from silo.errors import StateBroken
from silo.service import serve
from tests.silo.conftest import STAGES, make_identities, tiny_plan
from tests.silo.test_service import exchange, sockets
from tests.silo.wire_tap import Tap

__all__ = ["sockets"]  # A fixture of the sockets' own tests.


@pytest.fixture
def tapped(sockets, tmp_path):
    """Taps between each silo and a socket of which nobody has yet begun to listen."""
    taps = [Tap(Path(f"tap-{index}"), sockets) for index in range(3)]
    yield taps
    for tap in taps:
        tap.close()


def start_tapped(federation, taps, errors):
    return [
        start_one(federation, index, tap.path, errors) for index, tap in enumerate(taps)
    ]


def start_one(federation, index, path, errors):
    def run():
        try:
            serve(
                federation.sessions[index],
                federation.plan,
                federation.keys[index],
                path,
                spool=Path(),
                patience_seconds=20.0,
            )
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def ledger(federation, index):
    """Return a silo's ledger as its operator's command reads it."""
    root = federation.root / f"as-a-silo-{index}"
    runs = SiloFolder(root).runs
    if not runs.exists():
        runs.mkdir(parents=True)
        (runs / "tiny").symlink_to(federation.store(index).folder)
    (run,) = runs_disclosed(SiloFolder(root))
    return root, run


@pytest.mark.parametrize("is_cut", [False, True], ids=["undisturbed", "cut"])
def test_the_ledger_is_every_byte_on_the_wire(federation, sockets, tapped, is_cut):
    """Also where a connection is lost, and a request is answered a second time."""
    errors: list[Exception] = []
    with LocalSockets(
        sockets, federation.plan, federation.aggregator, spool=Path()
    ) as transport:
        threads = start_tapped(federation, tapped, errors)
        assert transport.wait_for_silos(20.0) == []
        for stage in STAGES:
            if is_cut and stage in ("shares", "masked"):
                tapped[1].cut()
                if stage == "shares":
                    again = transport.exchange(
                        federation.requests["setup"],
                        deadline_seconds=20.0,
                        max_reply_bytes=1 << 20,
                    )
                    assert dict(again) == federation.replies["setup"]
            exchange(federation, transport, stage)
        for thread in threads:
            thread.join(20.0)
    assert errors == []
    for index, tap in enumerate(tapped):
        tap.close()
        _, run = ledger(federation, index)
        assert run.sent_bytes == tap.sent > 0
        assert sum(line.sent_bytes for line in run.lines) == tap.sent
        assert all(line.content is not None for line in run.lines)
        (connection,) = [line for line in run.lines if line.stage == CONNECTION]
        messages = len(STAGES) + is_cut
        assert connection.sent_bytes == tap.connections * (16 + 128) + messages * 16
        assert tap.connections == 1 + 2 * (is_cut and index == 1)


def test_nothing_leaves_for_whoever_is_not_the_aggregator(
    federation, sockets, monkeypatch
):
    """Another key's challenge is not answered."""
    monkeypatch.setattr(silo.service, "RETRY_SECONDS", 0.0)
    other = make_identities(7)[-1]
    with (
        LocalSockets(sockets, federation.plan, other, spool=Path()),
        pytest.raises(TransportFailed),
    ):
        serve(
            federation.sessions[0],
            federation.plan,
            federation.keys[0],
            sockets,
            spool=Path(),
            patience_seconds=0.0,
        )
    _, run = ledger(federation, 0)
    assert run.sent_bytes == 0


def test_the_command_prints_the_ledger_without_torch(federation):
    federation.play("end")
    root, run = ledger(federation, 0)
    found = CliRunner().invoke(cli, ["disclosures", "--dir", str(root), "--json"])
    (table,) = json.loads(found.output)["runs"]
    assert table["sent_bytes"] == run.sent_bytes
    assert sum(line["sent_bytes"] for line in table["ledger"]) == run.sent_bytes
    update = next(line for line in table["ledger"] if line["form"] == "masked")
    assert update["covered_by"] == ["secure-aggregation"]
    assert "sums of at least 3 silos" in update["guarantee"]
    said = "\n".join(explain_disclosed(SiloFolder(root)))
    assert f"{run.sent_bytes:,} bytes left" in said
    assert "one other silo each" in said and "its update, masked" in said
    script = (
        "import sys\nfrom silo.cli import cli\n"
        f"cli(['disclosures', '--dir', {str(root)!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == 0


def test_nothing_has_left_yet(tmp_path):
    assert "no run" in "".join(explain_disclosed(SiloFolder(tmp_path)))


@pytest.mark.parametrize("what", ["plan", "another plan", "transcript"])
def test_a_damaged_ledger_is_refused(federation, what):
    folder = federation.store(0).folder
    if what == "plan":
        (folder / "plan.json").write_bytes(b"{}")
    elif what == "another plan":
        (folder / "plan.json").unlink()
        keep_plan(folder, tiny_plan(num_rounds=9))
    else:
        with (folder / "transcript" / "transcript.jsonl").open("ab") as file:
            file.write(b"nonsense\n")
    with pytest.raises(StateBroken):
        ledger(federation, 0)


def test_every_stage_of_a_session_is_described():
    from silo.stages import STAGES as ASKED
    from silo.stages import WITH_ENCRYPTION

    known = set(d.STAGE_ORDER)
    assert {*ASKED.values(), *WITH_ENCRYPTION.values(), "reveal", "unknown"} <= known
