"""Order of calls and state of the aggregator's side. Attacks: tests/attacks."""

import numpy as np
import pytest

from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.config import MAX_PARTS, MAX_WORDS, SecAggConfig
from crypto.secagg.parts import Part, whole
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, Federation

CONFIG = SecAggConfig(num_silos=5, threshold=4, slots_per_setup=2)
PARTS = whole(3, range(5))

ORDER = [
    ("nothing", lambda a: a.add_shares(b"")),
    ("nothing", lambda a: a.envelopes(0)),
    ("keys", lambda a: a.open_slot(0, 1, MODEL, PARTS)),
    ("envelopes", lambda a: a.envelopes(5)),
    ("envelopes", lambda a: a.slot.add_ready(b"")),
    ("active", lambda a: a.slot.add_confirm(b"")),
    ("active", lambda a: a.slot.confirms()),
    ("survivors", lambda a: a.slot.add_reveal(b"")),
    ("survivors", lambda a: a.slot.unmask()),
    ("confirms", lambda a: a.slot.sum_notice()),
    ("active", lambda a: a.open_slot(0, 2, MODEL, PARTS)),
    ("active", lambda a: a.open_slot(2, 2, MODEL, PARTS)),
    ("confirms", lambda a: a.open_slot(1, 1, MODEL, PARTS)),
    ("confirms", lambda a: a.open_slot(1, 1, OTHER_MODEL, PARTS)),
]


@pytest.mark.parametrize(("stage", "call"), ORDER)
def test_a_call_out_of_order_is_the_callers_bug(stage, call):
    federation = Federation(CONFIG)
    if stage != "nothing":
        federation.reach(stage)
    before = federation.aggregator_state()
    with pytest.raises(RuntimeError):
        call(federation.aggregator)
    assert federation.aggregator_state() == before


def test_ready_and_masked_need_an_open_slot_and_a_cohort():
    federation = Federation(CONFIG).reach("envelopes")
    federation.aggregator.open_slot(0, 1, MODEL, PARTS)
    with pytest.raises(RuntimeError, match="before active"):
        federation.aggregator.slot.add_masked(b"")
    with pytest.raises(RuntimeError, match="before active"):
        federation.aggregator.slot.survivors()


@pytest.mark.parametrize(
    "parts",
    [
        (),
        PARTS * (MAX_PARTS + 1),
        (Part(MAX_WORDS, (0, 1, 2)), Part(1, (2, 3, 4))),
    ],
)
def test_parts_that_are_none_too_many_or_too_long(parts):
    federation = Federation(CONFIG).reach("envelopes")
    with pytest.raises(ValueError, match=r"^(parts|num_words): "):
        federation.aggregator.open_slot(0, 1, MODEL, parts)
    assert not federation.aggregator.has_slot


def test_a_part_of_too_few_members_opens_no_slot():
    federation = Federation(CONFIG).reach("envelopes")
    parts = (Part(2, (0, 1, 2)), Part(1, (3, 4)))
    with pytest.raises(ProtocolViolation, match="part 1 has 2 contributors"):
        federation.aggregator.open_slot(0, 1, MODEL, parts)
    assert not federation.aggregator.has_slot


def test_properties_are_empty_until_they_are_settled():
    federation = Federation(CONFIG).reach("keys")
    assert federation.aggregator.members == ()
    federation.share()
    assert federation.aggregator.members == (0, 1, 2, 3, 4)
    federation.aggregator.open_slot(0, 1, MODEL, federation.parts)
    assert federation.aggregator.slot.cohort == ()
    federation.slot, federation.round_number = 1, 2
    federation.ready()
    assert federation.aggregator.slot.cohort == (0, 1, 2, 3, 4)
    assert federation.aggregator.slot.survivor_indices == ()
    federation.mask([0, 1, 2, 4])
    assert federation.aggregator.slot.survivor_indices == (0, 1, 2, 4)


def test_the_next_round_may_begin_after_a_reveal_that_failed():
    federation = Federation(CONFIG).reach("confirms")
    federation.slot, federation.round_number = 1, 2
    federation.ready()
    federation.mask(federation.everyone)
    federation.confirm(federation.everyone)
    total = federation.reveal(federation.everyone)
    assert (total == federation.plain_sum(range(5))).all()


def damaged(saved: bytes) -> list[bytes]:
    flipped = saved[:60] + bytes([saved[60] ^ 1]) + saved[61:]
    return [b"", saved[:40], saved[:-1], saved + b"\x00", flipped]


@pytest.mark.parametrize("stage", ["keys", "envelopes", "survivors"])
def test_states_that_are_torn_or_of_others(stage):
    federation = Federation(CONFIG).reach(stage)
    saved = federation.aggregator.to_bytes()
    arguments = federation.aggregator_arguments()
    AggregatorSide.from_bytes(saved, *arguments)
    for data in damaged(saved):
        with pytest.raises(MalformedMessage):
            AggregatorSide.from_bytes(data, *arguments)
    other = Federation(CONFIG, setup=2).aggregator_arguments()
    with pytest.raises(MalformedMessage):
        AggregatorSide.from_bytes(saved, *other)


@pytest.mark.parametrize("stage", ["active", "survivors", "confirms"])
def test_slots_that_are_torn_or_of_others(stage):
    federation = Federation(CONFIG).reach(stage)
    side, slot = federation.aggregator, federation.aggregator.slot
    saved, total = slot.to_bytes(), slot.total.copy()
    for data in damaged(saved):
        with pytest.raises(MalformedMessage):
            side.resume_slot(data, total)
    other = Federation(CONFIG, setup=2).reach("envelopes").aggregator
    with pytest.raises(MalformedMessage, match="another setup"):
        other.resume_slot(saved, total)
    assert side.resume_slot(saved, total).to_bytes() == saved


def test_the_saved_sum_is_whole_or_refused():
    federation = Federation(CONFIG).reach("survivors")
    side, slot = federation.aggregator, federation.aggregator.slot
    saved, wrong = slot.to_bytes(), slot.total.copy()
    wrong[256] += np.uint64(1)
    for total, match in [
        (wrong, "damaged"),
        (wrong[:-1], "damaged"),
        (None, "missing"),
    ]:
        with pytest.raises(MalformedMessage, match=match):
            side.resume_slot(saved, total)
    assert side.slot is slot


def test_a_slot_that_is_over_needs_no_sum():
    federation = Federation(CONFIG).reach("confirms")
    federation.reveal(range(5))
    again = federation.aggregator.resume_slot(
        federation.aggregator.slot.to_bytes(), None
    )
    assert again.sum_notice() == federation.frames["sum"][0]
