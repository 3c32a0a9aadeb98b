"""The papers' grid: every cell is a plan, and ratios are what they say."""

from pathlib import Path

import pytest
import tomli_w

from benchmarks.papers_grid import Cell, cells, draft_of, is_open
from benchmarks.papers_table import Ratio, compare
from crypto.keys import IdentityKey
from protocol.plan import SiloParty, make_plan
from protocol.plan_files import load_draft
from simulation.settings import load_settings


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_cell_is_a_plan(tmp_path: Path, scale: str) -> None:
    path, data = tmp_path / "draft.toml", tmp_path / "images.npz"
    keys = [IdentityKey.generate().public for _ in range(11)]
    every = cells()
    assert len({cell.name for cell in every}) == len(every)
    for cell in every:
        table = draft_of(cell, 1, scale)  # type: ignore[arg-type]
        path.write_text(tomli_w.dumps(table))
        draft, settings = load_draft(path)
        assert load_settings(settings, path, data).num_silos == cell.num_silos
        silos = [
            SiloParty(name=f"silo-{index}", identity_key=keys[index].hex())
            for index in range(cell.num_silos)
        ]
        plan = make_plan(draft, keys[-1], silos)
        assert (plan.protection.method == "none") == is_open(cell)


def test_only_small_groups_are_in_the_clear() -> None:
    assert is_open(Cell("", "usplit", num_silos=5))
    assert not is_open(Cell("", "usplit", num_silos=10))
    assert is_open(Cell("", num_silos=2))
    assert not is_open(Cell("", "udec", num_silos=5))


def runs(*distances: float) -> dict[int, dict[str, list[float]]]:
    return {seed: {"distances": [value]} for seed, value in enumerate(distances)}


def test_a_ratio_by_hand() -> None:
    found = compare(runs(1.0, 2.0, 3.0), runs(2.0, 2.0, 2.0, 9.0))
    assert found is not None
    assert (found.value, found.num_seeds) == (1.0, 3)
    # 27 resamples: the means of three of (1, 2, 3), halved.
    assert (found.low, found.high) == pytest.approx((0.6083, 1.3917), abs=1e-4)
    assert compare(runs(1.0), {7: {"distances": [1.0]}}) is None


@pytest.mark.parametrize(
    ("low", "high", "seeds", "words"),
    [
        (0.8, 1.0, 5, "met"),
        (1.2, 1.4, 5, "missed"),
        (0.8, 1.2, 5, "not decided"),
        (0.8, 1.0, 4, "not decided (fewer than five seeds)"),
    ],
)
def test_a_verdict(low: float, high: float, seeds: int, words: str) -> None:
    assert Ratio(1.0, low, high, seeds).verdict(1.1) == words
