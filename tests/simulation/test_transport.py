import pytest

import simulation.transport
from simulation.federation import make_federation
from simulation.settings import SimulationConfig
from simulation.transport import silo_processes
from tests.end_to_end.conftest import tiny_draft


class Asked(Exception):
    """What the transport was made with."""


def test_long_replies_go_to_the_folder_of_the_run(tmp_path, monkeypatch):
    """As with `aggregator run`; docs/architecture.md, rule 5."""

    def transport(path, plan, identity, *, spool):
        raise Asked(spool, spool.is_dir())

    config = SimulationConfig(num_silos=3, num_images=90)
    federation = make_federation(tmp_path / "run", tiny_draft(), config)
    plan = federation.load_plan()
    monkeypatch.setattr(simulation.transport, "LocalSockets", transport)
    with (
        pytest.raises(Asked) as caught,
        silo_processes(federation, plan, lambda name, progress: None, "cpu"),
    ):
        pass
    assert caught.value.args == (federation.aggregator.run(plan), True)
