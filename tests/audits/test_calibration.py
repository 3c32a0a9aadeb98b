"""What followed the mean, honest and not: a row for each lie, beside the honest run."""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from audits.audit import Audit, run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.report.content import make_content
from audits.report.markdown import render_markdown
from audits.report.page import render_html
from protocol import records as r
from protocol.calibration_settings import CalibrationConfig
from protocol.model_records import AuxiliaryImages, AuxiliarySent, Calibrated
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Edit,
    Parties,
    Script,
    change,
    digest,
    find,
    make_parties,
    omit,
    repeat,
    script,
    write_run,
)
from tests.audits.test_budget import (
    EVENT,
    STEPS,
    priced,
    private_parties,
    private_script,
    spent,
)

MODELS = CalibrationConfig(
    when="every-round",
    images="silo-models",
    num_images=9,
    local_steps=2,
    steps=5,
    learning_rate=0.01,
    examples_per_step=4,
)
SLOW = dataclasses.replace(MODELS, when="slow-learning", window=1)
AGGREGATE = dataclasses.replace(
    MODELS, images="aggregate", local_steps=0, source_round=1
)
PUBLIC = dataclasses.replace(
    MODELS,
    images="public",
    local_steps=0,
    num_images=0,
    name="dots",
    sha256=digest("dots"),
)
NONE = CalibrationConfig()


def sent(silo: str) -> AuxiliarySent:
    return AuxiliarySent(
        silo=silo, label="silo-models", upload=digest("model", silo), size_bytes=900
    )


def images(config: CalibrationConfig) -> AuxiliaryImages:
    return AuxiliaryImages(
        label=config.images,
        num_images=config.num_images or 7,
        digest=digest("images"),
        name=config.name,
        source=config.sha256,
        source_round=config.source_round,
        silos=SILOS if config.asks_silos else (),
    )


def trained(number: int, config: CalibrationConfig) -> Calibrated:
    return Calibrated(
        round_number=number,
        steps=5,
        examples=20,
        loss_before=0.5,
        loss_after=0.4,
        triggered=config.when == "slow-learning",
    )


def before(actions: Script, kind: type, number: int | None, *items: Any) -> Script:
    """Return a script with records of the aggregator before one of its own."""
    index = find(actions, AGGREGATOR, kind, number)
    return [*actions[:index], *((AGGREGATOR, i) for i in items), *actions[index:]]


def honest(config: CalibrationConfig) -> Script:
    """Return what all parties do in a run that trains after the mean."""
    actions = script()
    rounds = [2] if config.when == "slow-learning" else [1, 2, 3]
    for number in rounds:
        if number > config.source_round:
            record = trained(number, config)
            actions = before(actions, r.RoundClosed, number, record)
    if not config.source_round:
        actions = before(actions, r.SetupOpened, None, images(config))
    else:
        opened = config.source_round + 1
        actions = before(actions, r.RoundOpened, opened, images(config))
    for silo in SILOS if config.asks_silos else ():
        traffic = r.Traffic(
            round_number=0,
            stage="auxiliary",
            silo=silo,
            sent_bytes=900,
            received_bytes=120,
            vector_bytes=0,
            broadcast_bytes=0,
        )
        index = find(actions, AGGREGATOR, AuxiliaryImages)
        both = [(silo, sent(silo)), (silo, traffic)]
        both += [(AGGREGATOR, sent(silo)), (AGGREGATOR, traffic)]
        actions = [*actions[:index], *both, *actions[index:]]
    return actions


def audit(root: Path, config: CalibrationConfig, actions: Script) -> Audit:
    write_run(root, make_parties(calibration=config), actions)
    return run_audit(load_evidence(root))


def added(item: r.Record, party: str = AGGREGATOR) -> Edit:
    """Return an edit: a party also records something, before the first sum."""

    def edit(actions: Script) -> Script:
        index = find(actions, party, r.RoundOpened, 1)
        return [*actions[:index], (party, item), *actions[index:]]

    return edit


