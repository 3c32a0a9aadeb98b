"""The updates that left the silos: agreed on by both ends, masked, each in its slot."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from audits.accounts import Account, Accounts, Placed
from audits.evidence import AGGREGATOR
from audits.findings import Finding, count, fail, settle, warn
from crypto.bfv.messages import ENCRYPTED_PREFIX_BYTES
from crypto.bfv.parameters import FRESH_BYTES
from crypto.frame import OVERHEAD_BYTES
from protocol.measurement import NUM_WORDS
from protocol.records import Dropped, Finished, Masked, Revealed, Survivors
from protocol.reference import REFERENCE_ROUND, reference_words
from protocol.sum_records import Decrypted, KeyShared
from protocol.traffic_encrypted import chunks_of

PROTECTED = {
    "mask": ("mask", "masked"),
    "bfv": ("bfv",),
    "none": ("none", "plain"),
}
"""How a record may call the protection that the plan's method gives."""

OF_OTHERS: Mapping[str, tuple[type[Revealed | Decrypted | KeyShared], ...]] = {
    "mask": (Decrypted, KeyShared),
    "bfv": (Revealed,),
    "none": (Revealed, Decrypted, KeyShared),
}
"""By method: records that only other methods have."""

UploadName = tuple[int, int, int, str]
"""Round number, setup, slot, silo."""


def check_uploads(accounts: Accounts) -> list[Finding]:
    """Return the findings on uploads, slots and protection."""
    return [*_agreement(accounts), *_slots(accounts), *_protection(accounts)]


def _name(record: Masked) -> UploadName:
    """Return what names an upload."""
    return record.round_number, record.setup, record.slot, record.silo


def _agreement(accounts: Accounts) -> list[Finding]:
    """Check each upload in the silo's transcript against the aggregator's."""
    aggregator = accounts.aggregator
    if aggregator is None or not accounts.silos:
        missing = "transcripts of the silos are"
        if aggregator is None:
            missing = "transcript of the aggregator is"
        return [warn("uploads", f"Not checked: the {missing} missing.")]
    received: dict[UploadName, list[Placed[Masked]]] = {}
    for placed in aggregator.all(Masked):
        received.setdefault(_name(placed.record), []).append(placed)
    found: list[Finding] = [*_uncounted(aggregator)]
    for silo in accounts.silos.values():
        found += _compare_silo(silo, aggregator, received)
    number = sum(name[3] in accounts.silos for name in received)
    return settle(
        "uploads",
        found,
        f"{count(number, 'upload')} arrived, recorded alike by both ends.",
    )


def _compare_silo(
    silo: Account,
    aggregator: Account,
    received: dict[UploadName, list[Placed[Masked]]],
) -> Iterator[Finding]:
    """Yield the contradictions between a silo's uploads and the aggregator's."""
    sent: set[UploadName] = set()
    made = defaultdict[UploadName, list[Masked]](list)
    for placed in silo.all(Masked):
        made[_name(placed.record)].append(placed.record)
    dropped = {
        p.record.round_number
        for p in aggregator.all(Dropped)
        if p.record.silo == silo.party
    }
    for placed in silo.all(Masked):
        record = placed.record
        sent.add(_name(record))
        if record.silo != silo.party:
            yield _fail(silo, placed, "recorded an upload of another silo")
            continue
        arrived = received.get(_name(record), [])
        if not arrived:
            if record.round_number in aggregator.resumed_rounds:
                yield _unseen(silo, placed)
            elif record.round_number not in dropped and _covers(
                aggregator, record.round_number
            ):
                yield _fail(
                    silo,
                    placed,
                    "uploaded an update that the aggregator does not show, though it "
                    "did not drop the silo",
                )
        elif not any(
            _equal(each, other.record)
            for each in _same_upload(record, made[_name(record)])
            for other in arrived
        ):
            yield _fail(
                silo,
                placed,
                "uploaded another message than the aggregator recorded",
                f"record {arrived[0].index:,} of aggregator: "
                f"{arrived[0].record.upload:.64}, {arrived[0].record.size_bytes:,} "
                "bytes",
            )
    for name, arrivals in received.items():
        if name[3] == silo.party and name not in sent and not silo.broken:
            yield fail(
                "uploads",
                f"Round {name[0]}: the aggregator recorded an upload of {silo.party} "
                "that the silo never recorded.",
                f"record {arrivals[0].index:,} of aggregator",
                party=silo.party,
                round_number=name[0],
            )


