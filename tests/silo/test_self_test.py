"""The self-test passes what is right, and finds what is wrong: one mutation each."""

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from randomgen import AESCounter

import silo.dpsgd
import silo.run_checks
import silo.self_test_subject
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.account import PrivacyAccount
from silo.data import ImageSet
from silo.dpsgd import NoisedSteps, NotPrivate, PrivateOptimizer
from silo.errors import ConfigRejected, DataError
from silo.observed import (
    StepSeen,
    drawn_numbers,
    flattened,
    numbered_images,
    plain_gradient,
    releases_of,
)
from silo.per_example import (
    Draws,
    LoopEngine,
    Objective,
    UnitGradients,
    VmapEngine,
)
from silo.prv import PrvClaim
from silo.randomness import PrivateRandom
from silo.run_checks import _law, check_price, check_rounds, check_sampling
from silo.self_test import CHECKS, conclusion, self_test
from silo.self_test_subject import FALSE_ALARM_RATE, SHARE, CheckResult, make_subject
from silo.step_checks import (
    NoiseMeter,
    check_average,
    check_clip,
    check_noise,
    check_not_finite,
    check_sum,
)
from tests.silo.conftest import CPU, TINY_MODEL, tiny_draft, tiny_images


def private_draft(privacy=None, **training):
    mechanism = {
        "mechanism": "dp-sgd",
        "noise_multiplier": 1.5,
        "clipping_norm": 0.2,
        "delta": 1e-3,
        "sample_rate": 0.5,
        "multiplicity": 4,
    }
    fields = {"local_steps": 3, "examples_per_step": 5, "learning_rate": 1e-3}
    return tiny_draft(
        training=TrainingConfig(**(fields | training)),
        privacy=PrivacyConfig(**(mechanism | (privacy or {}))),
    )


@pytest.fixture
def subject(monkeypatch):
    """A tiny model; fewer draws and steps, of which mutations need no more."""
    monkeypatch.setattr(silo.run_checks, "LOOP_STEPS", 300)
    monkeypatch.setattr(silo.run_checks, "SECOND_LOOP_STEPS", 40)
    monkeypatch.setattr(silo.run_checks, "DIRECT_SAMPLES", 600)
    monkeypatch.setattr(silo.run_checks, "ROUND_STEPS", 3)
    claim = PrvClaim(1.0, 0.01)  # of what is recorded, which no check looks at
    monkeypatch.setattr("silo.private_round.prv_epsilon", lambda *_: claim)
    return make_subject(private_draft(), None, device=CPU, num_steps=4)


def failed(results) -> set[str]:
    """Return the names of the checks that failed."""
    return {result.name for result in results if not result.passed}


class TestHonest:
    def test_every_check_passes(self, subject):
        results = list(self_test(subject))
        assert failed(results) == set(), [r.line() for r in results if not r.passed]
        assert len(results) == len({r.name for r in results}) == 12
        assert "All 12 checks passed" in conclusion(results)

    @pytest.mark.parametrize(
        "privacy",
        [
            {"unit": "patient", "max_images_per_patient": 3, "multiplicity": 1},
            {"sample_rate": 1.0},
            {"sample_rate": 0.02, "multiplicity": 2},
        ],
    )
    def test_other_mechanisms_pass(self, subject, privacy):
        """One draw and vmap; all units always; patients with several images."""
        other = make_subject(private_draft(privacy), None, device=CPU, num_steps=2)
        results = [
            result
            for check in (check_noise, check_clip, check_average, check_sum)
            for result in check(other)
        ]
        results += [*check_not_finite(other), *check_sampling(other)]
        assert failed(results) == set(), [r.line() for r in results]

    def test_frozen_parts_are_left_out(self):
        draft = tiny_draft(
            training=TrainingConfig(
                local_steps=1, examples_per_step=2, local_parts="frozen"
            ),
            update=type(tiny_draft().update)(selection="udec"),
            privacy=private_draft().privacy,
        )
        subject = make_subject(draft, None, device=CPU, num_steps=2)
        trainable = [p.numel() for p in subject.model().parameters() if p.requires_grad]
        every = [p.numel() for p in subject.model().parameters()]
        assert 0 < sum(trainable) < sum(every)
        norm, _ = check_noise(subject)
        assert norm.passed
        assert f"d = {sum(trainable):,}" in norm.statement

    def test_no_false_alarm_in_a_hundred_repetitions(self):
        values = np.zeros(3000)
        for _ in range(100):
            meter, random = NoiseMeter(0.3), PrivateRandom()
            for _ in range(3):
                values[:] = 0
                random.add_noise_(values, 0.3)
                meter(torch.from_numpy(values.copy()))
            assert meter.worst() <= meter.tolerance()
            samples = [random.poisson_sample(48, 0.3) for _ in range(100)]
            result = _law("sampler", samples[:80], samples[80:], 48, 0.3)
            assert result.passed, result.line()

    def test_the_random_results_share_the_rate(self):
        # Noise norm, noise law, bad gradients, two of sampling, empty, fresh.
        assert 7 * SHARE <= FALSE_ALARM_RATE


