"""Noise multiplicity: what K draws of timestep and noise for each image are worth.

1. The error of a gradient. A batch's gradient, clipped image by image and without
   noise, against its value at K = 256: Fashion-MNIST, 20 batches of 16 images, four
   times each, with a fixed network that was trained for a while before, on other
   images and without privacy.
2. The quality of a model. Scikit-learn's digits, 1,500 images in one place, DP-SGD at
   the same epsilon with the same steps, five seeds each: the Fréchet distance of 500
   samples to the training images, as ``benchmarks/digits_recipe.py`` measures it.

An image is clipped once, whatever K, so that K costs time and no privacy. Sampling and
noise have a debugging seed here, so that a run can be repeated: these models are not
private, although they were trained as private ones are. The recipe was found in a
handful of trials on the same images, whose privacy cost nobody counted.

Results: ``benchmarks/results/multiplicity.json``. A run that was broken off goes on
where it was; ``--fresh`` measures everything anew. Fashion-MNIST is looked for in the
folder that ``CLOISTER_DATA`` names; the first part is left out without it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.digits_recipe import Judge
from benchmarks.private_digits import Results, digits, scores_of, train_alone
from benchmarks.results_file import DATA
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.schedule import Schedule, make_schedule
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.config import DataConfig
from silo.data import load_images
from silo.dpsgd import PrivateOptimizer
from silo.per_example import Draws, LoopEngine, Objective
from silo.randomness import PrivateRandom

FASHION = DATA / "fashion_mnist" / "fashion_mnist.npz"
GRADIENT_MODEL = UNetConfig(
    architecture="residual", dim=8, channels=1, dim_mults=(1, 2), image_size=28
)
GRADIENT_MULTIPLICITIES = (1, 2, 4, 8)
REFERENCE_MULTIPLICITY = 256
NUM_BATCHES, BATCH_SIZE, NUM_REPETITIONS = 20, 16, 4
PUBLIC_STEPS, PUBLIC_BATCH_SIZE = 150, 32

MULTIPLICITIES = (1, 4, 8)
SEEDS = (0, 1, 2, 3, 4)
RECIPE = PlanDraft(
    name="multiplicity",
    num_rounds=20,
    seed=0,
    model=UNetConfig(
        architecture="residual", dim=16, channels=1, dim_mults=(1, 1), image_size=8
    ),
    schedule=ScheduleConfig(kind="cosine", num_timesteps=1000),
    training=TrainingConfig(
        local_steps=10,
        examples_per_step=150,
        learning_rate=4e-3,
        warm_up_fraction=0.05,
        final_learning_rate_fraction=0.1,
    ),
    privacy=PrivacyConfig(
        mechanism="dp-sgd", epsilon=10.0, delta=1e-4, sample_rate=0.1, multiplicity=1
    ),
    aggregation=AggregationConfig(ema_decay=0.8),
    evaluation=EvaluationConfig(
        sampler=SamplerConfig(kind="ddim", num_steps=100, eta=1.0)
    ),
)


class Batches:
    """Clipped gradients of fixed batches at any K, by the package's own step."""

    def __init__(self) -> None:
        config = DataConfig(source="npz", path=FASHION.name)
        self._images = load_images(config, FASHION.parent)
        self._schedule = make_schedule(ScheduleConfig(kind="cosine"))
        self._model = make_model(GRADIENT_MODEL, 0)
        generator = np.random.default_rng(0)
        order = generator.permutation(len(self._images))
        self._rows = order[: NUM_BATCHES * BATCH_SIZE].reshape(NUM_BATCHES, -1)
        self._generator = torch.Generator().manual_seed(0)
        self._train(order[NUM_BATCHES * BATCH_SIZE :])

    def _train(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Train the network for a while on images that are in no batch."""
        optimizer = torch.optim.Adam(self._model.parameters(), lr=2e-3)
        for step in range(PUBLIC_STEPS):
            start = step * PUBLIC_BATCH_SIZE
            x_0 = self._images.batch(rows[start : start + PUBLIC_BATCH_SIZE])
            t, noise = drawn(x_0, self._schedule, self._generator)
            losses = denoising_loss(
                self._model, x_0, t, noise, self._schedule, RECIPE.training.loss
            )
            optimizer.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def gradient(self, batch: int, multiplicity: int) -> Tensor:
        """Return a batch's gradient ``[d]`` with fresh draws: clipped, no noise."""
        x_0 = self._images.batch(self._rows[batch])[:, None]
        x_0 = x_0.expand(-1, multiplicity, -1, -1, -1)
        t, noise = drawn(x_0, self._schedule, self._generator)
        weights = torch.full(t.shape, 1 / multiplicity)
        taken: list[Tensor] = []
        optimizer = PrivateOptimizer(
            torch.optim.SGD(self._model.parameters(), lr=0.0),
            noise_multiplier=0.0,
            clipping_norm=RECIPE.privacy.clipping_norm,
            expected_batch_size=BATCH_SIZE,
            random=PrivateRandom(),
            after_noise=lambda parameters: taken.append(flat_gradient(parameters)),
        )
        objective = Objective(self._model, self._schedule, RECIPE.training.loss)
        for made in LoopEngine().gradients(objective, Draws(x_0, t, noise, weights)):
            optimizer.accumulate(made)
        optimizer.step()
        optimizer.release()
        return taken[0]

    def error(self, batch: int, multiplicity: int, reference: Tensor) -> float:
        """Return a gradient's relative L2 distance to the reference, mean of four."""
        distances = [
            float((self.gradient(batch, multiplicity) - reference).norm())
            for _ in range(NUM_REPETITIONS)
        ]
        return sum(distances) / len(distances) / float(reference.norm())


def flat_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return a copy of the gradients of all parameters, ``[d]``."""
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def drawn(
    x_0: Tensor, schedule: Schedule, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a timestep and noise for each image ``[…, c, h, w]``."""
    t = torch.randint(schedule.num_timesteps, x_0.shape[:-3], generator=generator)
    return t, torch.randn(x_0.shape, generator=generator)


def gradient_errors(results: Results) -> None:
    """Measure how the error of a batch's gradient falls with K."""
    names = {
        k: f"gradient, K = {k}: relative error, mean" for k in GRADIENT_MULTIPLICITIES
    }
    if all(results.has(name) for name in names.values()):
        return
    if not FASHION.is_file():
        print(f"left out: {FASHION.name} is not in {FASHION.parent}")
        return
    batches = Batches()
    errors: dict[int, list[float]] = {k: [] for k in names}
    for batch in range(NUM_BATCHES):
        reference = batches.gradient(batch, REFERENCE_MULTIPLICITY)
        for k, values in errors.items():
            values.append(batches.error(batch, k, reference))
    means = {k: float(np.mean(values)) for k, values in errors.items()}
    for k, values in errors.items():
        target = f"< {means[k // 2]:.6g}" if k > 1 else ""
        results.add_mean(f"gradient, K = {k}: relative error", values, "ratio", target)


def qualities(
    results: Results, multiplicities: Sequence[int], seeds: Sequence[int]
) -> None:
    """Train and score a private model for each seed and K, what is not there yet."""
    images, judge = digits(), Judge()
    for seed in seeds:
        for k in multiplicities:
            name = run_name(k, seed)
            if results.has(f"{name}: FD-small"):
                continue
            privacy = replace(RECIPE.privacy, multiplicity=k)
            trained = train_alone(replace(RECIPE, seed=seed, privacy=privacy), images)
            scores = scores_of(judge, trained.model)
            share = scores["probability > 0.5"]
            results.add(f"{name}: training", trained.seconds, "CPU s")
            results.add(f"{name}: probability > 0.5", share, "share")
            distance = scores["FD-small (digits)"]
            results.add(f"{name}: FD-small", distance, "500 samples")


def add_means(results: Results) -> None:
    """Add means over seeds, and the gain of K = 8 over K = 1 on equal seeds."""
    distances = {
        k: [
            results.value(f"{run_name(k, seed)}: FD-small")
            for seed in SEEDS
            if results.has(f"{run_name(k, seed)}: FD-small")
        ]
        for k in MULTIPLICITIES
    }
    for k, values in distances.items():
        if values:
            results.add_mean(f"digits, K = {k}: FD-small", values, "500 samples")
    if len(distances[1]) == len(distances[8]) == len(SEEDS):
        pairs = zip(distances[1], distances[8], strict=True)
        gains = [one - eight for one, eight in pairs]
        name = "digits, K = 1 less K = 8: FD-small"
        results.add_mean(name, gains, "500 samples", "> 0")


def run_name(k: int, seed: int) -> str:
    """Return how the rows of one model begin."""
    return f"digits, K = {k}, seed {seed}"


def main() -> None:
    """Measure both, keeping every row as it is made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument(
        "--only",
        type=int,
        nargs="+",
        choices=MULTIPLICITIES,
        default=MULTIPLICITIES,
        help="these multiplicities of the second part; another process may do the rest",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results("multiplicity", "1 thread", fresh=arguments.fresh)
    if tuple(arguments.only) == MULTIPLICITIES:
        gradient_errors(results)
    qualities(results, arguments.only, arguments.seeds)
    add_means(results)


if __name__ == "__main__":
    main()
