"""Checks of the private step: noise, clip, mean over the draws, sum, bad gradients."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from silo.observed import Replay, Row, StepSeen, Watch, flattened, numbered_images
from silo.self_test_subject import MIN_UNITS, SHARE, CheckResult, Subject, of_patients
from silo.tail_bounds import gap_limit, norm_limit, normal_gap, normal_limit
from silo.units import units_of

ROUNDING = 1e-6
"""Of a norm, relatively: values are released in float32."""
SUM_ERROR = 1e-5
ENGINE_ERROR = 1e-2
"""Two ways to compute a gradient may differ by so much; TF32 on a GPU does."""

ENORMOUS = 1e6
"""Norm of an engineered gradient, in clipping norms."""
BEYOND = 1e30
"""No norm in float32 holds the square of that."""

NUM_KEPT = 6
NUM_COMPARED = 2
SUBSAMPLE = 4096
MANY_IMAGES = 50


class NoiseMeter:
    """Measures noise vectors against N(0, noise_stddev² I), one after the other."""

    def __init__(self, noise_stddev: float) -> None:
        self._stddev = noise_stddev
        self._previous: Tensor | None = None
        self.num_values = 0
        self.mean_squares: list[float] = []
        self.alike: list[float] = []
        self._some: list[Tensor] = []

    def __call__(self, dp_noise: Tensor) -> None:
        """Measure one vector ``[d]``."""
        z = dp_noise / self._stddev
        self.num_values = len(z)
        self.mean_squares.append(float(z.square().mean()))
        self._some.append(z[:: -(-len(z) // SUBSAMPLE)])
        if self._previous is not None:
            self.alike.append(likeness(z, self._previous))
        self._previous = z

    def tolerance(self) -> float:
        """Return how far each mean square may be from 1."""
        return norm_limit(self.num_values, SHARE / max(1, len(self.mean_squares)))

    def worst(self) -> float:
        """Return how far one is at most; infinity if one is not a number."""
        distances = [abs(value - 1) for value in self.mean_squares]
        return max(distances, default=math.inf) if _finite(distances) else math.inf

    def num_noised(self) -> int:
        """Return how many of the vectors have the right norm."""
        limit = self.tolerance()
        return sum(abs(value - 1) <= limit for value in self.mean_squares)

    def some(self) -> Tensor:
        """Return a sub-sample of all vectors in units of the standard deviation."""
        return torch.cat(self._some)


def likeness(a: Tensor, b: Tensor) -> float:
    """Return what is standard normal if a is, and b does not depend on it."""
    return float(a @ b / b.norm())


def check_noise(subject: Subject) -> list[CheckResult]:
    """Check norm and law of the noise, in steps as a round takes them."""
    meter, watch = NoiseMeter(subject.noise_stddev), subject.watch()
    steps: list[tuple[int, int]] = []

    def seen(step: StepSeen) -> None:
        meter(step.dp_noise)
        steps.append((step.num_units, step.num_rows))

    subject.train(subject.brief(subject.num_steps), watch, seen)
    limit, worst = meter.tolerance(), meter.worst()
    is_complete = len(steps) == subject.num_steps
    norm = CheckResult(
        "noise norm",
        is_complete and worst <= limit,
        f"in {len(steps)} steps of {subject.num_steps}, with {_mean(steps):.1f} units "
        f"on average, |released - clean|² / (d σ² C²) was 1 within {worst:.3g} "
        f"(d = {meter.num_values:,}, noise stddev {subject.noise_stddev:.4g})",
        f"{limit:.3g}",
    )
    some = meter.some()
    gap, gap_most = normal_gap(some.numpy()), gap_limit(len(some), SHARE / 2)
    alike_most = normal_limit(SHARE / 2 / max(1, len(meter.alike)))
    alike = max(map(abs, meter.alike), default=0.0)
    law = CheckResult(
        "noise law",
        gap <= gap_most and alike <= alike_most,
        f"{len(some):,} values are {gap:.3g} from N(0, (σ C)²) (Kolmogorov-Smirnov); "
        f"noise of successive steps is alike by {alike:.2f} standard deviations",
        f"{gap_most:.3g}; {alike_most:.2f}",
    )
    return [norm, law]


def check_clip(subject: Subject) -> list[CheckResult]:
    """Check what single units contribute, one with an enormous gradient among them."""
    clipping_norm = subject.privacy.clipping_norm
    watch = subject.watch(num_kept=NUM_KEPT)
    subject.train_one_step(watch, units=subject.first_units(NUM_KEPT))
    rows = watch.kept
    rows.append(_with_norm(rows[0], ENORMOUS * clipping_norm))
    alone = [float(_replayed(subject, [row]).norm()) for row in rows]
    most = max(alone) / clipping_norm
    removed = []
    for chunk_size in {subject.engine().chunk_size, len(rows)}:
        whole = _replayed(subject, rows, chunk_size)
        for unit in (0, len(rows) - 1):
            rest = _replayed(subject, rows[:unit] + rows[unit + 1 :], chunk_size)
            removed.append(float((whole - rest).norm()) / clipping_norm)
    moved = max(removed)
    allowed = 1 + ROUNDING * (1 + len(rows))
    return [
        CheckResult(
            "clip",
            most <= 1 + ROUNDING and moved <= allowed and _finite([*alone, *removed]),
            f"{len(rows)} units, one with a gradient of {ENORMOUS:.0e} C, contribute "
            f"{most:.9f} C at most; without one unit the sum differs by {moved:.9f} C "
            "at most",
            f"1 + {ROUNDING:g}; 1 + {allowed - 1:.2g}",
        )
    ]


def check_average(subject: Subject) -> list[CheckResult]:
    """Check that all draws of a unit are averaged first, then clipped as one."""
    privacy = subject.privacy

    def enlarge(_: int, row: Row) -> Row:
        return _with_norm(row, ENORMOUS * privacy.clipping_norm)

    watch = subject.watch(num_compared=NUM_COMPARED)
    # Each chunk's first unit is compared; one unit alone makes sure of a chunk.
    subject.train_one_step(watch, units=subject.first_units(NUM_COMPARED))
    difference = max(watch.differences)
    most_draws = subject.multiplicity
    if privacy.unit == "patient":
        most_draws *= privacy.max_images_per_patient
    has_all = all(
        number % subject.multiplicity == 0 and 0 < number <= most_draws
        for number in watch.num_draws
    )
    lone = {"one unit": (subject.images, subject.first_units(1))}
    if privacy.unit == "patient":
        shape = (MANY_IMAGES, *subject.images.pixels.shape[1:])
        pixels = np.random.default_rng(1).integers(0, 256, shape)
        many = of_patients(replace(subject.images, pixels=pixels), [MANY_IMAGES])
        many = replace(many, value_range=(0.0, 255.0))
        lone[f"a patient with {MANY_IMAGES} images"] = many, units_of(many, "patient")
    norms, counts = [], []
    for images, units in lone.values():
        step = subject.train_one_step(
            subject.watch(change=enlarge), images=images, units=units
        )
        norms.append(float(step.released.norm()) / privacy.clipping_norm)
        counts += [step.num_units, step.num_rows]
    most = max(norms)
    return [
        CheckResult(
            "draws averaged before the clip",
            difference <= ENGINE_ERROR
            and has_all
            and most <= 1 + ROUNDING
            and _finite(norms)
            and set(counts) == {1},
            f"a unit's gradient is the mean over its {max(watch.num_draws)} draws "
            f"within {difference:.2g}; {' and '.join(lone)}: {max(counts)} "
            f"gradient each, and a contribution of {most:.9f} C at most",
            f"{ENGINE_ERROR:g}; 1; 1 + {ROUNDING:g}",
        )
    ]


def check_sum(subject: Subject) -> list[CheckResult]:
    """Check that the sum is of all units, and that the divisor is the public one."""
    divisor = subject.draft.training.examples_per_step
    num_units = min(len(subject.units), 2 * MIN_UNITS)
    if num_units == divisor:
        num_units -= 1
    step = subject.train_one_step(subject.watch(), units=subject.first_units(num_units))
    limit = subject.privacy.clipping_norm * num_units
    error = float(step.dp_noise.norm()) / limit
    return [
        CheckResult(
            "sum and divisor",
            error <= SUM_ERROR and step.num_units == step.num_rows == num_units,
            f"without noise, {step.num_rows} units released their clipped sum over "
            f"{divisor}, the public divisor, within {error:.2g} m C",
            f"{SUM_ERROR:g}",
        )
    ]


def check_not_finite(subject: Subject) -> list[CheckResult]:
    """Check that NaN and infinity are left out, and the step noised all the same."""
    units = subject.first_units(MIN_UNITS)
    pixels = subject.images.pixels.astype(np.float32)
    pixels[units.images(0)] = np.nan
    images = replace(subject.images, pixels=pixels)

    def spoil(number: int, row: Row) -> Row:
        if number == 1:
            row = [row[0].index_fill(0, torch.tensor([0]), torch.inf), *row[1:]]
        return _with_norm(row, BEYOND) if number == 2 else row

    meter, left_out = NoiseMeter(subject.noise_stddev), []

    def seen(step: StepSeen) -> None:
        meter(step.dp_noise)
        left_out.append(step.num_left_out)

    draft = subject.brief(2, sample_rate=1.0)
    watch = subject.watch(change=spoil)
    model = subject.train(draft, watch, seen, images=images, units=units)
    parameters = flattened(list(model.parameters()))
    worst, limit = meter.worst(), meter.tolerance()
    return [
        CheckResult(
            "gradients that are not finite",
            worst <= limit and left_out == [3, 3] and bool(parameters.isfinite().all()),
            f"of {len(units)} units, {left_out[0]} had a gradient with NaN, infinity "
            f"or beyond float32, and added nothing; the noise norm was 1 within "
            f"{worst:.3g}; all parameters are finite",
            f"3 left out; {limit:.3g}",
        )
    ]


def _replayed(
    subject: Subject, rows: Sequence[Row], chunk_size: int | None = None
) -> Tensor:
    """Return what a step without noise releases of given gradients."""
    model = subject.draft.model
    images = numbered_images(len(rows), model.image_size, model.channels)
    engine = Replay(rows, chunk_size or subject.engine().chunk_size)
    watch = Watch(engine, clipping_norm=subject.privacy.clipping_norm)
    units = units_of(images, "example")
    return subject.train_one_step(watch, images=images, units=units).released


def _with_norm(row: Row, norm: float) -> Row:
    """Return a gradient scaled to a norm, or pointing anywhere if it was zero."""
    before = float(flattened(row).norm())
    if not before:
        row = [torch.ones_like(value) for value in row]
        before = float(flattened(row).norm())
    return [value * (norm / before) for value in row]


def _mean(steps: Sequence[tuple[int, int]]) -> float:
    """Return how many units a step had on average."""
    return sum(units for units, _ in steps) / max(1, len(steps))


def _finite(values: Sequence[float]) -> bool:
    """Return whether all are numbers."""
    return all(map(math.isfinite, values))
