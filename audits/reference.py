"""The silos' own reference: summed once, over enough silos, and what was used."""

from collections.abc import Iterator

from audits.accounts import Account, Accounts, Placed
from audits.evidence import AGGREGATOR
from audits.findings import Finding, count, fail, passed, warn
from audits.sums import least_survivors, place
from protocol.audit_records import ReferencePooled, ReferenceSkipped
from protocol.model_records import Evaluated, MeasuredInSilos
from protocol.records import (
    Finished,
    Masked,
    PrivacySpent,
    RoundOpened,
    Summed,
    Survivors,
)
from protocol.reference import REFERENCE_ROUND, reference_digest, smallest_count
from protocol.reference_settings import reference_events

Told = Placed[ReferencePooled] | Placed[ReferenceSkipped]


def check_reference(accounts: Accounts) -> list[Finding]:
    """Check that the silos' statistics were summed as the plan says, and used."""
    aggregator, config = accounts.aggregator, accounts.plan.evaluation
    told: list[tuple[Account, Told]] = []
    for account in accounts.everyone:
        told += [(account, placed) for placed in account.all(ReferencePooled)]
        told += [(account, placed) for placed in account.all(ReferenceSkipped)]
    if not config.is_pooled:
        return [
            _fail(account, placed, "a reference that the plan does not ask for")
            for account, placed in told
        ]
    found = [*_sums(accounts), *_charged(accounts)]
    if aggregator is None:
        said = "Not checked: the aggregator's transcript lacks."
        return [*found, warn("reference", said)]
    if not told:
        return [*found, *_never_told(aggregator)]
    told.sort(key=lambda one: one[1].index)
    found += [_fail(a, placed, "a second reference") for a, placed in told[1:]]
    account, first = told[0]
    if _first_round_index(account) < first.index:
        found.append(_fail(account, first, "a reference made after round 1 began"))
    record = first.record
    if isinstance(record, ReferenceSkipped):
        said = f"There is no reference of the silos: {record.reason}"
        if _opened_sums(accounts):
            said += ". Their sum was opened all the same: the aggregator knows it"
        return [*found, warn("reference", said, place(account, first))]
    found += [_fail(account, first, why) for why in _wrong(accounts, record)]
    found += _used(aggregator, record)
    if found:
        return found
    return [passed("reference", sentence(record)), *_uncovered(accounts)]


def sentence(pooled: ReferencePooled) -> str:
    """Return what was pooled, of whom, and what protects it."""
    noise = (
        f"Each silo added noise (multiplier {pooled.noise_multiplier:g}), on account."
        if pooled.noise_multiplier
        else "They are exact: no differential privacy is in them."
    )
    return (
        f"Evaluated against {count(pooled.count, 'image')} of "
        f"{count(len(pooled.survivors), 'silo')}, whose feature statistics "
        f"({pooled.extractor}) were summed once, in a secure sum. {noise}"
    )


def _fail(account: Account, placed: Told, why: str) -> Finding:
    """Return a FAIL about one record."""
    return fail(
        "reference",
        f"{account.party} tells of {why}.",
        place(account, placed),
        party=account.party,
    )


def _never_told(aggregator: Account) -> Iterator[Finding]:
    """Yield that nothing is said of the reference, where the run went on."""
    ended = aggregator.last(Finished) is not None
    if not aggregator.broken and (ended or _first_round_index(aggregator) < 1 << 60):
        said = "The run went on without the reference that the plan asks for."
        yield fail("reference", said, party=AGGREGATOR)


def _first_round_index(account: Account) -> int:
    """Return where round 1 began in a transcript; behind everything if never."""
    opened = [
        p.index
        for p in account.all(RoundOpened)
        if p.record.round_number > REFERENCE_ROUND
    ]
    return min(opened, default=1 << 60)


def _opened_sums(accounts: Accounts) -> set[tuple[int, int, str]]:
    """Return setup, slot and digest of all sums of features that were opened."""
    return {
        (p.record.setup, p.record.slot, p.record.sum)
        for account in accounts.everyone
        for p in account.all(Summed)
        if p.record.round_number == REFERENCE_ROUND
    }


def _sums(accounts: Accounts) -> Iterator[Finding]:
    """Yield that more than one sum was opened: their difference is fewer silos'."""
    opened = _opened_sums(accounts)
    if len(opened) > 1:
        yield fail(
            "reference",
            f"{len(opened)} sums of the silos' features were opened; one silo's own "
            "may be their difference.",
            *(f"setup {a}, slot {b}: {c:.64}" for a, b, c in sorted(opened)),
            party=AGGREGATOR,
        )


