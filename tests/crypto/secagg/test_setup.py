import pytest

from crypto.frame import Kind
from crypto.secagg.config import SecAggConfig
from crypto.secagg.setup import max_frame_bytes
from tests.crypto.secagg.federation import NUM_WORDS, Federation


@pytest.mark.parametrize(("num_silos", "threshold"), [(5, 4), (9, 7)])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_limits_are_the_sizes_when_every_silo_takes_part(
    num_silos, threshold, num_slots
):
    config = SecAggConfig(
        num_silos=num_silos, threshold=threshold, slots_per_setup=num_slots
    )
    federation = Federation(config).reach("confirms")
    federation.reveal(federation.everyone)
    assert len(federation.frames) == Kind.SUM
    for name, frames in federation.frames.items():
        limit = max_frame_bytes(Kind[name.upper()], config, NUM_WORDS)
        assert {len(frame) for frame in frames.values()} == {limit}