def late(actions: Script) -> Script:
    """Name the images when the run is over."""
    index = find(actions, AGGREGATOR, AuxiliaryImages)
    rest = [*actions[:index], *actions[index + 1 :]]
    return before(rest, r.Finished, None, images(MODELS))


@pytest.mark.parametrize(
    "config", [MODELS, SLOW, AGGREGATE, PUBLIC], ids=lambda c: f"{c.when}-{c.images}"
)
def test_the_honest_run_passes_and_the_report_tells(
    tmp_path: Path, config: CalibrationConfig
) -> None:
    done = audit(tmp_path, config, honest(config))
    assert [f.statement for f in done.with_severity(Severity.FAIL)] == []
    by_check = {f.check: f for f in done.findings}
    is_exposed = config.asks_silos
    assert by_check["auxiliary"].severity == ("WARN" if is_exposed else "PASS")
    assert by_check["calibration"].severity == Severity.PASS
    content = make_content(done)
    for text in (render_markdown(content), render_html(content)):
        words = " ".join(text.split())
        assert "After the mean" in words
        assert digest("images") in words
        assert ("own model" in words) == is_exposed
        assert ("in the clear" in words) == is_exposed
    table = content["calibration"]
    assert table["meaning"]
    assert [row["silo"] for row in table["sent"]] == list(SILOS) * is_exposed
    total = {"every-round": 3, "slow-learning": 1}[config.when] - config.source_round
    said = dict(map(tuple, table["facts"]))["Extra compute"]
    assert said == f"{5 * total} steps of the aggregator, {20 * total} images"


def test_a_run_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    done = audit(tmp_path, NONE, script())
    assert {f.check for f in done.findings}.isdisjoint({"auxiliary", "calibration"})
    content = make_content(done)
    assert content["calibration"] is None
    assert "After the mean" not in render_markdown(content)
    assert "After the mean" not in render_html(content)


@dataclass(frozen=True)
class Row:
    """One lie, and what must be found."""

    name: str
    config: CalibrationConfig
    check: str
    party: str | None
    words: str
    lie: Edit


