"""Are the transcripts what their parties signed, whole, and shown to everyone alike?

Three kinds of evidence: each transcript against its own signed heads (``chain``); the
aggregator's against the heads that the silos were shown; the silos' against the heads
that the aggregator was told. The last two find a tail that was cut off together with
its heads, and a transcript of which there are two versions.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from audits.accounts import Account, Accounts, Placed
from audits.chain import Chain, roots_at, walk
from audits.evidence import AGGREGATOR, Evidence, Transcript
from audits.findings import Finding, count, fail, listing, passed, settle, warn
from protocol.audit_records import HeadConflict, SiloHead
from protocol.errors import TranscriptBroken
from protocol.heads import Head
from protocol.model_records import Evaluated, ModelHeld
from protocol.records import (
    Dropped,
    Finished,
    HeadSeen,
    LedgerOpened,
    Opened,
    Refused,
)

_AFTER_THE_END = (
    Dropped,
    Evaluated,
    Finished,
    HeadConflict,
    HeadSeen,
    LedgerOpened,
    ModelHeld,
    Refused,
    SiloHead,
)
"""What may follow `finished`: the exchange that ends a run, and its repetition, before
which a silo that was killed opens its ledger and is brought to the last model again."""


@dataclass(frozen=True)
class Claim:
    """A signed head of one party that stands as a record in another's transcript."""

    witness: str
    index: int
    head: Head
    round_number: int | None


def check_integrity(evidence: Evidence) -> tuple[list[Finding], Accounts]:
    """Check every transcript; return findings, and what the transcripts say.

    Guarantees: each record is read once. A record that is altered, removed, inserted
    or moved after a head over it was signed gives a FAIL that names party and place.
    """
    findings = [*_plan_finding(evidence), *_present(evidence)]
    accounts: dict[str, Account] = {}
    chains: dict[str, Chain] = {}
    for transcript in evidence.transcripts:
        account = Account(transcript.party, evidence.plan)
        chain = walk(
            transcript,
            evidence.plan.digest,
            evidence.key_of(transcript.party),
            account.add,
            account.mark,
        )
        account.broken = not chain.readable
        accounts[transcript.party] = account
        chains[transcript.party] = chain
        findings += chain.findings
        findings += _opened(account, evidence.plan.digest.hex())
        findings += _ending(account)
    everyone = Accounts(
        plan=evidence.plan,
        aggregator=accounts.pop(AGGREGATOR, None),
        silos=accounts,
    )
    findings += _check_claims(evidence, everyone, chains)
    return findings, everyone


def _plan_finding(evidence: Evidence) -> Iterator[Finding]:
    """Yield that the plan is signed; loading it has verified that."""
    yield passed(
        "plan-signature",
        f"The plan of {evidence.plan.name} is signed by the aggregator it names.",
        f"plan digest {evidence.plan.digest.hex()}",
    )


def _present(evidence: Evidence) -> list[Finding]:
    """Check that every party's transcript is there, and nobody else's."""
    found = [
        fail(
            "present",
            f"The transcript in {t.name} belongs to nobody in the plan "
            f"({t.party or 'it names no party'}).",
            party=t.party or t.name,
        )
        for t in evidence.strangers
    ]
    if evidence.missing:
        found.append(
            warn(
                "present",
                f"Missing: the transcripts of {listing(evidence.missing)}. Ask them "
                "for a copy; what they alone can show is not checked.",
                party=evidence.missing[0] if len(evidence.missing) == 1 else None,
            )
        )
    return settle(
        "present", found, f"All {count(len(evidence.transcripts), 'transcript')} found."
    )


def _opened(account: Account, digest: str) -> Iterator[Finding]:
    """Check that the first record, and only it, opens this party's transcript."""
    party, records = account.party, account.all(Opened)
    if not records or records[0].index != 0:
        yield fail("opened", f"{party}: record 0 is not `opened`.", party=party)
        return
    first = records[0].record
    if first.party != party:
        yield fail(
            "opened",
            f"{party}: record 0 names another party, {first.party}.",
            party=party,
        )
    elif first.plan != digest:
        yield fail(
            "opened",
            f"{party}: record 0 opens a transcript of another plan; it comes from "
            "another run.",
            f"digest in the record {first.plan:.64}",
            f"digest of this plan {digest}",
            party=party,
        )
    elif len(records) > 1:
        yield fail(
            "opened",
            f"{party}: record {records[1].index:,} opens it again.",
            party=party,
        )
    else:
        yield passed(
            "opened", f"{party}: opened for this plan.", first.software, party=party
        )


