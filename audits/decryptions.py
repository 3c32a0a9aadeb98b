"""Encrypted sums: one key for all, and one sum that enough silos have decrypted.

A run with masks has nothing of this. What silos decrypt they write down themselves,
each in its own transcript: the auditor compares these with one another, with the
survivors that were announced, and with the sum that the aggregator told everybody.
"""

from collections.abc import Iterator

from audits.accounts import Account, Accounts, Placed
from audits.evidence import AGGREGATOR
from audits.findings import Finding, count, fail, listing, settle, warn
from audits.sums import SlotName, by_slot, place
from crypto.bfv.shared_key import key_maker
from protocol.plan import RunPlan
from protocol.records import Masked, SetupOpened, Summed, Survivors
from protocol.sum_records import Decrypted, KeyShared
from protocol.traffic_encrypted import num_witnesses

Told = tuple[Account, Placed[Decrypted]]


def check_decryptions(accounts: Accounts) -> list[Finding]:
    """Return the findings on shared keys and decrypted sums; none without them."""
    if not accounts.plan.protection.is_encrypted:
        return []
    return [*_keys(accounts), *_sums(accounts)]


# ------------------------------------------------------------------------- the key


def _keys(accounts: Accounts) -> list[Finding]:
    """Check that a setup has one key, of its own, made by whom the plan says."""
    found: list[Finding] = []
    first: dict[int, tuple[Account, Placed[KeyShared]]] = {}
    setups: dict[str, int] = {}
    members = _members(accounts)
    for account in accounts.everyone:
        for placed in account.all(KeyShared):
            record = placed.record
            other = first.setdefault(record.setup, (account, placed))
            setup = setups.setdefault(record.commitment, record.setup)
            found += [
                fail(
                    "key-shared",
                    f"Setup {record.setup}: {account.party} {reason}.",
                    place(account, placed),
                    place(*other),
                    party=account.party,
                )
                for reason in (
                    *_other_key(record, other),
                    *_other_maker(accounts.plan, record, members.get(record.setup)),
                    *_used_before(record, setup),
                )
            ]
        found += _keyless(account)
    if not first and not found:
        return [warn("key-shared", "Not checked: no record says who made a key.")]
    return settle(
        "key-shared",
        found,
        f"{count(len(first), 'key')}, each made by the silo that the plan says, and "
        "the same for all members of its setup.",
    )


def _members(accounts: Accounts) -> dict[int, set[str]]:
    """Return the members of each setup, as the aggregator names them."""
    opened = accounts.aggregator.all(SetupOpened) if accounts.aggregator else ()
    return {p.record.setup: set(p.record.members) for p in opened}


def _other_key(
    record: KeyShared, other: tuple[Account, Placed[KeyShared]]
) -> Iterator[str]:
    """Yield that two parties of a setup do not have the same key."""
    theirs = other[1].record
    if record.commitment != theirs.commitment:
        yield f"has another key than {other[0].party}"
    if record.maker != theirs.maker:
        yield f"names another maker, {record.maker}, than {other[0].party}"


def _other_maker(
    plan: RunPlan, record: KeyShared, members: set[str] | None
) -> Iterator[str]:
    """Yield that the key was not made by the first member, from the plan's maker on.

    Whoever makes it has advertised and becomes a member, and nobody before it has.
    """
    names = [silo.name for silo in plan.silos]
    places = {names.index(name) for name in members or ()}
    if not places:
        return
    expected = names[key_maker(plan.secagg_config(), places)]
    if record.maker != expected:
        yield f"names {record.maker} as the maker; by the plan it is {expected}"


def _used_before(record: KeyShared, setup: int) -> Iterator[str]:
    """Yield that a key is not of this setup only."""
    if setup != record.setup:
        yield f"has the key of setup {setup}"


def _keyless(account: Account) -> Iterator[Finding]:
    """Yield the setups in which a party went on without a key, by its own account."""
    if account.broken or account.resumed_rounds:
        return
    known = {placed.record.setup for placed in account.all(KeyShared)}
    missing = {
        placed.record.setup: placed
        for placed in account.all(Masked)
        if placed.record.setup not in known
    }
    for setup, placed in missing.items():
        yield fail(
            "key-shared",
            f"Setup {setup}: {account.party} does not say with which key.",
            place(account, placed),
            party=account.party,
            round_number=placed.record.round_number or None,
        )


# ------------------------------------------------------------------------- the sums


