"""The tables are complete: enough rows, all different, every stage and message."""

from collections import Counter

from crypto.frame import Kind
from tests.attacks import (
    test_coalitions,
    test_dropouts,
    test_journal,
    test_lies_that_show_later,
    test_malicious_aggregator,
    test_malicious_silo,
    test_rollback,
)

SINGLE = test_malicious_aggregator.ROWS + test_malicious_silo.ROWS


def test_at_least_forty_attacks_each_with_an_error_that_is_named():
    assert len(SINGLE) >= 40
    assert len({(row.to, str(row), row.match) for row in SINGLE}) == len(SINGLE)
    for row in SINGLE:
        assert row.who and row.message and row.match


def test_every_method_that_takes_a_message_is_attacked():
    attacks = Counter(row.to for row in SINGLE)
    silo = {"share", "receive_shares", "mask", "confirm", "reveal", "close_slot"}
    aggregator = {
        f"add_{name}"
        for name in ("advertisement", "shares", "ready", "masked", "confirm", "reveal")
    }
    assert set(attacks) == silo | aggregator
    assert min(attacks.values()) >= 8


def test_every_header_field_of_every_message_of_a_silo_is_a_row():
    rows = {(row.stage, row.message.split(":")[0]) for row in test_malicious_silo.ROWS}
    stages = ("start", "keys", "envelopes", "active", "survivors", "confirms")
    fields = ("version", "kind", "run", "setup", "slot", "sender", "recipient")
    assert rows >= {(stage, field) for stage in stages for field in fields}


def test_everybody_who_can_misbehave_does():
    assert {row.who for row in SINGLE} == {
        "the aggregator",
        "the network",
        "silo 1",
        "the aggregator and silo 1",
    }


def test_the_other_tables_have_their_rows():
    assert len(test_rollback.ROWS) + len(test_journal.OLDER) >= 15
    assert len(test_lies_that_show_later.LIES) >= 7
    assert len(test_coalitions.TIGHT) >= 5
    assert len(test_dropouts.ROWS) >= 20
    assert len(Kind) == 17