class TestNoise:
    @pytest.mark.parametrize("factor", [0.5, 0.8, 1.2])
    def test_of_another_size(self, subject, monkeypatch, factor):
        honest = PrivateRandom.add_noise_
        monkeypatch.setattr(
            PrivateRandom, "add_noise_", lambda self, v, s: honest(self, v, s * factor)
        )
        assert "noise norm" in failed(check_noise(subject))
        if factor == 0.5:
            assert "empty batches" in failed(check_rounds(subject))

    def test_of_another_law(self, subject, monkeypatch):
        """Uniform, of the right variance."""

        def uniform(self, values, noise_stddev):
            reach = noise_stddev * np.sqrt(3)
            values += np.random.default_rng().uniform(-reach, reach, values.shape)

        monkeypatch.setattr(PrivateRandom, "add_noise_", uniform)
        assert failed(check_noise(subject)) == {"noise law"}

    def test_the_same_in_every_step(self, subject, monkeypatch):
        def same(self, values, noise_stddev):
            normals = np.random.default_rng(values.size).standard_normal(values.shape)
            values += noise_stddev * normals

        monkeypatch.setattr(PrivateRandom, "add_noise_", same)
        assert "noise law" in failed(check_noise(subject))
        assert "fresh randomness" in failed(check_rounds(subject))

    def test_once_per_physical_batch(self, subject, monkeypatch):
        honest = PrivateOptimizer.accumulate

        def noisy(self, units):
            honest(self, units)
            for parameter in self.params:
                stddev = self.noise_multiplier * self.max_grad_norm
                self._random.add_noise_(parameter.summed_grad.numpy(), stddev)

        monkeypatch.setattr(PrivateOptimizer, "accumulate", noisy)
        assert "noise norm" in failed(check_noise(subject))

    def test_none_on_empty_batches(self, subject, monkeypatch):
        honest = PrivateOptimizer.add_noise

        def forgetful(self):
            if all(not p.summed_grad.any() for p in self.params):
                for parameter in self.params:
                    parameter.grad = torch.zeros_like(parameter)
                return
            honest(self)

        monkeypatch.setattr(PrivateOptimizer, "add_noise", forgetful)
        assert {"empty batches", "steps counted"} <= failed(check_rounds(subject))

    def test_empty_batches_skipped(self, subject, monkeypatch):
        honest = PrivateOptimizer.step

        def skipping(self, closure=None):
            if all(p.summed_grad is None for p in self.params):
                return None
            return honest(self, closure)

        monkeypatch.setattr(PrivateOptimizer, "step", skipping)
        results = list(self_test(subject, [("rounds", check_rounds)]))
        assert failed(results) == {"rounds"}
        assert "stopped" in results[0].statement

    def test_a_fixed_seed(self, subject, monkeypatch):
        honest = PrivateRandom.__init__

        def fixed(self, insecure_seed=None):
            honest(self, insecure_seed)
            self._values = np.random.Generator(AESCounter(7))

        monkeypatch.setattr(PrivateRandom, "__init__", fixed)
        assert failed(check_rounds(subject)) == {"fresh randomness"}
        assert "in two trainings" in check_sampling(subject)[0].statement

    def test_a_debugging_seed(self, subject, monkeypatch):
        honest = PrivateRandom.__init__
        seeds = iter(range(1000))
        monkeypatch.setattr(
            PrivateRandom, "__init__", lambda self, seed=None: honest(self, next(seeds))
        )
        assert failed(check_rounds(subject)) == {"fresh randomness"}


