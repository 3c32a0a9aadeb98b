"""What did the run spend? Epsilon recomputed from events, compared with every claim.

The price is computed here again from the events in the silos' transcripts, with the
same accountant (PLD) as the silos'; their second claim comes from another one (PRV).
An event is a silo's word: a silo that ran another mechanism than it wrote down is
found by its own self-test, not here.
"""

from collections.abc import Iterator, Sequence

from audits.accounts import Account, Accounts
from audits.claims import CLAIM_TOLERANCE, wrong_claims
from audits.findings import (
    CHECKS,
    Finding,
    Severity,
    count,
    fail,
    passed,
    settle,
    warn,
)
from audits.noise import check_noise
from audits.spending import (
    spendings,
    spent_records,
    unknown_spending,
    unwritten,
    wrong_ledger,
)
from privacy.accounting import claims_agree
from privacy.events import SampledGaussian
from privacy.pricing import epsilon
from protocol.mechanism import (
    pre_training_steps,
    round_event,
    run_epsilon,
    steps_of_run,
    steps_per_round,
)
from protocol.model_records import AuxiliarySent
from protocol.noise_claim import upward
from protocol.plan import RunPlan
from protocol.records import (
    LedgerOpened,
    LedgerSeen,
    PrivacySpent,
)
from protocol.reference_settings import reference_events, training_steps

MAX_PRV_ERROR = 0.01
"""A second claim with a larger error would agree with anything."""


def check_budget(accounts: Accounts) -> list[Finding]:
    """Return the findings on differential privacy."""
    plan = accounts.plan
    if not plan.privacy.is_private:
        return [
            warn(
                "privacy",
                "There is no differential privacy. Secure aggregation hides single "
                "updates in sums, but the mean and the trained model are public to the "
                "run and may reveal training examples.",
            )
        ]
    own = (
        check_noise(accounts)
        if plan.privacy.is_in_sum
        else [*_privacy(accounts), *_mechanism(accounts), *_epsilon(accounts)]
    )
    return [*own, *_ledgers(accounts), *_randomness(accounts)]