TRAFFIC = r.Traffic(
    round_number=0,
    stage="auxiliary",
    silo="cork",
    sent_bytes=900,
    received_bytes=9,
    vector_bytes=0,
    broadcast_bytes=0,
)
LIES = (
    Row(
        "a model in a plan without",
        NONE,
        "auxiliary",
        "cork",
        "cork records AuxiliarySent",
        added(sent("cork"), "cork"),
    ),
    Row(
        "bytes in a plan without",
        NONE,
        "auxiliary",
        "cork",
        "cork counts bytes of cork",
        added(TRAFFIC, "cork"),
    ),
    Row(
        "images in a plan without",
        NONE,
        "auxiliary",
        AGGREGATOR,
        "records AuxiliaryImages",
        added(images(PUBLIC)),
    ),
    Row(
        "training in a plan without",
        NONE,
        "auxiliary",
        AGGREGATOR,
        "records Calibrated",
        added(trained(1, MODELS)),
    ),
    Row(
        "models in a plan of public images",
        PUBLIC,
        "auxiliary",
        "cork",
        'has the label "silo-models"',
        added(sent("cork"), "cork"),
    ),
    Row(
        "another label",
        AGGREGATE,
        "auxiliary",
        AGGREGATOR,
        'has the label "public"',
        change(AGGREGATOR, AuxiliaryImages, label="public"),
    ),
    Row(
        "another public file",
        PUBLIC,
        "auxiliary",
        AGGREGATOR,
        "another data set",
        change(AGGREGATOR, AuxiliaryImages, source=digest("other")),
    ),
    Row(
        "public images of silos",
        PUBLIC,
        "auxiliary",
        AGGREGATOR,
        "cork gave some",
        change(AGGREGATOR, AuxiliaryImages, silos=("cork",)),
    ),
    Row(
        "another round sampled",
        AGGREGATE,
        "auxiliary",
        AGGREGATOR,
        "of round 2, not 1",
        change(AGGREGATOR, AuxiliaryImages, source_round=2),
    ),
    Row(
        "more images than planned",
        AGGREGATE,
        "auxiliary",
        AGGREGATOR,
        "10, not 9",
        change(AGGREGATOR, AuxiliaryImages, num_images=10),
    ),
    Row(
        "more images of silos than planned",
        MODELS,
        "auxiliary",
        AGGREGATOR,
        "12 of amsterdam, basel and cork",
        change(AGGREGATOR, AuxiliaryImages, num_images=12),
    ),
    Row(
        "images of one silo",
        MODELS,
        "auxiliary",
        AGGREGATOR,
        "of 1 silo only",
        change(AGGREGATOR, AuxiliaryImages, num_images=3, silos=("cork",)),
    ),
    Row(
        "images changed in the run",
        MODELS,
        "auxiliary",
        AGGREGATOR,
        "changed its auxiliary images",
        repeat(AGGREGATOR, AuxiliaryImages, digest=digest("other images")),
    ),
    Row(
        "trained before the images were named",
        MODELS,
        "auxiliary",
        AGGREGATOR,
        "before it named the images",
        late,
    ),
    Row(
        "another model arrived",
        MODELS,
        "auxiliary",
        "basel",
        "that the silo never recorded",
        change("basel", AuxiliarySent, upload=digest("other")),
    ),
    Row(
        "silo keeps quiet",
        MODELS,
        "auxiliary",
        "basel",
        "that the silo never recorded",
        omit("basel", AuxiliarySent),
    ),
    Row(
        "aggregator keeps quiet",
        MODELS,
        "auxiliary",
        AGGREGATOR,
        "the aggregator does not show",
        omit(AGGREGATOR, AuxiliarySent),
    ),
    Row(
        "images of a silo that gave nothing",
        MODELS,
        "auxiliary",
        AGGREGATOR,
        "nothing of amsterdam is recorded to have arrived",
        omit(AGGREGATOR, AuxiliarySent),
    ),
    Row(
        "two models of one silo",
        MODELS,
        "auxiliary",
        "basel",
        "2 different answers",
        repeat("basel", AuxiliarySent, upload=digest("second")),
    ),
    Row(
        "more steps than planned",
        MODELS,
        "calibration",
        AGGREGATOR,
        "6 steps on 20 examples",
        change(AGGREGATOR, Calibrated, 2, steps=6),
    ),
    Row(
        "the rule in a plan without it",
        MODELS,
        "calibration",
        AGGREGATOR,
        "the rule of slow learning decided",
        change(AGGREGATOR, Calibrated, 2, triggered=True),
    ),
    Row(
        "twice after a round",
        MODELS,
        "calibration",
        AGGREGATOR,
        "Round 2: trained after the mean twice",
        repeat(AGGREGATOR, Calibrated, 2),
    ),
    Row(
        "not after a round",
        MODELS,
        "calibration",
        AGGREGATOR,
        "Round 2: not trained after the mean",
        omit(AGGREGATOR, Calibrated, 2),
    ),
    Row(
        "corrected twice",
        SLOW,
        "calibration",
        AGGREGATOR,
        "correction was made 2 times",
        repeat(AGGREGATOR, Calibrated, 2, round_number=3),
    ),
    Row(
        "corrected too early",
        SLOW,
        "calibration",
        AGGREGATOR,
        "in round 1, too early",
        change(AGGREGATOR, Calibrated, 2, round_number=1),
    ),
    Row(
        "trained after a round without a mean",
        SLOW,
        "calibration",
        AGGREGATOR,
        "Round 2: trained without a mean",
        lambda actions: [
            (
                party,
                r.RoundLost(round_number=2, reason="-")
                if isinstance(item, r.RoundClosed) and item.round_number == 2
                else item,
            )
            for party, item in actions
        ],
    ),
)


