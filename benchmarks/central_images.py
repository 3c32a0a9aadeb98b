"""Does a warm-up on central images help at epsilon 1? Digits, one silo, three seeds.

    python -m benchmarks.central_images

The 1,500 digits for training, all of one silo. Both arms spend epsilon 1 at delta 5e-4
in all: one on DP-SGD alone; the other on five central images first, then on DP-SGD with
the noise that the rest permits, from parameters that were warmed up on them. Everything
else is the same. FD-small (digits) of 500 samples against the training images; 297 real
digits score 0.5. What is random follows from a seed, which is fit for public images
alone. Results: ``benchmarks/results/central_images.json``.
"""

import math
import time
from collections.abc import Sequence

import sklearn.datasets
import torch

from benchmarks.results_file import Row, row, save
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.ema import ExponentialMovingAverage
from diffusion.fd_small import digits_split
from diffusion.features import load_fd_small_digits
from diffusion.fid import empty_statistics, frechet_distance
from diffusion.means import CentralImages
from diffusion.model import make_model
from diffusion.parameters import load_parameters, parameters_of
from diffusion.parts import DenoisingNetwork
from diffusion.sampling import sample
from diffusion.schedule import make_schedule
from diffusion.warm_up import WarmUpConfig, warm_up
from privacy.accounting import epsilon
from privacy.calibration import calibrate
from privacy.events import SampledGaussian
from protocol.mechanism import round_event
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from protocol.update_settings import UpdateConfig
from silo.central_images import release_central_images
from silo.data import ImageSet
from silo.per_example import VmapEngine
from silo.private_training import Kept, train_privately
from silo.randomness import PrivateRandom
from silo.training import TrainingState
from silo.units import units_of

TARGET, DELTA = 1.0, 5e-4
SEEDS = (1, 2, 3)
NUM_SAMPLES = 500
CPU = torch.device("cpu")

#: The privacy of the central images: five means of about 300 images each.
NUM_CENTRAL, CENTRAL_RATE, CENTRAL_MULTIPLIER = 5, 0.2, 5.0
#: That of the training: 60 steps of about 150 images, 8 draws each.
NUM_STEPS, RATE, MULTIPLICITY, EMA_DECAY = 60, 0.1, 8, 0.98

SCHEDULE = ScheduleConfig(kind="cosine", num_timesteps=1000)
SAMPLER = SamplerConfig(kind="ddim", num_steps=50)
NETWORK = UNetConfig(
    architecture="residual", dim=8, channels=1, dim_mults=(1, 2), image_size=8
)
WARM_UP = WarmUpConfig(num_steps=200, learning_rate=2e-3)
#: The arms with a warm-up, and the largest ratio of signal to noise that is trained.
ARMS = {"warm-up": 2.0, "warm-up, all timesteps": math.inf}


