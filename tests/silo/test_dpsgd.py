import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import nn

from diffusion.config import ScheduleConfig
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from silo.dpsgd import (
    NoisedSteps,
    NotPrivate,
    PrivateOptimizer,
    check_independence,
    unit_norms,
    validate,
)
from silo.per_example import Draws, LoopEngine, Objective, UnitGradients, VmapEngine
from silo.randomness import PrivateRandom
from tests.silo.conftest import TINY_MODEL

SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=10))


def zeros(*shapes, dtype=torch.float32):
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def private(parameters, noise=0.0, clip=1.0, expected=1, lr=1.0, seed=1, **options):
    """Return the private optimizer over plain gradient descent."""
    return PrivateOptimizer(
        torch.optim.SGD(parameters, lr=lr),
        noise_multiplier=noise,
        clipping_norm=clip,
        expected_batch_size=expected,
        random=PrivateRandom(seed),
        **options,
    )


def units(*gradients):
    """Return the gradients of units over one parameter."""
    stacked = torch.tensor(gradients)
    return UnitGradients([stacked], torch.zeros(len(stacked)))


def summed(parameters, *chunks, clip=1.0):
    """Return the clipped sum of chunks, without noise."""
    optimizer = private(parameters, clip=clip)
    for chunk in chunks:
        optimizer.accumulate(chunk)
    result = torch.cat([p.summed_grad.flatten() for p in parameters])
    optimizer.release()
    return result


