"""The accountant against published calibrations, two other accountants and a formula.

``python -m benchmarks.accounting``: multipliers found beside those calibrated on a fine
grid elsewhere; the same events priced by PLD (enforced), PRV (a second claim) and RDP
(neither); what one fixed grid would say; what float64 hides of delta; seconds.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

import dp_accounting
from dp_accounting import rdp
from scipy.optimize import brentq

from benchmarks.results_file import Row, row, save
from privacy import accounting
from privacy.accounting import claims_agree, epsilon_on_grid, gaussian_mu, price
from privacy.calibration import calibrate
from privacy.events import SampledGaussian
from privacy.gaussian_curve import gaussian_delta
from silo.prv import prv_epsilon

DELTA = 1e-5
T = TypeVar("T")

CALIBRATIONS = [
    # size, expected batch, steps, epsilon, published multiplier, digits it has
    (60000, 4096, 4394, 0.2, 73.8, 0.1),
    (60000, 4096, 4394, 1.0, 16.92, 0.01),
    (60000, 4096, 4394, 10.0, 2.38, 0.01),
    (12000, 128, 500, 1.0, 1.19, 0.01),
    (12000, 128, 500, 3.0, 0.76, 0.01),
    (12000, 128, 500, 10.0, 0.51, 0.01),
    (12000, 512, 2000, 1.0, 7.21, 0.01),
    (12000, 512, 2000, 3.0, 2.78, 0.01),
    (12000, 512, 2000, 10.0, 1.18, 0.01),
]
PRICES = [(1000, 64, 2000, 22.4), (5000, 256, 2000, 17.0), (15000, 256, 2000, 4.69)]
EXTREMES = [
    # sample rate, multiplier, steps, delta
    (0.01, 5.0, 10**6, 1e-6),
    (0.5, 1.0, 10**6, 1e-5),
    (1e-3, 1.0, 30_000, 1e-6),
    (1 / 60000, 1.0, 60_000, 1e-6),
    (1e-6, 0.5, 1000, 1e-6),
    (0.01, 0.05, 100, 1e-5),
]


def main() -> None:
    """Measure everything and write the results."""
    logging.disable(logging.WARNING)  # RDP leaves out orders that do not converge.
    rows = [*calibrations(), *prices(), *fixed_grids(), *hidden(), *extremes()]
    save("accounting", rows)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return a result that no cache knew, and the seconds it took."""
    for cache in (accounting._refined, accounting._composed, accounting._one_step):
        cache.cache_clear()
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def run(q: float, sigma: float, steps: int) -> SampledGaussian:
    return SampledGaussian(
        sample_rate=q, noise_multiplier=sigma, clipping_norm=1.0, steps=steps
    )


def rdp_epsilon(event: SampledGaussian, delta: float) -> float:
    accountant = rdp.RdpAccountant()
    step = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    sampled = dp_accounting.PoissonSampledDpEvent(event.sample_rate, step)
    accountant.compose(sampled, event.steps)
    return float(accountant.get_epsilon(delta))


def three_prices(name: str, event: SampledGaussian, delta: float) -> list[Row]:
    """Price one event by the three accountants."""
    (pld, grid), seconds = timed(lambda: price([event], delta))
    rows = [
        row(f"{name}: epsilon, PLD", pld, ""),
        row(f"{name}: grid", grid, ""),
        row(f"{name}: seconds, PLD", seconds, "s"),
    ]
    claim, seconds = timed(lambda: prv_epsilon([event], delta))
    if claim.epsilon is None:
        print(f"{name}: PRV {claim.reason}")
    else:
        agree = claims_agree(pld, claim.epsilon, claim.eps_error)
        rows += [
            row(f"{name}: epsilon, PRV", claim.epsilon, ""),
            row(f"{name}: error of PRV", claim.eps_error, ""),
            row(f"{name}: PLD and PRV agree", agree, "", ">= 1"),
        ]
    rows += [
        row(f"{name}: seconds, PRV", seconds, "s"),
        row(f"{name}: epsilon, RDP", rdp_epsilon(event, delta), ""),
    ]
    return rows


def calibrations() -> list[Row]:
    rows = []
    for size, batch, steps, target, published, digit in CALIBRATIONS:
        name = f"N {size}, batch {batch}, {steps} steps, epsilon {target:g}"
        found, seconds = timed(
            lambda size=size, batch=batch, steps=steps, target=target: calibrate(
                target, DELTA, sample_rate=batch / size, clipping_norm=1, steps=steps
            )
        )
        # The first three are exact to 0.2 %; the others to half a percent or a digit.
        width = 0.002 if size == 60000 else max(0.005, digit / published)
        rows += [
            row(f"{name}: multiplier", found, ""),
            row(f"{name}: published", published, ""),
            row(
                f"{name}: off by",
                abs(found / published - 1),
                "",
                f"<= {width:.2g}",
            ),
            row(f"{name}: seconds to calibrate", seconds, "s", "<= 10"),
        ]
        event = run(batch / size, found, steps)
        rows += three_prices(name, event, DELTA)
        rows.append(row(f"{name}: mu", gaussian_mu([event]), ""))
    return rows


def prices() -> list[Row]:
    rows = []
    for size, batch, steps, published in PRICES:
        name = f"N {size}, batch {batch}, {steps} steps, multiplier 1"
        rows.append(row(f"{name}: published", published, ""))
        rows += three_prices(name, run(batch / size, 1.0, steps), DELTA)
    return rows


def fixed_grids() -> list[Row]:
    """Price 73.8 on fixed grids, and find what 1e-3 would calibrate to."""
    q, steps, target = 4096 / 60000, 4394, 0.2
    rows = [
        row(
            f"multiplier 73.8, fixed grid {grid:g}: epsilon",
            epsilon_on_grid([run(q, 73.8, steps)], DELTA, grid),
            "",
        )
        for grid in (1e-3, 5e-4, 1e-4, 1e-5)
    ]
    coarse = brentq(
        lambda s: epsilon_on_grid([run(q, s, steps)], DELTA, 1e-3) - target, 60, 100
    )
    return [*rows, row("fixed grid 1e-3: multiplier for epsilon 0.2", coarse, "")]


def hidden() -> list[Row]:
    """Measure what transforms hide of delta: plain Gaussians, composed one by one.

    The grid makes delta too large and the rounding, at worst, too small; only what is
    left over can be seen.
    """
    rows = []
    stage_steps = accounting.STAGE_STEPS
    for name, stage in (("in stages", stage_steps), ("at once", 1 << 40)):
        accounting.STAGE_STEPS = stage
        for steps in (10_000, 1_000_000):
            accounting._composed.cache_clear()
            groups = ((1.0, math.sqrt(steps), steps),)
            losses = accounting._composed(groups, accounting._first_grid(groups))
            worst = 0.0
            for value in (4.0, 5.0, 6.0, 7.0, 8.0):
                computed = float(losses.get_delta_for_epsilon(value))
                worst = max(worst, gaussian_delta(1.0, value) - computed)
            rows.append(
                row(
                    f"{steps} plain steps {name}: hidden of delta, 2^-50 a step",
                    worst / steps / accounting.RESOLUTION,
                    "",
                    "<= 1",
                )
            )
    accounting.STAGE_STEPS = stage_steps
    accounting._composed.cache_clear()
    return rows


def extremes() -> list[Row]:
    rows = []
    for q, sigma, steps, delta in EXTREMES:
        name = f"q {q:.3g}, multiplier {sigma:g}, {steps} steps, delta {delta:g}"
        rows += three_prices(name, run(q, sigma, steps), delta)
    return rows


if __name__ == "__main__":
    main()