class Bench:
    """The digits, and what is made and measured with them."""

    def __init__(self) -> None:
        data = sklearn.datasets.load_digits()
        training, _ = digits_split()
        self.images = ImageSet(data.images[training][..., None], (0.0, 16.0))
        self.units = units_of(self.images, "example")
        self._schedule = make_schedule(SCHEDULE)
        self._extractor = load_fd_small_digits()
        self._target = empty_statistics(self._extractor).update(
            self._extractor.features(self.images.batch(self.units.order))
        )

    def release(self, seed: int) -> tuple[torch.Tensor, SampledGaussian]:
        """Return central images in [-1, 1], and what they cost."""
        draft = PlanDraft(
            name="central",
            num_rounds=1,
            seed=seed,
            model=UNetConfig(
                architecture="means",
                dim=NUM_CENTRAL,
                channels=1,
                dim_mults=(),
                image_size=8,
            ),
            training=TrainingConfig(
                local_steps=NUM_CENTRAL,
                examples_per_step=round(CENTRAL_RATE * len(self.units)),
            ),
            update=UpdateConfig(clipping_norm=100.0),
            privacy=PrivacyConfig(
                mechanism="dp-sgd",
                noise_multiplier=CENTRAL_MULTIPLIER,
                clipping_norm=8.0,  # no 8 × 8 image in [-1, 1] has a larger norm
                delta=DELTA,
                sample_rate=CENTRAL_RATE,
                multiplicity=1,
            ),
        )
        model = CentralImages(NUM_CENTRAL, 1, 8)
        release_central_images(
            model,
            self.images,
            self.units,
            draft,
            random=PrivateRandom(seed),
            keep=lambda kept: None,
            checkpoint_steps=NUM_CENTRAL,
        )
        return model.images.detach().clamp(-1.0, 1.0), round_event(draft)

    def train(
        self, model: DenoisingNetwork, seed: int, before: Sequence[SampledGaussian]
    ) -> PlanDraft:
        """Train with what is left of epsilon 1; the model becomes its average."""
        multiplier = calibrate(
            TARGET,
            DELTA,
            sample_rate=RATE,
            clipping_norm=1.0,
            steps=NUM_STEPS,
            before=before,
        )
        draft = PlanDraft(
            name="private",
            num_rounds=1,
            seed=seed,
            model=NETWORK,
            schedule=SCHEDULE,
            training=TrainingConfig(
                local_steps=NUM_STEPS,
                examples_per_step=round(RATE * len(self.units)),
                learning_rate=1e-2,  # best of 3e-3, 1e-2, 2e-2 without a warm-up
                final_learning_rate_fraction=0.1,
            ),
            privacy=PrivacyConfig(
                mechanism="dp-sgd",
                noise_multiplier=multiplier,
                delta=DELTA,
                sample_rate=RATE,
                multiplicity=MULTIPLICITY,
            ),
        )
        average = [
            ExponentialMovingAverage(decay=EMA_DECAY, parameters=parameters_of(model))
        ]

        def keep(_: Kept) -> None:
            average[0] = average[0].updated(parameters_of(model))

        train_privately(
            model,
            self.images,
            self.units,
            self._schedule,
            draft,
            TrainingState(),
            round_number=1,
            device=CPU,
            random=PrivateRandom(100 + seed),
            observe=lambda progress: None,
            keep=keep,
            checkpoint_steps=1,
            engine=VmapEngine(chunk_size=64),
        )
        load_parameters(model, average[0].parameters)
        return draft

    def warmed_up(
        self, images: torch.Tensor, seed: int, max_ratio: float
    ) -> DenoisingNetwork:
        """Return the network of a seed, trained on central images."""
        model = make_model(NETWORK, seed)
        config = WarmUpConfig(
            num_steps=WARM_UP.num_steps,
            learning_rate=WARM_UP.learning_rate,
            max_signal_to_noise=max_ratio,
        )
        generator = torch.Generator().manual_seed(seed)
        warm_up(model, images, self._schedule, config, generator)
        return model

    def distance(self, model: DenoisingNetwork) -> float:
        """Return FD-small (digits) of a model's samples."""
        blocks = sample(
            model,
            self._schedule,
            SAMPLER,
            seed=1,
            first_index=0,
            count=NUM_SAMPLES,
            image_shape=(1, 8, 8),
            device=CPU,
            block_size=250,
        )
        features = self._extractor.features(torch.cat(list(blocks)))
        statistics = empty_statistics(self._extractor).update(features)
        return frechet_distance(statistics, self._target)


def measure(bench: Bench) -> list[Row]:
    """Return the distances of all arms and seeds, and what each spent."""
    rows: list[Row] = []
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        images, event = bench.release(seed)
        if seed == SEEDS[0]:
            spent = epsilon((event,), DELTA)
            rows.append(row("epsilon of the central images alone", spent, "epsilon"))
        for arm in ("no warm-up", *ARMS):
            before = (event,) if arm in ARMS else ()
            if arm in ARMS:
                model = bench.warmed_up(images, seed, ARMS[arm])
                if seed == SEEDS[0]:
                    value = bench.distance(model)
                    name = f"{arm}, before any private step, seed {seed}"
                    rows.append(row(name, value, "distance"))
            else:
                model = make_model(NETWORK, seed)
            draft = bench.train(model, seed, before)
            if seed == SEEDS[0]:
                events = (*before, round_event(draft))
                name = f"{arm}: noise multiplier of the training"
                multiplier = draft.privacy.noise_multiplier
                rows.append(row(name, multiplier, "multiplier"))
                total = epsilon(events, DELTA)
                rows.append(row(f"{arm}: epsilon in all", total, "epsilon", "<= 1"))
            value = bench.distance(model)
            found.setdefault(arm, []).append(value)
            rows.append(
                row(f"{arm}, seed {seed}: FD-small (digits)", value, "distance")
            )
    for arm, values in found.items():
        mean = sum(values) / len(values)
        rows.append(row(f"{arm}: mean FD-small (digits)", mean, "distance"))
    return rows


def main() -> None:
    """Measure, and write the results."""
    torch.set_num_threads(1)
    start = time.process_time()
    rows = measure(Bench())
    rows.append(row("this script", time.process_time() - start, "CPU s", "<= 900"))
    print(save("central_images", rows, "1 thread; machine shared with other work"))


if __name__ == "__main__":
    main()
