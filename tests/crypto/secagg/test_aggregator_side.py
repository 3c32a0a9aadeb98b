"""Order of calls and state of the aggregator's side. Attacks: tests/attacks."""

import pytest

from crypto.errors import MalformedMessage
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.config import MAX_WORDS, SecAggConfig
from tests.crypto.secagg.federation import MODEL, OTHER_MODEL, Federation

CONFIG = SecAggConfig(num_silos=5, threshold=4, slots_per_setup=2)

ORDER = [
    ("nothing", lambda a: a.add_shares(b"")),
    ("nothing", lambda a: a.envelopes(0)),
    ("keys", lambda a: a.open_slot(0, 1, MODEL, 3)),
    ("envelopes", lambda a: a.envelopes(5)),
    ("envelopes", lambda a: a.add_ready(b"")),
    ("envelopes", lambda a: a.active()),
    ("envelopes", lambda a: a.unmask()),
    ("active", lambda a: a.add_confirm(b"")),
    ("active", lambda a: a.confirms()),
    ("survivors", lambda a: a.add_reveal(b"")),
    ("survivors", lambda a: a.unmask()),
    ("active", lambda a: a.open_slot(0, 2, MODEL, 3)),
    ("active", lambda a: a.open_slot(2, 2, MODEL, 3)),
    ("confirms", lambda a: a.open_slot(1, 1, MODEL, 3)),
    ("confirms", lambda a: a.open_slot(1, 1, OTHER_MODEL, 3)),
]


@pytest.mark.parametrize(("stage", "call"), ORDER)
def test_a_call_out_of_order_is_the_callers_bug(stage, call):
    federation = Federation(CONFIG)
    if stage != "nothing":
        federation.reach(stage)
    before = federation.aggregator.to_bytes()
    with pytest.raises(RuntimeError):
        call(federation.aggregator)
    assert federation.aggregator.to_bytes() == before


def test_ready_and_masked_need_an_open_slot_and_a_cohort():
    federation = Federation(CONFIG).reach("envelopes")
    federation.aggregator.open_slot(0, 1, MODEL, 3)
    with pytest.raises(RuntimeError, match="before active"):
        federation.aggregator.add_masked(b"")
    with pytest.raises(RuntimeError, match="before active"):
        federation.aggregator.survivors()


@pytest.mark.parametrize("num_words", [0, MAX_WORDS + 1])
def test_vectors_that_are_empty_or_too_long(num_words):
    federation = Federation(CONFIG).reach("envelopes")
    with pytest.raises(ValueError, match="num_words"):
        federation.aggregator.open_slot(0, 1, MODEL, num_words)


def test_properties_are_empty_until_they_are_settled():
    federation = Federation(CONFIG).reach("keys")
    assert federation.aggregator.members == ()
    federation.share()
    assert federation.aggregator.members == (0, 1, 2, 3, 4)
    federation.aggregator.open_slot(0, 1, MODEL, 257)
    assert federation.aggregator.cohort == ()
    federation.slot, federation.round_number = 1, 2
    federation.ready()
    assert federation.aggregator.cohort == (0, 1, 2, 3, 4)
    assert federation.aggregator.survivor_indices == ()
    federation.mask([0, 1, 2, 4])
    assert federation.aggregator.survivor_indices == (0, 1, 2, 4)


def test_the_next_round_may_begin_after_a_reveal_that_failed():
    federation = Federation(CONFIG).reach("confirms")
    federation.slot, federation.round_number = 1, 2
    federation.ready()
    federation.mask(federation.everyone)
    federation.confirm(federation.everyone)
    total = federation.reveal(federation.everyone)
    assert (total == federation.plain_sum(range(5))).all()


@pytest.mark.parametrize("stage", ["keys", "envelopes", "survivors"])
def test_states_that_are_torn_or_of_others(stage):
    federation = Federation(CONFIG).reach(stage)
    saved, arguments = (
        federation.aggregator.to_bytes(),
        federation.aggregator_arguments(),
    )
    AggregatorSide.from_bytes(saved, *arguments)
    flipped = saved[:60] + bytes([saved[60] ^ 1]) + saved[61:]
    for data in (b"", saved[:40], saved[:-1], saved + b"\x00", flipped):
        with pytest.raises(MalformedMessage):
            AggregatorSide.from_bytes(data, *arguments)
    other = Federation(CONFIG, setup=2).aggregator_arguments()
    with pytest.raises(MalformedMessage):
        AggregatorSide.from_bytes(saved, *other)
