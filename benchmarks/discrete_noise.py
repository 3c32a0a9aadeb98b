"""How fast exact discrete noise is, and what noise inside the secure sum buys.

``python -m benchmarks.discrete_noise`` takes half a minute on one core. The tables of
docs/noise-inside-the-sum.md are from here; epsilon, sensitivity and signal-to-noise
ratios are computed, not simulated.
"""

import time

import numpy as np

from benchmarks.results_file import Row, row, save
from crypto.prg import SecretRandom
from privacy.distributed import (
    DistributedNoise,
    calibrate_share,
    distributed_epsilon,
    rounded_norm,
    share_epsilon,
    signal_to_noise,
)
from privacy.noise import DiscreteGaussian

NUM_VALUES = 3_000_000
SENSITIVITY = 2.0**15
LENGTH = 1 << 21


def speeds() -> list[Row]:
    """Time three million values at several standard deviations."""
    rows, noise = [], np.empty(NUM_VALUES, np.int64)
    for stddev in (0.5, 1, 10, 100, 1e4, 1e5, 2**24):
        started = time.perf_counter()
        sampler = DiscreteGaussian(float(stddev) ** 2)
        made = time.perf_counter() - started
        used, stream = [0], SecretRandom(bytes(32))

        def counted(
            words: np.ndarray, used: list[int] = used, stream: SecretRandom = stream
        ) -> None:
            used[0] += words.size
            stream(words)

        best = float("inf")
        for _ in range(3):
            used[0], started = 0, time.perf_counter()
            sampler.fill(noise, counted)
            best = min(best, time.perf_counter() - started)
        name = f"stddev {stddev:g}"
        rows += [
            row(f"3 M values, {name}", best, "s", "<= 1"),
            row(f"making the table, {name}", made, "s"),
            row(f"random words a value, {name}", used[0] / NUM_VALUES, "words"),
            row(f"hard bound over stddev, {name}", sampler.bound / stddev, ""),
        ]
    return rows


def inflation() -> list[Row]:
    """How much rounding adds to the sensitivity."""
    return [
        row(
            f"sensitivity over C, {steps:,} steps in C, 2^21 values",
            rounded_norm(float(steps), LENGTH) / steps,
            "",
        )
        for steps in (1 << 10, 1 << 12, 1 << 14, 1 << 15, 1 << 17)
    ]


def calibrated(
    epsilon: float, delta: float, survivors: int, length: int, rate: float, rounds: int
) -> DistributedNoise:
    """Return the noise for a target with one colluder."""
    return calibrate_share(
        epsilon,
        delta,
        min_survivors=survivors,
        max_colluding=1,
        sensitivity=SENSITIVITY,
        length=length,
        sample_rate=rate,
        rounds=rounds,
    )


def record_level() -> list[Row]:
    """One step a round at DPDM's sample rate, 4394 rounds."""
    rows = []
    for epsilon in (1.0, 10.0):
        for survivors in (4, 6, 11, 31):
            rate, rounds = 4096 / 60000, 4394
            noise = calibrated(epsilon, 1e-5, survivors, LENGTH, rate, rounds)
            name = f"record, epsilon {epsilon:g}, {survivors} survivors, 1 colluding"
            price = {"sample_rate": rate, "rounds": rounds}
            rows += [
                row(f"{name}: noise multiplier", noise.noise_multiplier, ""),
                row(f"{name}: achieved", distributed_epsilon(noise, 1e-5, **price), ""),
                row(
                    f"{name}: alone (50 stands for more)",
                    min(50.0, share_epsilon(noise, 1e-5, **price)),
                    "",
                ),
            ]
    return rows


def silo_level() -> list[Row]:
    """100 rounds of whole updates, delta 1e-3, one colluder, the best possible mean."""
    rows = []
    for epsilon in (1.0, 8.0, 50.0):
        for length in (1_540_000, 3_000_000):
            for silos in (4, 10, 50, 100, 1000):
                noise = calibrated(epsilon, 1e-3, silos, length, 1.0, 100)
                best = signal_to_noise(
                    1.0, noise, num_contributors=silos, step=1 / SENSITIVITY
                )
                name = f"silo, epsilon {epsilon:g}, {length:,} values, {silos} silos"
                rows.append(row(f"{name}: noise over mean", 1 / best, ""))
    return rows


def main() -> None:
    """Measure and save."""
    save("discrete_noise", speeds() + inflation() + record_level() + silo_level())


if __name__ == "__main__":
    main()
