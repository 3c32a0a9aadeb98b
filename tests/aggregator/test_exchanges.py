"""Exchanges: who is left out, and what is written about it."""

from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from aggregator.exchanges import MAX_REFUSAL_BYTES, Exchanges, Stage
from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage
from crypto.frame import AGGREGATOR as AGGREGATOR_INDEX
from crypto.keys import IdentityKey
from protocol.envelope import Kind, Refusal, make_envelope
from protocol.plan import RunPlan, SiloParty, make_plan
from protocol.records import Dropped, Traffic
from protocol.transcript import TranscriptWriter, read_records
from tests.end_to_end.conftest import tiny_draft

STAGE = Stage(name="ready", round_number=4, deadline_seconds=1.0)


class Scripted:
    """A transport that gives prepared replies."""

    def __init__(self, replies: Mapping[int, BytesLike]) -> None:
        self.replies, self.limits = replies, []

    def exchange(
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, BytesLike], BytesLike | None, None]:
        self.limits.append((deadline_seconds, max_reply_bytes))
        yield from self.replies.items()


@pytest.fixture
def keys() -> list[IdentityKey]:
    return [IdentityKey.generate() for _ in range(4)]


@pytest.fixture
def plan(keys: list[IdentityKey]) -> RunPlan:
    parties = [
        SiloParty(name=f"s{n}", identity_key=key.public.hex())
        for n, key in enumerate(keys[:3])
    ]
    return make_plan(tiny_draft(), keys[3].public, parties)


def ask(
    tmp_path: Path, plan: RunPlan, key: IdentityKey, replies: Mapping[int, BytesLike]
) -> tuple[tuple[int, ...], list[Dropped], list[Traffic]]:
    """Run one exchange of three requests; return who was accepted, and the records."""
    with TranscriptWriter(
        tmp_path / "t", party="aggregator", plan_digest=plan.digest, identity=key
    ) as transcript:
        exchanges = Exchanges(plan, key, Scripted(replies), transcript)

        def accept(silo: int, reply: BytesLike) -> int:
            if b"bad" in bytes(reply):
                raise MalformedMessage("not good")
            return 5

        requests = dict.fromkeys(range(3), b"request")
        accepted = exchanges.ask(STAGE, requests, accept)
    entries = [entry.record for entry in read_records(tmp_path / "t")]
    return (
        accepted,
        [record for record in entries if isinstance(record, Dropped)],
        [record for record in entries if isinstance(record, Traffic)],
    )


def reply(plan: RunPlan, keys: list[IdentityKey], silo: int, body: bytes) -> bytes:
    return make_envelope(plan, keys[silo], Kind.PLAIN, body, sender=silo)


def test_good_replies_are_accepted_and_counted(
    tmp_path: Path, plan: RunPlan, keys: list[IdentityKey]
) -> None:
    replies = {silo: reply(plan, keys, silo, b"x" * silo) for silo in (2, 0, 1)}
    accepted, dropped, traffic = ask(tmp_path, plan, keys[3], replies)
    assert accepted == (0, 1, 2)
    assert dropped == []
    assert [record.silo for record in traffic] == ["s2", "s0", "s1"]
    assert {record.sent_bytes for record in traffic} == {96, 97, 98}
    assert {record.received_bytes for record in traffic} == {7}
    assert {record.vector_bytes for record in traffic} == {5}


def test_silence_refusal_and_lies_are_left_out(
    tmp_path: Path, plan: RunPlan, keys: list[IdentityKey]
) -> None:
    refusal = Refusal(stage="ready", check="round 4 is over").to_body()
    replies = {
        0: make_envelope(plan, keys[0], Kind.REFUSED, refusal, sender=0),
        1: reply(plan, keys, 1, b"bad"),
    }
    accepted, dropped, traffic = ask(tmp_path, plan, keys[3], replies)
    assert accepted == ()
    assert [record.silo for record in dropped] == ["s0", "s1", "s2"]
    assert [record.reason for record in dropped] == [
        "refused: round 4 is over",
        "not good",
        "no answer in time",
    ]
    assert [record.sent_bytes for record in traffic][2] == 0
    assert {record.vector_bytes for record in traffic} == {0}


