"""What each silo says that it spent, and what that costs by our own reckoning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from audits.accounts import Account, Accounts, Placed
from audits.findings import Finding, fail, warn
from privacy.events import NoisySum, SampledGaussian
from privacy.pricing import epsilon, share_epsilon
from protocol.mechanism import relation_of, run_events
from protocol.noise_plan import prices, run_noise
from protocol.plan import RunPlan
from protocol.records import LedgerOpened, Masked, NoiseSpent, PrivacySpent

Spent = Placed[PrivacySpent] | Placed[NoiseSpent]


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What one silo spent in a run, recomputed from the events in its transcript.

    ``account_epsilon`` is the whole run as planned together with earlier ones on the
    same data. ``share_epsilon`` is
    what noise inside the sum costs where secure aggregation fails. A silo that took
    part and trained nothing has spent 0.
    """

    silo: str
    round_number: int
    steps: int
    multiplicity: int
    epsilon: float
    epsilon_prv: float | None
    account_epsilon: float
    has_earlier: bool
    share_epsilon: float | None = None


def spent_records(account: Account) -> list[Spent]:
    """Return a silo's records of spending, in order, whatever its mechanism."""
    found: list[Spent] = [*account.all(PrivacySpent), *account.all(NoiseSpent)]
    return sorted(found, key=lambda placed: placed.index)


def spendings(accounts: Accounts) -> list[Spending]:
    """Return what each silo spent, as far as its transcript says."""
    if not accounts.plan.privacy.is_private:
        return []
    plan, result = accounts.plan, []
    for account in accounts.silos.values():
        if not (records := spent_records(account)):
            if account.all(LedgerOpened) and not account.all(Masked):
                result.append(_nothing(account.party))
            continue
        spent, delta = records[-1].record, accounts.plan.privacy.delta
        prv = share = None
        if isinstance(spent, NoiseSpent):
            share = share_epsilon(spent.events, delta)
        else:
            prv = spent.epsilon_prv
        result.append(
            Spending(
                silo=account.party,
                round_number=spent.round_number,
                steps=sum(event.steps for event in spent.events),
                multiplicity=spent.multiplicity,
                epsilon=epsilon(spent.events, delta),
                epsilon_prv=prv,
                account_epsilon=epsilon(
                    (*spent.earlier, *_dearest(plan, spent)), delta
                ),
                has_earlier=bool(spent.earlier),
                share_epsilon=share,
            )
        )
    return result


def _dearest(
    plan: RunPlan, spent: PrivacySpent | NoiseSpent
) -> tuple[SampledGaussian | NoisySum, ...]:
    """Return the events of the whole run as planned, or those of the silo if more."""
    planned = (run_noise(plan),) if plan.privacy.is_in_sum else run_events(plan)
    if sum(e.steps for e in spent.events) > sum(e.steps for e in planned):
        return spent.events
    return planned


def _nothing(silo: str) -> Spending:
    """Return what a silo spent that trained nothing."""
    return Spending(
        silo=silo,
        round_number=0,
        steps=0,
        multiplicity=0,
        epsilon=0.0,
        epsilon_prv=0.0,
        account_epsilon=0.0,
        has_earlier=False,
    )


def quoted_noise(plan: RunPlan, most: Spending) -> tuple[float, float]:
    """Return what may be quoted of noise in the sum: epsilon, and without the sum.

    The price of the whole run as planned, or what was spent if that is more: a run that
    ended early is not cheaper, for who ended it may have looked at it.
    """
    whole, share = prices(plan, plan.privacy.delta)
    return max(whole, most.epsilon), max(share, most.share_epsilon or 0.0)


def unknown_spending(accounts: Accounts, spent: Sequence[Spending]) -> list[Finding]:
    """Return the warning that not every silo's spending is known, if that is so."""
    names = (silo.name for silo in accounts.plan.silos)
    silent = [name for name in names if name not in accounts.silos]
    if spent and not silent:
        return []
    return [
        warn(
            "privacy",
            "What was spent cannot be recomputed for every silo: transcripts or their "
            "records of spending are missing.",
            *silent,
        )
    ]


def wrong_ledger(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield where a silo's ledger is about something else than the plan."""
    opened = account.last(LedgerOpened)
    if opened is None:
        return
    record, privacy = opened.record, plan.privacy
    if record.relation != relation_of(privacy.unit):
        yield fail(
            "mechanism",
            f"{account.party} keeps its ledger for neighbours {record.relation}; the "
            f"plan means {relation_of(privacy.unit)}.",
            party=account.party,
        )
    if (record.unit, record.delta) != (privacy.unit, privacy.delta):
        yield fail(
            "mechanism",
            f"{account.party} keeps its ledger per {record.unit} at delta "
            f"{record.delta:g}; the plan says {privacy.unit}, {privacy.delta:g}.",
            party=account.party,
        )


def unwritten(account: Account) -> Iterator[Finding]:
    """Yield the rounds whose update left before what it spent was written down."""
    written: dict[int, int] = {}
    for placed in spent_records(account):
        written.setdefault(placed.record.round_number, placed.index)
    uploads = {p.record.round_number: p.index for p in reversed(account.updates)}
    for number, index in sorted(uploads.items()):
        if written.get(number, index) >= index:
            yield fail(
                "mechanism",
                f"{account.party} sent an update in round {number} without writing "
                "down before what it spent.",
                party=account.party,
                round_number=number,
            )
