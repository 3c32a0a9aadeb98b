"""Bytes in words, and by part; that they are counted so is in end_to_end/test_bytes."""

import pytest

from protocol import traffic_parts, traffic_range, traffic_rows
from protocol.broadcast import difference_bytes
from protocol.traffic_words import traffic_lines
from protocol.update_settings import ProtectionConfig, UpdateConfig
from tests.silo.conftest import tiny_plan

SEGMENTS = (("encoder", 5), ("bottleneck", 7), ("decoder", 3))
CLEAR = ProtectionConfig(method="none", min_cohort=2)


def lines(plan, **options):
    return "\n".join(traffic_lines(plan, SEGMENTS, **options))


def test_in_words():
    plan = tiny_plan(num_rounds=2, protection=CLEAR)
    # 15 values of 32 bits: 8 words; then of 21 bits (16 and 3 silos), 5 words.
    assert lines(plan).count("vector 104,") == 1
    assert lines(plan).count("vector 312,") == 1
    assert "broadcast 120, protocol" in lines(plan)  # round 2, and the end
    text = lines(plan, per_round=True)
    assert "each silo, round 1: 160 bytes up (vector 64, protocol 96)" in text
    assert "vector of round 1 by part: encoder 24, bottleneck 24, decoder 16" in text
    assert "of a later round by part: encoder 16, bottleneck 16, decoder 8" in text
    assert "one broadcast by part: encoder 20, bottleneck 28, decoder 12" in text


def test_differences_by_part():
    """Levels of 4 bits: 2.5, 6 and 7.5 bytes in all, and a range for each tensor."""
    parts = traffic_parts.broadcast_by_part(SEGMENTS, 4)
    assert parts == {"encoder": 3 + 4, "bottleneck": 3 + 4, "decoder": 2 + 4}
    assert sum(parts.values()) == difference_bytes([n for _, n in SEGMENTS], 4)


@pytest.mark.parametrize(("num_silos", "words"), [(4, "vector 256,"), (5, "to ")])
def test_dealt_parts(num_silos, words):
    """A pair sends 24, 32 and 16 bytes; the odd silo 32 and 24 or 16."""
    update = UpdateConfig(selection="usplit")
    plan = tiny_plan(num_silos, num_rounds=1, protection=CLEAR, update=update)
    low, high = traffic_range.run_range(plan, SEGMENTS)
    pairs, left = divmod(num_silos, 2)
    assert low.vector == pairs * 72 + left * 48
    assert high.vector == pairs * 72 + left * 56
    least, most = map(traffic_rows.total, traffic_range.predict_range(plan, SEGMENTS))
    assert (least.vector, most.vector) == (16, 56)
    assert (least.received, least.protocol_up) == (most.received, most.protocol_up)
    assert "vector 16 to 56," in lines(plan)
