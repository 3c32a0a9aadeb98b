"""``make bench-secagg`` in small: that every part runs and names its rows, no times.

The sizes are less than a tenth, because a tenth would take half a minute.
"""

import pytest

from benchmarks.secagg import PARTS, missing
from benchmarks.secagg_process import SMOKE, Sizes, run_part

EXPECTED = {
    "secagg_speed": ("masking / keystream", "unmasking / keystream", "with rotation"),
    "secagg_memory": ("memory, silo", "memory, aggregator"),
    "secagg_quality": ("8 bits, rotated", "12 bits, plain"),
    "secagg_protocol": (
        "one silo",
        "aggregator",
        "whole: keystream and its addition",
        "whole: Ed25519",
        "whole: X25519",
        "whole: SHA-256",
        "whole: Shamir",
        "whole: HKDF and ChaCha20-Poly1305",
        "whole: addition of uploads",
        "whole: rotate, round, pack; and back",
        "R = 16, both",
    ),
    "secagg_flower": ("masking: flwr's / ours", "overlapping lists open both secrets"),
}


@pytest.mark.parametrize(("part", "one_core"), PARTS)
def test_every_part_runs(part, one_core):
    if reason := missing(part):
        pytest.skip(reason)
    rows = run_part(part, SMOKE, one_core=one_core)
    names = [name for name, _, _, _ in rows]
    assert len(set(names)) == len(names)
    for expected in EXPECTED[part]:
        assert any(expected in name for name in names), expected
    assert all(isinstance(value, float) and value >= 0 for _, value, _, _ in rows)


def test_a_part_that_fails_says_why():
    with pytest.raises(RuntimeError, match="num_silos: must be 2 to 1000, is 1"):
        run_part("secagg_protocol", Sizes(whole_silos=1), one_core=True)


def test_sizes_survive_the_command_line():
    assert Sizes.from_json(SMOKE.to_json()) == SMOKE
