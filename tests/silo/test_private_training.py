from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import silo.private_training
from diffusion.config import ScheduleConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.schedule import make_schedule
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.data import ImageSet
from silo.dpsgd import NotPrivate
from silo.errors import DataError
from silo.per_example import HooksEngine, LoopEngine, VmapEngine
from silo.private_training import multiplicity_of, train_privately
from silo.randomness import PrivateRandom
from silo.training import TrainingDiverged, TrainingState
from silo.units import PrivacyUnits, units_of
from tests.silo.conftest import CPU, TINY_MODEL, tiny_draft, tiny_images

SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=10))


def draft(privacy=None, **training):
    """Return a tiny private draft."""
    mechanism = {
        "mechanism": "dp-sgd",
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "sample_rate": 0.5,
        "multiplicity": 2,
    }
    fields = {"local_steps": 3, "examples_per_step": 2, "learning_rate": 1e-2}
    return tiny_draft(
        training=TrainingConfig(**(fields | training)),
        privacy=PrivacyConfig(**(mechanism | (privacy or {}))),
    )


def by_patient(*sizes):
    """Return images of patients who have so many each."""
    images = tiny_images(num_images=sum(sizes))
    patients = np.repeat(np.arange(len(sizes)), sizes)
    images = ImageSet(
        images.pixels,
        images.value_range,
        patients=patients,
        patient_names=tuple(map(str, range(len(sizes)))),
    )
    return images, units_of(images, "patient")


class Run:
    """One training, and all that it told."""

    def __init__(self, plan, *, seed=1, images=None, units=None, model=None, **options):
        self.images = images or tiny_images(num_images=6)
        self.model = model or make_model(plan.model, 1)
        self.plan, self.kept, self.progress = plan, [], []
        arguments = {
            "state": TrainingState(),
            "round_number": 1,
            "device": CPU,
            "random": PrivateRandom(seed),
            "observe": self.progress.append,
            "keep": self.kept.append,
            "checkpoint_steps": 100,
        }
        self.state = train_privately(
            self.model,
            self.images,
            units_of(self.images, "example") if units is None else units,
            SCHEDULE,
            plan,
            **(arguments | options),
        )
        self.parameters = parameters_of(self.model)