def _sums(accounts: Accounts) -> list[Finding]:
    """Check that enough silos decrypted each sum, the same, and nothing else."""
    found: list[Finding] = []
    decrypted = by_slot(accounts, Decrypted)
    survivors, sums = by_slot(accounts, Survivors), by_slot(accounts, Summed)
    for name, records in decrypted.items():
        listed = survivors.get(name, ())
        announced = set(listed[0][1].record.silos) if listed else None
        told = sums.get(name, ())
        expected = told[0][1].record.sum if told else None
        for account, placed in records:
            reasons = _wrong(placed.record, announced, expected)
            found += [_failed(account, placed, reason) for reason in reasons]
        found += _witnesses(accounts, records)
    found += _undecrypted(accounts)
    for account in accounts.everyone:
        found += _twice(account)
    if not decrypted and not found:
        return [warn("decrypted", "No sum was decrypted, by any record.")]
    least = num_witnesses(accounts.plan)
    return settle(
        "decrypted",
        found,
        f"{count(len(decrypted), 'sum')}, each decrypted alike by at least "
        f"{count(least, 'silo')}, and no silo decrypted another in its round.",
    )


def _failed(account: Account, placed: Placed[Decrypted], reason: str) -> Finding:
    """Return a FAIL about one record of a decrypted sum."""
    record = placed.record
    return fail(
        "decrypted",
        f"Round {record.round_number}: {account.party} {reason}.",
        place(account, placed),
        party=account.party,
        round_number=record.round_number,
    )


def _wrong(
    record: Decrypted, announced: set[str] | None, expected: str | None
) -> Iterator[str]:
    """Yield what is wrong with a decrypted sum, beside what else is known of it."""
    names = set(record.survivors)
    if announced is not None and names != announced:
        yield (
            f"decrypted a sum over {listing(record.survivors)}; the survivors are "
            f"{listing(sorted(announced))}"
        )
    if expected is not None and record.sum != expected:
        yield f"decrypted another sum than the one of slot {record.slot} that was told"
    if outside := sorted(set(record.silos) - names):
        yield f"names {listing(outside)}, no survivors, among those that decrypted"


def _witnesses(accounts: Accounts, records: list[Told]) -> Iterator[Finding]:
    """Yield that too few silos decrypted a sum, or one that has not written it."""
    least = num_witnesses(accounts.plan)
    own = {account.party for account, _ in records}
    for account, placed in records:
        if account.party != AGGREGATOR:
            continue
        silos, number = set(placed.record.silos), placed.record.round_number
        if len(silos) < least:
            reason = f"took a sum that {count(len(silos), 'silo')} decrypted"
            yield _failed(account, placed, f"{reason}; {least} must agree")
        for name in sorted(silos - own):
            silo = accounts.silos.get(name)
            if silo and not silo.broken and number not in silo.resumed_rounds:
                reason = f"says that {name} decrypted; {name} did not write it"
                yield _failed(account, placed, reason)


def _undecrypted(accounts: Accounts) -> Iterator[Finding]:
    """Yield the sums that the aggregator told, not saying which silos decrypted it."""
    account = accounts.aggregator
    if account is None or account.broken:
        return
    own = {_slot(placed.record) for placed in account.all(Decrypted)}
    for placed in account.all(Summed):
        number = placed.record.round_number
        if _slot(placed.record) not in own and number not in account.resumed_rounds:
            yield fail(
                "decrypted",
                f"Round {number}: {account.party} told of a sum, and not which silos "
                "decrypted it.",
                place(account, placed),
                party=account.party,
                round_number=number,
            )


def _twice(account: Account) -> Iterator[Finding]:
    """Yield the rounds in which a party opened two sums: one is all it may."""
    first: dict[int, Placed[Decrypted]] = {}
    for placed in account.all(Decrypted):
        record = placed.record
        other = first.setdefault(record.round_number, placed)
        if _what(other.record) != _what(record):
            yield fail(
                "decrypted",
                f"Round {record.round_number}: {account.party} has two decrypted sums, "
                f"of slots {other.record.slot} and {record.slot}; their difference may "
                "show an update.",
                place(account, other),
                place(account, placed),
                party=account.party,
                round_number=record.round_number,
            )


def _slot(record: Decrypted | Summed) -> SlotName:
    """Return round, setup and slot."""
    return record.round_number, record.setup, record.slot


def _what(record: Decrypted) -> tuple[SlotName, frozenset[str], str]:
    """Return which sum was decrypted; the same one may be asked for again."""
    return _slot(record), frozenset(record.survivors), record.sum