@pytest.fixture
def loop(monkeypatch):
    """Let training use the loop, whose methods a test replaces."""
    monkeypatch.setattr(
        silo.self_test_subject, "default_engine", lambda *arguments: LoopEngine()
    )


@pytest.mark.usefixtures("loop")
class TestClip:
    def test_a_larger_norm(self, subject, monkeypatch):
        honest = PrivateOptimizer.clip_and_accumulate

        def larger(self):
            norm, self.max_grad_norm = self.max_grad_norm, 1.01 * self.max_grad_norm
            honest(self)
            self.max_grad_norm = norm

        monkeypatch.setattr(PrivateOptimizer, "clip_and_accumulate", larger)
        assert failed(check_clip(subject)) == {"clip"}
        assert failed(check_average(subject)) == {"draws averaged before the clip"}

    def test_norms_computed_in_bfloat16(self, subject, monkeypatch):
        honest = silo.dpsgd.unit_norms
        monkeypatch.setattr(
            silo.dpsgd, "unit_norms", lambda g: honest(g).bfloat16().double()
        )
        found = [*check_clip(subject), *check_average(subject), *check_sum(subject)]
        assert failed(found)

    def test_each_draw_a_row_of_its_own(self, subject, monkeypatch):
        """As if the draws were examples of the batch: a unit contributes K C."""

        def per_draw(self, objective, draws):
            parameters = objective.parameters
            for unit in range(len(draws)):
                for draw in range(draws.t.shape[1]):
                    one = Draws(
                        draws.x_0[unit : unit + 1, draw : draw + 1],
                        draws.t[unit : unit + 1, draw : draw + 1],
                        draws.noise[unit : unit + 1, draw : draw + 1],
                        torch.ones(1, 1),
                    )
                    gradient = plain_gradient(objective, one).float()
                    split = gradient.split([p.numel() for p in parameters])
                    rows = [
                        g.reshape(1, *p.shape)
                        for g, p in zip(split, parameters, strict=True)
                    ]
                    yield UnitGradients(rows, torch.zeros(1))

        monkeypatch.setattr(LoopEngine, "gradients", per_draw)
        (result,) = check_average(subject)
        assert not result.passed
        assert "one unit: 4 gradient" in result.statement
        assert "sum and divisor" in failed(check_sum(subject))

    def test_draws_clipped_and_then_averaged(self, subject, monkeypatch):
        def clipped_draws(self, objective, draws):
            parameters = objective.parameters
            for unit in range(len(draws)):
                total = 0
                for draw in range(draws.t.shape[1]):
                    one = Draws(
                        draws.x_0[unit : unit + 1, draw : draw + 1],
                        draws.t[unit : unit + 1, draw : draw + 1],
                        draws.noise[unit : unit + 1, draw : draw + 1],
                        torch.ones(1, 1),
                    )
                    gradient = plain_gradient(objective, one)
                    total = total + gradient * min(1, 0.2 / float(gradient.norm())) / 4
                split = total.float().split([p.numel() for p in parameters])
                rows = [
                    g.reshape(1, *p.shape)
                    for g, p in zip(split, parameters, strict=True)
                ]
                yield UnitGradients(rows, torch.zeros(1))

        monkeypatch.setattr(LoopEngine, "gradients", clipped_draws)
        assert failed(check_average(subject)) == {"draws averaged before the clip"}

    def test_only_the_first_image_of_a_patient(self, monkeypatch):
        """A patient whose images are units of their own contributes several C."""
        draft = private_draft({"unit": "patient"})
        subject = make_subject(draft, None, device=CPU)
        honest = LoopEngine.gradients

        def per_image(self, objective, draws):
            for start in range(0, draws.t.shape[1], 4):
                weights = draws.weights[:, start : start + 4]
                part = Draws(
                    draws.x_0[:, start : start + 4],
                    draws.t[:, start : start + 4],
                    draws.noise[:, start : start + 4],
                    weights / weights.sum(dim=1, keepdim=True),
                )
                yield from honest(self, objective, part)

        monkeypatch.setattr(LoopEngine, "gradients", per_image)
        (result,) = check_average(subject)
        assert not result.passed