def _ending(account: Account) -> Iterator[Finding]:
    """Check that a transcript ends with `finished`."""
    party, rounds = account.party, account.plan.num_rounds
    if account.broken:
        return
    if not account.all(Finished):
        yield warn(
            "ending",
            f"{party}: the transcript ends early, at round {account.last_round:,} of "
            f"{rounds:,}.",
            f"{account.num_records:,} records",
            party=party,
        )
        return
    finished = account.all(Finished)[0]
    late = [
        placed.index
        for kind in account.kinds
        if not issubclass(kind, _AFTER_THE_END)
        for placed in account.all(kind)
        if placed.index > finished.index
    ] + [
        placed.index
        for placed in account.all(ModelHeld)
        if placed.index > finished.index and placed.record.round_number
    ]
    if late:
        yield fail(
            "ending",
            f"{party}: the run goes on at record {min(late):,}, though record "
            f"{finished.index:,} ended it.",
            party=party,
        )
        return
    yield passed("ending", f"{party}: reached the end of the run.", party=party)


def _check_claims(
    evidence: Evidence, accounts: Accounts, chains: Mapping[str, Chain]
) -> Iterator[Finding]:
    """Compare transcripts with the heads that other parties hold of them."""
    seen = [
        Claim(
            silo.party,
            placed.index,
            _head(AGGREGATOR, placed.record),
            placed.record.round_number,
        )
        for silo in accounts.silos.values()
        for placed in silo.all(HeadSeen)
    ]
    if evidence.aggregator and accounts.silos:
        yield from settle(
            "heads-seen",
            _compare(evidence, evidence.aggregator, chains[AGGREGATOR], seen),
            f"{count(len(seen), 'head')} seen by the silos agree with the "
            "aggregator's transcript.",
        )
    elif not evidence.aggregator:
        yield warn(
            "heads-seen",
            "Not checked: the aggregator's transcript is missing.",
            party=AGGREGATOR,
        )
    if accounts.aggregator is None:
        yield warn(
            "silo-heads",
            "Not checked: the aggregator's transcript is missing.",
            party=AGGREGATOR,
        )
        return
    told = accounts.aggregator.all(SiloHead)
    yield from settle(
        "silo-heads",
        _silo_heads(evidence, chains, told),
        f"{count(len(told), 'head')} of silos agree with their transcripts.",
    )


def _silo_heads(
    evidence: Evidence, chains: Mapping[str, Chain], told: Iterable[Placed[SiloHead]]
) -> Iterator[Finding]:
    """Compare the silos' transcripts with the heads that the aggregator was told."""
    for placed in told:
        silo = placed.record.silo
        claim = Claim(AGGREGATOR, placed.index, _head(silo, placed.record), None)
        if silo in evidence.silos:
            transcript = evidence.silos[silo]
            yield from _compare(evidence, transcript, chains[silo], [claim])


def _compare(
    evidence: Evidence, transcript: Transcript, chain: Chain, claims: list[Claim]
) -> Iterator[Finding]:
    """Compare one transcript with the heads that others hold of it."""
    witnesses: dict[Head, list[Claim]] = {}
    for claim in claims:
        witnesses.setdefault(claim.head, []).append(claim)
    for head in list(witnesses):
        try:
            head.check(evidence.plan.digest, evidence.key_of(transcript.party))
        except TranscriptBroken:
            for claim in witnesses.pop(head):
                yield fail(
                    claim_check(transcript),
                    f"{claim.witness}: record {claim.index:,} holds a head that "
                    f"{transcript.party} did not sign for this plan.",
                    party=claim.witness,
                    round_number=claim.round_number,
                )
    roots, size = roots_at(transcript.folder, {head.size for head in witnesses})
    for head, claims_of_head in witnesses.items():
        what = _contradiction(chain, head, roots, size)
        if what:
            who = listing(claim.witness for claim in claims_of_head)
            yield fail(
                claim_check(transcript),
                f"{transcript.party}: {what}; see {who}.",
                *(f"record {c.index:,} of {c.witness}" for c in claims_of_head[:8]),
                f"root there {head.root:.64}",
                f"root here {roots.get(head.size, 'none')}",
                party=transcript.party,
                round_number=claims_of_head[0].round_number,
            )


def _contradiction(
    chain: Chain, head: Head, roots: Mapping[int, str], size: int
) -> str:
    """Say how a transcript contradicts a signed head of it, or nothing."""
    if head.size > size:
        return (
            f"the transcript was longer: of {head.size:,} records in a head that it "
            f"signed, {size:,} are left"
        )
    if not head.size or not (chain.intact or head.size <= chain.held):
        return ""  # Another finding says where the transcript was altered.
    if roots[head.size] == head.root:
        return ""
    return (
        "there are two versions of the transcript: another head is signed over its "
        f"first {head.size:,} records"
    )


def claim_check(transcript: Transcript) -> str:
    """Return the check that a party's heads in other transcripts belong to."""
    return "heads-seen" if transcript.party == AGGREGATOR else "silo-heads"


def _head(party: str, record: HeadSeen | SiloHead) -> Head:
    """Return the head that a record holds."""
    return Head(
        party=party, size=record.size, root=record.root, signature=record.signature
    )