def withhold(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, with no epsilon among them where any check failed."""
    failed = {f.check: None for f in findings if f.severity == Severity.FAIL}
    if not failed:
        return list(findings)
    titles = "; ".join(CHECKS[check] for check in failed)
    nothing = fail("privacy", "No epsilon may be quoted. What failed is named.", titles)
    is_claim = [f.check == "privacy" and f.severity == Severity.PASS for f in findings]
    return [
        nothing if claims else finding
        for finding, claims in zip(findings, is_claim, strict=True)
    ]


def _privacy(accounts: Accounts) -> list[Finding]:
    """Say what was spent, by the silo that spent most."""
    plan, spent = accounts.plan, spendings(accounts)
    if unknown := unknown_spending(accounts, spent):
        return unknown
    most = max(spent, key=lambda spending: spending.epsilon)
    planned = upward(run_epsilon(plan, plan.privacy.delta))
    return [
        passed(
            "privacy",
            f"Differential privacy per {plan.privacy.unit}, add or remove one: epsilon "
            f"{upward(most.epsilon)} at delta {plan.privacy.delta:g} in the silo that "
            f"spent most ({most.silo}), {planned} in the whole run as planned, against "
            "everyone outside a silo.",
        )
    ]


def _mechanism(accounts: Accounts) -> list[Finding]:
    """Check that each silo ran the plan's mechanism, for all steps of its rounds."""
    plan = accounts.plan
    found = [
        finding
        for account in accounts.silos.values()
        for finding in _mechanism_of(plan, account)
    ]
    event = round_event(plan)
    return settle(
        "mechanism",
        found,
        f"DP-SGD with sample rate {event.sample_rate:g}, noise multiplier "
        f"{event.noise_multiplier:g}, clipping norm {event.clipping_norm:g}; no step "
        "of a round that was trained is missing.",
    )


def _mechanism_of(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield where one silo's events are not those of the plan."""
    wanted, per_round = round_event(plan), steps_per_round(plan)
    yield from wrong_ledger(plan, account)
    most = steps_of_run(plan)
    before = pre_training_steps(plan) if account.all(AuxiliarySent) else 0
    known = {wanted.times(1), *reference_events(plan)}
    uploads = {placed.record.round_number for placed in account.updates}
    for placed in account.all(PrivacySpent):
        spent, number = placed.record, placed.record.round_number
        steps = training_steps(plan, spent.events)
        for event in spent.events:
            if event.times(1) not in known:
                yield fail(
                    "mechanism",
                    f"{account.party}, round {number}: ran {_words(event)}; the plan "
                    f"says {_words(wanted)}.",
                    party=account.party,
                    round_number=number,
                )
        sent = sum(1 for other in uploads if other <= number)
        if steps < before + per_round * sent:
            yield fail(
                "mechanism",
                f"{account.party}, round {number}: {steps:,} steps are on account, "
                f"{count(sent, 'round')} took {per_round * sent:,}"
                + (f", what went before {before:,}." if before else "."),
                party=account.party,
                round_number=number,
            )
        if steps > most:
            yield fail(
                "mechanism",
                f"{account.party}, round {number}: {steps:,} steps are on account, the "
                f"plan permits {most:,}.",
                party=account.party,
                round_number=number,
            )
    yield from unwritten(account)


def _words(event: SampledGaussian) -> str:
    """Return a mechanism in words."""
    return (
        f"sample rate {event.sample_rate:g}, noise multiplier "
        f"{event.noise_multiplier:g}, clipping norm {event.clipping_norm:g}"
    )


def _epsilon(accounts: Accounts) -> list[Finding]:
    """Check every claim against the price recomputed, and against the plan's target."""
    found = [
        finding
        for account in accounts.silos.values()
        for finding in _epsilon_of(accounts.plan, account)
    ]
    return settle(
        "epsilon",
        found,
        "Recomputed from the events by PLD; the silos' second accountant (PRV) agrees.",
    )


def _epsilon_of(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield where one silo's claims do not hold.

    Claims grow with the events: all are compared with their own events
    (``audits.claims``), and the last ones with those of the other accountant.
    """
    delta, target = plan.privacy.delta, plan.privacy.epsilon
    records = [placed.record for placed in account.all(PrivacySpent)]
    own = [(spent.events, spent.epsilon) for spent in records]
    whole = [
        ((*spent.earlier, *spent.events), spent.account_epsilon) for spent in records
    ]
    for what, claims in (("", own), (" with earlier runs", whole)):
        for index, price in wrong_claims(claims, delta):
            number = records[index].round_number
            yield fail(
                "epsilon",
                f"{account.party}, round {number}: claims epsilon "
                f"{claims[index][1]:.5g}{what}; its events cost {price:.5g}.",
                party=account.party,
                round_number=number,
            )
    last = account.last(PrivacySpent)
    if last is None:
        return
    spent, price = last.record, epsilon(last.record.events, delta)
    party, number = account.party, spent.round_number
    if target and price > target * (1 + CLAIM_TOLERANCE):
        yield fail(
            "epsilon",
            f"{account.party} spent epsilon {price:.5g}, the plan permits {target:g}.",
            party=party,
            round_number=number,
        )
    if spent.epsilon_prv is None:
        yield warn(
            "epsilon",
            f"{account.party}: the second accountant could not compute a claim.",
            party=party,
            round_number=number,
        )
    elif spent.prv_error > MAX_PRV_ERROR:
        yield fail(
            "epsilon",
            f"{account.party}: its second claim may be off by {spent.prv_error:g}, at "
            f"most {MAX_PRV_ERROR:g} is accepted.",
            party=party,
            round_number=number,
        )
    elif not claims_agree(price, spent.epsilon_prv, spent.prv_error):
        yield fail(
            "epsilon",
            f"{account.party}: two accountants differ: PLD {price:.5g}, PRV "
            f"{spent.epsilon_prv:.5g} ± {spent.prv_error:g}.",
            party=party,
            round_number=number,
        )


def _ledgers(accounts: Accounts) -> list[Finding]:
    """Check that ledgers grew, and that the aggregator saw the heads silos wrote."""
    found: list[Finding] = []
    for account in accounts.silos.values():
        found += _ledger_of(account, _seen(accounts, account.party))
    found += _unseen(accounts)
    return settle(
        "ledgers",
        found,
        "The heads that the aggregator was told are those in the silos' transcripts.",
    )


def _seen(accounts: Accounts, silo: str) -> Sequence[LedgerSeen]:
    """Return the heads of a silo's ledger that the aggregator was told."""
    if accounts.aggregator is None:
        return ()
    seen = accounts.aggregator.all(LedgerSeen)
    return [placed.record for placed in seen if placed.record.silo == silo]


def _unseen(accounts: Accounts) -> Iterator[Finding]:
    """Yield where the aggregator took an update without being told of a ledger."""
    if accounts.aggregator is None:
        yield warn(
            "ledgers",
            "Without the aggregator's transcript nobody but the silos vouches for "
            "their ledgers.",
        )
        return
    told = {
        (placed.record.silo, placed.record.round_number)
        for placed in accounts.aggregator.all(LedgerSeen)
    }
    took = [(p.record.silo, 0) for p in accounts.aggregator.all(AuxiliarySent)]
    for placed in accounts.aggregator.updates:
        took.append((placed.record.silo, placed.record.round_number))
    for silo, number in took:
        if (silo, number) not in told:
            what = "an update" if number else "something for auxiliary images"
            yield fail(
                "ledgers",
                f"Round {number}: the aggregator took {what} of {silo} and says "
                "nothing of its ledger.",
                party=silo,
                round_number=number,
            )


def _ledger_of(account: Account, seen: Sequence[LedgerSeen]) -> Iterator[Finding]:
    """Yield what is wrong with one silo's ledger."""
    opened = account.all(LedgerOpened)
    if not opened:
        yield fail("ledgers", f"{account.party} opened no ledger.", party=account.party)
    if len({placed.record.commitment for placed in opened}) > 1:
        yield fail(
            "ledgers",
            f"{account.party} opened ledgers of different data sets in one run.",
            party=account.party,
        )
    if any(placed.record.fresh for placed in opened):
        yield warn(
            "ledgers",
            f"{account.party} opened a new account: what earlier runs spent on the "
            "same data is left out.",
            party=account.party,
        )
    spent = [placed.record for placed in spent_records(account)]
    written = {(one.round_number, one.ledger_size, one.ledger_head) for one in spent}
    for one in seen:
        if (one.round_number, one.size, one.head) not in written and not account.broken:
            yield fail(
                "ledgers",
                f"{account.party}, round {one.round_number}: the aggregator was told "
                f"of a ledger of {one.size:,} entries that the silo's transcript does "
                "not know.",
                party=account.party,
                round_number=one.round_number,
            )
    heads: dict[int, str] = {}
    last = 0
    for size, head, number in [
        *((one.ledger_size, one.ledger_head, one.round_number) for one in spent),
    ]:
        if size < last or heads.setdefault(size, head) != head:
            yield fail(
                "ledgers",
                f"{account.party}, round {number}: its ledger has {size:,} entries "
                f"after it had {last:,}: it was set back to an older state.",
                party=account.party,
                round_number=number,
            )
        last = max(last, size)


def _randomness(accounts: Accounts) -> list[Finding]:
    """Check that nobody trained with a fixed seed."""
    found = [
        fail(
            "randomness",
            f"{account.party} drew sampling and noise from a fixed seed: whoever knows "
            "it can take the noise off. Nothing is private.",
            party=account.party,
        )
        for account in accounts.silos.values()
        if any(
            placed.record.randomness != "operating-system"
            for placed in account.all(LedgerOpened)
        )
    ]
    return settle("randomness", found, "No silo used a fixed seed.")