@pytest.mark.usefixtures("loop")
class TestSum:
    def test_divided_by_the_number_of_units_drawn(self, subject, monkeypatch):
        honest = PrivateOptimizer.accumulate

        def counting(self, units):
            honest(self, units)
            self.num_drawn = getattr(self, "num_drawn", 0) + len(units.losses)

        def scale_grad(self):
            for parameter in self.params:
                parameter.grad /= max(1, getattr(self, "num_drawn", 0))
            self.num_drawn = 0

        monkeypatch.setattr(PrivateOptimizer, "accumulate", counting)
        monkeypatch.setattr(DPOptimizer, "scale_grad", scale_grad)
        assert failed(check_sum(subject)) == {"sum and divisor"}
        assert "noise norm" in failed(check_noise(subject))

    def test_a_unit_that_is_lost(self, subject, monkeypatch):
        honest, calls = PrivateOptimizer.accumulate, iter(range(10**6))

        def losing(self, units):
            if next(calls) != 3:
                honest(self, units)

        monkeypatch.setattr(PrivateOptimizer, "accumulate", losing)
        assert failed(check_sum(subject)) == {"sum and divisor"}


class TestNotFinite:
    def test_added_all_the_same(self, subject, monkeypatch):
        honest = silo.dpsgd.unit_norms
        monkeypatch.setattr(
            silo.dpsgd, "unit_norms", lambda g: honest(g).nan_to_num(1.0, 1.0)
        )
        (result,) = self_test(subject, [("bad gradients", check_not_finite)])
        assert not result.passed
        assert "TrainingDiverged" in result.statement

    def test_the_whole_step_left_out(self, subject, monkeypatch):
        """What depends on one unit's data is then that nothing was noised."""
        honest, spoilt = PrivateOptimizer.accumulate, []

        def accumulate(self, units):
            finite = all(bool(g.isfinite().all()) for g in units.gradients)
            spoilt.extend([] if finite else [True])
            honest(self, units)

        def add_noise(self):
            for parameter in self.params:
                parameter.grad = parameter.summed_grad.float()
                parameter.summed_grad = None

        monkeypatch.setattr(PrivateOptimizer, "accumulate", accumulate)
        monkeypatch.setattr(PrivateOptimizer, "add_noise", add_noise)
        assert failed(check_not_finite(subject)) == {"gradients that are not finite"}
        assert spoilt


BOTH = {"sampling in training", "sampler"}