def _same_upload(record: Masked, made: list[Masked]) -> list[Masked]:
    """Return the messages of which one must have arrived: a masked one is one only.

    What is asked for again is encrypted again, from the very words that the silo's
    journal holds it to.
    """
    return made if record.protection == "bfv" else [record]


def _covers(aggregator: Account, number: int) -> bool:
    """Return whether the aggregator's transcript goes on after a round."""
    return not aggregator.broken and (
        aggregator.last(Finished) is not None or aggregator.last_round > number
    )


def _equal(sent: Masked, received: Masked) -> bool:
    """Return whether two records describe one message."""
    return (sent.upload, sent.size_bytes, sent.protection) == (
        received.upload,
        received.size_bytes,
        received.protection,
    )


def _fail(
    account: Account, placed: Placed[Masked], what: str, *evidence: str
) -> Finding:
    """Return a FAIL about one upload."""
    record = placed.record
    return fail(
        "uploads",
        f"Round {record.round_number}: {account.party} {what}.",
        f"record {placed.index:,} of {account.party}: {record.upload:.64}, "
        f"{record.size_bytes:,} bytes",
        *evidence,
        party=account.party,
        round_number=record.round_number,
    )


def _unseen(silo: Account, placed: Placed[Masked]) -> Finding:
    """Return a warning about an upload that a restart of the aggregator explains."""
    return warn(
        "uploads",
        f"Round {placed.record.round_number}: an upload of {silo.party} is not shown "
        "by the aggregator, which was started again in this round.",
        f"record {placed.index:,} of {silo.party}",
        party=silo.party,
        round_number=placed.record.round_number,
    )


def _uncounted(aggregator: Account) -> Iterator[Finding]:
    """Check that every survivor's update had arrived."""
    arrived = {_name(placed.record) for placed in aggregator.all(Masked)}
    for placed in aggregator.all(Survivors):
        record = placed.record
        for silo in record.silos:
            if (record.round_number, record.setup, record.slot, silo) not in arrived:
                yield fail(
                    "uploads",
                    f"Round {record.round_number}: {silo} counts as a survivor, but "
                    "the aggregator shows no upload of it.",
                    f"record {placed.index:,} of aggregator",
                    party=AGGREGATOR,
                    round_number=record.round_number,
                )


def _reused(account: Account) -> Iterator[Finding]:
    """Yield uploads that one party records in two slots; a message names its own."""
    first: dict[str, tuple[int, int]] = {}
    for placed in account.all(Masked):
        record = placed.record
        slot = (record.setup, record.slot)
        if first.setdefault(record.upload, slot) != slot:
            yield fail(
                "slots",
                f"Round {record.round_number}: {account.party} records one message in "
                f"two slots, {first[record.upload][1]} and {record.slot}; each message "
                "names its own slot.",
                f"record {placed.index:,} of {account.party}",
                party=record.silo,
                round_number=record.round_number,
            )


def _slots(accounts: Accounts) -> list[Finding]:
    """Check that no silo used a slot for two different messages."""
    if accounts.plan.protection.method == "none":
        return [warn("slots", "There were no masks: updates were sent in the clear.")]
    updates = "updates; their difference is not masked"
    if accounts.plan.protection.is_encrypted:
        updates = "rounds"
    found: list[Finding] = []
    used = 0
    for account in accounts.everyone:
        first: dict[tuple[str, int, int], Placed[Masked]] = {}
        found += _reused(account)
        for placed in account.all(Masked):
            record = placed.record
            name = (record.silo, record.setup, record.slot)
            other = first.setdefault(name, placed)
            if _is_another(accounts, record, other.record):
                found.append(
                    fail(
                        "slots",
                        f"Round {record.round_number}: {record.silo} used slot "
                        f"{record.slot} of setup {record.setup} for two {updates}.",
                        f"record {other.index:,} of {account.party}",
                        f"record {placed.index:,} of {account.party}",
                        party=record.silo,
                        round_number=record.round_number,
                    )
                )
        used = max(used, len(first))
    return settle("slots", found, f"{count(used, 'slot')} used, each for one message.")


