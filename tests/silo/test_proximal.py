"""The proximal term: by hand, in both kinds of training, and in a silo's round."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import silo.noisy_round
import silo.private_round
import silo.trainer
from diffusion.model import make_model
from diffusion.parameters import make_layout, parameters_of
from diffusion.parts import SELECTIONS
from protocol.settings import TrainingConfig
from silo.check import explain
from silo.policy import Policy
from silo.proximal import proximal_term
from silo.training import TrainingState, train
from tests.end_to_end.conftest import equal_parameters, make_harness
from tests.end_to_end.conftest import tiny_draft as federated_draft
from tests.end_to_end.test_noisy_runs import noisy_draft
from tests.end_to_end.test_private_runs import Killed, private_draft
from tests.silo.conftest import CPU, tiny_draft, tiny_images, tiny_plan
from tests.silo.test_private_training import Run
from tests.silo.test_private_training import draft as dp_draft
from tests.silo.test_training import SCHEDULE

TRAINING = {"local_steps": 12, "examples_per_step": 2, "learning_rate": 1e-2}
MUS = (0.0, 0.1, 1.0, 10.0, 100.0)


def squared_distance(term):
    """Return |theta - theta_t|^2 over the parameters of a term."""
    return sum(
        float((parameter.detach() - start).double().square().sum())
        for parameter, start in term.pairs
    )


def draft(**changes):
    return tiny_draft(training=TrainingConfig(**(TRAINING | changes)))


class TestTerm:
    def test_by_hand(self):
        model = nn.ParameterDict({"a": torch.tensor([1.0, 2.0]), "b": torch.ones(1)})
        term = proximal_term(model, ["a"], 0.5)
        with torch.no_grad():
            for parameter in model.values():
                parameter += 2
                parameter.grad = torch.full_like(parameter, 10.0)
        term.add_gradients()
        # mu times the distance of 2 from where it began; "b" is not shared.
        assert model["a"].grad.tolist() == [11, 11]
        assert model["b"].grad.tolist() == [10]
        assert squared_distance(term) == 8

    def test_it_is_the_gradient_of_half_mu_times_the_squared_distance(self):
        model = nn.Linear(3, 2)
        term = proximal_term(model, ["weight", "bias"], 0.7)
        with torch.no_grad():
            for parameter, _ in term.pairs:
                parameter += torch.randn(parameter.shape)
        loss = 0.7 / 2 * sum(((p - start) ** 2).sum() for p, start in term.pairs)
        expected = torch.autograd.grad(loss, [p for p, _ in term.pairs])
        for parameter, _ in term.pairs:
            parameter.grad = torch.zeros_like(parameter)
        term.add_gradients()
        for (parameter, _), gradient in zip(term.pairs, expected, strict=True):
            assert torch.allclose(parameter.grad, gradient)

    def test_frozen_parameters_and_those_without_a_gradient_are_left_alone(self):
        model = nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        term = proximal_term(model, ["weight", "bias"], 1.0)
        assert [parameter is model.weight for parameter, _ in term.pairs] == [True]
        term.add_gradients()
        assert model.weight.grad is None

    def test_none_without_mu(self):
        assert proximal_term(nn.Linear(1, 1), ["weight"], 0.0) is None


class TestPlainTraining:
    def run(self, plan, proximal):
        model = make_model(plan.model, 1)
        layout = make_layout(model, SELECTIONS["full"])
        term, start = proximal(model, layout.names), parameters_of(model)
        train(
            model,
            tiny_images(num_images=5),
            SCHEDULE,
            plan,
            TrainingState(),
            silo=0,
            round_number=1,
            device=CPU,
            observe=lambda _: None,
            proximal=term,
        )
        return start, parameters_of(model)

    def test_mu_0_is_plain_training_bit_for_bit(self):
        """Without the term, and with one that is multiplied by zero."""
        _, plain = self.run(draft(), lambda *_: None)
        _, off = self.run(draft(), lambda model, n: proximal_term(model, n, 0.0))

        def zeroed(model, names):
            return replace(proximal_term(model, names, 1.0), mu=0.0)

        _, zero = self.run(draft(), zeroed)
        for other in (off, zero):
            assert all(torch.equal(plain[name], other[name]) for name in plain)

    def test_a_larger_mu_stays_nearer(self):
        distances = []
        for mu in MUS:
            start, end = self.run(
                draft(), lambda model, n, mu=mu: proximal_term(model, n, mu)
            )
            moved = [(end[name] - start[name]).square().sum() for name in start]
            distances.append(float(torch.stack(moved).sum()))
        assert distances == sorted(distances, reverse=True)
        assert distances[0] > 2 * distances[-1] > 0


class TestPrivateTraining:
    def run(self, mu):
        plan = dp_draft(local_steps=12)
        model = make_model(plan.model, 1)
        names = make_layout(model, SELECTIONS["full"]).names
        term = proximal_term(model, names, mu)
        distance = proximal_term(model, names, 1.0)
        after = silo.private_round._after_noise(term)
        run = Run(plan, model=model, after_noise=after)
        return run.parameters, squared_distance(distance)

    def test_mu_0_is_private_training_bit_for_bit(self):
        plain = Run(dp_draft(local_steps=12)).parameters
        assert all(torch.equal(plain[n], p) for n, p in self.run(0.0)[0].items())

    def test_a_larger_mu_stays_nearer(self):
        distances = [self.run(mu)[1] for mu in MUS]
        assert distances == sorted(distances, reverse=True)
        assert distances[0] > 2 * distances[-1] > 0


def federated(**changes):
    """Return a draft whose silos take a few steps, so that the term has an effect."""
    plain = federated_draft()
    training = replace(plain.training, local_steps=4, **changes)
    return replace(plain, training=training)


class TestRounds:
    def test_the_term_has_an_effect_in_a_run(self, tmp_path):
        states = [
            make_harness(tmp_path / str(mu), federated(proximal_mu=mu)).run()
            for mu in (0.0, 20.0)
        ]
        assert not equal_parameters(*states)
        again = make_harness(tmp_path / "again", federated(proximal_mu=20.0))
        assert equal_parameters(states[1], again.run())

    def test_the_shared_parts_alone_are_held(self, tmp_path, monkeypatch):
        plan = federated(proximal_mu=3.0)
        plan = replace(plan, update=replace(plan.update, selection="udec"))
        seen = []
        real = silo.trainer.train

        def spy(model, *arguments, proximal, **options):
            names = {id(p): name for name, p in model.named_parameters()}
            layout = make_layout(model, SELECTIONS["udec"])
            held = [names[id(parameter)] for parameter, _ in proximal.pairs]
            seen.append((held == list(layout.names), len(held) < len(names)))
            for parameter, start in proximal.pairs:
                assert torch.equal(parameter, start)
            return real(model, *arguments, proximal=proximal, **options)

        monkeypatch.setattr(silo.trainer, "train", spy)
        made = make_harness(tmp_path / "run", plan)
        made.run()
        assert seen == [(True, True)] * 6

    def test_a_killed_private_round_is_held_to_where_it_began(
        self, tmp_path, monkeypatch
    ):
        """Not to the checkpoint in the middle of the round."""
        plan = private_draft()
        training = replace(plan.training, proximal_mu=0.5)
        made = make_harness(tmp_path / "run", replace(plan, training=training))
        real, terms, models = silo.private_round.train_privately, [], []
        real_after = silo.private_round._after_noise

        def keep(term):
            terms.append([start.clone() for _, start in term.pairs])
            return real_after(term)

        def killed(model, *arguments, **options):
            models.append([p.detach().clone() for p in model.parameters()])
            if len(models) > 1:
                return real(model, *arguments, **options)
            first = options["keep"]

            def die(kept):
                first(kept)
                raise Killed

            options |= {"keep": die, "checkpoint_steps": 2}
            return real(model, *arguments, **options)

        monkeypatch.setattr(silo.private_round, "_after_noise", keep)
        monkeypatch.setattr(silo.private_round, "train_privately", killed)
        with pytest.raises(Killed):
            made.run()
        made.run()
        assert all(map(torch.equal, terms[0], terms[1]))
        assert not all(map(torch.equal, models[1], terms[1]))

    def test_with_noise_for_whole_silos(self, tmp_path, monkeypatch):
        plan = noisy_draft("silo")
        training = replace(plan.training, local_steps=2, proximal_mu=0.5)
        seen, real = [], silo.noisy_round.train

        def spy(*arguments, **options):
            seen.append(options["proximal"].mu)
            return real(*arguments, **options)

        monkeypatch.setattr(silo.noisy_round, "train", spy)
        plan = replace(plan, training=training, num_rounds=1)
        made = make_harness(tmp_path / "run", plan, num_silos=5)
        made.run()
        assert seen == [0.5] * 5


class TestPlan:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"proximal_mu": -1.0}, "must be 0 to"),
            ({"proximal_mu": float("inf")}, "must be 0 to"),
            ({"proximal_mu": float("nan")}, "must be 0 to"),
            ({"proximal_mu": 0.1, "local_steps": 1}, "no effect with local_steps 1"),
        ],
    )
    def test_refused(self, changes, reason):
        with pytest.raises(ValueError, match=f"^proximal_mu: .*{reason}"):
            TrainingConfig(**(TRAINING | changes))

    def test_one_gradient_step_inside_the_sum_has_no_such_term(self):
        plan = noisy_draft("record-distributed")
        with pytest.raises(ValueError, match="proximal_mu"):
            replace(plan.training, proximal_mu=0.5)

    def test_the_operator_is_told(self):
        training = TrainingConfig(**TRAINING, proximal_mu=0.25)
        told = explain(tiny_plan(training=training), Policy())
        assert any("proximal term (mu 0.25)" in line for line in told)
        assert not any("proximal" in line for line in explain(tiny_plan(), Policy()))
