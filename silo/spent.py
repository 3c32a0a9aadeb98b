"""What a silo has spent, run by run: its ledgers, for its operator to read."""

from collections.abc import Iterator
from dataclasses import dataclass

from privacy.accounting import Budget
from privacy.pricing import epsilon
from protocol.files import load_identity
from protocol.noise_claim import upward
from silo.config import SiloFolder
from silo.ledger import LedgerContent, load_ledger, load_ledger_tags
from silo.overlap import ledger_names
from silo.tags import has_common


@dataclass(frozen=True)
class RunSpent:
    """What one run spent, and what its data have spent in all.

    ``account`` counts every ledger of the same unit that shares an image or a patient,
    at this run's delta; ``shares`` are their names.
    """

    ledger: LedgerContent
    epsilon: float
    account: float
    shares: tuple[str, ...]


def runs_spent(files: SiloFolder) -> list[RunSpent]:
    """Return what each run of a silo spent, by the name of its ledger.

    Raises:
        LedgerBroken, StateBroken, KeyFileRejected: a ledger cannot be believed.
    """
    if not files.ledgers.is_dir():
        return []
    public = load_identity(files.identity).public
    names = ledger_names(files.ledgers)
    ledgers = {name: load_ledger(files.ledgers / name, public) for name in names}
    tags = {
        name: load_ledger_tags(files.ledgers / name, content.opened)
        for name, content in ledgers.items()
    }
    found = []
    for name, content in ledgers.items():
        opened = content.opened
        shares = tuple(
            other
            for other in names
            if other != name
            and ledgers[other].opened.unit == opened.unit
            and has_common(tags[name], tags[other])
        )
        events = content.spending.events
        others = [e for other in shares for e in ledgers[other].spending.events]
        found.append(
            RunSpent(
                content,
                epsilon(events, opened.delta),
                epsilon((*others, *events), opened.delta),
                shares,
            )
        )
    return found


def explain_spent(files: SiloFolder, limit: Budget | None) -> Iterator[str]:
    """Yield, in sentences, what was spent and what the silo's limit is."""
    found = runs_spent(files)
    if not found:
        yield "Nothing was spent: there is no privacy ledger."
    for run in found:
        opened, spending = run.ledger.opened, run.ledger.spending
        steps = sum(event.steps for event in spending.events)
        state = ", a round is open" if spending.open_round else ""
        yield (
            f"{run.ledger.name}: {steps:,} steps{state}, epsilon {upward(run.epsilon)} "
            f"at delta {opened.delta:g} per {opened.unit}."
        )
        if opened.fresh:
            yield "  It left earlier ledgers out of account (--new-ledger)."
        if opened.randomness != "operating-system":
            yield "  Its randomness came from a fixed seed: nothing of it is private."
        if run.shares:
            yield (
                f"  With {', '.join(run.shares)}, on some of the same data: epsilon "
                f"{upward(run.account)}."
            )
    if limit is None:
        yield "This silo sets no limit (max_epsilon = inf in policy.toml)."
    else:
        yield (
            f"This silo's limit: epsilon {limit.epsilon:g} at delta {limit.delta:g}, "
            "over all runs on the same data."
        )
