"""USplit in a whole federation: parts dealt anew each round, summed by group."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import aggregator.rounds
import silo.trainer
from aggregator.errors import CohortTooSmall
from aggregator.state import shared_layout
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import Kind as SecAggKind
from crypto.frame import read_header
from diffusion.checkpoint import load_checkpoint
from diffusion.parameters import difference
from protocol import records
from protocol.dealing import PARTS, deal
from protocol.envelope import Kind
from protocol.model_records import Dealt
from protocol.settings import TrainingConfig
from protocol.stretches import largest_share
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from simulation.settings import PartitionConfig
from tests.end_to_end.conftest import Crash, Harness, tiny_draft
from tests.end_to_end.test_private_runs import private_draft

Make = Callable[..., Harness]
NEAREST: dict[str, Any] = {"rounding": "nearest", "selection": "usplit"}
CLEAR = ProtectionConfig(method="none", min_cohort=2)


@dataclass
class Watched:
    """What silos packed and trained, and what the aggregator made of the sums."""

    packed: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    again: list[tuple[int, int]] = field(default_factory=list)
    trained: list[tuple[int, int]] = field(default_factory=list)
    means: list[tuple[int, Any, Any, Any, tuple[int, ...], Any]] = field(
        default_factory=list
    )


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    kept = Watched()
    make, train = silo.trainer.make_update, silo.trainer.train
    mean_update = aggregator.rounds.mean_update

    def keep_update(plan: Any, layout: Any, numbers: Any, **rest: Any) -> Any:
        words = make(plan, layout, numbers, **rest)
        name = (rest["round_number"], rest["silo"])
        if name in kept.packed:
            kept.again.append(name)
        kept.packed[name] = rest | {"words": words.copy(), "numbers": numbers}
        return words

    def keep_training(*arguments: Any, **rest: Any) -> Any:
        kept.trained.append((rest["round_number"], rest["silo"]))
        return train(*arguments, **rest)

    def keep_mean(
        plan: Any, stretch: Any, grid: Any, words: Any, group: Any, number: int
    ) -> Any:
        before = words.copy()
        mean = mean_update(plan, stretch, grid, words, group, number)
        kept.means.append((number, stretch, grid, before, group, mean.copy()))
        return mean

    monkeypatch.setattr(silo.trainer, "make_update", keep_update)
    monkeypatch.setattr(silo.trainer, "train", keep_training)
    monkeypatch.setattr(aggregator.rounds, "mean_update", keep_mean)
    return kept


# The last layer begins at zero: the first step moves nothing before it.
TRAINING = TrainingConfig(local_steps=2, examples_per_step=4, learning_rate=1e-2)


def usplit(**changes: Any) -> Any:
    sections = {"update": UpdateConfig(**NEAREST), "training": TRAINING}
    return tiny_draft(**(sections | changes))


def records_of(harness: Harness, kind: type, party: str = "aggregator") -> list[Any]:
    files = harness.federation.aggregator
    if party != "aggregator":
        files = harness.federation.silo(party)
    folder = files.run(harness.plan) / "transcript"
    return [e.record for e in read_records(folder) if isinstance(e.record, kind)]


def failures(harness: Harness) -> list[str]:
    audit = run_audit(load_evidence(harness.federation.root, None))
    return [f.statement for f in audit.with_severity(Severity.FAIL)]


def stretches_of(plan: Any, dealt: Dealt, index: int) -> list[int]:
    name = plan.silos[index].name
    return [i for i, part in enumerate(PARTS) if name in getattr(dealt, part)]


def check_means(harness: Harness, kept: Watched) -> None:
    """Compare sums with plain sums of what was packed, means with the means by hand."""
    plan = harness.plan
    names = [silo.name for silo in plan.silos]
    layout = shared_layout(plan)
    assert len(kept.means) % 3 == 0
    for position, (number, stretch, grid, words, group, mean) in enumerate(kept.means):
        index = position % 3
        assert stretch == layout.stretches[index]
        total, reference, weights = np.zeros_like(words), 0, []
        for one in group:
            made = kept.packed[number, one]
            own = list(made["own"])
            lengths = [plan.num_words(number, layout.stretches[i].size) for i in own]
            starts = np.cumsum([0, *lengths])
            at = own.index(index)
            total += made["words"][starts[at] : starts[at + 1]]
            whole = np.concatenate(
                [
                    difference(made["local"], made["global_"], layout.stretches[i])
                    for i in own
                ]
            ).astype(float)
            norm = max(np.linalg.norm(whole), 1e-30)
            factor = min(1, made["numbers"].clipping_norm / norm)
            change = difference(made["local"], made["global_"], stretch)
            weight = {
                "equal": 1.0,
                "declared": plan.silos[one].weight,
                "secret": made["num_examples"],
            }[plan.update.weights]
            clipped = factor * change.astype(float)
            if not plan.update.rotation:
                most = np.repeat(grid.ranges, grid.segments)
                clipped = np.clip(clipped, -most, most)
            reference = reference + weight * clipped
            weights.append(weight)
        assert np.array_equal(total, words), "the masks did not cancel"
        close = 2 * grid.steps.max() * max(weights) * len(group) / sum(weights)
        if plan.update.rotation:
            close *= np.sqrt(mean.size)
        largest = np.abs(mean - reference / sum(weights)).max()
        assert largest <= close, (number, PARTS[index], largest, close)
    for dealt in records_of(harness, Dealt):
        members = [names.index(name) for name in dealt.members]
        groups = deal(bytes.fromhex(dealt.digest), dealt.round_number, members)
        for part in PARTS:
            assert [names.index(n) for n in getattr(dealt, part)] == list(groups[part])


COMBINED = [
    (6, {}),
    (7, {"weights": "declared"}),
    (6, {"rotation": True, "weights": "secret", "max_weight": 300}),
    (7, {"rotation": True, "value_bits": 12, "clipping": "previous-mean"}),
]


@pytest.mark.parametrize(("num_silos", "update"), COMBINED, ids=str)
def test_masked_sums_of_each_part_are_the_sums_of_its_group(
    harness: Make, watched: Watched, num_silos: int, update: dict[str, Any]
) -> None:
    made = harness(
        usplit(update=UpdateConfig(**NEAREST, **update)),
        num_silos,
        partition=PartitionConfig(kind="quantity-skew"),
    )
    state = made.run()
    assert state.round_number == 2
    assert [m[0] for m in watched.means] == [1] * 3 + [2] * 3
    check_means(made, watched)
    assert failures(made) == []
    for party in made.plan.silos:
        sent = [r.vector_bytes for r in records_of(made, records.Traffic, party.name)]
        seen = records_of(made, Dealt, party.name)
        assert len(seen) == 2
        layout, index = shared_layout(made.plan), made.plan.silos.index(party)
        wanted = [
            sum(
                made.plan.vector_bytes(d.round_number, layout.stretches[i].size)
                for i in stretches_of(made.plan, d, index)
            )
            for d in seen
        ]
        assert [size for size in sent if size] == wanted
        most = largest_share(made.plan, [s.size for s in layout.stretches])
        assert max(wanted) <= sum(made.plan.vector_bytes(1, size) for size in most)


@pytest.mark.parametrize("num_silos", [2, 5])
def test_in_the_clear_small_cohorts_can_be_compared(
    harness: Make, watched: Watched, num_silos: int
) -> None:
    made = harness(usplit(protection=CLEAR), num_silos)
    made.run()
    check_means(made, watched)
    assert len(watched.means) == 6
    assert failures(made) == []


def test_what_leaves_in_the_clear_is_what_was_dealt_and_nothing_else(
    harness: Make, watched: Watched
) -> None:
    made = harness(usplit(protection=CLEAR), 5)
    made.run()
    plan, layout = made.plan, shared_layout(made.plan)
    outgoing = {
        one: b"".join(reply for index, _, reply in made.wire if index == one)
        for one in range(5)
    }
    everything, num_windows = sum(s.size for s in layout.stretches), 0
    for (number, one), kept in watched.packed.items():
        (dealt,) = [d for d in records_of(made, Dealt) if d.round_number == number]
        own = stretches_of(plan, dealt, one)
        assert list(kept["own"]) == own
        assert sum(layout.stretches[i].size for i in own) < everything
        for index in range(3):
            rest = {k: v for k, v in kept.items() if k not in ("words", "numbers")}
            alone = silo.update.make_update(
                plan, layout, kept["numbers"], **(rest | {"own": (index,)})
            )
            joint = silo.update.make_update(
                plan, layout, kept["numbers"], **(rest | {"own": tuple(range(3))})
            )
            lengths = [plan.num_words(number, s.size) for s in layout.stretches]
            place = slice(sum(lengths[:index]), sum(lengths[: index + 1]))
            for form in (alone, joint[place]):
                window = telling_window(form)
                assert (window in outgoing[one]) == (index in own)
                num_windows += 1
            for name in layout.stretches[index].names:
                if kept["local"][name].numel() >= 16:
                    for form in (kept["local"], kept["global_"]):
                        assert form[name].numpy().tobytes() not in outgoing[one]
    sizes = {(read_header(q).kind, i): len(r) for i, q, r in made.wire if len(r) > 2000}
    assert {kind for kind, _ in sizes} == {Kind.ROUND}

    assert num_windows == 2 * 5 * 3 * 2


def telling_window(words: Any) -> bytes:
    """Return bytes of a packed stretch that cannot be there by chance."""
    for start in range(len(words) - 6):
        if len(set(words[start : start + 6].tolist())) == 6:
            return bytes(words[start : start + 6].tobytes())
    raise AssertionError("nothing has changed: the scan would say nothing")


def test_a_group_without_survivors_costs_the_round(harness: Make) -> None:
    made = harness(usplit(protection=CLEAR, num_rounds=1), 3)

    def fault(when: str, kind: int, one: int) -> bool:
        dealt = records_of(made, Dealt)[-1] if when == "before" else None
        small = (
            [g for g in map(dealt.__getattribute__, PARTS) if len(g) == 1]
            if dealt
            else []
        )
        return (
            bool(small) and kind == Kind.ROUND and made.plan.silos[one].name in small[0]
        )

    made.run(fault)
    (lost,) = records_of(made, records.RoundLost)
    assert "group of a part" in lost.reason
    assert failures(made) == []


def test_eight_silos_lose_one_before_and_one_after_the_upload(
    harness: Make, watched: Watched
) -> None:
    made = harness(usplit(protection=ProtectionConfig(slots_per_setup=4)), 8)

    def fault(when: str, kind: int, one: int) -> bool:
        before_upload = one == 1 and kind == SecAggKind.ACTIVE and when == "before"
        return before_upload or (one == 4 and kind == SecAggKind.CONFIRMS)

    made.run(fault)
    check_means(made, watched)
    assert len(watched.means) == 6
    assert all(1 not in group for *_, group, _ in watched.means)
    assert failures(made) == []


def smallest_group(made: Harness) -> tuple[str, ...]:
    dealt = records_of(made, Dealt)[-1]
    return min((getattr(dealt, part) for part in PARTS), key=len)


def test_a_group_that_dropouts_make_too_small_is_dealt_anew(
    harness: Make, watched: Watched
) -> None:
    """Seven silos, one of the group of three is lost for good before its upload."""
    made = harness(usplit(protection=ProtectionConfig(slots_per_setup=8)), 7)
    gone: set[int] = set()

    def fault(when: str, kind: int, one: int) -> bool:
        if kind == SecAggKind.ACTIVE and not gone:
            names = [party.name for party in made.plan.silos]
            gone.add(names.index(smallest_group(made)[0]))
        return one in gone

    made.run(fault)
    check_means(made, watched)
    setups = {r.setup: len(r.members) for r in records_of(made, records.SetupOpened)}
    assert setups == {1: 7} | dict.fromkeys(range(2, len(setups) + 1), 6)
    closed = records_of(made, records.RoundClosed)
    assert [r.round_number for r in closed] == [1, 2]
    revealed = [r.setup for r in records_of(made, records.Revealed)]
    assert len(revealed) == 2 and 1 not in revealed
    assert sorted(watched.trained) == sorted(set(watched.trained))
    assert watched.again, "nobody was dealt other parts: choose another seed"
    assert failures(made) == []
    for party in made.plan.silos:
        left = made.federation.silo(party.name).run(made.plan)
        index = made.plan.silos.index(party)
        kept = {path.name for path in left.rglob("round-*/*")}
        spoilt = {"update.words", "trained.safetensors"}
        assert (kept & spoilt == set()) == (index not in gone)


def test_six_silos_without_one_reveal_nothing_and_can_go_on(
    harness: Make, watched: Watched
) -> None:
    made = harness(usplit(num_rounds=1), 6)

    def fault(when: str, kind: int, one: int) -> bool:
        return one == 2 and (kind >= Kind.ROUND or kind == SecAggKind.ACTIVE)

    with pytest.raises(CohortTooSmall, match="contributors"):
        made.run(fault)
    kinds = {read_header(reply).kind for _, _, reply in made.wire}
    assert not kinds & {SecAggKind.CONFIRM, SecAggKind.REVEAL}
    assert records_of(made, records.Revealed) == []
    made.run()
    check_means(made, watched)
    assert sorted(watched.trained) == sorted(set(watched.trained))
    assert [r.round_number for r in records_of(made, records.RoundClosed)] == [1]
    assert failures(made) == []


MOMENTS = [
    ("after", Kind.ROUND),
    ("after", SecAggKind.ACTIVE),
    ("after", SecAggKind.SURVIVORS),
    ("after", SecAggKind.CONFIRMS),
]


@pytest.mark.parametrize(("moment", "kind"), MOMENTS)
def test_everybody_may_crash_and_nobody_trains_twice(
    harness: Make, watched: Watched, moment: str, kind: int
) -> None:
    made, deaths = harness(usplit(num_rounds=1), 6), []

    def fault(when: str, what: int, one: int) -> None:
        if (when, what, one) == (moment, kind, 3):
            deaths.append(one)
            raise Crash

    with pytest.raises(Crash):
        made.run(fault)
    made.run()
    assert deaths == [3]
    assert all(len(frames) == 1 for frames in made.masked.values())
    assert sorted(watched.trained) == sorted(set(watched.trained))
    check_means(made, watched)
    assert failures(made) == []


def test_what_is_not_returned_may_stay_untrained(
    harness: Make, watched: Watched
) -> None:
    training = dataclasses.replace(TRAINING, train_unassigned=False)
    made = harness(usplit(training=training, num_rounds=3), 6)
    made.run()
    layout = shared_layout(made.plan)
    for (number, _), kept in watched.packed.items():
        for index, stretch in enumerate(layout.stretches):
            change = difference(kept["local"], kept["global_"], stretch)
            if number > 1 or index not in kept["own"]:
                assert change.any() == (index in kept["own"])
    check_means(made, watched)
    assert failures(made) == []


def test_what_was_trained_with_dp_sgd_may_be_dealt(harness: Make) -> None:
    private = private_draft(update=UpdateConfig(**NEAREST), num_rounds=1)
    made = harness(private, 6)
    made.run()
    assert len(records_of(made, Dealt, "silo-6")) == 1
    assert failures(made) == []


def test_a_list_of_all_parts_is_full(harness: Make) -> None:
    both = [
        harness(
            tiny_draft(update=UpdateConfig(rounding="nearest", **changes), num_rounds=1)
        ).run()
        for changes in ({}, {"selection": "parts", "parts": PARTS})
    ]
    left, right = (state.parameters for state in both)
    assert all((left[name] == right[name]).all() for name in left)


def test_listed_parts_leave_and_the_others_stay_and_survive(harness: Make) -> None:
    """Encoder and decoder are shared; silo 2 misses a round, and all crash later."""
    update = UpdateConfig(
        rounding="nearest", selection="parts", parts=("encoder", "decoder")
    )
    made = harness(tiny_draft(update=update, protection=CLEAR, num_rounds=3), 3)
    asked: list[int] = []

    def fault(when: str, kind: int, one: int) -> bool:
        asked.append(kind)
        if asked.count(Kind.ROUND) > 10:
            raise Crash
        return kind == Kind.ROUND and one == 2 and asked.count(Kind.ROUND) < 6

    with pytest.raises(Crash):
        made.run(fault)
    made.run()
    shared = set(shared_layout(made.plan).names)
    models = [
        load_checkpoint(
            made.federation.silo(party.name).run(made.plan) / "model.safetensors"
        ).parameters
        for party in made.plan.silos
    ]
    outgoing = b"".join(reply for _, _, reply in made.wire)
    for name, value in models[0].items():
        assert (value == models[1][name]).all() == (name in shared), name
        if name not in shared:
            assert name.startswith("bottleneck")
            for model in models:
                if model[name].numel() >= 16:
                    assert model[name].numpy().tobytes() not in outgoing
    assert failures(made) == []


def test_the_default_training_is_that_of_the_paper() -> None:
    assert TrainingConfig(local_steps=1).train_unassigned
