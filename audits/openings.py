"""Were canaries committed to before the training, and opened as committed after it?"""

from collections.abc import Iterator
from typing import TypeVar

from audits.accounts import Account, Placed
from audits.findings import Finding, count, fail, warn
from privacy.events import SampledGaussian
from protocol.audit_records import CanariesCommitted, CanariesOpened
from protocol.canaries import CanaryForm, canary_commitment
from protocol.model_records import AuxiliarySent
from protocol.records import (
    Finished,
    Masked,
    PrivacySpent,
    Record,
    Refused,
    RoundOpened,
)
from protocol.reference_settings import training_events

R = TypeVar("R", bound=CanariesCommitted | CanariesOpened)

_BEFORE = (RoundOpened, Masked, AuxiliarySent, PrivacySpent)
_AFTER = (Masked, PrivacySpent)


def canaries_of(account: Account, kind: type[R], form: CanaryForm) -> list[Placed[R]]:
    """Return a silo's records of one kind on canaries of one form."""
    return [placed for placed in account.all(kind) if placed.record.form == form]


def opening(account: Account, form: CanaryForm) -> Placed[CanariesOpened] | None:
    """Return the opening of a silo's canaries, if there is one."""
    return next(iter(canaries_of(account, CanariesOpened, form)), None)


def broken(account: Account, form: CanaryForm) -> Iterator[Finding]:
    """Yield where commitment and opening fit neither each other nor the run."""
    for reason in _reasons(account, form):
        yield fail(
            "canaries",
            f"{account.party}, {form} canaries: {reason}. They show nothing.",
            party=account.party,
        )


def _reasons(account: Account, form: CanaryForm) -> Iterator[str]:
    """Yield what is wrong with a silo's canaries of one form, as far as it shows."""
    commitments = canaries_of(account, CanariesCommitted, form)
    opened = opening(account, form)
    if len({(p.record.commitment, p.record.num_canaries) for p in commitments}) > 1:
        yield "two different commitments"
        return
    if not commitments:
        yield "opened without a commitment"
        return
    first = _indices(account, _BEFORE)
    if first and commitments[0].index > min(first):
        yield (
            f"the commitment is record {commitments[0].index:,}, after round or "
            f"training began with record {min(first):,}"
        )
    if opened is None:
        return
    if len(canaries_of(account, CanariesOpened, form)) > 1:
        yield "opened twice"
    last = max(_indices(account, _AFTER), default=-1)
    if opened.index < last:
        yield (
            f"opened in record {opened.index:,}, before record {last:,} with the last "
            "training"
        )
    yield from _misfits(commitments[0].record, opened.record)
    if form == "gradient":
        yield from _wrong_steps(account, opened.record.num_steps)


def _indices(account: Account, kinds: tuple[type[Record], ...]) -> list[int]:
    """Return where the records of some kinds stand."""
    return [placed.index for kind in kinds for placed in account.all(kind)]


def _misfits(committed: CanariesCommitted, opened: CanariesOpened) -> Iterator[str]:
    """Yield where an opening is not what was committed to."""
    if len(opened.scores) != committed.num_canaries:
        yield (
            f"{count(len(opened.scores), 'score')} for "
            f"{count(committed.num_canaries, 'canary').replace('canarys', 'canaries')}"
        )
        return
    try:
        seed = bytes.fromhex(opened.seed)
        commitment = canary_commitment(seed, committed.num_canaries, committed.form)
    except ValueError as error:
        yield f"the opening is none: {error}"
        return
    if commitment.hex() != committed.commitment:
        yield "the commitment does not open: seed, number or form are others"


def _wrong_steps(account: Account, num_steps: int) -> Iterator[str]:
    """Yield where the steps that were scored are not those on account.

    After a crash, or a training that failed and was refused, steps are on account that
    nobody scored; never the other way round.
    """
    events = training_events(account.plan, canary_events(account))
    on_account = sum(event.steps for event in events)
    missing_may_be = bool(account.resumed_rounds or account.all(Refused))
    if not events:
        yield "there are no steps of DP-SGD on account that they could be in"
    elif num_steps > on_account or (num_steps < on_account and not missing_may_be):
        yield (
            f"scored over {count(num_steps, 'step')}, and {on_account:,} are on account"
        )
    elif num_steps == 0:
        yield "no step was scored"


def canary_events(account: Account) -> tuple[SampledGaussian, ...]:
    """Return what a silo's DP-SGD released in this run, by its last record."""
    spent = account.last(PrivacySpent)
    return spent.record.events if spent else ()


def unopened(account: Account, form: CanaryForm) -> Iterator[Finding]:
    """Yield a commitment that was never opened."""
    if opening(account, form) is not None or account.broken:
        return
    is_over = bool(account.all(Finished))
    found = fail if is_over else warn
    yield found(
        "canaries",
        f"{account.party} committed to {form} canaries and "
        + ("finished without opening them." if is_over else "has not opened them."),
        party=account.party,
    )
