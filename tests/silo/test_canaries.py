"""Gradient canaries: one step by hand, the law of the scores, what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffusion.parameters import parameters_of
from protocol.canaries import CANARY_SEED_BYTES, draw_canaries
from silo.canaries import GradientCanaries, Places
from silo.dpsgd import PrivateOptimizer
from silo.per_example import UnitGradients
from silo.randomness import PrivateRandom
from tests.silo.test_private_training import Run, draft, equal

SEED = bytes(range(CANARY_SEED_BYTES))


def canaries(number, *, seed=SEED, rate=1.0, norm=1.0, random_seed=3, **options):
    return GradientCanaries(
        seed,
        number,
        sample_rate=rate,
        clipping_norm=norm,
        random=PrivateRandom(random_seed),
        **options,
    )


def both_included(num_coordinates):
    """Return a seed whose two canaries take part, with different signs."""
    for number in range(1000):
        seed = number.to_bytes(CANARY_SEED_BYTES, "big")
        drawn = draw_canaries(seed, 2, num_coordinates)
        if drawn.included.all() and drawn.signs.sum() == 0:
            return seed, drawn
    raise AssertionError


def one_step(optimizer, *gradients):
    for gradient in gradients:
        stacked = [torch.tensor([values]) for values in gradient]
        optimizer.accumulate(UnitGradients(stacked, torch.zeros(1)))
    optimizer.step()


def flat(parameters):
    return torch.cat([p.detach().flatten() for p in parameters]).double().numpy()


class TestStep:
    def test_by_hand(self):
        """Two coordinates; with the noise's own seed, what is released is the clean sum
        and the canaries and the noise, and the scores are read off it."""
        parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
        seed, drawn = both_included(2)
        planted = canaries(2, seed=seed, norm=2.0)
        optimizer = PrivateOptimizer(
            torch.optim.SGD(parameters, lr=1.0),
            noise_multiplier=0.5,
            clipping_norm=2.0,
            expected_batch_size=4,
            random=PrivateRandom(7),
            canaries=planted,
        )
        one_step(optimizer, ([3.0], [4.0]))
        again, noise = PrivateRandom(7), np.zeros((2, 1))
        for row in noise:  # each parameter's noise is drawn by itself
            again.add_noise_(row, 0.5 * 2.0)
        clean = np.array([1.2, 1.6])  # (3, 4) clipped to norm 2
        added = np.zeros(2)
        added[drawn.coordinates] = 2.0 * drawn.signs
        released = clean + added + noise.ravel()
        assert flat(parameters) == pytest.approx(-released / 4, rel=1e-6)
        scored = planted.take()
        assert scored.num_steps == 1
        expected = drawn.signs * released[drawn.coordinates] / 2.0
        assert scored.scores == pytest.approx(expected, rel=1e-6)

    def test_signs_alternate_in_what_is_added_and_in_the_score(self):
        (parameter,) = parameters = [nn.Parameter(torch.zeros(4))]
        seed, drawn = both_included(4)
        planted = canaries(2, seed=seed)
        optimizer = PrivateOptimizer(
            torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0,
            clipping_norm=1.0, expected_batch_size=1, random=PrivateRandom(1),
            canaries=planted,
        )  # fmt: skip
        optimizer.step()
        once = parameter.detach().clone()
        assert once[drawn.coordinates].tolist() == (-drawn.signs).tolist()
        optimizer.step()
        assert parameter.tolist() == [0.0] * 4
        assert planted.take().scores.tolist() == [2.0, 2.0]
        assert planted.take().num_steps == 0

    def test_a_canary_that_goes_on_has_the_sign_of_its_step(self):
        planted = canaries(2, seed=both_included(4)[0], first_step=1)
        sums = [torch.zeros(4, dtype=torch.float64)]
        planted.plant(sums)
        first = canaries(2, seed=both_included(4)[0])
        others = [torch.zeros(4, dtype=torch.float64)]
        first.plant(others)
        assert sums[0].tolist() == (-others[0]).tolist()
        assert sums[0].abs().sum() == 2

    def test_a_proximal_term_is_not_scored(self):
        parameters = [nn.Parameter(torch.zeros(2))]

        def pull(mine):
            for parameter in mine:
                parameter.grad += 100.0

        planted = canaries(2, seed=both_included(2)[0])
        optimizer = PrivateOptimizer(
            torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0,
            clipping_norm=1.0, expected_batch_size=1, random=PrivateRandom(1),
            after_noise=pull, canaries=planted,
        )  # fmt: skip
        optimizer.step()
        assert planted.take().scores.tolist() == [1.0, 1.0]

    @settings(max_examples=30, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
        seed=st.binary(min_size=CANARY_SEED_BYTES, max_size=CANARY_SEED_BYTES),
        data=st.data(),
    )
    def test_places_are_those_of_the_flat_vector(self, sizes, seed, data):
        total = sum(sizes)
        drawn = draw_canaries(seed, data.draw(st.integers(1, total)), total)
        places = Places(drawn, tuple(sizes))
        vector = torch.arange(total, dtype=torch.float64) + 1
        tensors = list(torch.split(vector.clone(), sizes))
        signed = drawn.signs * vector.numpy()[drawn.coordinates]
        assert places.signed(tensors).tolist() == signed.tolist()
        places.add(tensors, places.included, 10.0)
        plain = vector.numpy().copy()
        for place, sign, is_in in zip(
            drawn.coordinates, drawn.signs, drawn.included, strict=True
        ):
            plain[place] += 10.0 * sign * is_in
        assert torch.cat(tensors).tolist() == plain.tolist()

    def test_more_canaries_than_coordinates(self):
        with pytest.raises(ValueError, match="num_canaries"):
            canaries(5).plant([torch.zeros(4, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("sigma", "is_right"), [(1.0, True), (0.5, False), (2.0, False)]
)
def test_the_law_of_the_scores(sigma, is_right):
    """Over T steps: mean q T where it took part, 0 elsewhere; variance as it should."""
    number, steps, rate = 2000, 64, 0.25
    parameters = [nn.Parameter(torch.zeros(3000))]
    planted = canaries(number, rate=rate)
    optimizer = PrivateOptimizer(
        torch.optim.SGD(parameters, lr=0.0), noise_multiplier=sigma, clipping_norm=1.0,
        expected_batch_size=1, random=PrivateRandom(5), canaries=planted,
    )  # fmt: skip
    for _ in range(steps):
        optimizer.step()
    scores, coins = planted.take().scores, draw_canaries(SEED, number, 3000).included
    inside, outside = scores[coins], scores[~coins]
    spread = np.sqrt((steps + steps * rate * (1 - rate)) / coins.sum())
    means_fit = abs(inside.mean() - rate * steps) < 5 * spread and abs(
        outside.mean()
    ) < 5 * np.sqrt(steps / len(outside))
    # The relative standard error of a variance of n normals is sqrt(2 / n).
    off = abs(outside.var() / steps - 1)
    assert (means_fit and off < 5 * np.sqrt(2 / len(outside))) == is_right
    assert inside.mean() == pytest.approx(rate * steps, abs=5 * max(1, sigma) * spread)


class TestTraining:
    def test_without_canaries_a_step_is_the_same_to_the_last_bit(self):
        """And a canary is all that differs: rate 0 draws none of them, but the draws
        themselves are taken from a generator of their own here."""
        plan = draft(local_steps=3)
        plain = Run(plan)
        idle = Run(plan, canaries=canaries(5, rate=0.0))
        assert equal(plain.parameters, idle.parameters)

    def test_canaries_change_the_model_and_every_step_is_scored(self):
        plan = draft(local_steps=4)
        planted = canaries(50)
        run = Run(plan, canaries=planted)
        assert not equal(run.parameters, Run(plan).parameters)
        assert planted.take().num_steps == 4
        assert sum(k.noised_steps for k in run.kept) == 4

    def test_frozen_parameters_hold_no_canary(self):
        plan = draft(local_steps=1)
        model = Run(plan).model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("final"))
        before = {n: v.clone() for n, v in parameters_of(model).items()}
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        run = Run(plan, model=model, canaries=canaries(size))
        for name, value in run.parameters.items():
            assert torch.equal(value, before[name]) != name.startswith("final"), name


def test_a_seed_decides_nothing_of_who_is_drawn():
    """Draws are secret: they are not those of the seed that is opened at the end."""
    plan = replace(draft(local_steps=8))
    first, second = canaries(40, rate=0.5), canaries(40, rate=0.5, random_seed=4)
    Run(plan, canaries=first)
    Run(plan, canaries=second)
    assert first.take().scores.tolist() != second.take().scores.tolist()
