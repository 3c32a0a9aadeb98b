"""What left each silo, in bytes: the ledger of every exchange, counted at both ends."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from audits.accounts import Account, Accounts, StageBytes, StageName
from audits.findings import Finding, count, fail, settle, warn
from protocol.records import Dropped, Finished

STAGES: Mapping[str, str] = {
    "auxiliary": "for auxiliary images, in the clear: its own model, or samples of it",
    "setup": "fresh public keys, and commitments to mask seeds",
    "shares": "shares of keys and seeds, each sealed for one other silo",
    "envelopes": "word that the others' shares have arrived",
    "broadcast": "the digest of the global model that it holds",
    "ready": "readiness, and the digest of the model received",
    "measure": "readiness, and the digest of the model and reference to measure with",
    "reference": "readiness, and the digest of the extractor to sum up features with",
    "masked": "the masked update; in the measurement two masked numbers, in the "
    "reference masked sums of features",
    "confirm": "a signature under the list of survivors",
    "reveal": "shares that unmask the sum",
    "end": "acknowledgement of the end, with the head of the transcript",
}
"""What a silo sends in each stage. All of it goes to the aggregator."""

MAX_PLACES = 8


@dataclass(frozen=True)
class Disclosure:
    """What one silo sent and received: ``witness`` says whose count it is."""

    silo: str
    witness: str
    stages: Mapping[StageName, StageBytes]

    @property
    def total(self) -> StageBytes:
        """The bytes of all rounds and stages."""
        return sum(self.stages.values(), StageBytes())

    def by_stage(self) -> dict[str, StageBytes]:
        """Return the bytes of each stage over all rounds, in the stages' order."""
        found: dict[str, StageBytes] = {}
        order = list(STAGES)
        for _, stage in sorted(
            self.stages, key=lambda name: (_rank(order, name[1]), name)
        ):
            found.setdefault(stage, StageBytes())
        for (_, stage), bytes_ in self.stages.items():
            found[stage] += bytes_
        return found

    def by_round(self) -> dict[int, StageBytes]:
        """Return the bytes of each round, 0 for what belongs to none."""
        found: dict[int, StageBytes] = {}
        for (number, _), bytes_ in sorted(self.stages.items()):
            found[number] = found.get(number, StageBytes()) + bytes_
        return found


def _rank(order: list[str], stage: str) -> int:
    """Return the place of a stage in the order, unknown ones last."""
    return order.index(stage) if stage in order else len(order)


def describe_stage(stage: str, method: str) -> str:
    """Return in plain words what a silo sends in a stage."""
    if stage == "ready" and method == "none":
        return "the update, in the clear"
    if stage == "measure" and method == "none":
        return "the distance of this silo's own model and its square, in the clear"
    return STAGES.get(stage, f"messages of stage {stage}")


def disclosures(accounts: Accounts) -> tuple[Disclosure, ...]:
    """Return what left each silo: its own count, or else the aggregator's."""
    found = []
    for party in accounts.plan.silos:
        silo = party.name
        account = accounts.silos.get(silo)
        if account is None or silo not in account.traffic:
            account = accounts.aggregator
        if account is not None:
            stages = account.traffic.get(silo, {})
            found.append(Disclosure(silo, account.party, stages))
    return tuple(found)


def check_disclosure(accounts: Accounts) -> list[Finding]:
    """Check that both ends of each exchange counted the same bytes."""
    aggregator = accounts.aggregator
    if aggregator is None or not accounts.silos:
        return [
            warn(
                "traffic",
                "Not checked: the transcripts of both ends are needed, and one is "
                "missing.",
            )
        ]
    found = [
        finding
        for silo in accounts.silos.values()
        for finding in _compare(silo, aggregator)
    ]
    total = sum(
        stage.sent
        for name, silo in accounts.silos.items()
        for stage in silo.traffic.get(name, {}).values()
    )
    return settle(
        "traffic", found, f"Both ends counted the same {count(total, 'byte')} sent."
    )


def _compare(silo: Account, aggregator: Account) -> Iterator[Finding]:
    """Yield where a silo and the aggregator counted different bytes."""
    own = silo.traffic.get(silo.party, {})
    theirs = aggregator.traffic.get(silo.party, {})
    excused = []
    for name in sorted(set(own) | set(theirs)):
        here, there = own.get(name, StageBytes()), theirs.get(name, StageBytes())
        if any(
            each.vector > each.sent or each.broadcast > each.received
            for each in (here, there)
        ):
            yield fail(
                "traffic",
                f"{silo.party}, {_where(name)}: the vector or the model is larger than "
                "the message.",
                party=silo.party,
                round_number=name[0] or None,
            )
        if here == there:
            continue
        if _is_excused(name, silo, aggregator):
            excused.append(f"{_where(name)}: {_difference(here, there)}")
            continue
        yield fail(
            "traffic",
            f"{silo.party}, {_where(name)}: {_difference(here, there)}.",
            f"silo {here.sent:,} sent, {here.received:,} received, "
            f"{here.vector:,} vector, {here.broadcast:,} model",
            f"aggregator {there.sent:,}, {there.received:,}, {there.vector:,}, "
            f"{there.broadcast:,}",
            party=silo.party,
            round_number=name[0] or None,
        )
    if excused:
        yield warn(
            "traffic",
            f"{silo.party}: both ends counted differently where one of them had "
            "dropped out, started again or stopped; the larger count may be the true "
            "one.",
            *excused[:MAX_PLACES],
            party=silo.party,
        )


def _is_excused(name: StageName, silo: Account, aggregator: Account) -> bool:
    """Return whether an honest run can lead to different counts in a stage."""
    number, stage = name
    lost = any(
        dropped.record.silo == silo.party
        and (dropped.record.round_number == number or dropped.record.stage == stage)
        for dropped in aggregator.all(Dropped)
    )
    restarted = number in silo.resumed_rounds | aggregator.resumed_rounds
    stopped = any(
        account.broken
        or (account.last(Finished) is None and number in (0, account.last_round))
        or (account.last(Finished) is None and number > account.last_round)
        for account in (silo, aggregator)
    )
    return lost or restarted or stopped


def _where(name: StageName) -> str:
    """Return round and stage in words."""
    return f"round {name[0]}, {name[1]}" if name[0] else name[1]


def _difference(here: StageBytes, there: StageBytes) -> str:
    """Say how two counts differ."""
    verbs = {"vector": "a vector of", "broadcast": "a model of"}
    for what in ("sent", "received", "vector", "broadcast"):
        own, other = getattr(here, what), getattr(there, what)
        if own != other:
            verb = verbs.get(what, what)
            return f"the silo counts {verb} {own:,} bytes, the aggregator {other:,}"
    return "the same"
