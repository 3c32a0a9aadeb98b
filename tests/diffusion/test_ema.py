import pytest
import torch

from diffusion.ema import ExponentialMovingAverage, warmed_up_decay
from diffusion.errors import ShapeMismatch


def test_the_decay_warms_up():
    assert warmed_up_decay(0.9, 0) == pytest.approx(1 / 10)
    assert warmed_up_decay(0.9, 8) == pytest.approx(9 / 18)
    assert warmed_up_decay(0.9, 80) == pytest.approx(81 / 90)
    assert warmed_up_decay(0.9, 1000) == 0.9
    assert warmed_up_decay(0.05, 0) == 0.05


def test_two_updates_by_hand():
    start = ExponentialMovingAverage(decay=0.9, parameters={"a": torch.tensor([0.0])})
    once = start.updated({"a": torch.tensor([10.0])})
    twice = once.updated({"a": torch.tensor([20.0])})
    # 0.1 · 0 + 0.9 · 10 = 9, then 2/11 · 9 + 9/11 · 20 = 18.
    assert once.parameters["a"].item() == pytest.approx(9.0)
    assert twice.parameters["a"].item() == pytest.approx(18.0)
    assert (start.parameters["a"].item(), start.num_updates) == (0.0, 0)
    assert twice.num_updates == 2


def test_without_decay_the_average_is_the_last_value():
    start = ExponentialMovingAverage(decay=0.0, parameters={"a": torch.zeros(3)})
    last = torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(start.updated({"a": last}).parameters["a"], last)


def test_other_names_shapes_and_decays_are_refused():
    start = ExponentialMovingAverage(decay=0.9, parameters={"a": torch.zeros(2)})
    with pytest.raises(ShapeMismatch, match="names"):
        start.updated({"b": torch.zeros(2)})
    with pytest.raises(ShapeMismatch, match="a has another shape"):
        start.updated({"a": torch.zeros(3)})
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="decay"):
            ExponentialMovingAverage(decay=decay, parameters={})
    with pytest.raises(ValueError, match="num_updates"):
        ExponentialMovingAverage(decay=0.9, parameters={}, num_updates=-1)