def equal(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def close(a, b) -> bool:
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


class Overflowing:
    """An engine whose losses are finite, and whose mean is not."""

    chunk_size = 1

    def gradients(self, objective, draws):
        for made in LoopEngine().gradients(objective, draws):
            yield replace(made, losses=torch.full_like(made.losses, 3e38))


class TestWhatDataMustNotDecide:
    def test_no_loss_stops_the_training(self):
        """Others would see that it stopped, and so that somebody's loss was large."""
        run = Run(draft({"sample_rate": 1.0}), engine=Overflowing())
        assert len(run.kept) == 1
        assert not np.isfinite(run.progress[-1].loss)

    def test_padding_brings_nothing_that_a_unit_does_not_have(self):
        """Draws that only fill up a chunk are copies of the unit's own."""
        images, units = by_patient(1, 3)
        plan = draft({"unit": "patient", "multiplicity": 2})
        draw = silo.private_training.Drawing(
            images, units, plan, 2, SCHEDULE, CPU, PrivateRandom(1)
        )
        draws = draw(np.array([0, 1]))
        assert draws.weights[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
        for part in (draws.x_0, draws.t, draws.noise):
            for place in range(2, 6):
                assert torch.equal(part[0, place], part[0, place % 2])
        assert len({int(t) for t in draws.t[1]} | {-1}) > 2

    def test_timesteps_and_noise_are_secret(self):
        drawn = []

        class Watched(PrivateRandom):
            def integers(self, high, shape):
                drawn.append(("t", shape))
                return super().integers(high, shape)

            def normals(self, shape):
                drawn.append(("noise", shape))
                return super().normals(shape)

        Run(draft({"sample_rate": 1.0}, local_steps=1), random=Watched(1))
        assert {name for name, _ in drawn} == {"t", "noise"}
        assert sum(shape[0] for name, shape in drawn if name == "t") == 6


class TestRandomness:
    def test_a_debugging_seed_repeats(self):
        assert equal(Run(draft()).parameters, Run(draft()).parameters)

    def test_no_two_trainings_are_alike_without_one(self):
        first, second = Run(draft(), seed=None), Run(draft(), seed=None)
        assert not equal(first.parameters, second.parameters)
        assert not equal(Run(draft()).parameters, Run(draft(), seed=2).parameters)

    def test_nothing_follows_from_the_global_generators(self):
        np.random.seed(0)
        torch.manual_seed(0)
        first = Run(draft(), seed=None)
        np.random.seed(0)
        torch.manual_seed(0)
        assert not equal(first.parameters, Run(draft(), seed=None).parameters)


class TestMechanism:
    def test_one_step_by_hand(self):
        """All units drawn, all draws alike, noise next to none: gradient descent."""
        plan = draft(
            {"sample_rate": 1.0, "noise_multiplier": 1e-9, "clipping_norm": 0.5},
            local_steps=1,
            examples_per_step=4,
        )
        seen = []

        def steal(parameters):
            seen.append(torch.cat([p.grad.flatten() for p in parameters]))

        run = Run(plan, after_noise=steal)
        model = make_model(plan.model, 1)
        random = PrivateRandom(1)
        random.poisson_sample(6, 1.0)
        total = 0
        for unit in range(6):
            t = torch.from_numpy(random.integers(10, (1, 2)))[0]
            noise = torch.from_numpy(random.normals((1, 2, 1, 8, 8)))[0]
            x_0 = run.images.batch(np.array([unit, unit]))
            model.zero_grad()
            denoising_loss(model, x_0, t, noise, SCHEDULE, "mse").mean().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            total = total + gradient * min(1.0, 0.5 / float(gradient.norm()))
        # Six units were drawn; the divisor is the public 4 all the same.
        one_by_one = Run(plan, after_noise=steal, engine=LoopEngine())
        assert torch.allclose(seen[1], total / 4, rtol=1e-5, atol=1e-6)
        assert not equal(
            one_by_one.parameters, parameters_of(make_model(plan.model, 1))
        )

    @pytest.mark.parametrize("engine", [VmapEngine(1), HooksEngine(1)])
    def test_engines_train_alike(self, engine):
        plan = draft()
        loop = Run(plan, engine=LoopEngine())
        assert close(Run(plan, engine=engine).parameters, loop.parameters)

    def test_chunks_do_not_change_the_mechanism(self):
        """The logical batch is what is noised, whatever the physical one."""
        plan = draft({"sample_rate": 1.0, "noise_multiplier": 50.0}, local_steps=1)
        gradients = []

        def steal(parameters):
            gradients.append(torch.cat([p.grad.flatten() for p in parameters]))

        for chunk_size in (1, 4, 6):
            Run(plan, after_noise=steal, engine=VmapEngine(chunk_size))
        for gradient in gradients:
            assert float(gradient.std()) == pytest.approx(25.0, rel=0.05)

    def test_the_noise_is_that_of_the_plan(self):
        plan = draft({"noise_multiplier": 3.0, "clipping_norm": 0.25}, local_steps=1)
        gradients = []

        def steal(parameters):
            gradients.append(torch.cat([p.grad.flatten() for p in parameters]))

        Run(plan, after_noise=steal)
        assert float(gradients[0].std()) == pytest.approx(3.0 * 0.25 / 2, rel=0.05)

    def test_the_sample_rate_is_that_of_the_plan(self, monkeypatch):
        sizes = []
        real = PrivateRandom.poisson_sample

        def counted(self, num_units, rate):
            drawn = real(self, num_units, rate)
            sizes.append((num_units, rate, len(drawn)))
            return drawn

        monkeypatch.setattr(PrivateRandom, "poisson_sample", counted)
        Run(draft({"sample_rate": 0.25}, local_steps=4))
        assert [size[:2] for size in sizes] == [(6, 0.25)] * 4

    def test_an_empty_batch_is_a_step(self):
        plan = draft({"sample_rate": 1e-12}, local_steps=2)
        run = Run(plan)
        assert [(kept.step, kept.noised_steps) for kept in run.kept] == [(2, 2)]
        before = parameters_of(make_model(plan.model, 1))
        assert not any(torch.equal(run.parameters[n], p) for n, p in before.items())
        assert [p.loss for p in run.progress] == [0.0]

    def test_broken_images_add_nothing(self):
        pixels = tiny_images(num_images=6).pixels.astype(np.float32) / 255
        sound = ImageSet(pixels[:5], (0.0, 1.0))
        pixels[5] = np.nan
        plan = draft({"sample_rate": 1.0}, local_steps=2)
        spoilt = Run(plan, images=ImageSet(pixels, (0.0, 1.0)))
        assert all(p.isfinite().all() for p in spoilt.parameters.values())
        assert np.isfinite(spoilt.progress[-1].loss)
        assert spoilt.kept[0].noised_steps == 2
        every = Run(plan, images=ImageSet(pixels[5:], (0.0, 1.0)))
        assert all(p.isfinite().all() for p in every.parameters.values())
        assert Run(plan, images=sound).progress[-1].loss > 0

    def test_frozen_parts_stay(self):
        plan = draft()
        model = make_model(plan.model, 1)
        model.bottleneck.requires_grad_(False)
        before = parameters_of(model)
        run = Run(plan, model=model)
        moved = {n for n, p in run.parameters.items() if not torch.equal(p, before[n])}
        frozen = {n for n in before if n.startswith("bottleneck.")}
        assert moved == set(before) - frozen
        assert not any(name.partition(".")[2] in frozen for name in run.state.moments)
        again = Run(plan, model=model, state=run.state, round_number=2)
        assert all(torch.equal(again.parameters[n], before[n]) for n in frozen)


class TestPatients:
    def test_patients_are_drawn_and_their_images_limited(self, monkeypatch):
        images, units = by_patient(1, 5, 2)
        shapes, weights = [], []

        class Watching(LoopEngine):
            def gradients(self, objective, draws):
                shapes.append(tuple(draws.t.shape))
                weights.append(draws.weights)
                return LoopEngine.gradients(self, objective, draws)

        plan = draft(
            {"unit": "patient", "max_images_per_patient": 3, "sample_rate": 1.0},
            local_steps=1,
        )
        Run(plan, images=images, units=units, engine=Watching(chunk_size=3))
        assert shapes == [(3, 6)]  # at most 3 images, 2 draws each
        assert weights[0].sum(dim=1).tolist() == pytest.approx([1, 1, 1])
        assert (weights[0] > 0).sum(dim=1).tolist() == [2, 6, 4]

    def test_images_are_drawn_afresh(self):
        images, units = by_patient(8)
        drawing = self.drawing(images, units, 3)
        chosen = {tuple(sorted(drawing._pick(0))) for _ in range(50)}
        assert len(chosen) > 10
        assert all(len(set(subset)) == 3 for subset in chosen)

    def test_what_is_padded_is_the_units_own(self):
        images, units = by_patient(1, 3)
        draws = self.drawing(images, units, 3)(np.array([0, 1]))
        own = images.batch(np.array([0]))[0]
        assert all(torch.equal(x_0, own) for x_0 in draws.x_0[0])
        assert draws.weights[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]

    @staticmethod
    def drawing(images, units, limit):
        plan = draft({"unit": "patient", "max_images_per_patient": limit})
        return silo.private_training.Drawing(
            images, units, plan, 2, SCHEDULE, CPU, PrivateRandom(1)
        )


class TestRounds:
    def test_what_is_kept_and_when(self):
        run = Run(draft(local_steps=7), checkpoint_steps=3)
        assert [(k.step, k.noised_steps) for k in run.kept] == [(3, 3), (6, 3), (7, 1)]
        exact = Run(draft(local_steps=6), checkpoint_steps=3)
        assert [(k.step, k.noised_steps) for k in exact.kept] == [(3, 3), (6, 3)]

    def test_a_round_goes_on(self):
        run = Run(draft(local_steps=7), first_step=4, checkpoint_steps=3)
        assert [(k.step, k.noised_steps) for k in run.kept] == [(6, 2), (7, 1)]
        assert run.progress[-1].step == 7

    def test_nothing_left_to_do(self):
        state = Run(draft()).state
        plan = draft()
        run = Run(plan, first_step=3, state=state)
        assert run.kept == []
        assert run.state is state
        assert equal(run.parameters, parameters_of(make_model(plan.model, 1)))

    def test_the_kept_state_does_not_change_any_more(self):
        copies = []
        run = Run(
            draft(local_steps=2),
            checkpoint_steps=1,
            keep=lambda kept: copies.append(
                (kept, {n: m.clone() for n, m in kept.state.moments.items()})
            ),
        )
        (first, as_it_was), (last, _) = copies
        assert equal(first.state.moments, as_it_was)
        assert not equal(first.state.moments, last.state.moments)
        assert equal(last.state.moments, run.state.moments)

    def test_moments_survive_rounds_where_the_plan_keeps_them(self):
        run = Run(draft(local_steps=2))
        assert float(run.state.moments["step.init_conv.weight"]) == 2
        after = Run(draft(local_steps=2), state=run.state, round_number=2)
        assert float(after.state.moments["step.init_conv.weight"]) == 4

    def test_moments_are_kept_within_a_round_in_any_case(self):
        run = Run(draft(local_steps=2, optimizer_state="fresh"), checkpoint_steps=1)
        assert run.state.moments == {}
        assert float(run.kept[0].state.moments["step.init_conv.weight"]) == 1

    def test_the_learning_rate_follows_the_plan(self, monkeypatch):
        asked = []
        real = silo.private_training.learning_rate

        def asking(plan, progress):
            asked.append(progress)
            return real(plan, progress)

        monkeypatch.setattr(silo.private_training, "learning_rate", asking)
        Run(draft(local_steps=2), round_number=2, first_step=1)
        assert asked == [pytest.approx((1 + 1 / 2) / 3)]

    def test_an_epoch_is_what_the_rate_says(self):
        plan = draft({"sample_rate": 0.3}, local_steps=0, local_epochs=1)
        assert Run(plan).kept[-1].step == 4

    def test_multiplicity(self):
        assert multiplicity_of(draft({"multiplicity": 3}), CPU) == 3
        assert multiplicity_of(draft({"multiplicity": 0}), CPU) == 8
        assert multiplicity_of(draft({"multiplicity": 0}), torch.device("cuda")) == 32


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


class TestRefusals:
    def test_no_images(self):
        nothing = PrivacyUnits("example", *(np.arange(n) for n in (0, 1)))
        with pytest.raises(DataError, match="no images"):
            Run(draft(), units=nothing)

    @pytest.mark.parametrize(
        ("module", "reason"),
        [(nn.BatchNorm2d(4), r"final\.0 \(BatchNorm2d\)"), (BatchMean(), "mixes the")],
        ids=["known", "unknown"],
    )
    def test_a_model_that_mixes_examples(self, module, reason):
        model = make_model(TINY_MODEL, 1)
        model.final[0] = module
        before = parameters_of(model)
        with pytest.raises(NotPrivate, match=reason):
            Run(draft(), model=model)
        assert equal(parameters_of(model), before)

    def test_a_plan_that_was_not_calibrated(self):
        plan = draft({"noise_multiplier": 0.0, "epsilon": 1.0})
        with pytest.raises(ValueError, match="calibrated"):
            Run(plan)

    def test_parameters_that_are_not_finite(self):
        def explode(parameters):
            parameters[0].grad.fill_(float("inf"))

        with pytest.raises(TrainingDiverged, match=r"round 1, step 1 .*smaller"):
            Run(draft(), after_noise=explode)

    def test_nothing_stays_at_the_model(self):
        model = make_model(TINY_MODEL, 1)
        before = [set(vars(p)) for p in model.parameters()]
        Run(draft(), model=model)
        assert [set(vars(p)) for p in model.parameters()] == before
        assert all(p.grad is None for p in model.parameters())

    def test_nothing_is_printed_or_logged(self, capfd, caplog):
        with caplog.at_level("INFO"):
            Run(draft())
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []
