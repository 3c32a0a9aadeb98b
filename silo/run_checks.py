"""Checks around the private step: sampling, empty batches, ledger, seeds, price."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crypto.keys import IdentityKey
from diffusion.parts import DenoisingNetwork, Part
from diffusion.schedule import make_schedule
from privacy.accounting import claims_agree, epsilon
from protocol.encoding import encode, to_table
from protocol.mechanism import round_event, steps_of_run
from silo.entries import Interrupted, Taken
from silo.ledger import LedgerContent, load_ledger
from silo.observed import (
    Numbers,
    OnlyDraws,
    numbered_images,
    releases_of,
    train_watched,
)
from silo.policy import Policy
from silo.private_round import PrivateRounds
from silo.prv import prv_epsilon
from silo.randomness import PrivateRandom
from silo.resources import LocalPrivacy, LocalResources
from silo.self_test_subject import SHARE, CheckResult, Subject
from silo.step_checks import NoiseMeter, likeness
from silo.tail_bounds import binomial_gap, count_surprise, gap_limit, normal_limit
from silo.training import TrainingState
from silo.units import units_of

LOOP_STEPS, SECOND_LOOP_STEPS, DIRECT_SAMPLES = 2000, 100, 4000
UNITS_SAMPLED, MAX_UNITS_SAMPLED = 24, 20_000
NUM_PARTS = 5
"""What one law of sampling is tested for; each has a fifth of the false alarms."""

ROUNDS, ROUND_STEPS, CHECKPOINT_STEPS = 2, 5, 2
NO_UNIT = 1e-13
"""A sample rate at which every batch is empty, and what is released is noise."""

NUMBERED_SIZE = 2
"""Pixels of an image of which the number matters alone."""


class _OneParameter(DenoisingNetwork):
    """Next to no model, so that thousands of steps take a second."""

    parts: ClassVar[Mapping[Part, tuple[str, ...]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return a multiple of the images."""
        return x_t * self.factor


def check_sampling(subject: Subject) -> list[CheckResult]:
    """Check which units are drawn: in the loop of training, and by its sampler."""
    rate = subject.privacy.sample_rate
    num_units = min(MAX_UNITS_SAMPLED, max(UNITS_SAMPLED, round(UNITS_SAMPLED / rate)))
    first = _drawn_in_training(subject, num_units, LOOP_STEPS)
    second = _drawn_in_training(subject, num_units, SECOND_LOOP_STEPS)
    one, other = PrivateRandom(), PrivateRandom()
    direct, again = (
        [random.poisson_sample(num_units, rate) for _ in range(count)]
        for random, count in ((one, DIRECT_SAMPLES), (other, SECOND_LOOP_STEPS))
    )
    return [
        _law("sampling in training", first, second, num_units, rate),
        _law("sampler", direct, again, num_units, rate),
    ]


def _drawn_in_training(subject: Subject, num_units: int, steps: int) -> list[Numbers]:
    """Return the units of each step of private training, with next to no model."""
    draft = subject.brief(steps, multiplicity=1)
    images = numbered_images(num_units, NUMBERED_SIZE, channels=1)
    engine = OnlyDraws()
    drawn: list[Numbers] = []
    train_watched(
        _OneParameter().to(subject.device),
        images,
        units_of(images, "example"),
        draft,
        engine,
        lambda _: drawn.append(engine.take()),
        device=subject.device,
    )
    return drawn


def _law(
    name: str,
    drawn: Sequence[Numbers],
    second: Sequence[Numbers],
    num_units: int,
    rate: float,
) -> CheckResult:
    """Check drawn units against independent draws at the rate.

    Sizes against Bin(n, q); all draws, and those of each unit, against their number;
    units that two successive steps, or two trainings, have in common, against q².
    """
    share, num_steps = SHARE / NUM_PARTS, max(1, len(drawn))
    sizes = np.array([len(units) for units in drawn])
    per_unit = np.bincount(np.concatenate(drawn), minlength=num_units)
    gap, gap_most = binomial_gap(sizes, num_units, rate), gap_limit(num_steps, share)
    pairs = list(zip(drawn[0::2], drawn[1::2], strict=False))
    between = list(zip(drawn, second, strict=False))
    common, shared = _in_common(pairs), _in_common(between)
    least_likely = {
        "draws in all": count_surprise(sizes.sum(), num_steps * num_units, rate),
        "draws of a unit": count_surprise(per_unit, num_steps, rate).min() * num_units,
        "in successive steps": count_surprise(common, len(pairs) * num_units, rate**2),
        "in two trainings": count_surprise(shared, len(between) * num_units, rate**2),
    }
    odd = [what for what, chance in least_likely.items() if not chance >= share]
    repeated = sum(len(units) - len(np.unique(units)) for units in drawn)
    expected = num_steps * rate
    return CheckResult(
        name,
        gap <= gap_most and not odd and not repeated,
        f"sizes of {num_steps:,} batches ({sizes.min()} to {sizes.max()}, mean "
        f"{sizes.mean():.2f}) are {gap:.3g} from Bin({num_units:,}, {rate:g}); each "
        f"unit was drawn {per_unit.min()} to {per_unit.max()} times, {expected:.4g} "
        f"expected; {common:,} were drawn in two successive steps, "
        f"{len(pairs) * num_units * rate**2:,.1f} expected"
        + (f"; unlikely: {', '.join(odd)}" if odd else ""),
        f"{gap_most:.3g}; chances of {share:.0e}",
    )


def _in_common(pairs: Sequence[tuple[Numbers, Numbers]]) -> int:
    """Return how many units were drawn in both steps of a pair, over all pairs."""
    return sum(len(np.intersect1d(one, other)) for one, other in pairs)


@dataclass(frozen=True)
class _Run:
    """What some private rounds released, and what their ledger holds.

    ``spent_steps`` are those of the record that goes into the transcript.
    """

    releases: list[Tensor]
    ledger: LedgerContent
    spent_steps: int

    @property
    def ledger_steps(self) -> int:
        """Steps that the ledger charges."""
        return sum(event.steps for event in self.ledger.spending.events)

    @property
    def taken_steps(self) -> int:
        """Steps in entries that were written while training."""
        entries = self.ledger.entries
        return sum(e.steps for e in entries if isinstance(e, (Taken, Interrupted)))


def check_rounds(subject: Subject) -> list[CheckResult]:
    """Check whole rounds, with a ledger of their own in a temporary folder."""
    empty, second = (_run_rounds(subject, NO_UNIT) for _ in range(2))
    normal = _run_rounds(subject, subject.privacy.sample_rate)
    steps = ROUNDS * ROUND_STEPS
    meter = NoiseMeter(subject.noise_stddev)
    for released in empty.releases:
        meter(released)
    worst, limit = meter.worst(), meter.tolerance()
    of_empty = CheckResult(
        "empty batches",
        len(empty.releases) == steps == empty.ledger_steps and worst <= limit,
        f"{len(empty.releases)} of {steps} steps without a unit were taken, "
        f"{meter.num_noised()} of them noised (noise norm 1 within {worst:.3g}), "
        f"{empty.ledger_steps} charged",
        f"{limit:.3g}",
    )
    numbers = [
        len(normal.releases),
        normal.taken_steps,
        normal.ledger_steps,
        normal.spent_steps,
        meter.num_noised(),
    ]
    counted = CheckResult(
        "steps counted",
        set(numbers) == {steps},
        f"of {steps} steps, {numbers[0]} were taken, {numbers[1]} written in the "
        f"ledger, {numbers[2]} charged, {numbers[3]} in the transcript's record; of as "
        f"many empty ones {numbers[4]} were noised",
        "all equal",
    )
    return [of_empty, counted, _fresh(subject, empty, second)]


def _fresh(subject: Subject, empty: _Run, second: _Run) -> CheckResult:
    """Check that no noise of one run is like any of another."""
    pairs = [(a, b) for a in empty.releases for b in second.releases]
    most = normal_limit(SHARE / max(1, len(pairs)))
    alike = [abs(likeness(a / subject.noise_stddev, b)) for a, b in pairs]
    randomness = {run.ledger.opened.randomness for run in (empty, second)}
    return CheckResult(
        "fresh randomness",
        bool(alike)
        and all(value <= most for value in alike)
        and randomness == {"operating-system"},
        f"the noise of {len(empty.releases)} steps of one run and "
        f"{len(second.releases)} of another is alike by {max(alike, default=0):.2f} "
        f"standard deviations at most; seeds: {', '.join(sorted(randomness))}",
        f"{most:.2f}",
    )


def _run_rounds(subject: Subject, rate: float) -> _Run:
    """Train rounds as a session does, and read their ledger as an auditor does."""
    draft = replace(subject.brief(ROUND_STEPS, sample_rate=rate), num_rounds=ROUNDS)
    identity, model = IdentityKey.generate(), subject.model()
    schedule = make_schedule(draft.schedule).to(subject.device)
    state, releases = TrainingState(), list[Tensor]()
    with tempfile.TemporaryDirectory(prefix="self-test-") as folder:
        ledgers, run = Path(folder) / "ledgers", Path(folder) / "self-test"
        run.mkdir(mode=0o700)
        resources = LocalResources(
            identity=identity,
            images=subject.images,
            policy=Policy(),
            device=subject.device,
            privacy=LocalPrivacy(ledgers=ledgers, checkpoint_steps=CHECKPOINT_STEPS),
        )
        digest = hashlib.sha256(encode(to_table(draft))).hexdigest()
        rounds = PrivateRounds(draft, digest, run, resources)
        try:
            divisor = draft.training.examples_per_step
            with releases_of(model, divisor, releases.append):
                for number in range(1, ROUNDS + 1):
                    state = rounds.train(model, schedule, state, round_number=number)
                    rounds.forget_partial()
            is_empty = rate == NO_UNIT  # priced at nothing; no accountant is asked
            spent = [] if is_empty else rounds.spent(ROUNDS).events
        finally:
            rounds.close()
        ledger = load_ledger(ledgers / run.name, identity.public)
    return _Run(releases, ledger, sum(event.steps for event in spent))


def check_price(subject: Subject) -> list[CheckResult]:
    """Check that two accountants agree on what the plan's mechanism costs."""
    delta = subject.privacy.delta
    event = round_event(subject.draft).times(steps_of_run(subject.draft))
    claim = prv_epsilon([event], delta)
    while claim.epsilon is None and event.steps > 1:
        event = event.times(max(1, event.steps // 10))
        claim = prv_epsilon([event], delta)
    price = epsilon([event], delta)
    second = float("nan") if claim.epsilon is None else claim.epsilon
    return [
        CheckResult(
            "price",
            claims_agree(price, second, claim.eps_error),
            f"{event.steps:,} steps at delta {delta:g} cost epsilon {price:.5g} (PLD), "
            f"at most {second:.5g} (PRV)" + (f": {claim.reason}" * bool(claim.reason)),
            f"1 % and PRV's own error of {claim.eps_error:g}",
        )
    ]