class TestClip:
    def test_by_hand(self):
        (p,) = parameters = zeros(2)
        optimizer = private(parameters, clip=1.0, expected=4)
        optimizer.accumulate(units([3.0, 4.0], [0.3, 0.4]))
        optimizer.accumulate(units([0.0, -2.0]))
        # (3, 4) becomes (0.6, 0.8), (0.3, 0.4) stays, (0, -2) becomes (0, -1).
        assert p.summed_grad.tolist() == pytest.approx([0.9, 0.2])
        optimizer.step()
        # Divided by the public 4, not by the three that were drawn.
        assert p.tolist() == pytest.approx([-0.9 / 4, -0.2 / 4])

    def test_the_norm_is_over_all_parameters(self):
        parameters = zeros(1, (1, 1))
        chunk = UnitGradients(
            [torch.tensor([[3.0]]), torch.tensor([[[4.0]]])], torch.zeros(1)
        )
        assert summed(parameters, chunk).tolist() == pytest.approx([0.6, 0.8])

    def test_draws_are_averaged_before_the_clip(self):
        class Scaled(nn.Module):
            """Predicts w · x_t."""

            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(()))

            def forward(self, x_t, t):
                return self.w * x_t

        # Without noise in x_t (t = 0 of a schedule that hardly adds any), the loss of
        # a draw at w = 0 has the gradient -2 x_0 noise: 4 for the first draw, -1 for
        # the second. Their mean 1.5 is clipped to 1; clipped one by one, they would
        # cancel.
        x_0 = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1, 1)
        noise = torch.tensor([-1.0, 0.5]).view(1, 2, 1, 1, 1)
        draws = Draws(
            x_0, torch.zeros(1, 2, dtype=torch.int64), noise, torch.full((1, 2), 0.5)
        )
        schedule = make_schedule(ScheduleConfig(num_timesteps=10_000, kind="cosine"))
        for engine in (LoopEngine(), VmapEngine(4)):
            model = Scaled()
            (made,) = engine.gradients(Objective(model, schedule, "mse"), draws)
            assert float(made.gradients[0]) == pytest.approx(1.5, rel=0.01)
            assert float(summed([model.w], made)) == pytest.approx(1.0)

    @settings(max_examples=60, deadline=None)
    @given(
        arrays(
            np.float32,
            st.tuples(st.integers(1, 3), st.integers(1, 700)),
            elements=st.floats(-(2.0**40), 2.0**40, width=32),
        ),
        st.floats(1e-3, 1e3),
    )
    def test_no_unit_adds_more_than_the_clipping_norm(self, values, clip):
        for row in values:
            parameters = zeros(len(row))
            added = summed(parameters, units(row.tolist()), clip=clip)
            assert float(added.norm()) <= clip * (1 + 1e-6)
        together = summed(zeros(values.shape[1]), units(*values.tolist()), clip=clip)
        assert float(together.norm()) <= len(values) * clip * (1 + 1e-6)

    @pytest.mark.parametrize("make", [torch.randn, torch.rand, torch.ones])
    def test_the_norm_of_many_values_is_exact(self, make):
        gradient = make(2, 900_001) * 0.37
        exact = gradient.double().norm(dim=1)
        assert unit_norms([gradient]).tolist() == pytest.approx(
            exact.tolist(), rel=5e-7
        )
        halves = gradient[:, :70_000].to(torch.bfloat16)
        assert unit_norms([halves]).tolist() == pytest.approx(
            halves.double().norm(dim=1).tolist(), rel=1e-6
        )

    @pytest.mark.parametrize("num_units", [1, 2, 5])
    def test_opacus_clips_alike(self, num_units):
        generator = torch.Generator().manual_seed(1)
        shapes = [(3, 4), (5,), (2, 2, 3, 3)]
        chunk = [
            torch.randn((num_units, *shape), generator=generator) for shape in shapes
        ]
        mine = summed(zeros(*shapes), UnitGradients(chunk, torch.zeros(num_units)))
        stock = zeros(*shapes)
        optimizer = DPOptimizer(
            torch.optim.SGD(stock, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=1,
        )
        for parameter, gradient in zip(stock, chunk, strict=True):
            parameter.grad_sample = gradient
        optimizer.clip_and_accumulate()
        theirs = torch.cat([p.summed_grad.flatten() for p in stock])
        assert (mine - theirs).norm() < 1e-6 * theirs.norm()

    @pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 3e38])
    def test_a_broken_gradient_adds_nothing(self, broken):
        sound = units([3.0, 4.0], [0.0, 0.5])
        wanted = summed(zeros(2), sound).tolist()
        spoilt = units([3.0, 4.0], [broken, broken], [0.0, 0.5])
        assert summed(zeros(2), spoilt).tolist() == pytest.approx(wanted)
        alone = units([broken, 1.0])
        assert summed(zeros(2), alone).tolist() == [0, 0]
        assert summed(zeros(2), sound, alone).tolist() == pytest.approx(wanted)

    def test_a_gradient_of_zero(self):
        assert summed(zeros(2), units([0.0, 0.0])).tolist() == [0, 0]
        assert summed(zeros(1), units([0.0], [2.0])).tolist() == [1]

    def test_one_patient_of_fifty_images(self):
        """Removing a patient moves the sum by no more than the clipping norm."""
        model = make_model(TINY_MODEL, 1).double()
        model.time_embedding.layers[0].register_forward_pre_hook(
            lambda _, inputs: (inputs[0].double(),)
        )
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            model.final[-1].weight.normal_(generator=generator)
        shape = (3, 50, 1, 8, 8)
        draws = Draws(
            torch.rand(shape, generator=generator, dtype=torch.float64),
            torch.randint(10, (3, 50), generator=generator),
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.full((3, 50), 1 / 50, dtype=torch.float64),
        )
        objective, clip = Objective(model, SCHEDULE, "mse"), 1e-3

        def total(part):
            chunks = VmapEngine(4).gradients(objective, part)
            return summed(list(model.parameters()), *chunks, clip=clip)

        moved = (total(draws) - total(draws.part(0, 2))).norm()
        assert float(moved) == pytest.approx(clip, rel=1e-9)


