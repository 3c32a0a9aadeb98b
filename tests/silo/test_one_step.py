"""One private step: the exact sum of clipped gradients at the global parameters."""

import math

import numpy as np
import pytest
import torch

from diffusion.config import ScheduleConfig
from diffusion.model import make_model
from diffusion.parameters import selected_layout
from diffusion.schedule import make_schedule
from privacy.clipping import norm
from protocol.noise_plan import gradient_step
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from protocol.update_settings import UpdateConfig
from silo.data import ImageSet
from silo.one_step import add_clipped, gradient_sum
from silo.randomness import PrivateRandom
from silo.units import units_of
from tests.silo.conftest import CPU, tiny_draft, tiny_images

SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=10))


def draft(**privacy):
    fields = {
        "mechanism": "record-distributed",
        "share_variance": 10**9,
        "delta": 1e-3,
        "sample_rate": 1.0,
        "multiplicity": 1,
        "clipping_norm": 1e-3,
    }
    return tiny_draft(
        training=TrainingConfig(
            local_steps=1, examples_per_step=2, optimizer_state="fresh"
        ),
        update=UpdateConfig(value_bits=24),
        privacy=PrivacyConfig(**(fields | privacy)),
    )


def summed(plan, images, units=None, seed=1, model=None):
    model = model or make_model(plan.model, 1)
    return gradient_sum(
        model,
        images,
        units or units_of(images, "example"),
        SCHEDULE,
        plan,
        selected_layout(model, plan.update.selection, plan.update.parts),
        round_number=1,
        device=CPU,
        random=PrivateRandom(seed),
        observe=lambda progress: None,
    )


class TestExactSum:
    def test_by_hand(self):
        # C = 1: h = 2^-30. (3, 4) is clipped to (0.6, 0.8), (0.25, 0) stays.
        total = np.zeros(2, np.int64)
        add_clipped(total, np.array([3, 4], np.float32), 1.0)
        assert np.allclose(total / 2**30, [0.6, 0.8], atol=1e-6)
        assert np.hypot(*(total / 2**30)) <= 1 + math.sqrt(2) * 2**-31
        before = total.copy()
        add_clipped(total, np.array([0.25, 0], np.float32), 1.0)
        assert (total - before).tolist() == [2**28, 0]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_adds_nothing(self, value):
        total = np.ones(3, np.int64)
        add_clipped(total, np.array([1, value, 1], np.float32), 1.0)
        assert total.tolist() == [1, 1, 1]

    def test_one_that_is_taken_away_takes_its_own_share_and_no_more(self):
        random = np.random.default_rng(1)
        norm_, d = 0.75, 1000
        vectors = random.normal(size=(30, d)).astype(np.float32)
        everything, without = np.zeros(d, np.int64), np.zeros(d, np.int64)
        for index in random.permutation(30):
            add_clipped(everything, vectors[index].copy(), norm_)
        for index in range(29):
            add_clipped(without, vectors[index].copy(), norm_)
        moved = (everything - without) * gradient_step(norm_)
        limit = norm_ + math.sqrt(d) * gradient_step(norm_) / 2
        assert norm_ * 0.999 < math.hypot(*moved) <= limit


class TestGradientSum:
    def test_all_gradients_of_one_image_add_up(self):
        # Every image is the same and is clipped: the directions agree only on average,
        # so the sum is between one and n times the norm.
        plan, images = draft(), tiny_images(num_images=5)
        vector = summed(plan, images)
        assert vector.dtype == np.float32
        assert norm(vector) <= 5e-3 * (1 + 1e-5)
        assert norm(summed(plan, images)) == norm(vector)  # the seed decides

    def test_it_is_minus_the_gradient_of_a_step_of_dp_sgd(self):
        # A large clip: the sum is that of whole gradients, down which the loss falls.
        plan, images = draft(clipping_norm=1e6), tiny_images(num_images=4)
        model = make_model(plan.model, 1)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        vector = summed(plan, images, model=model)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])
            assert parameter.grad is None
        from silo.per_example import LoopEngine, Objective
        from silo.private_training import Drawing

        random = PrivateRandom(1)
        units = units_of(images, "example")
        draw = Drawing(images, units, plan, 1, SCHEDULE, CPU, random)
        drawn = random.poisson_sample(4, 1.0)
        total = 0.0
        for unit in drawn:
            draws = draw(np.array([unit]))
            for made in LoopEngine().gradients(
                Objective(model, SCHEDULE, "mse"), draws
            ):
                total = total - torch.cat([g.reshape(-1) for g in made.gradients])
        assert np.allclose(vector, total.numpy(), rtol=1e-4, atol=2e-3)
        assert norm(vector) > 0

    def test_nobody_drawn_is_zero(self):
        vector = summed(draft(sample_rate=1e-12), tiny_images(num_images=4))
        assert not vector.any()

    def test_a_patient_counts_once(self):
        images = tiny_images(num_images=6)
        one = ImageSet(
            images.pixels,
            images.value_range,
            patients=np.zeros(6, np.int64),
            patient_names=("a",),
        )
        plan = draft(unit="patient")
        vector = summed(plan, one, units_of(one, "patient"))
        assert norm(vector) <= 1e-3 * (1 + 1e-6)

    def test_pixels_that_are_no_numbers_stop_nothing(self):
        plan, images = draft(), tiny_images(num_images=3)
        model = make_model(plan.model, 1)
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        assert not summed(plan, images, model=model).any()

    def test_what_is_trainable_must_be_what_is_federated(self):
        plan = draft()
        model = make_model(plan.model, 1)
        next(model.parameters()).requires_grad_(False)
        with pytest.raises(ValueError, match="not those that are federated"):
            summed(plan, tiny_images(num_images=2), model=model)
