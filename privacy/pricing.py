"""The price of a list of events, of whatever kind: one function for all who ask.

DP-SGD alone is priced by PLD (:mod:`privacy.accounting`). As soon as one event is
noise inside the secure sum, all are priced by Rényi divergence
(:mod:`privacy.distributed`): at each order the divergences of all events add up, DP-SGD
included, whose steps are the same sampled Gaussian mechanism with one silo's noise.
That is an upper bound for mechanisms that alternate in any order, under the
assumptions of both.
"""

from collections.abc import Sequence

from privacy import accounting
from privacy.accounting import Budget
from privacy.distributed import RenyiPart, part_of, renyi_epsilon
from privacy.events import Event, NoisySum, SampledGaussian


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Return an epsilon such that all events together are (epsilon, delta)-DP.

    It does not depend on the order of the events. Infinity where nothing can be said.

    Raises:
        ValueError: delta out of its range.
    """
    gaussians = [event for event in events if isinstance(event, SampledGaussian)]
    if len(gaussians) == len(events):
        return accounting.epsilon(gaussians, delta)
    return renyi_epsilon(_parts(events, is_shared=True), delta)


def share_epsilon(events: Sequence[NoisySum], delta: float) -> float:
    """Return epsilon where secure aggregation fails: a silo's own noise is all."""
    return renyi_epsilon(_parts(events, is_shared=False), delta) if events else 0.0


def would_exceed(
    budget: Budget, spent: Sequence[Event], planned: Sequence[Event]
) -> bool:
    """Return whether spent and planned events together would pass the budget.

    Guarantees: False only if the price of all of them, an upper bound, is within the
    budget. It changes nothing.
    """
    return epsilon([*spent, *planned], budget.delta) > budget.epsilon


def _parts(events: Sequence[Event], *, is_shared: bool) -> list[RenyiPart]:
    """Return the events as Rényi divergence prices them, equal ones together."""
    steps: dict[Event, int] = {}
    for event in events:
        steps[event.times(1)] = steps.get(event.times(1), 0) + event.steps
    parts = []
    for kind, count in steps.items():
        if isinstance(kind, SampledGaussian):
            parts.append(RenyiPart(kind.noise_multiplier, kind.sample_rate, count))
            continue
        noise = kind.noise
        honest = noise.honest if is_shared else 1
        parts.append(part_of(noise, honest, kind.sample_rate, count))
    return sorted(parts, key=lambda p: (p.sample_rate, p.noise_multiplier, p.rounds))
