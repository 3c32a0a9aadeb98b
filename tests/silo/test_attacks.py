"""Scores of a linear network, by closed forms; and what they must not depend on."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion.config import ScheduleConfig
from diffusion.schedule import make_schedule
from silo.attacks import (
    ATTACKS,
    LOSS_NOISES,
    ScoresNotFinite,
    Setting,
    make_attack,
    score_images,
    settings,
)
from silo.data import ImageSet
from silo.errors import DataError
from tests.silo.conftest import CPU

T = 40
SCHEDULE = make_schedule(ScheduleConfig(kind="cosine", num_timesteps=T))
AB = [float(value) for value in SCHEDULE.alpha_bar_exact]
SHAPE = (1, 2, 2)
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 2, 2, 1)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0], dtype=np.int64)
IMAGES = ImageSet(PIXELS, (0.0, 255.0), LABELS)
EVERY = np.arange(7)


class Linear(nn.Module):
    """Predicts slope(t) x, plus a tenth of the label where there is one."""

    @staticmethod
    def slope(t: int) -> float:
        return 0.3 + 0.02 * t

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        result = (0.3 + 0.02 * t.to(x.dtype)).reshape(-1, 1, 1, 1) * x
        return result if labels is None else result + labels.reshape(-1, 1, 1, 1) / 10


def scored(setting: Setting, *, seed=1, network=None, with_labels=False, **options):
    attack = make_attack(
        setting, network or Linear(), SCHEDULE, seed=seed, image_shape=SHAPE
    )
    chosen = options.pop("indices", EVERY)
    return score_images(
        attack, IMAGES, chosen, device=CPU, with_labels=with_labels, **options
    )


def flat_images() -> np.ndarray:
    return PIXELS.reshape(7, 4) / 127.5 - 1


class TestClosedForms:
    @pytest.mark.parametrize("t", [1, 8, 39])
    def test_pia(self, t):
        """-|s_0 - s_t (√ab + √(1 - ab) s_0)| ‖x‖₄."""
        first, later = Linear.slope(0), Linear.slope(t)
        factor = first - later * (math.sqrt(AB[t]) + math.sqrt(1 - AB[t]) * first)
        norms = [sum(v**4 for v in image) ** 0.25 for image in flat_images()]
        expected = [-abs(factor) * norm for norm in norms]
        assert scored(Setting("PIA", (0, t))) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("t", [1, 8, 39])
    def test_pian(self, t):
        """As PIA, with s_0 x brought to a mean absolute value of √(2 / π)."""
        later, expected = Linear.slope(t), []
        for image in flat_images():
            noise = image * math.sqrt(2 / math.pi) / np.abs(image).mean()
            at_t = math.sqrt(AB[t]) * image + math.sqrt(1 - AB[t]) * noise
            expected.append(-(sum(v**4 for v in noise - later * at_t) ** 0.25))
        assert scored(Setting("PIAN", (0, t))) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("path", [(0, 2, 4, 6), (0, 1, 2), (0, 5, 10)])
    def test_secmi(self, path):
        """A DDIM step from t to u multiplies by the factor below; all but the last are
        taken, and the last there and back."""

        def factor(t: int, u: int) -> float:
            x_0 = (1 - math.sqrt(1 - AB[t]) * Linear.slope(t)) / math.sqrt(AB[t])
            return math.sqrt(AB[u]) * x_0 + math.sqrt(1 - AB[u]) * Linear.slope(t)

        *way, beyond = path
        at_t = math.prod(factor(t, u) for t, u in pairwise(way))
        error = at_t * (factor(way[-1], beyond) * factor(beyond, way[-1]) - 1)
        expected = [-(error**2) * sum(v * v for v in image) for image in flat_images()]
        assert scored(Setting("SecMI", path)) == pytest.approx(expected, rel=1e-3)

    def test_loss(self):
        timesteps = (0, 3, 11)
        noises = torch.randn(
            (len(timesteps) * LOSS_NOISES, *SHAPE),
            generator=torch.Generator().manual_seed(1),
        )
        expected = []
        for image in flat_images():
            errors = []
            for t, noise in zip(timesteps * LOSS_NOISES, noises, strict=True):
                flat = noise.numpy().reshape(4)
                x_t = math.sqrt(AB[t]) * image + math.sqrt(1 - AB[t]) * flat
                errors.append(np.mean((Linear.slope(t) * x_t - flat) ** 2))
            expected.append(-np.mean(errors))
        assert scored(Setting("loss", timesteps)) == pytest.approx(expected, rel=1e-5)

    def test_pia_with_a_label(self):
        """One image by hand: the label adds 0.1 l to both predictions."""
        t, first, later = 8, Linear.slope(0), Linear.slope(8)
        image = flat_images()[2]
        noise = first * image + 0.2
        at_t = math.sqrt(AB[t]) * image + math.sqrt(1 - AB[t]) * noise
        expected = -(sum(v**4 for v in noise - later * at_t - 0.2) ** 0.25)
        found = scored(Setting("PIA", (0, t)), with_labels=True)
        assert found[2] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("with_labels", [False, True])
class TestInvariance:
    def test_batches_and_order_change_nothing(self, attack, with_labels):
        one = settings(attack, T)[-1]
        whole = scored(one, with_labels=with_labels)
        for size in (1, 3):
            blocks = scored(one, with_labels=with_labels, block_images=size)
            assert blocks == pytest.approx(whole, rel=1e-5)
        turned = scored(one, with_labels=with_labels, indices=EVERY[::-1].copy())
        assert turned[::-1] == pytest.approx(whole, rel=1e-5)

    def test_it_repeats_and_labels_matter(self, attack, with_labels):
        one = settings(attack, T)[-1]
        found = scored(one, with_labels=with_labels)
        assert (found == scored(one, with_labels=with_labels)).all()
        differs = scored(one, with_labels=not with_labels) != found
        assert differs[LABELS > 0].all()

    def test_only_the_loss_has_a_seed(self, attack, with_labels):
        one = settings(attack, T)[-1]
        first = scored(one, with_labels=with_labels)
        second = scored(one, with_labels=with_labels, seed=2)
        assert (first == second).all() == (attack != "loss")


class TestSettings:
    @pytest.mark.parametrize("num_timesteps", [4, 10, 50, 1000, 4000])
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_they_are_timesteps_of_the_schedule(self, attack, num_timesteps):
        found = settings(attack, num_timesteps)
        assert found
        assert len(set(found)) == len(found)
        for one in found:
            assert one.timesteps[0] == 0 or attack == "loss"
            assert list(one.timesteps) == sorted(set(one.timesteps))
            assert 0 <= one.timesteps[0] <= one.timesteps[-1] < num_timesteps
            assert len(one.timesteps) >= (3 if attack == "SecMI" else 1)
            assert one.in_words()

    def test_the_papers_own_are_among_them(self):
        assert Setting("PIA", (0, 200)) in settings("PIA", 1000)
        path = (*range(0, 101, 10), 110)
        assert Setting("SecMI", path) in settings("SecMI", 1000)
        assert all(len(s.timesteps) * LOSS_NOISES >= 16 for s in settings("loss", 1000))


def test_a_model_that_is_broken_is_refused():
    class Broken(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * math.nan

    with pytest.raises(ScoresNotFinite):
        scored(Setting("PIA", (0, 8)), network=Broken())


def test_a_model_with_classes_needs_labels():
    images = ImageSet(PIXELS, (0.0, 255.0))
    attack = make_attack(
        Setting("PIA", (0, 8)), Linear(), SCHEDULE, seed=1, image_shape=SHAPE
    )
    with pytest.raises(DataError, match="no labels"):
        score_images(attack, images, EVERY, device=CPU, with_labels=True)
