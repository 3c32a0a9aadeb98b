import itertools
import math
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import silo.training
from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import make_schedule
from protocol.settings import TrainingConfig
from silo.data import ImageSet
from silo.errors import DataError
from silo.training import (
    TrainingDiverged,
    TrainingState,
    batches,
    learning_rate,
    num_local_steps,
    train,
)
from tests.silo.conftest import CPU, tiny_draft, tiny_images

SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=10))


def draft(**training):
    fields = {"local_steps": 3, "examples_per_step": 2, "learning_rate": 1e-2}
    return tiny_draft(training=TrainingConfig(**(fields | training)))


def run(plan, rounds=(1,), silo=0, model=None, images=None, observe=lambda _: None):
    """Train a fresh model for some rounds; return it with the state that is kept."""
    model = model or make_model(plan.model, 1)
    state = TrainingState()
    for round_number in rounds:
        state = train(
            model,
            images or tiny_images(num_images=5),
            SCHEDULE,
            plan,
            state,
            silo=silo,
            round_number=round_number,
            device=CPU,
            observe=observe,
        )
    return model, state


def equal(a, b) -> bool:
    left, right = parameters_of(a), parameters_of(b)
    return all(torch.equal(left[name], right[name]) for name in left)


class TestReproducible:
    def test_same_seed_same_bits(self):
        assert equal(run(draft(), (1, 2))[0], run(draft(), (1, 2))[0])

    def test_silo_round_and_seed_matter(self):
        first, _ = run(draft())
        assert not equal(first, run(draft(), silo=1)[0])
        # The line of the learning rate is flat here: only the examples differ.
        assert not equal(first, run(draft(), rounds=(2,))[0])
        other = tiny_draft(seed=6, training=draft().training)
        assert not equal(first, run(other)[0])

    def test_no_global_generator_is_touched(self):
        before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
        run(draft())
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert all(
            np.array_equal(now, then)
            for now, then in zip(np.random.get_state(), before[1], strict=True)
        )
        assert random.getstate() == before[2]

    def test_nor_does_it_matter(self):
        torch.manual_seed(1)
        first, _ = run(draft())
        torch.manual_seed(2)
        assert equal(first, run(draft())[0])


class TestSteps:
    @pytest.mark.parametrize(
        ("training", "num_examples", "expected"),
        [
            ({"local_steps": 7}, 100, 7),
            ({"local_steps": 7}, 1, 7),
            ({"local_steps": 0, "local_epochs": 1}, 5, 3),
            ({"local_steps": 0, "local_epochs": 3}, 6, 9),
            ({"local_steps": 0, "local_epochs": 2}, 1, 2),
        ],
    )
    def test_by_hand(self, training, num_examples, expected):
        plan = draft(**training)
        assert num_local_steps(plan, num_examples) == expected
        seen = []
        images = tiny_images(num_images=num_examples)
        run(plan, images=images, observe=seen.append)
        assert (seen[-1].step, seen[-1].num_steps) == (expected, expected)

    @given(
        num_examples=st.integers(1, 40),
        per_step=st.integers(1, 50),
        seed=st.integers(0, 9),
    )
    def test_every_index_once_an_epoch(self, num_examples, per_step, seed):
        drawn = batches(num_examples, per_step, np.random.default_rng(seed))
        epoch = -(-num_examples // per_step)
        for _ in range(2):
            chosen = list(itertools.islice(drawn, epoch))
            assert sorted(np.concatenate(chosen).tolist()) == list(range(num_examples))
            assert all(len(batch) == per_step for batch in chosen[:-1])

    def test_epochs_differ(self):
        drawn = batches(20, 20, np.random.default_rng(0))
        assert next(drawn).tolist() != next(drawn).tolist()


class TestLearningRate:
    @pytest.mark.parametrize(
        ("fraction", "progress", "expected"),
        [
            (1.0, 0.0, 0.1),
            (1.0, 0.9, 0.1),
            (0.1, 0.0, 0.1),
            (0.1, 0.5, 0.055),
            (0.1, 1.0, 0.01),
            (0.5, 0.2, 0.09),
        ],
    )
    def test_by_hand(self, fraction, progress, expected):
        plan = draft(learning_rate=0.1, final_learning_rate_fraction=fraction)
        assert learning_rate(plan, progress) == pytest.approx(expected, rel=1e-12)


class OneLayer(DenoisingNetwork):
    """A network whose gradients are never near zero, so that rounding stays small."""

    parts: ClassVar = {}

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 9).reshape(1, 1, 3, 3))
            self.layer.bias.fill_(0.5)

    def forward(self, x_t, t):
        return self.layer(x_t) * (1 + t[:, None, None, None])


