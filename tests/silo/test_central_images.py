"""Noisy means of a silo's images, by hand; what a plan for them must say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import silo.central_images
from diffusion.config import UNetConfig
from diffusion.model import make_model
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.central_images import expected_norm
from protocol.plan_files import load_draft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import InitialConfig, TrainingConfig
from protocol.update_settings import UpdateConfig
from silo.central_images import clipped, release_central_images
from silo.data import ImageSet
from silo.errors import DataError
from silo.randomness import PrivateRandom
from silo.units import PrivacyUnits, units_of
from tests.silo.conftest import tiny_draft

ROOT = Path(__file__).parent.parent.parent
TINY_NOISE = 1e-9
"""Noise of 0 is refused; this is lost in float32."""


def means(count: int = 2, size: int = 2) -> UNetConfig:
    return UNetConfig(
        architecture="means", dim=count, channels=1, dim_mults=(), image_size=size
    )


def draft(count: int = 2, divisor: int = 2, size: int = 2, **privacy):
    mechanism = {
        "mechanism": "dp-sgd",
        "noise_multiplier": TINY_NOISE,
        "delta": 1e-3,
        "sample_rate": 1.0,
        "clipping_norm": 10.0,
        "multiplicity": 1,
    }
    return tiny_draft(
        num_rounds=1,
        model=means(count, size),
        training=TrainingConfig(local_steps=count, examples_per_step=divisor),
        privacy=PrivacyConfig(**(mechanism | privacy)),
        update=UpdateConfig(clipping_norm=1e6),
    )


def image_set(*rows, patients=None) -> ImageSet:
    """Return images of 2 × 2 pixels, given flat."""
    pixels = np.array(rows, dtype=np.float32).reshape(-1, 2, 2, 1)
    if patients is None:
        return ImageSet(pixels, (-1.0, 1.0))
    names = tuple(map(str, range(max(patients) + 1)))
    return ImageSet(
        pixels, (-1.0, 1.0), patients=np.array(patients), patient_names=names
    )


class Release:
    """One release, and all that it told."""

    def __init__(self, plan, images, *, seed=1, steps=100, first_step=0) -> None:
        self.model, self.kept = make_model(plan.model, 1), []
        self.state = release_central_images(
            self.model,
            images,
            units_of(images, plan.privacy.unit),
            plan,
            first_step=first_step,
            random=PrivateRandom(seed),
            keep=self.kept.append,
            checkpoint_steps=steps,
        )
        self.images = self.model.images.detach()


def test_without_noise_it_is_the_mean() -> None:
    images = image_set([1, 0, -1, 0.5], [0, 0.5, -1, -0.5])
    released = Release(draft(), images).images
    expected = torch.tensor([[0.5, 0.25], [-1.0, 0.0]])
    for image in released:
        assert torch.allclose(image[0], expected, atol=1e-6)


def test_channels_come_first_as_in_every_model() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.float32)
    pixels[0, :, :, 1] = [[0.1, 0.2], [0.3, 0.4]]
    plan = draft(divisor=1)
    plan = replace(plan, model=replace(plan.model, channels=3))
    released = Release(plan, ImageSet(pixels, (-1.0, 1.0))).images
    assert released.shape == (2, 3, 2, 2)
    assert torch.allclose(released[0, 1], torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    assert not released[0, ::2].abs().max() > 1e-6


def test_the_divisor_is_public_whatever_the_number_of_images() -> None:
    """Three images over 2: removing one moves the sum alone, never the divisor."""
    images = image_set([1, 0, 0, 0], [1, 0.1, 0, 0], [1, 0, 0.1, 0])
    assert float(Release(draft(), images).images[0, 0, 0, 0]) == pytest.approx(1.5)


def test_copies_of_an_image_count_once() -> None:
    images = image_set([1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])
    assert float(Release(draft(), images).images[0, 0, 0, 0]) == pytest.approx(0.5)


def test_a_bright_image_is_clipped() -> None:
    """|(1, 1, 1, 1)| = 2 becomes 1, a faint one stays: (0.5 + 0.1) / 2."""
    images = image_set([1, 1, 1, 1], [0.1, 0.1, 0.1, 0.1])
    released = Release(draft(clipping_norm=1.0), images).images
    assert torch.allclose(released, torch.full_like(released, 0.3), atol=1e-6)


def test_clipping_by_hand() -> None:
    vectors = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [np.nan, 1], [np.inf, 0]])
    with np.errstate(invalid="ignore"):
        found = clipped(vectors, 1.0)
    expected = [[0.6, 0.8], [0.3, 0.4], [0, 0], [0, 0], [0, 0]]
    assert np.allclose(found, expected)


def test_a_patient_contributes_the_mean_of_its_images_clipped_once() -> None:
    images = image_set([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], patients=[0, 0, 1])
    released = Release(draft(divisor=1, unit="patient"), images).images
    expected = torch.tensor([[0.5, 0.5], [1.0, 1.0]])
    assert torch.allclose(released[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("unit", ["example", "patient"])
def test_removing_a_patient_of_50_images_moves_the_sum_by_the_clip_at_most(unit):
    rng = np.random.default_rng(0)
    many = rng.uniform(0.5, 1.0, (50, 4))
    other = [[0.5, 0, 0, 0]]
    plan = draft(count=1, divisor=1, unit=unit, clipping_norm=1.0)
    both = Release(plan, image_set(*other, *many, patients=[0] + [1] * 50)).images
    alone = Release(plan, image_set(*other, patients=[0])).images
    moved = float((both - alone).norm())
    assert (moved <= 1.0 + 1e-6) == (unit == "patient")


def test_at_most_so_many_images_of_a_patient_drawn_afresh() -> None:
    rows = np.eye(4) * 0.8
    images = image_set(*rows, patients=[0] * 4)
    plan = draft(count=30, divisor=1, unit="patient", max_images_per_patient=2)
    released = Release(plan, images).images.reshape(30, 4)
    pairs = set()
    for image in released:
        assert sorted(image.tolist()) == pytest.approx([0, 0, 0.4, 0.4], abs=1e-6)
        pairs.add(tuple(np.flatnonzero(image > 0.2)))
    assert len(pairs) > 3


class TestNoise:
    def test_it_has_the_deviation_of_the_plan_also_on_an_empty_sample(self) -> None:
        """sigma C / B = 2 × 10 / 4 = 5 in each of 64 × 100 pixels."""
        images = ImageSet(np.zeros((1, 8, 8, 1), np.float32), (-1.0, 1.0))
        plan = draft(
            count=100, divisor=4, size=8, noise_multiplier=2.0, sample_rate=1e-12
        )
        noise = Release(plan, images).images
        assert float(noise.std()) == pytest.approx(5.0, rel=0.04)
        assert abs(float(noise.mean())) < 5.0 * 4 / 80

    def test_no_two_releases_are_alike(self) -> None:
        plan = draft(noise_multiplier=1.0)
        images = image_set([0, 0, 0, 0])
        first, second = (Release(plan, images, seed=None).images for _ in range(2))
        assert not torch.equal(first, second)
        assert not torch.equal(first[0], first[1])

    def test_a_plan_without_a_multiplier_is_refused(self) -> None:
        plan = draft()
        object.__setattr__(plan.privacy, "noise_multiplier", 0.0)
        with pytest.raises(ValueError, match="never calibrated"):
            Release(plan, image_set([0, 0, 0, 0]))


def test_every_image_has_a_sample_of_its_own() -> None:
    plan = draft(count=200, divisor=1, sample_rate=0.3)
    released = Release(plan, image_set([0.5, 0, 0, 0])).images[:, 0, 0, 0]
    assert set(released.round(decimals=3).tolist()) == {0.0, 0.5}
    assert float((released > 0.1).float().mean()) == pytest.approx(0.3, abs=0.1)


def test_many_units_are_added_chunk_by_chunk(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    images = image_set(*rng.uniform(-1, 1, (20, 4)))
    whole = Release(draft(), images).images
    monkeypatch.setattr(silo.central_images, "CHUNK_UNITS", 3)
    assert torch.allclose(Release(draft(), images).images, whole, atol=1e-5)


def test_a_checkpoint_knows_how_many_were_noised() -> None:
    release = Release(draft(count=5), image_set([1, 0, 0, 0]), steps=2)
    told = [(kept.step, kept.noised_steps) for kept in release.kept]
    assert told == [(2, 2), (4, 2), (5, 1)]
    assert not release.state.moments


def test_going_on_leaves_what_was_made_as_it_is() -> None:
    release = Release(draft(count=3), image_set([1, 0, 0, 0]), first_step=2)
    assert not release.images[:2].any()
    assert release.images[2].any()
    assert [(kept.step, kept.noised_steps) for kept in release.kept] == [(3, 1)]


def test_no_images_is_one_line() -> None:
    empty = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no images"):
        release_central_images(
            make_model(means(), 0),
            image_set([0, 0, 0, 0]),
            PrivacyUnits("example", empty, np.zeros(1, np.int64)),
            draft(),
            random=PrivateRandom(1),
            keep=lambda kept: None,
            checkpoint_steps=1,
        )


class TestPlan:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"privacy": PrivacyConfig()}, 'privacy.mechanism: must be "dp-sgd"'),
            ({"num_rounds": 2}, "num_rounds: must be 1"),
            (
                {"training": TrainingConfig(local_steps=3)},
                "training.local_steps: must be 2",
            ),
            (
                {"training": TrainingConfig(local_epochs=1)},
                "training.local_steps: must be 2",
            ),
            (
                {"update": UpdateConfig(selection="udec")},
                'update.selection: must be "full"',
            ),
            (
                {"evaluation": EvaluationConfig(every_rounds=1)},
                "evaluation.every_rounds: must be 0",
            ),
            (
                {"initial": InitialConfig(name="a", sha256="00" * 32)},
                "initial.name: must be empty",
            ),
            (
                {"aggregation": AggregationConfig(ema_decay=0.5)},
                "aggregation: learning_rate must be 1",
            ),
            (
                {"update": UpdateConfig(clipping_norm=14.0)},
                "update.clipping_norm: must be at least 14.14",
            ),
        ],
    )
    def test_what_cannot_give_central_images_is_refused(self, changes, message):
        good = draft()
        with pytest.raises(ValueError, match=message) as caught:
            replace(good, **changes)
        assert "\n" not in str(caught.value)

    def test_draws_of_timesteps_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"privacy\.multiplicity: must be 1"):
            draft(multiplicity=0)

    def test_the_draft_in_the_documentation_is_one(self, tmp_path) -> None:
        text = (ROOT / "docs" / "warm-up.md").read_text()
        path = tmp_path / "draft.toml"
        path.write_text(text.split("```toml\n")[1].split("```")[0])
        loaded, _ = load_draft(path)
        assert loaded.model.is_central_images

    def test_the_norm_that_an_update_may_have(self) -> None:
        """2 images of 4 pixels, C 3, noise 0.5 C: sqrt(2 (9 + 4 × 1.5^2)) = 6."""
        assert expected_norm(means(), 3.0, 0.5) == pytest.approx(6.0)
