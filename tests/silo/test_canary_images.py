"""Images of noise: legal, fixed by the seed, further units, found by their loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.checkpoint import Checkpoint
from diffusion.config import SamplerConfig
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from protocol.canaries import CANARY_SEED_BYTES, draw_included
from protocol.settings import TrainingConfig
from silo.canary_images import (
    MAX_LOSS,
    canary_images,
    image_scores,
    with_canaries,
)
from silo.data import ImageSet, check_values
from silo.training import TrainingState, train
from silo.units import units_of
from tests.silo.conftest import CPU, TINY_MODEL, tiny_draft, tiny_images
from tests.silo.test_private_training import SCHEDULE, by_patient

SEED = bytes(range(CANARY_SEED_BYTES))


def checkpoint(model, plan):
    return Checkpoint(
        model=plan.model, schedule=plan.schedule, sampler=SamplerConfig(),
        parameters=parameters_of(model),
    )  # fmt: skip


class TestImages:
    @pytest.mark.parametrize(
        ("dtype", "value_range"),
        [
            (np.uint8, (0.0, 255.0)),
            (np.uint8, (10.0, 20.0)),
            (np.int16, (-100.0, 100.0)),
            (np.float32, (-1.0, 1.0)),
        ],
    )
    def test_legal_and_spread_over_the_range(self, dtype, value_range):
        own = ImageSet(np.zeros((2, 8, 8, 3), dtype), value_range)
        made = canary_images(SEED, 40, own, 0)
        check_values(made, "the canaries")
        assert made.pixels.dtype == dtype
        assert made.pixels.shape == (40, 8, 8, 3)
        low, high = value_range
        assert made.pixels.min() <= low + 0.01 * (high - low)
        assert made.pixels.max() >= high - 0.01 * (high - low)
        mean = float(made.pixels.astype(float).mean())
        assert mean == pytest.approx((low + high) / 2, abs=0.01 * (high - low) * 2)

    def test_of_the_seed_alone(self):
        first = canary_images(SEED, 6, tiny_images(0), 0)
        again = canary_images(SEED, 6, tiny_images(1, 9), 0)
        assert np.array_equal(first.pixels, again.pixels)
        other = canary_images(bytes(32), 6, tiny_images(0), 0)
        assert not np.array_equal(first.pixels, other.pixels)

    def test_labels_by_lot(self):
        own = replace(tiny_images(), labels=np.zeros(4, np.int64))
        made = canary_images(SEED, 3000, own, 3)
        counts = np.bincount(made.labels, minlength=3)
        assert stats.chisquare(counts).pvalue > 1e-4
        assert canary_images(SEED, 3, tiny_images(), 3).labels is None


class TestPlanted:
    def test_the_included_ones_come_last(self):
        own = replace(tiny_images(), labels=np.array([1, 0, 2, 2]))
        both = with_canaries(own, SEED, 30, 3)
        coins = draw_included(SEED, 30)
        made = canary_images(SEED, 30, own, 3)
        assert np.array_equal(both.pixels[:4], own.pixels)
        assert np.array_equal(both.pixels[4:], made.pixels[coins])
        assert both.labels.tolist() == [1, 0, 2, 2, *made.labels[coins]]
        assert 0 < coins.sum() < 30

    def test_each_is_a_unit_of_its_own(self):
        coins = int(draw_included(SEED, 30).sum())
        both = with_canaries(tiny_images(), SEED, 30, 0)
        assert len(units_of(both, "example")) == 4 + coins
        images, units = by_patient(3, 2)
        planted = with_canaries(images, SEED, 30, 0)
        mine = units_of(planted, "patient")
        assert len(mine) == len(units) + coins == len(planted.patient_names)
        assert [len(mine.images(u)) for u in range(len(mine))] == [3, 2] + [1] * coins
        assert len(set(planted.patient_names)) == len(planted.patient_names)


class TestScores:
    def test_a_model_that_learned_them_by_heart_knows_them(self):
        """Without privacy and with much training, scores tell who was in."""
        plan = tiny_draft(
            num_rounds=1,
            training=TrainingConfig(
                local_steps=150, examples_per_step=4, learning_rate=1e-2
            ),
        )
        own = ImageSet(np.zeros((1, 8, 8, 1), np.uint8), (0.0, 255.0))
        made = canary_images(SEED, 2, own, 0)
        in_, out = ImageSet(made.pixels[:1], made.value_range), made
        model = make_model(TINY_MODEL, 1)
        before = image_scores(checkpoint(model, plan), plan, SEED, out, CPU)
        train(
            model, in_, SCHEDULE, plan, TrainingState(), silo=0, round_number=1,
            device=CPU, observe=lambda progress: None,
        )  # fmt: skip
        member, stranger = image_scores(checkpoint(model, plan), plan, SEED, out, CPU)
        assert member - before[0] > stranger - before[1]

    def test_repeatable_and_finite(self):
        plan = tiny_draft()
        model = make_model(TINY_MODEL, 1)
        made = canary_images(SEED, 70, tiny_images(), 0)
        scores = image_scores(checkpoint(model, plan), plan, SEED, made, CPU)
        assert scores == image_scores(checkpoint(model, plan), plan, SEED, made, CPU)
        part = ImageSet(made.pixels[66:], made.value_range)
        alone = image_scores(checkpoint(model, plan), plan, SEED, part, CPU)
        assert alone == pytest.approx(scores[66:], rel=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        spoilt = image_scores(checkpoint(model, plan), plan, SEED, part, CPU)
        assert spoilt == (-MAX_LOSS,) * 4