class TestSampling:
    def sampler(self, monkeypatch, draw):
        monkeypatch.setattr(PrivateRandom, "poisson_sample", draw)

    def test_a_fixed_size(self, subject, monkeypatch):
        self.sampler(
            monkeypatch, lambda self, n, q: np.sort(self.choose(n, round(n * q)))
        )
        assert failed(check_sampling(subject)) == BOTH

    def test_a_shuffled_loader(self, subject, monkeypatch):
        """Batches of a random size, each unit once an epoch."""

        def draw(self, n, q):
            left = getattr(self, "left", np.zeros(0, np.int64))
            size = int((self._values.random(n) < q).sum())
            if len(left) < size:
                left = self.choose(n, n)
            self.left = left[size:]
            return np.sort(left[:size])

        self.sampler(monkeypatch, draw)
        assert failed(check_sampling(subject)) == BOTH

    @pytest.mark.parametrize("never", [slice(-1, None), slice(0, 1), slice(3, 20)])
    def test_units_that_are_never_drawn(self, subject, monkeypatch, never):
        honest = PrivateRandom.poisson_sample

        def draw(self, n, q):
            drawn = honest(self, n, q)
            return drawn[~np.isin(drawn, np.arange(n)[never])]

        self.sampler(monkeypatch, draw)
        assert failed(check_sampling(subject)) == BOTH

    @pytest.mark.parametrize("factor", [0.8, 1.2])
    def test_another_rate(self, subject, monkeypatch, factor):
        honest = PrivateRandom.poisson_sample
        self.sampler(monkeypatch, lambda self, n, q: honest(self, n, q * factor))
        assert failed(check_sampling(subject)) == BOTH

    def test_a_batch_used_twice(self, subject, monkeypatch):
        honest = PrivateRandom.poisson_sample

        def draw(self, n, q):
            self.count = getattr(self, "count", 0) + 1
            if self.count % 2:
                self.last = honest(self, n, q)
            return self.last

        self.sampler(monkeypatch, draw)
        assert failed(check_sampling(subject)) == BOTH

    def test_empty_batches_drawn_again(self, monkeypatch, subject):
        """So does a loader that cannot collate nothing; at a small rate it shows."""
        honest = PrivateRandom.poisson_sample

        def draw(self, n, q):
            drawn = honest(self, n, q)
            return drawn if len(drawn) else np.zeros(1, np.int64)

        samples = [draw(PrivateRandom(), 20, 0.05) for _ in range(300)]
        assert not _law("sampler", samples, samples[:5], 20, 0.05).passed

    def test_a_unit_twice_in_a_batch(self):
        random = PrivateRandom()
        samples = [random.poisson_sample(30, 0.5) for _ in range(20)]
        assert _law("sampler", samples[:15], samples[15:], 30, 0.5).passed
        samples[3] = np.append(samples[3][1:], samples[3][-1])
        assert not _law("sampler", samples[:15], samples[15:], 30, 0.5).passed


class TestCounting:
    def test_a_step_that_is_not_counted(self, subject, monkeypatch):
        honest, calls = NoisedSteps.__call__, iter(range(10**6))

        def forgetful(self, optimizer):
            if next(calls) % 3:
                honest(self, optimizer)

        monkeypatch.setattr(NoisedSteps, "__call__", forgetful)
        assert "steps counted" in failed(check_rounds(subject))

    def test_a_step_that_is_not_written(self, subject, monkeypatch):
        honest = PrivacyAccount.take
        monkeypatch.setattr(
            PrivacyAccount, "take", lambda self, n: honest(self, max(1, n - 1))
        )
        assert "steps counted" in failed(check_rounds(subject))

    def test_a_step_more_than_is_counted(self, subject, monkeypatch):
        """The inner optimizer steps twice on the last release of a checkpoint."""
        honest = PrivateOptimizer.step

        def twice(self, closure=None):
            result = honest(self, closure)
            for parameter in self.params:
                parameter.grad = torch.zeros_like(parameter)
            self.original_optimizer.step()
            return result

        monkeypatch.setattr(PrivateOptimizer, "step", twice)
        assert "steps counted" in failed(check_rounds(subject))


class TestPrice:
    @pytest.mark.parametrize(
        "claim",
        [PrvClaim(1.0, 0.01), PrvClaim(None, 0.01, "no"), PrvClaim(float("inf"), 0.01)],
    )
    def test_accountants_that_differ(self, subject, monkeypatch, claim):
        monkeypatch.setattr(silo.run_checks, "prv_epsilon", lambda *_: claim)
        (result,) = check_price(subject)
        assert not result.passed

    def test_a_run_that_prv_cannot_price_whole(self, subject, monkeypatch):
        honest = silo.run_checks.prv_epsilon

        def limited(events, delta):
            if events[0].steps > 2:
                return PrvClaim(None, 0.01, "needs too many cells")
            return honest(events, delta)

        monkeypatch.setattr(silo.run_checks, "prv_epsilon", limited)
        (result,) = check_price(subject)
        assert result.passed
        assert result.statement.startswith("1 steps")