def _is_another(accounts: Accounts, record: Masked, other: Masked) -> bool:
    """Return whether two uploads in one slot are of two updates.

    The same message sent again after a crash shows nothing new; nor does the same
    update encrypted again.
    """
    if accounts.plan.protection.is_encrypted:
        return record.round_number != other.round_number
    return record.upload != other.upload


def _protection(accounts: Accounts) -> list[Finding]:
    """Check that uploads were masked, encrypted, or plain, as the plan says."""
    method = accounts.plan.protection.method
    found = [
        fail(
            "protection",
            f"Round {placed.record.round_number}: the plan says "
            f'"{method}", but {placed.record.silo} sent its update as '
            f'"{placed.record.protection:.20}".',
            f"record {placed.index:,} of {account.party}",
            party=placed.record.silo,
            round_number=placed.record.round_number,
        )
        for account in accounts.everyone
        for placed in account.all(Masked)
        if placed.record.protection not in PROTECTED[method]
    ]
    found += _of_others(accounts)
    if accounts.plan.protection.is_encrypted:
        found += _sizes(accounts)
    if method == "none":
        found.append(
            warn(
                "protection",
                "Updates were sent in the clear, as the plan says: the aggregator saw "
                "each silo's update.",
            )
        )
    word = "encrypted" if accounts.plan.protection.is_encrypted else "masked"
    return settle("protection", found, f"All updates were {word}, as the plan says.")


def _of_others(accounts: Accounts) -> Iterator[Finding]:
    """Yield the records that only another protection than the plan's has."""
    method = accounts.plan.protection.method
    for account in accounts.everyone:
        for kind in OF_OTHERS[method]:
            for placed in account.all(kind):
                number = getattr(placed.record, "round_number", None)
                where = f"Round {number}" if number else f"Setup {placed.record.setup}"
                yield fail(
                    "protection",
                    f"{where}: {account.party} wrote `{kind.kind}`, which a run "
                    f'protected by "{method}" does not have.',
                    f"record {placed.index:,} of {account.party}",
                    party=account.party,
                    round_number=number or None,
                )


def _sizes(accounts: Accounts) -> Iterator[Finding]:
    """Check that uploads are ciphertexts, of one slot as many for every silo.

    How many the words of reference and measurement take is known from the plan.
    """
    is_dealt = accounts.plan.update.is_dealt
    first: dict[tuple[int, int, int], Masked] = {}
    for account in accounts.everyone:
        for placed in account.all(Masked):
            record = placed.record
            body = record.size_bytes - OVERHEAD_BYTES - ENCRYPTED_PREFIX_BYTES
            number, rest = divmod(body, FRESH_BYTES)
            other = first.setdefault(_name(record)[:3], record)
            known = _known_number(accounts, record.round_number)
            reason = ""
            if rest or number < 1:
                reason = "which is no number of ciphertexts"
            elif known and number != known:
                reason = f"{count(number, 'ciphertext')}; by the plan they are {known}"
            elif other.size_bytes != record.size_bytes and not is_dealt:
                reason = f"where {other.silo} sent {other.size_bytes:,}"
            if reason:
                yield fail(
                    "protection",
                    f"Round {record.round_number}: {record.silo} sent "
                    f"{count(record.size_bytes, 'byte')}, {reason}.",
                    f"record {placed.index:,} of {account.party}",
                    party=record.silo,
                    round_number=record.round_number,
                )


def _known_number(accounts: Accounts, round_number: int) -> int:
    """Return the ciphertexts of an upload where the plan alone says it, else 0."""
    plan = accounts.plan
    if 1 <= round_number <= plan.num_rounds:
        return 0
    is_reference = round_number == REFERENCE_ROUND
    words = reference_words(plan) if is_reference else NUM_WORDS
    return sum(chunks_of(plan, round_number, (words,)))
