"""What is claimed with noise inside the secure sum, in words: one wording for all.

`silo check-plan`, `aggregator plan show`, the audit and the report say the same: what,
against whom, under which assumption, and what is left if that fails.
"""

from math import ceil, floor, isfinite, log10

from privacy.distributed import signal_sentence
from protocol.noise_plan import (
    HasSilos,
    best_signal,
    min_survivors,
    prices,
    round_noise,
)

Rows = list[list[str]]


def upward(epsilon: float | None) -> str:
    """Return an epsilon in four digits, rounded up; None is infinity."""
    if epsilon is None or not isfinite(epsilon):
        return "infinity"
    if epsilon <= 0:
        return "0"
    unit = 10.0 ** (floor(log10(epsilon)) - 3)
    return f"{ceil(epsilon / unit - 1e-9) * unit:.6g}"


def as_sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def unit_of(plan: HasSilos) -> str:
    """Say who or what is protected, and which worlds are compared."""
    if plan.privacy.mechanism == "silo":
        return "silo, its updates of all rounds compared with zeros"
    unit = "image" if plan.privacy.unit == "example" else "patient"
    return f"{unit}, one added to or removed from one silo's data"


def claim(plan: HasSilos, epsilon: float | None) -> str:
    """Return the claim itself, with nothing of its assumption."""
    return (
        f"differential privacy, epsilon {upward(epsilon)} at delta "
        f"{plan.privacy.delta:g}, per {unit_of(plan)}"
    )


def assumption(plan: HasSilos) -> str:
    """Say against whom the claim holds, and on whose honesty it rests."""
    least, most = min_survivors(plan), plan.protection.max_colluding
    silos = "silo that helps" if most == 1 else "silos that help"
    return (
        f"against the aggregator, the network, whoever has the model, and up to {most} "
        f"{silos} them; as long as secure aggregation opens no sum of fewer than "
        f"{least} silos, and at least {least - most} of those in every sum are honest: "
        "they add their noise and tell it nobody"
    )


def if_it_fails(epsilon: float | None) -> str:
    """Say what is left when the assumption does not hold."""
    return (
        f"if secure aggregation fails, a silo's own noise is all: epsilon "
        f"{upward(epsilon)}"
    )


def signal(plan: HasSilos) -> str:
    """Return the plain sentence on signal and noise with "silo"; else nothing."""
    if plan.privacy.mechanism != "silo":
        return ""
    return (
        "Signal and noise in the best case, all silos present and every update of full "
        f"length in one direction: {signal_sentence(best_signal(plan))}"
    )


def description(plan: HasSilos) -> str:
    """Return the mechanism in one sentence."""
    event, spare = round_noise(plan), plan.privacy.spare_steps
    rounds = f"{plan.num_rounds:,} rounds" + (
        f" and {spare:,} spare ones" * (spare > 0)
    )
    noise = (
        f"every silo adds discrete Gaussian noise of variance "
        f"{plan.privacy.share_variance:,} (grid steps squared; one unit moves "
        f"{event.length:,} values by at most {event.sensitivity:,.6g} grid steps) "
        "inside the secure sum"
    )
    if plan.privacy.mechanism == "silo":
        return (
            f"silo: {rounds}; the whole update is clipped to norm "
            f"{event.clipping_norm:g}, and {noise}"
        )
    return (
        f"record-distributed: {rounds} of one step, sample rate {event.sample_rate:g}, "
        f"clipping norm {event.clipping_norm:g}; {noise}"
    )


def plan_sentences(plan: HasSilos) -> list[str]:
    """Return all that whoever approves a plan has to read of its noise."""
    epsilon, share = prices(plan, plan.privacy.delta)
    said = [
        f"Privacy cost: {claim(plan, epsilon)}, {assumption(plan)}.",
        f"What that is worth otherwise: {if_it_fails(share)}.",
        f"Mechanism: {description(plan)}.",
        signal(plan),
    ]
    return [sentence for sentence in said if sentence]


def mechanism_rows(plan: HasSilos) -> Rows:
    """Return the mechanism as pairs of words, for a report."""
    privacy, event = plan.privacy, round_noise(plan)
    rows = [
        ["Mechanism", description(plan)],
        ["Protected", unit_of(plan)],
        ["Holds", assumption(plan)],
        ["Delta", f"{privacy.delta:g}"],
        ["Target epsilon", f"{privacy.epsilon:g}" if privacy.epsilon else "none given"],
        ["Noise of the honest silos over the sensitivity",
         f"{event.noise.noise_multiplier:.4g}"],
        ["Accountant", "Rényi divergence (enforced, and recomputed here)"],
    ]  # fmt: skip
    if said := signal(plan):
        rows.append(["Signal and noise", said])
    return rows