def test_a_refusal_cannot_steer_the_terminal(
    tmp_path: Path, plan: RunPlan, keys: list[IdentityKey]
) -> None:
    refusal = Refusal(stage="ready", check="\x1b[2Jgone\r\n").to_body()
    reply = make_envelope(plan, keys[0], Kind.REFUSED, refusal, sender=0)
    _, dropped, _ = ask(tmp_path, plan, keys[3], {0: reply})
    assert dropped[0].reason == "refused: ?[2Jgone??"


def test_a_reply_in_another_silos_name_is_left_out(
    tmp_path: Path, plan: RunPlan, keys: list[IdentityKey]
) -> None:
    replies = {0: reply(plan, keys, 1, b"x"), 1: b"noise", 2: b""}
    accepted, dropped, _ = ask(tmp_path, plan, keys[3], replies)
    assert accepted == ()
    assert "signed by silo 1" in dropped[0].reason
    assert len(dropped) == 3


def test_a_forged_refusal_is_left_out_too(
    tmp_path: Path, plan: RunPlan, keys: list[IdentityKey]
) -> None:
    body = Refusal(stage="ready", check="nonsense").to_body()
    forged = make_envelope(plan, keys[1], Kind.REFUSED, body, sender=0)
    _, dropped, _ = ask(tmp_path, plan, keys[3], {0: forged})
    assert "nonsense" not in dropped[0].reason


@pytest.mark.parametrize("character", ["x", "\x00", "é", "\U0001f600"])
def test_the_longest_refusal_fits_whatever_the_limit_of_the_stage(
    plan: RunPlan, keys: list[IdentityKey], character: str
) -> None:
    body = Refusal(stage=character * 100, check=character * 1000).to_body()
    frame = make_envelope(plan, keys[0], Kind.REFUSED, body, sender=0)
    assert len(frame) <= MAX_REFUSAL_BYTES


