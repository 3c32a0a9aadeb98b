import math

import pytest

from privacy.events import SampledGaussian, merged


def event(steps: int = 3, sigma: float = 1.5, **changes: float) -> SampledGaussian:
    values = {"sample_rate": 0.25, "clipping_norm": 2.0} | changes
    return SampledGaussian(noise_multiplier=sigma, steps=steps, **values)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("sample_rate", (1e-9, 1.0), (0.0, -0.1, 1.0000001, math.nan)),
        ("noise_multiplier", (1e-9, 1e9), (0.0, -1.0, math.inf, math.nan)),
        ("clipping_norm", (1e-9, 1e9), (0.0, -1.0, math.inf, math.nan)),
        ("steps", (1, 10**9), (0, -1, 2.5, math.nan)),
    ],
)
def test_ranges(name: str, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    names = "sample_rate", "noise_multiplier", "clipping_norm", "steps"
    fields = dict(zip(names, (0.25, 1.5, 2.0, 3), strict=True))
    for value in good:
        assert getattr(SampledGaussian(**fields | {name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name}: "):
            SampledGaussian(**fields | {name: value})


def test_times_changes_the_steps_alone() -> None:
    assert event(3).times(7) == event(7)
    assert event(3) == event(3)


def test_equal_neighbours_are_merged_and_nothing_moves() -> None:
    a, b = event(2), event(5, sigma=3.0)
    assert merged([a, a.times(3), b, a]) == (a.times(5), b, a)
    assert merged([]) == ()
    assert merged([b]) == (b,)


@pytest.mark.parametrize(
    "other",
    [
        event(2, sample_rate=0.5),
        event(2, sigma=2.0),
        event(2, clipping_norm=1.0),
    ],
)
def test_what_differs_in_any_field_is_not_merged(other: SampledGaussian) -> None:
    assert merged([event(2), other]) == (event(2), other)
