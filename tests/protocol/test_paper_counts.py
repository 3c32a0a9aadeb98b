"""The paper's table of moved parameters, from the paper's own network."""

import pytest

from diffusion.config import UNetConfig
from diffusion.model import make_model
from diffusion.parameters import make_layout, part_lengths
from diffusion.parts import SELECTIONS
from protocol.paper_counts import (
    parameters_moved,
    parameters_moved_here,
    usplit_parameters_up,
)

ROUNDS = 15
TABLE = {
    2: {"full": 1.798e8, "usplit": 1.348e8, "ulatdec": 1.055e8, "udec": 4.754e7},
    5: {"full": 4.494e8, "usplit": 3.446e8, "ulatdec": 2.638e8, "udec": 1.188e8},
    10: {"full": 8.989e8, "usplit": 6.742e8, "ulatdec": 5.275e8, "udec": 2.377e8},
}
SAVED = {
    2: {"full": 0.0, "usplit": 25.0, "ulatdec": 41.3, "udec": 73.6},
    5: {"full": 0.0, "usplit": 23.3, "ulatdec": 41.3, "udec": 73.6},
    10: {"full": 0.0, "usplit": 25.0, "ulatdec": 41.3, "udec": 73.6},
}


@pytest.fixture(scope="module")
def parts():
    config = UNetConfig(
        architecture="feddiffuse",
        dim=28,
        channels=1,
        dim_mults=(1, 2, 4),
        image_size=28,
    )
    model = make_model(config, 0)
    counts = {"encoder": 0, "bottleneck": 0, "decoder": 0}
    for part, length in part_lengths(model, make_layout(model, SELECTIONS["full"])):
        counts[part] += length
    return counts


def test_the_papers_network(parts):
    assert parts == {"encoder": 1_280_642, "bottleneck": 999_376, "decoder": 716_297}
    assert sum(parts.values()) == 2_996_315


@pytest.mark.parametrize("num_silos", TABLE)
@pytest.mark.parametrize("selection", TABLE[2])
def test_the_papers_table(parts, num_silos, selection):
    moved = parameters_moved(selection, num_silos, ROUNDS, parts)
    assert float(f"{moved:.3e}") == TABLE[num_silos][selection]
    full = parameters_moved("full", num_silos, ROUNDS, parts)
    saved = 100 * (1 - moved / full)
    assert round(saved, 1) == SAVED[num_silos][selection]


def test_without_a_first_broadcast(parts):
    """Ours: the same for full; a local part is never sent, not even once."""
    whole, decoder = sum(parts.values()), parts["decoder"]
    assert parameters_moved_here("full", 5, ROUNDS, parts) == 5 * 30 * whole
    assert parameters_moved_here("udec", 5, ROUNDS, parts) == 5 * 30 * decoder
    full = parameters_moved_here("full", 5, ROUNDS, parts)
    for selection, saved in (("usplit", 23.3), ("ulatdec", 42.7), ("udec", 76.1)):
        moved = parameters_moved_here(selection, 5, ROUNDS, parts)
        assert round(100 * (1 - moved / full), 1) == saved


def test_usplit_by_hand():
    parts = {"encoder": 6, "bottleneck": 3, "decoder": 2}
    assert usplit_parameters_up(1, parts) == 11
    assert usplit_parameters_up(2, parts) == 11
    assert usplit_parameters_up(3, parts) == 11 + 3 + 4
    assert parameters_moved("usplit", 2, 4, parts) == 4 * (2 * 11 + 11)
