"""Were the parts of the model dealt as the rule says, to groups that are large enough?

A dealing follows from a digest, the members and the round (``protocol.dealing``). The
auditor computes it again, compares what the parties used, and counts the survivors of
every group: the sum of a part shows an update if its group is small.
"""

from collections.abc import Iterator

from audits.accounts import Account, Accounts, Placed
from audits.findings import Finding, count, fail, listing, settle, warn
from audits.sums import SlotName, place
from protocol.dealing import DIGEST_BYTES, PARTS, deal
from protocol.encoding import check_hex
from protocol.measurement import measurement_round
from protocol.model_records import Dealt
from protocol.plan import RunPlan
from protocol.records import Masked, SetupOpened, Survivors
from protocol.reference import REFERENCE_ROUND

Groups = dict[str, tuple[str, ...]]


def check_dealings(accounts: Accounts) -> list[Finding]:
    """Return the findings on who returned which part; none where nothing is dealt."""
    if not accounts.plan.update.is_dealt:
        return []
    first: dict[SlotName, tuple[Account, Placed[Dealt]]] = {}
    found: list[Finding] = []
    for account in accounts.everyone:
        known = {_slot(placed.record): placed for placed in account.all(Dealt)}
        for name, placed in known.items():
            other = first.setdefault(name, (account, placed))
            found += _wrong(accounts, account, placed, other)
        found += _undealt(account, set(known))
        found += _small_groups(account, known)
    if not first:
        return [
            *found,
            warn("dealing", "Not checked: no record says who was dealt what."),
        ]
    return settle(
        "dealing",
        found,
        f"{count(len(first), 'dealing')} follow from the agreed digest, and every "
        "party used the same.",
    )


def _slot(record: Dealt | Masked | Survivors) -> SlotName:
    """Return round, setup and slot of a record."""
    return record.round_number, record.setup, record.slot


def _groups(record: Dealt) -> Groups:
    """Return the silos of each part, as a record names them."""
    return {part: getattr(record, part) for part in PARTS}


def _dealt(plan: RunPlan, record: Dealt) -> Groups | None:
    """Return the groups that follow from a record's digest, None if nothing can."""
    names = [silo.name for silo in plan.silos]
    try:
        check_hex("digest", record.digest, DIGEST_BYTES)
        members = [names.index(name) for name in record.members]
        groups = deal(bytes.fromhex(record.digest), record.round_number, members)
    except ValueError:
        return None
    return {part: tuple(names[silo] for silo in groups[part]) for part in PARTS}


def _wrong(
    accounts: Accounts,
    account: Account,
    placed: Placed[Dealt],
    other: tuple[Account, Placed[Dealt]],
) -> Iterator[Finding]:
    """Yield what is wrong with one record of a dealing."""
    record, theirs = placed.record, other[1].record
    reasons = []
    if _groups(record) != _dealt(accounts.plan, record):
        reasons.append("dealt the parts otherwise than the agreed digest says")
    if record.digest != theirs.digest or set(record.members) != set(theirs.members):
        reasons.append(f"dealt from another digest or members than {other[0].party}")
    if (reason := _wrong_source(accounts, record)) is not None:
        reasons.append(reason)
    for reason in reasons:
        yield fail(
            "dealing",
            f"Round {record.round_number}: {account.party} {reason}.",
            place(account, placed),
            place(*other),
            party=account.party,
            round_number=record.round_number,
        )


def _wrong_source(accounts: Accounts, record: Dealt) -> str | None:
    """Say why a dealing may not follow from its digest and members, if that is so."""
    plan, aggregator = accounts.plan, accounts.aggregator
    if plan.protection.method == "none":
        everyone = {silo.name for silo in plan.silos}
        if record.digest != plan.digest.hex() or set(record.members) != everyone:
            return "dealt from something else than the plan's digest and all silos"
        return None
    for opened in aggregator.all(SetupOpened) if aggregator else ():
        members = opened.record.members
        if opened.record.setup == record.setup and set(members) != set(record.members):
            return (
                f"dealt to {listing(record.members)}; the members of setup "
                f"{record.setup} are {listing(members)}"
            )
    return None


def _undealt(account: Account, known: set[SlotName]) -> Iterator[Finding]:
    """Yield the slots that were used though the party says nothing of a dealing.

    In the slots of measurement and reference all silos fill the same words; nothing is
    dealt.
    """
    if account.broken:
        return
    whole = measurement_round(account.plan)
    used: list[Placed[Masked] | Placed[Survivors]] = [
        *account.all(Masked),
        *account.all(Survivors),
    ]
    missing = {_slot(p.record): p for p in used if _slot(p.record) not in known}
    for (number, _, _), placed in missing.items():
        if number == REFERENCE_ROUND or (whole and number == whole):
            continue
        yield fail(
            "dealing",
            f"Round {number}: {account.party} does not say who was dealt what.",
            place(account, placed),
            party=account.party,
            round_number=number,
        )


def _small_groups(
    account: Account, known: dict[SlotName, Placed[Dealt]]
) -> Iterator[Finding]:
    """Yield the sums of a part over fewer survivors than the plan asks for."""
    protection = account.plan.protection
    if protection.method == "none":
        return
    for placed in account.all(Survivors):
        dealt = known.get(_slot(placed.record))
        for part, silos in _groups(dealt.record).items() if dealt else ():
            size = len(set(silos) & set(placed.record.silos))
            if size < protection.min_cohort:
                yield fail(
                    "dealing",
                    f"Round {placed.record.round_number}: {account.party} names "
                    f"{count(size, 'survivor')} for the {part}; the plan asks for at "
                    f"least {protection.min_cohort}.",
                    place(account, placed),
                    party=account.party,
                    round_number=placed.record.round_number,
                )
