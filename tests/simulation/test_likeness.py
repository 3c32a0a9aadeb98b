import pytest
import torch

from simulation.likeness import best_match, decibels, psnr


@pytest.mark.parametrize(
    ("difference", "expected"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0), (0.0, 99.0)]
)
def test_psnr_of_a_constant_difference(difference, expected):
    """The peak is 2: a difference of 0.2 everywhere is 10 log10(4 / 0.04) = 20 dB."""
    original = torch.zeros(1, 1, 2, 2)
    found = torch.full_like(original, difference)
    assert psnr(found, original) == pytest.approx((expected,), abs=1e-4)


def test_psnr_takes_the_mean_over_pixels():
    """One pixel of four is wrong by 2: the mean squared error is 1, so 6.02 dB."""
    found = torch.zeros(1, 1, 2, 2)
    found[0, 0, 1, 1] = 2.0
    assert psnr(found, torch.zeros(1, 1, 2, 2)) == pytest.approx((6.0206,), abs=1e-4)


def test_decibels_end_at_99():
    assert decibels(4e-12) == 99.0


def test_the_best_permutation_is_found():
    originals = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1)
    found = torch.tensor([0.9, 0.1, 0.45]).reshape(3, 1, 1, 1)
    assert best_match(found, originals) == [1, 2, 0]


def test_no_reconstruction_is_used_twice():
    """0.5 is nearest to both originals, but only one of them may have it."""
    originals = torch.tensor([0.4, 0.6]).reshape(2, 1, 1, 1)
    found = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1)
    assert best_match(found, originals) == [0, 1]


def test_as_many_of_each():
    with pytest.raises(ValueError, match="2 reconstructions of 1"):
        best_match(torch.zeros(2, 1, 1, 1), torch.zeros(1, 1, 1, 1))