class TestSubject:
    def test_own_images_are_used(self):
        images = tiny_images(num_images=12)
        subject = make_subject(private_draft(), images, device=CPU)
        assert sorted(map(bytes, subject.images.pixels)) == sorted(
            map(bytes, images.pixels)
        )
        few = make_subject(
            private_draft(), tiny_images(num_images=100), device=CPU
        ).images
        assert len(few) == 32  # 16 / q

    def test_of_patients_whole_ones(self):
        images = tiny_images(num_images=90)
        images = ImageSet(
            images.pixels,
            images.value_range,
            patients=np.arange(90) % 45,
            patient_names=tuple(map(str, range(45))),
        )
        draft = private_draft({"unit": "patient"})
        subject = make_subject(draft, images, device=CPU)
        assert len(subject.units) == 32
        assert len(subject.images) == 64
        for unit in range(32):
            places = [
                np.flatnonzero((images.pixels == pixels).all(axis=(1, 2, 3)))[0] % 45
                for pixels in subject.images.pixels[subject.units.images(unit)]
            ]
            assert len(set(places)) == 1

    def test_a_model_for_images_of_any_size_without_a_plan(self):
        pixels = np.zeros((9, 28, 28, 3), np.uint8)
        subject = make_subject(None, ImageSet(pixels, (0.0, 255.0)), device=CPU)
        assert subject.draft.model.image_size == 28
        assert subject.draft.model.channels == 3

    def test_refusals(self, monkeypatch):
        with pytest.raises(ConfigRejected, match="no privacy mechanism"):
            make_subject(tiny_draft(), None, device=CPU)
        with pytest.raises(DataError, match="images are 4"):
            make_subject(
                private_draft(),
                ImageSet(np.zeros((3, 4, 4, 1), np.uint8), (0.0, 255.0)),
                device=CPU,
            )
        draft = private_draft({"unit": "patient"})
        with pytest.raises(DataError, match="do not say whose"):
            make_subject(draft, tiny_images(), device=CPU)
        monkeypatch.setattr(
            "silo.self_test_subject.make_model",
            lambda *_: torch.nn.Sequential(torch.nn.BatchNorm2d(1)),
        )
        with pytest.raises(NotPrivate, match="BatchNorm"):
            make_subject(private_draft(), None, device=CPU)


class TestObserved:
    def test_numbers_survive_the_way_through_training(self):
        images = numbered_images(1000, 2, 3)
        units = np.array([0, 1, 499, 998, 999])
        x_0 = images.batch(units)[:, None]
        draws = Draws(x_0, torch.zeros(5, 1), x_0, torch.ones(5, 1))
        assert drawn_numbers(draws).tolist() == units.tolist()

    def test_the_plain_gradient_is_that_of_every_engine(self):
        draft = private_draft()
        schedule = make_schedule(draft.schedule)
        objective = Objective(make_model(TINY_MODEL, 1), schedule, "mse")
        x_0 = torch.rand(1, 3, 1, 8, 8, dtype=torch.float32)
        draws = Draws(x_0, torch.tensor([[1, 5, 7]]), torch.randn_like(x_0), None)
        draws = Draws(x_0, draws.t, draws.noise, torch.tensor([[0.5, 0.5, 0.0]]))
        plain = plain_gradient(objective, draws)
        for engine in (LoopEngine(), VmapEngine(1)):
            (made,) = engine.gradients(objective, draws)
            assert torch.allclose(flattened(made.gradients), plain, 1e-4, 1e-7)

    def test_only_this_model_is_seen(self):
        ours, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        seen = []
        with releases_of(ours, 3.0, seen.append):
            for model in (ours, other):
                optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
                model.weight.grad = torch.full_like(model.weight, 2.0)
                optimizer.step()
        optimizer.step()
        assert [values.tolist() for values in seen] == [[6.0, 0.0]]

    def test_noise_is_what_was_released_beyond_the_sum(self):
        step = StepSeen(torch.tensor([1.0]), torch.tensor([3.0]), 1, 1, 0)
        assert step.dp_noise.tolist() == [2.0]


def test_a_failure_is_said():
    results = [CheckResult("a", True, "fine", "1"), CheckResult("b", False, "bad", "")]
    assert results[0].line() == "PASS  a: fine (permitted: 1)"
    assert results[1].line() == "FAIL  b: bad"
    assert conclusion(results).startswith("1 of 2 checks failed: b; do not train")


def test_every_check_is_listed():
    assert {check for _, check in CHECKS} == {
        check_noise, check_clip, check_average, check_sum, check_not_finite,
        check_sampling, check_rounds, check_price,
    }  # fmt: skip