@pytest.mark.parametrize("row", LIES, ids=lambda row: row.name)
def test_lies_are_found_and_named(row: Row, tmp_path: Path) -> None:
    actions = honest(row.config) if row.config.is_on else script()
    failed = audit(tmp_path, row.config, row.lie(actions)).with_severity(Severity.FAIL)
    assert any(
        (finding.check, finding.party) == (row.check, row.party)
        and row.words in finding.statement
        for finding in failed
    ), failed


def test_a_run_that_stopped_after_a_training_is_not_accused(tmp_path: Path) -> None:
    actions = honest(MODELS)
    index = find(actions, AGGREGATOR, r.RoundClosed, 3)
    stopped = [a for i, a in enumerate(actions) if i < index or a[0] != AGGREGATOR]
    done = audit(tmp_path, MODELS, stopped)
    failed = {f.check for f in done.with_severity(Severity.FAIL)}
    assert "calibration" not in failed


def private(missing: int = 0) -> Script:
    """Return a run with DP-SGD whose silos trained models of their own before.

    Args:
        missing: steps of the pre-training that a silo leaves out of its account.
    """
    before_rounds = MODELS.local_steps - missing

    def counted(one: r.PrivacySpent) -> r.PrivacySpent:
        steps = before_rounds + STEPS * one.round_number
        return priced(one, events=(EVENT.times(steps),))

    actions: Script = []
    for party, item in private_script():
        is_spent = isinstance(item, r.PrivacySpent)
        actions.append((party, counted(item) if is_spent else item))
        if isinstance(item, r.LedgerOpened):
            mine = counted(replace(spent(1), round_number=0, ledger_size=2))
            seen = r.LedgerSeen(
                round_number=0, silo=party, size=2, head=mine.ledger_head
            )
            given = sent(party)
            bytes_ = replace(TRAFFIC, silo=party)
            actions += [(party, mine), (party, given), (party, bytes_)]
            actions += [(AGGREGATOR, seen), (AGGREGATOR, given), (AGGREGATOR, bytes_)]
    for number in range(1, 4):
        actions = before(actions, r.RoundClosed, number, trained(number, MODELS))
    return before(actions, r.SetupOpened, None, images(MODELS))


def private_audit(root: Path, actions: Script) -> Audit:
    parties = private_parties()
    names = {field.name for field in dataclasses.fields(parties.plan) if field.init}
    fields = {name: getattr(parties.plan, name) for name in names}
    plan = type(parties.plan)(**(fields | {"calibration": MODELS}))
    write_run(root, Parties(plan, parties.keys), actions)
    return run_audit(load_evidence(root))


def test_with_dp_sgd_the_pre_training_is_in_the_account(tmp_path: Path) -> None:
    done = private_audit(tmp_path, private())
    assert [f.statement for f in done.with_severity(Severity.FAIL)] == []
    (found,) = [f for f in done.findings if f.check == "auxiliary"]
    assert found.severity == Severity.PASS
    assert "with DP-SGD, went to the aggregator in the clear" in found.statement


def paid_late(actions: Script) -> Script:
    """Have a silo write down what it spent only after its model has left."""
    early = find(actions, "cork", r.PrivacySpent, 0)
    item = actions[early]
    rest = [*actions[:early], *actions[early + 1 :]]
    index = find(rest, "cork", AuxiliarySent) + 1
    return [*rest[:index], item, *rest[index:]]


@pytest.mark.parametrize(
    ("actions", "check", "words"),
    [
        (private(missing=1), "mechanism", "what went before 2"),
        (omit(AGGREGATOR, r.LedgerSeen, 0)(private()), "ledgers", "says nothing of"),
        (paid_late(private()), "auxiliary", "without writing down before"),
    ],
    ids=["steps left out", "no ledger told of", "paid late"],
)
def test_a_lie_about_the_price_is_found(
    tmp_path: Path, actions: Script, check: str, words: str
) -> None:
    failed = private_audit(tmp_path, actions).with_severity(Severity.FAIL)
    assert any(f.check == check and words in f.statement for f in failed), failed
