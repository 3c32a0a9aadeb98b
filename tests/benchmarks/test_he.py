"""The parts of ``make bench-he`` that figures rest on, in small and without times."""

from benchmarks.he import PLAN_VALUE_BITS, VALUE_BITS
from benchmarks.he_ckks import nvflare_round
from benchmarks.he_cost import STAGES, RoundCost, Seconds
from benchmarks.he_masks import masks_round
from benchmarks.he_ours import ours_round
from benchmarks.he_parameters import CANDIDATES, fields_per_slot
from crypto.bfv.parameters import FRESH_BYTES, SLOT_BITS, SUMMED_BYTES


def test_fields_of_a_slot_by_hand():
    assert fields_per_slot(44, 10, 10) == 3  # 14 bits each
    assert fields_per_slot(44, 16, 10) == 2  # 20 bits
    assert fields_per_slot(44, 8, 5) == 4  # 11 bits
    assert fields_per_slot(44, 11, 10) == 2  # 15 bits: three would be 45
    assert fields_per_slot(44, 16, 2) == 2  # 17 bits
    assert fields_per_slot(12, 16, 2) == 0


def test_the_candidate_that_is_ours_has_the_pinned_lengths():
    ours = [c for c in CANDIDATES if c.has_seed and c.plain_bits == SLOT_BITS + 1]
    assert [c.fresh_bytes for c in ours] == [FRESH_BYTES]
    assert ours[0].bytes_each(10, 10) == FRESH_BYTES / (4096 * 3)


def test_a_longer_vector_costs_in_proportion():
    cost = RoundCost(
        stages={stage: Seconds(1.0, 2.0) for stage in STAGES},
        num_silos=5,
        upload_bytes=10,
        sum_bytes=20,
        num_openers=2,
        opened_bytes=3,
        max_error=0.5,
    ).times(4)
    assert (cost.cpu, cost.wall, cost.max_error) == (12, 24, 0.5)
    assert cost.all_bytes == 4 * (5 * 10 + 2 * (20 + 3))


def test_a_round_under_each_protection_is_exact_or_says_by_how_much():
    ours = ours_round(10_000, 3, VALUE_BITS, num_children=1)
    assert ours.max_error == 0
    # One ciphertext, and what a frame is around it.
    assert FRESH_BYTES < ours.upload_bytes < FRESH_BYTES + 300
    assert SUMMED_BYTES < ours.sum_bytes < SUMMED_BYTES + 1000
    masks = masks_round(10_000, 3, PLAN_VALUE_BITS)
    assert masks.max_error == 0
    theirs = nvflare_round(4096, 3, num_chunks=1)
    assert 0 < theirs.max_error < 1e-5
    assert theirs.upload_bytes / ours.upload_bytes > 7
    every = ours.rows("x", 10_000)
    assert len({name for name, *_ in every}) == len(every)