class TestNoise:
    def test_its_law(self):
        (p,) = parameters = zeros((100, 100))
        optimizer = private(parameters, noise=2.0, clip=3.0, expected=5, seed=3)
        optimizer.accumulate(UnitGradients([torch.zeros(1, 100, 100)], torch.zeros(1)))
        optimizer.step()
        noise = (p.detach() * 5).flatten().numpy()
        assert stats.kstest(noise / 6.0, "norm").pvalue > 1e-3
        for wrong in (3.0, 2.0, 6.0 / math.sqrt(2), 6.6):  # halved, no clip, ...
            assert stats.kstest(noise / wrong, "norm").pvalue < 1e-6

    def test_once_per_logical_batch(self):
        (p,) = parameters = zeros((60, 60))
        optimizer = private(parameters, noise=1.0)
        for _ in range(9):
            optimizer.accumulate(
                UnitGradients([torch.zeros(2, 60, 60)], torch.zeros(2))
            )
        optimizer.step()
        assert float(p.detach().var()) == pytest.approx(1.0, rel=0.1)

    def test_an_empty_batch_is_noised_and_counted(self):
        (p,) = parameters = zeros((60, 60))
        optimizer, steps = private(parameters, noise=1.0), NoisedSteps()
        optimizer.attach_step_hook(steps)
        optimizer.step()
        first = p.detach().clone()
        optimizer.accumulate(UnitGradients([torch.ones(0, 60, 60)], torch.zeros(0)))
        optimizer.step()
        assert float(first.var()) == pytest.approx(1.0, rel=0.1)
        assert float((p.detach() - first).var()) == pytest.approx(1.0, rel=0.1)
        assert not torch.equal(p.detach() - first, first)
        assert steps.take() == 2
        assert steps.take() == 0

    def test_a_sum_is_used_once(self):
        (p,) = parameters = zeros(2)
        optimizer = private(parameters)
        optimizer.accumulate(units([3.0, 4.0]))
        optimizer.step()
        optimizer.step()
        assert p.tolist() == pytest.approx([-0.6, -0.8])
        assert p.grad is None

    def test_secret_unless_seeded(self):
        def stepped(random):
            (p,) = parameters = zeros(5)
            PrivateOptimizer(
                torch.optim.SGD(parameters, lr=1.0),
                noise_multiplier=1.0,
                clipping_norm=1.0,
                expected_batch_size=1,
                random=random,
            ).step()
            return p.tolist()

        assert stepped(PrivateRandom(1)) == stepped(PrivateRandom(1))
        assert stepped(PrivateRandom(1)) != stepped(PrivateRandom(2))
        assert stepped(PrivateRandom()) != stepped(PrivateRandom())

    def test_a_step_that_is_skipped_is_neither_noised_nor_counted(self):
        (p,) = parameters = zeros(2)
        optimizer, steps = private(parameters), NoisedSteps()
        optimizer.attach_step_hook(steps)
        optimizer.signal_skip_step()
        p.grad_sample = torch.tensor([[3.0, 4.0]])
        optimizer.step()
        assert (p.tolist(), steps.take()) == ([0, 0], 0)
        optimizer.step()
        assert p.tolist() == pytest.approx([-0.6, -0.8])
        assert steps.take() == 1


