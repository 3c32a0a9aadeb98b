"""Evaluation: the same for the same seed, whatever the block; names beside numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import diffusion.evaluation
from aggregator.evaluation import evaluate, load_reference
from diffusion.checkpoint import Checkpoint
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.errors import DiffusionError
from diffusion.evaluation import Evaluation
from diffusion.features import load_fd_small_digits
from diffusion.fid import empty_statistics, save_statistics
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from protocol.aggregation_settings import EvaluationConfig

MODEL = UNetConfig(
    architecture="residual", dim=4, channels=1, dim_mults=(1, 2), image_size=8
)
CONFIG = EvaluationConfig(extractor="fd-small-digits")


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    extractor = load_fd_small_digits()
    images = torch.rand((80, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    statistics = empty_statistics(extractor).update(extractor.features(images * 2 - 1))
    path = tmp_path / "reference.npz"
    save_statistics(path, statistics)
    return path


def checkpoint(seed: int = 0) -> Checkpoint:
    return Checkpoint(
        model=MODEL,
        schedule=ScheduleConfig(num_timesteps=50),
        sampler=SamplerConfig(kind="ddim", num_steps=3),
        parameters=parameters_of(make_model(MODEL, seed)),
    )


def measure(path: Path, seed: int = 1) -> Evaluation:
    return evaluate(
        checkpoint(),
        load_reference(CONFIG, path),
        seed=seed,
        num_samples=30,
        device=torch.device("cpu"),
    )


def test_it_is_named_repeatable_and_depends_on_the_seed(reference: Path) -> None:
    first, again, other = measure(reference), measure(reference), measure(reference, 2)
    assert first == again
    assert first.extractor == "FD-small (digits)"
    assert first.frechet_distance != other.frechet_distance
    assert first.frechet_distance > 0
    assert len(first.class_shares) == 10
    assert sum(first.class_shares) == pytest.approx(1.0)


def test_the_block_size_does_not_matter(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(reference)
    monkeypatch.setattr(diffusion.evaluation, "BLOCK", 7)
    parts = measure(reference)
    assert parts.frechet_distance == pytest.approx(whole.frechet_distance, rel=1e-3)
    assert np.allclose(parts.class_shares, whole.class_shares, atol=0.04)


def test_a_reference_of_another_extractor_is_refused(reference: Path) -> None:
    with pytest.raises(DiffusionError):
        load_reference(EvaluationConfig(extractor="fd-small-fashion"), reference)


def test_a_damaged_or_missing_reference_is_refused(reference: Path) -> None:
    reference.write_bytes(reference.read_bytes()[:100])
    with pytest.raises(DiffusionError):
        load_reference(CONFIG, reference)
    with pytest.raises(OSError, match="does not exist"):
        load_reference(CONFIG, reference.with_name("none.npz"))