def _wrong(accounts: Accounts, pooled: ReferencePooled) -> Iterator[str]:
    """Yield what is wrong with the reference that the aggregator tells of."""
    plan, everyone = accounts.plan, accounts.everyone
    silos, least = set(pooled.survivors), least_survivors(accounts)
    if pooled.round_number != REFERENCE_ROUND:
        yield f"a reference of round {pooled.round_number}"
    if len(silos) != len(pooled.survivors):
        yield "a reference that counts a silo twice"
    if len(silos) < least:
        yield f"a reference of {count(len(silos), 'silo')}; the plan asks for {least}"
    if pooled.count < (fewest := smallest_count(plan, len(silos))):
        yield f"{count(pooled.count, 'image')}; the plan asks for {fewest:,}"
    if pooled.noise_multiplier != plan.evaluation.reference_noise_multiplier:
        yield (
            f"a noise multiplier of {pooled.noise_multiplier:g}; the plan says "
            f"{plan.evaluation.reference_noise_multiplier:g}"
        )
    if plan.evaluation.extractor_sha256 not in ("", pooled.extractor_digest):
        yield "other weights of the extractor than the plan names"
    opened = _opened_sums(accounts)
    if not opened:
        yield "a reference whose sum no record shows"
    lists = [
        set(p.record.silos)
        for account in everyone
        for p in account.all(Survivors)
        if p.record.round_number == REFERENCE_ROUND
        and any((p.record.setup, p.record.slot) == one[:2] for one in opened)
    ]
    if any(each != silos for each in lists):
        yield "other silos in the reference than the sum held"
    signed = {
        p.record.model
        for account in everyone
        for p in account.all(RoundOpened)
        if p.record.round_number == REFERENCE_ROUND
    }
    if signed - {_signed(pooled.extractor_digest)}:
        yield "another extractor than the one that silos signed"


def _signed(extractor_digest: str) -> str:
    """Return what silos sign for an extractor; nothing for what is no digest."""
    try:
        return reference_digest(extractor_digest).hex()
    except ValueError:
        return ""


def _used(aggregator: Account, pooled: ReferencePooled) -> Iterator[Finding]:
    """Yield the evaluations against something else than the silos' reference."""
    own = (pooled.reference, pooled.count, pooled.extractor, pooled.extractor_digest)
    used: list[Placed[Evaluated] | Placed[MeasuredInSilos]] = [
        *aggregator.all(Evaluated),
        *aggregator.all(MeasuredInSilos),
    ]
    for placed in used:
        r = placed.record
        if (r.reference, r.reference_count, r.extractor, r.extractor_digest) != own:
            yield fail(
                "reference",
                f"Round {r.round_number}: evaluated against something else than the "
                "silos' reference, which the plan asks for.",
                place(aggregator, placed),
                f"used {r.reference:.64}, {r.reference_count:,} images",
                f"pooled {pooled.reference:.64}, {pooled.count:,} images",
                party=AGGREGATOR,
                round_number=r.round_number,
            )


def _charged(accounts: Accounts) -> Iterator[Finding]:
    """Yield where a silo's noisy sums left before they were on account."""
    wanted = reference_events(accounts.plan)
    for account in accounts.silos.values() if wanted else ():
        sent = [
            p
            for p in account.all(Masked)
            if p.record.round_number == REFERENCE_ROUND
            and p.record.silo == account.party
        ]
        if not sent:
            continue
        charged = [
            p.index
            for p in account.all(PrivacySpent)
            if any(event.times(1) in wanted for event in p.record.events)
        ]
        if min(charged, default=1 << 60) > sent[0].index:
            yield fail(
                "reference",
                f"{account.party}: its noisy statistics left before they were on "
                "account.",
                place(account, sent[0]),
                party=account.party,
            )
        lost = [
            p
            for p in account.all(PrivacySpent)
            if p.index > min(charged, default=1 << 60)
            and not any(event.times(1) in wanted for event in p.record.events)
        ]
        if lost:
            yield fail(
                "reference",
                f"{account.party}, round {lost[0].record.round_number}: the statistics "
                "that left are not on account any more.",
                place(account, lost[0]),
                party=account.party,
            )


def _uncovered(accounts: Accounts) -> Iterator[Finding]:
    """Yield the reservation that epsilon does not cover exact statistics."""
    config = accounts.plan.evaluation
    if accounts.plan.privacy.is_private and config.reference_uncovered:
        yield warn(
            "reference",
            "Epsilon does not cover the silos' exact feature statistics, as the plan "
            "says: the aggregator knows their mean and covariance over all silos.",
        )