class TestOptimizer:
    def test_frozen_parameters_are_not_touched(self):
        free, frozen = parameters = zeros(2, 2)
        frozen.requires_grad_(False)
        optimizer = private(parameters, noise=1.0)
        optimizer.accumulate(units([3.0, 4.0]))
        optimizer.step()
        assert (free != 0).all()
        assert frozen.tolist() == [0, 0]
        assert frozen.grad is None

    def test_what_does_not_depend_on_data_is_added_after_the_noise(self):
        (p,) = parameters = zeros(2)
        seen = []

        def proximal(chosen):
            assert chosen[0] is p
            seen.append(p.grad.tolist())
            p.grad.add_(10.0)

        optimizer = private(parameters, expected=2, after_noise=proximal)
        optimizer.accumulate(units([3.0, 4.0]))
        optimizer.step()
        assert seen[0] == pytest.approx([0.3, 0.4])
        assert p.tolist() == pytest.approx([-10.3, -10.4])

    def test_nothing_stays_at_the_parameters(self):
        (p,) = parameters = zeros(2)
        before = set(vars(p))
        optimizer = private(parameters)
        optimizer.accumulate(units([3.0, 4.0]))
        optimizer.step()
        optimizer.release()
        assert set(vars(p)) == before

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"clip": 0.0}, "clipping_norm"),
            ({"clip": math.inf}, "clipping_norm"),
            ({"noise": -1.0}, "noise_multiplier"),
            ({"noise": math.nan}, "noise_multiplier"),
            ({"expected": 0}, "expected_batch_size"),
        ],
    )
    def test_wrong_numbers_are_refused(self, options, word):
        with pytest.raises(ValueError, match=word):
            private(zeros(1), **options)


class Inner(nn.BatchNorm2d):
    """A sub-class, which Opacus does not recognise."""


class Attention(nn.MultiheadAttention):
    """Another one."""


class Network(nn.Module):
    """Predicts what a module makes of an image."""

    def __init__(self, module):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.inner = module

    def forward(self, x_t, t):
        return self.inner(self.conv(x_t))


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(())

    def forward(self, x):
        result, self.last = x + self.last, x.detach().mean()
        return result


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return x


class TestValidate:
    @pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
    def test_our_networks_pass(self, architecture):
        config = dataclasses.replace(
            TINY_MODEL, architecture=architecture, dim_mults=(1, 2)
        )
        model = make_model(config, 1)
        before = {n: p.clone() for n, p in model.state_dict().items()}
        validate(model)
        check_independence(model, (1, 8, 8))
        after = model.state_dict()
        assert all(torch.equal(after[n], value) for n, value in before.items())

    @pytest.mark.parametrize(
        "module",
        [
            nn.BatchNorm2d(2),
            nn.BatchNorm2d(2, affine=False),
            Inner(2),
            Inner(2, track_running_stats=False),
            Attention(2, 1),
            nn.SyncBatchNorm(2),
            nn.InstanceNorm2d(2, track_running_stats=True),
            nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
            nn.MultiheadAttention(2, 1),
            nn.LSTM(2, 2),
            nn.GRU(2, 2),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_what_mixes_examples_is_named(self, module):
        with pytest.raises(NotPrivate) as caught:
            validate(Network(nn.Sequential(module)))
        message = str(caught.value)
        assert message.startswith(f"inner.0 ({type(module).__name__}): ")
        assert "\n" not in message

    def test_a_model_in_evaluation_mode_is_refused(self):
        with pytest.raises(NotPrivate, match="training mode"):
            validate(make_model(TINY_MODEL, 1).eval())

    @pytest.mark.parametrize(
        ("module", "reason"),
        [
            (BatchMean(), "mixes the examples"),
            (Remembering(), "remembers"),
            (Counting(), "inner.seen: is a buffer"),
            (nn.BatchNorm2d(2, track_running_stats=False), "mixes the examples"),
        ],
        ids=["mean", "memory", "buffer", "norm"],
    )
    def test_what_no_list_knows_is_found(self, module, reason):
        with pytest.raises(NotPrivate, match=reason):
            check_independence(Network(module), (1, 8, 8))

    def test_chance_and_zero_parameters_do_not_mislead(self):
        check_independence(Network(nn.Dropout(0.5)), (1, 8, 8))
        hidden = Network(BatchMean())
        with torch.no_grad():
            for parameter in hidden.parameters():
                parameter.zero_()
        with pytest.raises(NotPrivate, match="mixes"):
            check_independence(hidden, (1, 8, 8))

    def test_the_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        check_independence(make_model(TINY_MODEL, 1), (1, 8, 8))
        assert torch.equal(torch.get_rng_state(), before)
