"""What rounding costs: the mean of real updates, quantised, against the true one.

Five silos train a residual UNet on Fashion-MNIST by plain averaging for the first
rounds of the plan of ``examples/fashion_mnist.toml``, with fewer steps a round and
without protection. From round 2 on, the five float32 updates are clipped, rounded at
random, summed as fields and read back. The error is the L2 norm of the difference from
the float64 mean of the updates as they were before the clip, relative to that mean. Two
clipping norms C are tried:

- the largest of the five updates' own norms, which clips nothing: what a plan's fixed
  ``update.clipping_norm`` is when it is chosen well;
- that of ``update.clipping = "previous-mean"``: three times the norm of the mean update
  of the round before.
"""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.results_file import DATA
from benchmarks.secagg_process import Rows, Sizes, answer
from crypto.prg import MASK_SEED_BYTES, SecretRandom
from crypto.ring import field_bits_for, pack_blocks, unpack_blocks
from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.model import make_model
from diffusion.parameters import (
    difference,
    flatten,
    load_parameters,
    make_layout,
    parameters_of,
    unflatten,
)
from diffusion.parts import SELECTIONS
from diffusion.schedule import make_schedule
from privacy.clipping import clip, norm
from privacy.grids import (
    Grid,
    next_clipping_norm,
    next_ranges,
    rotated_range,
)
from privacy.quantization import Quantizer, dequantize_sum
from privacy.rotation import padded_length, rotate, rotate_back
from protocol.plan import PlanDraft
from protocol.settings import TrainingConfig
from protocol.update_settings import UpdateConfig
from silo.data import ImageSet
from silo.training import TrainingState, train

FASHION = DATA / "fashion_mnist" / "fashion_mnist.npz"
NUM_SILOS = 5
PLAN_ROUNDS = 7
BITS = (8, 10, 12)
TARGETS = {(8, True, True): "<= 0.03", (12, True, True): "<= 0.002"}
"""By value bits, rotation, and whether the clipping norm is near the updates' own."""
LARGEST_NORM = 10.0
CPU = torch.device("cpu")

Vector = npt.NDArray[np.float32]
Mean = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RoundUpdates:
    """What the silos of one round would send, and what the round before had."""

    round_number: int
    updates: tuple[Vector, ...]
    previous_mean: Vector
    segments: tuple[int, ...]

    @property
    def mean(self) -> Mean:
        """The true mean, in float64."""
        total = np.zeros(self.updates[0].size)
        for update in self.updates:
            total += update
        return total / len(self.updates)


def draft(sizes: Sizes) -> PlanDraft:
    """Return the example's plan, with short rounds."""
    return PlanDraft(
        name="secagg-quality",
        num_rounds=PLAN_ROUNDS,
        seed=11,
        model=UNetConfig(
            architecture="residual",
            dim=16,
            channels=1,
            dim_mults=(1, 2, 2),
            image_size=28,
        ),
        schedule=ScheduleConfig(kind="cosine"),
        training=TrainingConfig(
            local_steps=sizes.local_steps,
            examples_per_step=32,
            learning_rate=2e-3,
            warm_up_fraction=0.05,
            final_learning_rate_fraction=0.1,
            optimizer_state="kept",
        ),
        update=UpdateConfig(clipping_norm=LARGEST_NORM, clipping="previous-mean"),
    )


def train_rounds(sizes: Sizes) -> list[RoundUpdates]:
    """Train; return the updates of every round from the second on."""
    plan = draft(sizes)
    with np.load(FASHION, allow_pickle=False) as file:
        pixels = file["x_train"][: sizes.num_images, :, :, np.newaxis]
    images = [ImageSet(part, (0, 255)) for part in np.array_split(pixels, NUM_SILOS)]
    model, schedule = make_model(plan.model, plan.seed), make_schedule(plan.schedule)
    layout = make_layout(model, SELECTIONS["full"])
    states = [TrainingState()] * NUM_SILOS
    mean, rounds = np.zeros(0, np.float32), []
    for round_number in range(1, sizes.num_rounds + 1):
        before, updates = parameters_of(model), []
        for silo in range(NUM_SILOS):
            load_parameters(model, before)
            states[silo] = train(
                model,
                images[silo],
                schedule,
                plan,
                states[silo],
                silo=silo,
                round_number=round_number,
                device=CPU,
                observe=lambda progress: None,
            )
            update = np.zeros(layout.size, np.float32)
            updates.append(difference(parameters_of(model), before, layout, update))
        made = RoundUpdates(round_number, tuple(updates), mean, layout.segments)
        mean = made.mean.astype(np.float32)
        load_parameters(model, unflatten(flatten(before, layout) + mean, layout))
        rounds.append(made)
    return rounds[1:]


def quantised_mean(
    made: RoundUpdates, clipping_norm: float, value_bits: int, *, is_rotated: bool
) -> Vector:
    """Return the mean that the aggregator reads from the sum of the fields."""
    size = made.updates[0].size
    length, num_silos = size, len(made.updates)
    if is_rotated:
        length = padded_length(size)
        range_ = rotated_range(clipping_norm, length, value_bits)
        grid = Grid(value_bits, np.array([range_]), (length,))
    else:
        ranges = next_ranges(made.previous_mean, made.segments, clipping_norm)
        grid = Grid(value_bits, ranges, made.segments)
    signs, field_bits = os.urandom(MASK_SEED_BYTES), field_bits_for(value_bits, 5)
    words = np.zeros(0, np.uint64)
    for update in made.updates:
        vector = np.zeros(length, np.float32)
        vector[:size] = update
        clip(vector[:size], clipping_norm)
        if is_rotated:
            rotate(vector, SecretRandom(signs))
        quantizer = Quantizer(vector, grid, SecretRandom(os.urandom(MASK_SEED_BYTES)))
        packed = pack_blocks(quantizer.fill, length, field_bits)
        words = words + packed if words.size else packed
    mean = dequantize_sum(
        unpack_blocks(words, field_bits, length),
        grid,
        num_contributors=num_silos,
        total_weight=num_silos,
    )
    if is_rotated:
        rotate_back(mean, SecretRandom(signs))
    return mean[:size]


def errors(made: RoundUpdates) -> Rows:
    """Return the relative errors of one round's mean, and how its norms compare."""
    following = float(next_clipping_norm(made.previous_mean, LARGEST_NORM))
    largest = max(norm(update) for update in made.updates)
    length = float(np.linalg.norm(made.mean))
    rows = []
    for norm_name, clipping_norm in (("largest", largest), ("3 x previous", following)):
        name = f"real updates, round {made.round_number}, C = {norm_name}"
        rows.append((f"{name}: C / norm of the mean", clipping_norm / length, "", ""))
        for is_rotated in (True, False):
            for value_bits in BITS:
                found = quantised_mean(
                    made, clipping_norm, value_bits, is_rotated=is_rotated
                )
                error = float(np.linalg.norm(found - made.mean)) / length
                how = "rotated" if is_rotated else "plain"
                is_near = clipping_norm == largest
                target = TARGETS.get((value_bits, is_rotated, is_near), "")
                rows.append((f"{name}: {value_bits} bits, {how}", error, "", target))
    return rows


def measure(sizes: Sizes) -> Rows:
    """Train, and measure every round from the second on; nothing without the data."""
    if not FASHION.is_file():
        return []
    return [row for made in train_rounds(sizes) for row in errors(made)]


def main() -> None:
    """Answer ``benchmarks.secagg``."""
    answer(measure)


if __name__ == "__main__":
    main()
