"""What the aggregator could open: sums of enough updates, confirmed, one way each."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeVar

from audits.accounts import Account, Accounts, Placed
from audits.findings import Finding, count, fail, listing, settle, warn
from protocol.records import (
    Cohort,
    Confirmed,
    Revealed,
    RoundClosed,
    SiloExcluded,
    Summed,
    Survivors,
)
from protocol.sum_records import Decrypted

Slotted = TypeVar("Slotted", Survivors, Confirmed, Revealed, Decrypted, Summed)
SlotName = tuple[int, int, int]
"""Round number, setup, slot."""

OPENED: tuple[type[Revealed] | type[Decrypted], ...] = (Revealed, Decrypted)
"""Records of what opens a sum: shares, or the key that its silo has."""


def check_sums(accounts: Accounts) -> list[Finding]:
    """Return the findings on survivors, confirmations, and sums that were opened."""
    is_encrypted = accounts.plan.protection.is_encrypted
    return [
        *_survivors(accounts),
        *_confirmed(accounts),
        *(() if is_encrypted else _revealed(accounts)),
        *_same_sum(accounts),
        *_excluded(accounts),
    ]


def place(account: Account, placed: Placed[Any]) -> str:
    """Return where a record stands, as evidence."""
    return f"record {placed.index:,} of {account.party}"


def by_slot(
    accounts: Accounts, kind: type[Slotted]
) -> dict[SlotName, list[tuple[Account, Placed[Slotted]]]]:
    """Return the records of a kind by round, setup and slot."""
    found: dict[SlotName, list[tuple[Account, Placed[Slotted]]]] = defaultdict(list)
    for account in accounts.everyone:
        for placed in account.all(kind):
            record = placed.record
            name = (record.round_number, record.setup, record.slot)
            found[name].append((account, placed))
    return found


def _survivors(accounts: Accounts) -> list[Finding]:
    """Check that survivors are the same for all, enough, and of the cohort."""
    found: list[Finding] = []
    sizes: list[int] = []
    least = least_survivors(accounts)
    cohorts = {account.party: _cohorts(account) for account in accounts.everyone}
    for (number, _, _), records in by_slot(accounts, Survivors).items():
        first = records[0]
        sizes.append(len(first[1].record.silos))
        for account, placed in records:
            cohort = cohorts[account.party].get(number)
            found += [
                fail(
                    "survivors",
                    f"Round {number}: {account.party} {reason}.",
                    place(account, placed),
                    place(*first),
                    party=account.party,
                    round_number=number,
                )
                for reason in _wrong_survivors(placed, first, least, cohort)
            ]
    found += _closed_survivors(accounts, least)
    sizes += [
        len(placed.record.survivors)
        for account in accounts.everyone
        for placed in account.all(RoundClosed)
    ]
    if not sizes:
        return [
            warn("survivors", "Not checked: no record says whose updates a sum held.")
        ]
    return settle(
        "survivors",
        found,
        f"Every sum held at least {min(sizes)} updates (the plan asks for "
        f"{least}), and all records agree on whose.",
    )


def _wrong_survivors(
    placed: Placed[Survivors],
    first: tuple[Account, Placed[Survivors]],
    least: int,
    cohort: set[str] | None,
) -> Iterator[str]:
    """Yield what is wrong with a list of survivors, compared with the first one."""
    silos, others = placed.record.silos, first[1].record.silos
    if set(silos) != set(others):
        yield (
            f"names other survivors ({listing(silos)}) than {first[0].party} "
            f"({listing(others)})"
        )
    if len(set(silos)) < least:
        number = count(len(set(silos)), "survivor")
        yield f"has {number}; the plan asks for at least {least}"
    if len(set(silos)) != len(silos):
        yield "names a survivor twice"
    if cohort is not None and set(silos) - cohort:
        yield f"counts {listing(sorted(set(silos) - cohort))} outside the cohort"


def least_survivors(accounts: Accounts) -> int:
    """Return the fewest updates that the plan lets a sum hold."""
    protection = accounts.plan.protection
    if protection.method == "none":
        return protection.min_cohort
    threshold = protection.threshold_for(len(accounts.plan.silos))
    return max(protection.min_cohort, threshold)


def _cohorts(account: Account) -> dict[int, set[str]]:
    """Return the cohorts that a transcript names, by round, over all attempts."""
    found: dict[int, set[str]] = defaultdict(set)
    for placed in account.all(Cohort):
        found[placed.record.round_number] |= set(placed.record.silos)
    return found


def _closed_survivors(accounts: Accounts, least: int) -> Iterator[Finding]:
    """Check that a round was closed with enough silos, announced as its survivors."""
    for account in accounts.everyone:
        announced: dict[int, list[set[str]]] = defaultdict(list)
        for survivors in account.all(Survivors):
            record = survivors.record
            announced[record.round_number].append(set(record.silos))
        for placed in account.all(RoundClosed):
            number, closing = placed.record.round_number, set(placed.record.survivors)
            reason = ""
            if announced[number] and closing not in announced[number]:
                reason = f"{listing(sorted(closing))}, who were not announced"
            elif len(closing) < least:
                reason = f"{count(len(closing), 'survivor')}; the plan asks for {least}"
            if reason:
                yield fail(
                    "survivors",
                    f"Round {number}: {account.party} closed the round with {reason}.",
                    place(account, placed),
                    party=account.party,
                    round_number=number,
                )


def _confirmed(accounts: Accounts) -> list[Finding]:
    """Check that enough silos confirmed, before any of them opened a sum."""
    protection = accounts.plan.protection
    confirmations = by_slot(accounts, Confirmed)
    if protection.method == "none":
        why = "Survivors were not confirmed: updates were not masked."
        return [warn("confirmed", why)]
    if protection.trust == "semi-honest" and not confirmations:
        why = (
            "Survivors were not confirmed: the plan trusts the aggregator to follow "
            "the protocol (semi-honest)."
        )
        return [warn("confirmed", why)]
    threshold = protection.threshold_for(len(accounts.plan.silos))
    found: list[Finding] = []
    cohorts = {account.party: _cohorts(account) for account in accounts.everyone}
    for (number, _, _), records in confirmations.items():
        for account, placed in records:
            silos = set(placed.record.silos)
            silos &= cohorts[account.party].get(number, silos)
            if len(silos) < threshold:
                found.append(
                    fail(
                        "confirmed",
                        f"Round {number}: {account.party} went on with "
                        f"{count(len(silos), 'confirmation')}; the threshold is "
                        f"{threshold}.",
                        place(account, placed),
                        party=account.party,
                        round_number=number,
                    )
                )
    found += _unconfirmed(accounts)
    return settle(
        "confirmed",
        found,
        f"{count(len(confirmations), 'list')} of survivors confirmed by at least "
        f"{threshold} silos.",
    )


def _unconfirmed(accounts: Accounts) -> Iterator[Finding]:
    """Yield the sums that were opened with no confirmation before that."""
    for account in accounts.everyone:
        before: dict[tuple[int, int], int] = {}
        for earlier in account.all(Confirmed):
            name = (earlier.record.setup, earlier.record.slot)
            before.setdefault(name, earlier.index)
        for placed in (each for kind in OPENED for each in account.all(kind)):
            record = placed.record
            is_share = isinstance(record, Revealed)
            what = "revealed shares" if is_share else "decrypted a sum"
            if before.get((record.setup, record.slot), placed.index) >= placed.index:
                yield fail(
                    "confirmed",
                    f"Round {record.round_number}: {account.party} {what} before the "
                    "survivors were confirmed.",
                    place(account, placed),
                    party=account.party,
                    round_number=record.round_number,
                )


def _revealed(accounts: Accounts) -> list[Finding]:
    """Check that of each silo one kind of share was revealed at most, by anybody.

    Nor may a round be opened in two slots: the same updates in two sums of different
    silos would give away the difference.
    """
    found: list[Finding] = []
    opened: dict[int, Revealed] = {}
    reveals = by_slot(accounts, Revealed)
    survivors = by_slot(accounts, Survivors)
    for name, records in reveals.items():
        announced = survivors.get(name)
        known = set(announced[0][1].record.silos) if announced else None
        found += _both_kinds(name[0], records, known)
        account, placed = records[0]
        first = opened.setdefault(name[0], placed.record)
        if (first.setup, first.slot) != name[1:]:
            found.append(
                fail(
                    "revealed",
                    f"Round {name[0]} was opened twice, in slots {first.slot} and "
                    f"{name[2]}; the difference of the two sums may show an update.",
                    place(account, placed),
                    party=account.party,
                    round_number=name[0],
                )
            )
    return settle(
        "revealed", found, f"{count(len(reveals), 'slot')} opened, each silo one way."
    )


def _both_kinds(
    number: int,
    records: list[tuple[Account, Placed[Revealed]]],
    survivors: set[str] | None,
) -> Iterator[Finding]:
    """Yield the silos of which both kinds of share, or the wrong one, were revealed."""
    masks: dict[str, str] = {}
    keys: dict[str, str] = {}
    for account, placed in records:
        masks |= dict.fromkeys(placed.record.self_masks_of, place(account, placed))
        keys |= dict.fromkeys(placed.record.slot_keys_of, place(account, placed))
    both = set(masks) & set(keys)
    for silo in sorted(both):
        yield fail(
            "revealed",
            f"Round {number}: both kinds of share of {silo} were revealed; the "
            "aggregator could open its update.",
            f"self mask: {masks[silo]}",
            f"slot key: {keys[silo]}",
            party=silo,
            round_number=number,
        )
    if survivors is None:
        return
    for silo in sorted(((set(masks) - survivors) | (set(keys) & survivors)) - both):
        kind = "survivor" if silo in survivors else "lost silo"
        yield fail(
            "revealed",
            f"Round {number}: the wrong kind of share of {silo}, a {kind}, was "
            "revealed.",
            masks.get(silo) or keys[silo],
            party=silo,
            round_number=number,
        )


def _same_sum(accounts: Accounts) -> list[Finding]:
    """Check that one sum came of each slot, whoever was told of it."""
    found: list[Finding] = []
    sums = by_slot(accounts, Summed)
    for (number, _, slot), records in sums.items():
        first = records[0]
        found += [
            fail(
                "same-sum",
                f"Round {number}: {account.party} has another sum of slot {slot} than "
                f"{first[0].party}.",
                f"{place(account, placed)}: {placed.record.sum:.64}",
                f"{place(*first)}: {first[1].record.sum:.64}",
                party=account.party,
                round_number=number,
            )
            for account, placed in records
            if placed.record.sum != first[1].record.sum
        ]
    if accounts.plan.protection.method == "none":
        return []
    if not sums:
        return [warn("same-sum", "Not checked: no record names the digest of a sum.")]
    told = {account.party for records in sums.values() for account, _ in records}
    return settle(
        "same-sum",
        found,
        f"{count(len(sums), 'sum')}, each with one digest for all who were told of it; "
        f"{len(told)} parties were.",
    )


def _excluded(accounts: Accounts) -> list[Finding]:
    """Tell which silos the aggregator left out for good, and why."""
    aggregator = accounts.aggregator
    if aggregator is None:
        return []
    found = [
        warn(
            "members",
            f"{placed.record.silo} was left out of every setup after setup "
            f"{placed.record.setup}: it {placed.record.reason}.",
            place(aggregator, placed),
            party=placed.record.silo,
        )
        for placed in aggregator.all(SiloExcluded)
    ]
    return settle("members", found, "Every silo of the plan was invited throughout.")