def slow_adam(plan, rounds, silo=0):
    """The obvious loop: Adam's formulas (Kingma & Ba, 2015, algorithm 1) in float64."""
    model = OneLayer()
    images = tiny_images(num_images=5)
    values = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    first = {n: np.zeros_like(v) for n, v in values.items()}
    second = {n: np.zeros_like(v) for n, v in values.items()}
    count = 0
    for round_number in rounds:
        if plan.training.optimizer_state == "fresh":
            first = {n: np.zeros_like(v) for n, v in values.items()}
            second = {n: np.zeros_like(v) for n, v in values.items()}
            count = 0
        seed = plan.seed_for("training", silo, round_number)
        order, generator = np.random.default_rng(seed), torch.Generator()
        generator.manual_seed(seed)
        indices: list[int] = []
        for step in range(plan.training.local_steps):
            if not indices:
                indices = order.permutation(5).tolist()
            chosen, indices = indices[:2], indices[2:]
            x_0 = images.batch(np.array(chosen))
            t = torch.randint(10, (len(chosen),), generator=generator)
            noise = torch.randn(x_0.shape, generator=generator)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(torch.from_numpy(values[name]))
            model.zero_grad()
            kind = plan.training.loss
            denoising_loss(model, x_0, t, noise, SCHEDULE, kind).mean().backward()
            progress = (round_number - 1 + step / plan.training.local_steps) / 3
            start = plan.training.learning_rate
            end = start * plan.training.final_learning_rate_fraction
            rate = start + (end - start) * progress
            count += 1
            for name, parameter in model.named_parameters():
                gradient = parameter.grad.double().numpy()
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean = first[name] / (1 - 0.9**count)
                spread = np.sqrt(second[name] / (1 - 0.999**count))
                values[name] = values[name] - rate * mean / (spread + 1e-8)
    return values


def distance(model, values) -> float:
    return max(
        np.abs(p.detach().numpy() - values[n]).max()
        for n, p in model.named_parameters()
    )


class TestAgainstSlowAdam:
    @pytest.mark.parametrize("kept", ["kept", "fresh"])
    def test_two_rounds(self, kept):
        plan = draft(optimizer_state=kept, final_learning_rate_fraction=0.1)
        model, state = run(plan, (1, 2), model=OneLayer())
        other = draft(
            optimizer_state={"kept": "fresh", "fresh": "kept"}[kept],
            final_learning_rate_fraction=0.1,
        )
        assert distance(model, slow_adam(plan, (1, 2))) < 1e-5
        assert distance(model, slow_adam(other, (1, 2))) > 1e-3
        assert bool(state.moments) == (kept == "kept")

    def test_huber(self):
        model, _ = run(draft(loss="huber"), model=OneLayer())
        assert distance(model, slow_adam(draft(loss="huber"), (1,))) < 1e-5

    def test_steps_are_counted_over_rounds(self):
        _, state = run(draft(), (1, 2))
        steps = {float(v) for n, v in state.moments.items() if n.startswith("step.")}
        assert steps == {6.0}

    def test_state_given_is_not_changed(self):
        _, state = run(draft())
        before = {name: value.clone() for name, value in state.moments.items()}
        train(
            make_model(draft().model, 1),
            tiny_images(),
            SCHEDULE,
            draft(),
            state,
            silo=0,
            round_number=2,
            device=CPU,
            observe=lambda _: None,
        )
        assert all(torch.equal(state.moments[n], value) for n, value in before.items())

    @pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
    def test_every_parameter_has_its_moments(self, architecture):
        config = UNetConfig(
            architecture=architecture, dim=8, channels=1, dim_mults=(1, 2), image_size=8
        )
        plan = tiny_draft(model=config, training=draft(local_steps=1).training)
        model, state = run(plan, (1, 2), model=make_model(config, 1))
        assert len(state.moments) == 3 * len(list(model.parameters()))


class TestDiverged:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_names_round_and_step(self, value, monkeypatch):
        monkeypatch.setattr(silo.training, "REPORT_SECONDS", 0.0)
        model = make_model(draft().model, 1)
        with torch.no_grad():
            next(model.parameters()).fill_(value)
        with pytest.raises(TrainingDiverged) as caught:
            run(draft(), (2,), model=model)
        assert "round 2, step 1 (learning rate 0.01)" in str(caught.value)

    def test_at_the_last_step_at_the_latest(self):
        model = make_model(draft().model, 1)
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        with pytest.raises(TrainingDiverged, match="round 1, step"):
            run(draft(), model=model)


def test_no_images():
    images = ImageSet(np.zeros((0, 8, 8, 1), np.uint8), (0.0, 255.0))
    model = make_model(draft().model, 1)
    with pytest.raises(DataError):
        train(
            model,
            images,
            SCHEDULE,
            draft(),
            TrainingState(),
            silo=0,
            round_number=1,
            device=CPU,
            observe=lambda _: None,
        )


def test_progress_is_the_mean_loss_of_the_interval(monkeypatch):
    monkeypatch.setattr(silo.training, "REPORT_SECONDS", 0.0)
    each = []
    run(draft(), observe=each.append)
    assert [progress.step for progress in each] == [1, 2, 3]
    monkeypatch.setattr(silo.training, "REPORT_SECONDS", 1e9)
    whole = []
    run(draft(), observe=whole.append)
    (last,) = whole
    assert last.loss == pytest.approx(np.mean([p.loss for p in each]), rel=1e-6)
    assert last.images_per_second > 0
