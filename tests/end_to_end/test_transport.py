"""Whole runs in every form of transport: what travels, and that all hold one model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.state import RoundState, initial_state, shared_layout
from audits.audit import run_audit
from audits.disclosure import disclosures
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.integrity import check_integrity
from crypto.frame import HEADER_BYTES, read_header
from crypto.frame import Kind as SecAggKind
from crypto.signatures import SIGNATURE_BYTES
from diffusion.parameters import flatten, load_safetensors
from protocol.aggregation_settings import AggregationConfig
from protocol.broadcast import Broadcast, difference_bytes, down_bytes
from protocol.envelope import EndRequest, Kind, RoundRequest
from protocol.model_records import ModelHeld
from protocol.records import Finished, RoundClosed, RoundLost, Traffic
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.held_model import HELD_FILE
from tests.end_to_end.conftest import Crash, Harness, equal_parameters, tiny_draft

Make = Callable[..., Harness]
EIGHT = UpdateConfig(rounding="nearest", broadcast_bits=8)


def transcripts(made: Harness) -> dict[str, list[Any]]:
    """Return the records of every party, by name."""
    folders = {"aggregator": made.federation.aggregator.run(made.plan)}
    for party in made.plan.silos:
        folders[party.name] = made.federation.silo(party.name).run(made.plan)
    return {
        name: [entry.record for entry in read_records(folder / "transcript")]
        for name, folder in folders.items()
    }


def check_one_model(made: Harness, state: RoundState) -> None:
    """Check that all parties end with one model, in files and in transcripts."""
    layout = shared_layout(made.plan)
    ends = {
        (record.parameters, record.average)
        for records in transcripts(made).values()
        for record in records
        if isinstance(record, Finished)
    }
    assert len(ends) == 1
    average = flatten(state.average.parameters, layout)
    shared = flatten(state.parameters, layout)
    first = initial_state(made.plan).parameters
    for party in made.plan.silos:
        folder = made.federation.silo(party.name).run(made.plan)
        model, _ = load_safetensors(folder / "model.safetensors")
        assert np.array_equal(flatten(model, layout), average)
        has_moved = not np.array_equal(shared, flatten(first, layout))
        is_held = made.plan.update.broadcast_bits > 0 and has_moved
        assert (folder / HELD_FILE).exists() == is_held
        if (folder / HELD_FILE).exists():
            held, _ = load_safetensors(folder / HELD_FILE)
            assert np.array_equal(held["shared"].numpy(), shared)
    audit = run_audit(load_evidence(made.federation.root, None))
    assert [f.statement for f in audit.with_severity(Severity.FAIL)] == []


def requests(made: Harness, kind: int) -> list[tuple[int, Any]]:
    """Return silo and body of every request of a kind, in order."""
    parsers = {
        Kind.ROUND: RoundRequest,
        Kind.BROADCAST: Broadcast,
        Kind.END: EndRequest,
    }
    return [
        (
            silo,
            parsers[Kind(kind)].from_body(  # type: ignore[attr-defined]
                memoryview(request)[HEADER_BYTES:-SIGNATURE_BYTES]
            ),
        )
        for silo, request, _ in made.wire
        if read_header(request).kind == kind
    ]


def losing(kind: int, silo: int, times: range) -> Callable[[str, int, int], bool]:
    """Return a fault: a silo never gets some of its requests of one kind."""
    seen = 0

    def fault(moment: str, at: int, index: int) -> bool:
        nonlocal seen
        if (moment, at, index) != ("before", kind, silo):
            return False
        seen += 1
        return seen in times

    return fault


class TestFloat32:
    def test_nothing_first_and_each_model_once(self, harness: Make) -> None:
        made = harness(tiny_draft(num_rounds=3))
        state = made.run()
        size = shared_layout(made.plan).size
        rounds = [message for _, message in requests(made, Kind.ROUND)]
        lengths = {m.round_number: len(m.parameters) for m in rounds}
        assert lengths == {1: 0, 2: 4 * size, 3: 4 * size}
        ends = [message for _, message in requests(made, Kind.END)]
        assert {(len(m.parameters), len(m.average)) for m in ends} == {(4 * size, 0)}
        assert not requests(made, Kind.BROADCAST)
        check_one_model(made, state)

    def test_an_average_that_is_another_is_sent(self, harness: Make) -> None:
        made = harness(tiny_draft(aggregation=AggregationConfig(ema_decay=0.5)))
        state = made.run()
        size = shared_layout(made.plan).size
        ends = [message for _, message in requests(made, Kind.END)]
        assert {len(message.average) for message in ends} == {4 * size}
        check_one_model(made, state)

    def test_a_lost_first_round_leaves_the_first_model(self, harness: Make) -> None:
        made = harness(tiny_draft(num_rounds=3))
        state = made.run(losing(SecAggKind.CONFIRMS, 0, range(1, 2)))
        lost = [r for r in transcripts(made)["aggregator"] if isinstance(r, RoundLost)]
        assert [record.round_number for record in lost] == [1]
        rounds = [message for _, message in requests(made, Kind.ROUND)]
        lengths = {m.round_number: len(m.parameters) for m in rounds}
        assert lengths[1] == lengths[2] == 0 < lengths[3]
        check_one_model(made, state)


class TestBroadcast:
    def test_what_travels(self, harness: Make) -> None:
        made = harness(tiny_draft(update=EIGHT, num_rounds=3))
        state = made.run()
        layout = shared_layout(made.plan)
        assert not any(len(m.parameters) for _, m in requests(made, Kind.ROUND))
        ends = [message for _, message in requests(made, Kind.END)]
        assert not any(m.parameters or m.average for m in ends)
        sent = requests(made, Kind.BROADCAST)
        places = [(silo, message.round_number) for silo, message in sent]
        assert places == [(silo, number) for number in (2, 3, 0) for silo in range(3)]
        expected = difference_bytes(layout.segments, 8)
        assert expected == layout.size + 4 * len(layout.segments)
        assert {len(m.ranges) + len(m.levels) for _, m in sent} == {expected}
        assert down_bytes(made.plan, layout.segments, 2) == expected
        closed = [
            r.parameters
            for r in transcripts(made)["aggregator"]
            if isinstance(r, RoundClosed)
        ]
        for records in transcripts(made).values():
            held = [r.parameters for r in records if isinstance(r, ModelHeld)]
            assert list(dict.fromkeys(held)) == closed
        check_one_model(made, state)

    def test_every_byte_is_counted_by_both_ends(self, harness: Make) -> None:
        made = harness(tiny_draft(update=EIGHT))
        made.run()
        sent = received = 0
        for _, request, reply in made.wire:
            if read_header(request).kind == Kind.BROADCAST:
                sent, received = sent + len(reply), received + len(request)
        for party, records in transcripts(made).items():
            counted = [
                (r.sent_bytes, r.received_bytes)
                for r in records
                if isinstance(r, Traffic) and r.stage == "broadcast"
            ]
            share = 1 if party == "aggregator" else 3
            assert share * sum(c[0] for c in counted) == sent
            assert share * sum(c[1] for c in counted) == received
        _, accounts = check_integrity(load_evidence(made.federation.root, None))
        stages = [each.by_stage()["broadcast"] for each in disclosures(accounts)]
        assert sum(stage.received for stage in stages) == received

    @pytest.mark.parametrize(
        "changes",
        [
            {"value_bits": 8, "rotation": True},
            {"broadcast_bits": 4, "clipping": "previous-mean"},
            {"broadcast_bits": 16, "weights": "secret", "max_weight": 64},
            {"selection": "udec"},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_it_composes(self, harness: Make, changes: dict[str, Any]) -> None:
        update = dataclasses.replace(EIGHT, **changes)
        aggregation = AggregationConfig(
            optimizer="adam", learning_rate=1e-3, ema_decay=0.5
        )
        draft = tiny_draft(update=update, num_rounds=3, aggregation=aggregation)
        made = harness(draft)
        check_one_model(made, made.run())

    def test_sixteen_bits_are_close_to_float32(self, harness: Make) -> None:
        """After one round: later ones amplify the least difference."""
        update = UpdateConfig(rounding="nearest", broadcast_bits=16)
        made = harness(tiny_draft(update=update, num_rounds=1))
        state, layout = made.run(), shared_layout(made.plan)
        exact = harness(tiny_draft(num_rounds=1)).run()
        first = initial_state(made.plan)
        near, target, begin = (
            flatten(s.parameters, layout) for s in (state, exact, first)
        )
        error = np.linalg.norm(near - target) / np.linalg.norm(target - begin)
        assert 0 < error < 1e-4
        assert state.down_link is not None
        assert np.array_equal(state.down_link.error, target - near)

    @pytest.mark.parametrize(
        ("kind", "times", "num_full"),
        [
            (Kind.ROUND, range(2, 3), 0),  # Trains not, but holds what came.
            (Kind.BROADCAST, range(1, 2), 0),  # Misses one difference.
            (Kind.BROADCAST, range(1, 3), 0),  # Misses two in a row.
            (Kind.BROADCAST, range(1, 5), 1),  # Misses so many that all is less.
            (Kind.BROADCAST, range(1, 99), 0),  # Is sent all at the end.
        ],
    )
    def test_a_silo_that_misses_some(
        self, harness: Make, kind: int, times: range, num_full: int
    ) -> None:
        made = harness(tiny_draft(update=EIGHT, num_rounds=6), 4)
        state = made.run(losing(kind, 3, times))
        full = [s for s, m in requests(made, Kind.BROADCAST) if len(m.parameters)]
        assert full == [3] * num_full
        ends = [s for s, m in requests(made, Kind.END) if len(m.parameters)]
        assert ends == ([3] if len(times) > 50 else [])
        if len(times) < 50:
            check_one_model(made, state)

    def test_a_silo_that_lost_its_file(self, harness: Make) -> None:
        made = harness(tiny_draft(update=EIGHT, num_rounds=4), 4)
        folder = made.federation.silo("silo-4").run(made.plan)

        def fault(moment: str, kind: int, silo: int) -> bool:
            closed = (folder / "round-000002").exists()
            if closed and kind == Kind.BROADCAST and (moment, silo) == ("before", 3):
                (folder / HELD_FILE).unlink(missing_ok=True)
            return False

        state = made.run(fault)
        numbers = [
            message.round_number
            for silo, message in requests(made, Kind.BROADCAST)
            if silo == 3
        ]
        assert numbers[:3] == [2, 3, 3]
        check_one_model(made, state)

    @pytest.mark.parametrize("lost_round", [1, 2])
    def test_a_lost_round_broadcasts_nothing(
        self, harness: Make, lost_round: int
    ) -> None:
        made = harness(tiny_draft(update=EIGHT, num_rounds=3))
        state = made.run(
            losing(SecAggKind.CONFIRMS, 0, range(lost_round, lost_round + 1))
        )
        lost = [r for r in transcripts(made)["aggregator"] if isinstance(r, RoundLost)]
        assert [record.round_number for record in lost] == [lost_round]
        numbers = {m.round_number for _, m in requests(made, Kind.BROADCAST)}
        assert numbers == {2, 3, 0} - {lost_round + 1}
        check_one_model(made, state)

    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("victim", [0, 2])
    @pytest.mark.parametrize("last", [False, True])
    def test_all_processes_die_in_the_exchange(
        self, harness: Make, tmp_path: Path, moment: str, victim: int, last: bool
    ) -> None:
        made, seen = harness(tiny_draft(update=EIGHT)), 0

        def fault(when: str, kind: int, silo: int) -> None:
            nonlocal seen
            if (when, kind, silo) == (moment, Kind.BROADCAST, victim):
                seen += 1
                if seen == 1 + last:
                    raise Crash

        with pytest.raises(Crash):
            made.run(fault)
        state = made.run()
        assert equal_parameters(state, undisturbed_eight(tmp_path))
        check_one_model(made, state)

    def test_all_processes_die_when_one_silo_has_seen_the_end(
        self, harness: Make
    ) -> None:
        made = harness(tiny_draft(update=EIGHT))

        def fault(moment: str, kind: int, silo: int) -> None:
            if (moment, kind, silo) == ("after", Kind.END, 0):
                raise Crash

        with pytest.raises(Crash):
            made.run(fault)
        check_one_model(made, made.run())


def undisturbed_eight(folder: Path) -> RoundState:
    """Return the last state of the same run in which nothing goes wrong."""
    from tests.end_to_end.conftest import make_harness

    return make_harness(folder / "undisturbed", tiny_draft(update=EIGHT)).run()


class TestFloatForm:
    def test_it_is_the_mean_of_the_updates(self, harness: Make) -> None:
        """And in a round of fine fields it differs from the grid by rounding alone."""
        update = UpdateConfig(form="float32")
        protection = ProtectionConfig(method="none")
        draft = tiny_draft(update=update, protection=protection, num_rounds=1)
        made = harness(draft)
        state = made.run()
        layout = shared_layout(made.plan)
        plain = [
            len(reply)
            for _, _, reply in made.wire
            if read_header(reply).kind == Kind.PLAIN
        ]
        even = layout.size + layout.size % 2
        assert set(plain) == {4 * even + HEADER_BYTES + SIGNATURE_BYTES}
        check_one_model(made, state)
        near = harness(tiny_draft(num_rounds=1)).run()
        mine, theirs = (flatten(s.parameters, layout) for s in (state, near))
        first = flatten(initial_state(made.plan).parameters, layout)
        assert 0 < np.linalg.norm(mine - theirs) < 1e-5 * np.linalg.norm(mine - first)
        assert equal_parameters(harness(draft).run(), state)


FOUR = UpdateConfig(rounding="nearest", value_bits=4, error_feedback=True)


class TestErrorFeedback:
    def residuals(self, made: Harness) -> dict[str, list[str]]:
        """Return the residual files of each silo."""
        return {
            party.name: sorted(
                path.name
                for path in made.federation.silo(party.name)
                .run(made.plan)
                .glob("residual*")
            )
            for party in made.plan.silos
        }

    def test_it_composes_with_everything_and_leaves_nothing(
        self, harness: Make
    ) -> None:
        update = dataclasses.replace(
            FOUR,
            clipping_norm=0.5,
            value_bits=8,
            rotation=True,
            broadcast_bits=8,
            weights="secret",
            max_weight=64,
        )
        made = harness(tiny_draft(update=update, num_rounds=3))
        seen: list[tuple[int, tuple[str, ...]]] = []

        def look(moment: str, kind: int, silo: int) -> None:
            if (moment, kind, silo) == ("after", Kind.ROUND, 2):
                seen.append((kind, tuple(self.residuals(made)["silo-1"])))

        check_one_model(made, made.run(look))
        pending = ("residual-pending",)
        assert [files for _, files in seen] == [pending, *[("residual", *pending)] * 2]
        assert not any(self.residuals(made).values())

    def test_a_lost_round_does_not_advance(self, harness: Make) -> None:
        made = harness(tiny_draft(update=FOUR, num_rounds=3))
        seen: list[bytes | None] = []
        path = made.federation.silo("silo-1").run(made.plan) / "residual"
        lose = losing(SecAggKind.CONFIRMS, 0, range(2, 3))

        def fault(moment: str, kind: int, silo: int) -> bool:
            if (moment, kind, silo) == ("after", Kind.ROUND, 0):
                seen.append(path.read_bytes() if path.exists() else None)
            return lose(moment, kind, silo)

        made.run(fault)
        lost = [r for r in transcripts(made)["aggregator"] if isinstance(r, RoundLost)]
        assert [record.round_number for record in lost] == [2]
        assert seen[0] is None
        assert seen[1] is not None
        assert seen[1] == seen[2]

    def test_all_processes_die_between_the_sum_and_the_next_round(
        self, harness: Make
    ) -> None:
        made, whole = (harness(tiny_draft(update=FOUR, num_rounds=3)) for _ in "ab")
        expected, asked = whole.run(), 0

        def fault(moment: str, kind: int, silo: int) -> None:
            nonlocal asked
            asked += (moment, kind) == ("after", SecAggKind.CONFIRMS)
            if asked == 3:
                asked += 1
                raise Crash

        with pytest.raises(Crash):
            made.run(fault)
        state = made.run()
        assert equal_parameters(state, expected)
        check_one_model(made, state)
        plain = dataclasses.replace(FOUR, error_feedback=False)
        without = harness(tiny_draft(update=plain, num_rounds=3)).run()
        assert not equal_parameters(state, without)