@pytest.mark.parametrize(
    ("limit", "passed_on"),
    [(1, MAX_REFUSAL_BYTES), (MAX_REFUSAL_BYTES + 1, MAX_REFUSAL_BYTES + 1)],
)
def test_a_stage_passes_its_limits_on(
    tmp_path: Path,
    plan: RunPlan,
    keys: list[IdentityKey],
    limit: int,
    passed_on: int,
) -> None:
    transport = Scripted({})
    stage = Stage(
        name="ready", round_number=4, deadline_seconds=2.5, max_reply_bytes=limit
    )
    with TranscriptWriter(
        tmp_path / "t", party="aggregator", plan_digest=plan.digest, identity=keys[3]
    ) as transcript:
        exchanges = Exchanges(plan, keys[3], transport, transcript)
        exchanges.ask(stage, {0: b"request"}, lambda silo, reply: 0)
    assert transport.limits == [(2.5, passed_on)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_reply_may_be_anything_that_holds_bytes(
    tmp_path: Path, plan: RunPlan, keys: list[IdentityKey], kind: type
) -> None:
    refusal = Refusal(stage="ready", check="no").to_body()
    replies = {
        0: kind(reply(plan, keys, 0, b"x")),
        1: kind(make_envelope(plan, keys[1], Kind.REFUSED, refusal, sender=1)),
    }
    accepted, dropped, traffic = ask(tmp_path, plan, keys[3], replies)
    assert accepted == (0,)
    assert dropped[0].reason == "refused: no"
    assert traffic[0].sent_bytes == 97


@pytest.mark.parametrize(
    ("stage", "setup", "accused", "noted"),
    [
        ("envelopes", 2, 1, {1: {0}}),
        ("ready", 2, 1, {}),
        ("envelopes", 1, 1, {}),
        ("envelopes", 2, 0, {}),
        ("envelopes", 2, 3, {}),
        ("envelopes", 2, -1, {}),
    ],
    ids=["noted", "other stage", "replayed", "itself", "a stranger", "nobody"],
)
def test_accusations_count_where_envelopes_are_opened(
    tmp_path: Path,
    plan: RunPlan,
    keys: list[IdentityKey],
    stage: str,
    setup: int,
    accused: int,
    noted: dict[int, set[int]],
) -> None:
    body = Refusal(stage="envelopes", check="does not open", accused=accused).to_body()
    refusal = make_envelope(plan, keys[0], Kind.REFUSED, body, sender=0, setup=setup)
    request = make_envelope(
        plan, keys[3], Kind.ROUND, b"", sender=AGGREGATOR_INDEX, setup=2
    )
    with TranscriptWriter(
        tmp_path / "t", party="aggregator", plan_digest=plan.digest, identity=keys[3]
    ) as transcript:
        exchanges = Exchanges(plan, keys[3], Scripted({0: refusal}), transcript)
        asked = Stage(name=stage, round_number=0, deadline_seconds=1.0)
        exchanges.ask(asked, {0: request}, lambda silo, reply: 0)
    assert exchanges.accusations == noted


class Asking:
    """A transport whose silo 0 has seen another head than it is asked about."""

    def __init__(self, replies: list[bytes]) -> None:
        self.replies, self.asked = replies, list[BytesLike]()

    def exchange(
        self,
        requests: Mapping[int, BytesLike],
        *,
        deadline_seconds: float,
        max_reply_bytes: int,
    ) -> Generator[tuple[int, BytesLike], BytesLike | None, None]:
        asked: BytesLike | None = requests[0]
        for reply in (*self.replies, None):
            if asked is None:
                return
            self.asked.append(asked)
            if reply is not None:
                asked = yield 0, reply


@pytest.mark.parametrize(
    ("seen", "then", "asked", "dropped"),
    [
        ([7], "good", [b"request", b"after 7"], []),
        ([7], "nothing", [b"request", b"after 7"], ["no answer in time"]),
        ([7, 8], "good", [b"request", b"after 7"], ["refused: no"]),
        ([99], "good", [b"request"], ["refused: no"]),
        ([-1], "good", [b"request"], ["refused: no"]),
    ],
)
def test_a_silo_that_has_seen_another_head_is_asked_once_more(
    tmp_path: Path,
    plan: RunPlan,
    keys: list[IdentityKey],
    seen: list[int],
    then: str,
    asked: list[bytes],
    dropped: list[str],
) -> None:
    bodies = [Refusal(stage="ready", check="no", seen=s).to_body() for s in seen]
    replies = [
        make_envelope(plan, keys[0], Kind.REFUSED, body, sender=0) for body in bodies
    ]
    if then == "good":
        replies.append(reply(plan, keys, 0, b"x"))
    transport = Asking(replies)
    with TranscriptWriter(
        tmp_path / "t", party="aggregator", plan_digest=plan.digest, identity=keys[3]
    ) as transcript:
        exchanges = Exchanges(plan, keys[3], transport, transcript)
        accepted = exchanges.ask(
            STAGE,
            {0: b"request"},
            lambda silo, reply: 0,
            lambda silo, size: b"after %d" % size if size < 9 else None,
        )
    assert transport.asked == asked
    assert accepted == (() if dropped else (0,))
    assert exchanges.refused == (
        set() if dropped in ([], ["no answer in time"]) else {0}
    )
    entries = [entry.record for entry in read_records(tmp_path / "t")]
    assert [r.reason for r in entries if isinstance(r, Dropped)] == dropped
    traffic = [r for r in entries if isinstance(r, Traffic)]
    assert [r.received_bytes for r in traffic] == [len(each) for each in asked]
    assert traffic[0].sent_bytes == len(replies[0])
