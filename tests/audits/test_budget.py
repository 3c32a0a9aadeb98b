"""What a run spent, recomputed: a row for each lie about it, beside the honest run."""

import dataclasses
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest

from audits.audit import run_audit
from audits.budget import spendings
from audits.evidence import load_evidence
from audits.findings import Severity
from audits.report.content import make_content
from audits.report.markdown import render_markdown
from audits.report.page import render_html
from privacy.accounting import delta_for, epsilon
from privacy.attack_statistics import ceiling
from privacy.events import SampledGaussian
from protocol import records as r
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import InitialConfig
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Edit,
    Parties,
    Script,
    change,
    digest,
    make_parties,
    omit,
    repeat,
    script,
    write_run,
)

ROUNDS, STEPS = 3, 2
DELTA = 1e-5
EVENT = SampledGaussian(
    sample_rate=0.1, noise_multiplier=1.0, clipping_norm=1.0, steps=STEPS
)
SILO = "basel"
PRIVACY = PrivacyConfig(
    mechanism="dp-sgd", noise_multiplier=1.0, delta=DELTA, sample_rate=0.1
)


@lru_cache
def spent(number: int, *, steps: int = 0) -> r.PrivacySpent:
    """Return the record of a silo after a round."""
    events = (EVENT.times(steps or STEPS * number),)
    price = epsilon(events, DELTA)
    return r.PrivacySpent(
        round_number=number,
        ledger_size=1 + 3 * number,
        ledger_head=digest("ledger", number),
        multiplicity=8,
        events=events,
        earlier=(),
        epsilon=price,
        epsilon_prv=price + 0.01,
        prv_error=0.01,
        account_epsilon=price,
    )


OPENED = r.LedgerOpened(
    commitment=digest("tags"),
    unit="example",
    relation="add-or-remove-one",
    delta=DELTA,
    randomness="operating-system",
    fresh=False,
)


def private_parties(**changes) -> Parties:
    """Return the parties of a run with a mechanism."""
    parties = make_parties(rounds=ROUNDS)
    plan = parties.plan
    names = {field.name for field in dataclasses.fields(plan) if field.init}
    fields = {name: getattr(plan, name) for name in names}
    fields |= {"privacy": replace(PRIVACY, **changes)}
    return Parties(type(plan)(**fields), parties.keys)


def private_script() -> Script:
    """Return what all parties do in a run with a mechanism."""
    actions: Script = []
    for party, item in script(rounds=ROUNDS):
        actions.append((party, item))
        if isinstance(item, r.Opened) and party in SILOS:
            actions.append((party, OPENED))
        if isinstance(item, r.RoundOpened) and party in SILOS:
            mine = spent(item.round_number)
            seen = r.LedgerSeen(
                round_number=item.round_number,
                silo=party,
                size=mine.ledger_size,
                head=mine.ledger_head,
            )
            actions += [(party, mine), (AGGREGATOR, seen)]
    return actions


def audit_of(folder, parties: Parties, actions: Script):
    write_run(folder, parties, actions)
    return run_audit(load_evidence(folder, None))


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private") / "run"
    return audit_of(folder, private_parties(), private_script())


class TestHonest:
    def test_every_check_of_the_budget_passes(self, audit):
        names = ("privacy", "mechanism", "epsilon", "ledgers", "randomness")
        found = [f for f in audit.findings if f.check in names]
        assert [f.severity for f in found] == [Severity.PASS] * len(names)
        assert audit.verdict == Severity.PASS

    def test_the_price_is_that_of_all_steps(self, audit):
        price = epsilon((EVENT.times(ROUNDS * STEPS),), DELTA)
        assert [s.epsilon for s in spendings(audit.accounts)] == [price] * len(SILOS)

    def test_the_report_says_claim_unit_relation_and_what_is_left_out(self, audit):
        content = make_content(audit)
        privacy = content["privacy"]
        price = epsilon((EVENT.times(ROUNDS * STEPS),), DELTA)
        quoted = float(privacy["claim"].split("(epsilon ")[1].split(",")[0])
        assert price <= quoted < price * 1.001
        assert "per image" in privacy["claim"]
        assert "adding or removing one" in privacy["claim"]
        assert any("Fréchet" in each for each in privacy["not_covered"])
        for text in (render_html(content), render_markdown(content)):
            assert "Differential privacy" in text
            assert "Epsilon says nothing about" in text

    def test_the_ceiling_is_that_of_the_profile(self):
        events = (EVENT.times(6),)
        points = [(e, delta_for(events, e)) for e in (0.1, 0.5, 1.0, 2.0)]
        most = ceiling(0.01, points)
        assert 0.01 < most < 1
        assert most <= min(2.718281828459045**e * 0.01 + d for e, d in points) + 1e-12
        assert ceiling(0.01, [(0.0, 0.0)]) == pytest.approx(0.01)
        assert ceiling(0.01, [(5.0, 1.0)]) == 1.0


@dataclass(frozen=True)
class Row:
    """One lie about the budget, and what must be found."""

    name: str
    check: str
    words: str
    lie: tuple[Edit, ...]
    severity: Severity = Severity.FAIL


def lying(number: int, **changes) -> Edit:
    return change(SILO, r.PrivacySpent, number, **changes)


def everywhere(edit) -> Edit:
    """Return an edit of every record of the silo's spending."""

    def change_all(actions: Script) -> Script:
        return [
            (party, edit(item))
            if party == SILO and isinstance(item, r.PrivacySpent)
            else (party, item)
            for party, item in actions
        ]

    return change_all


def priced(one: r.PrivacySpent, **changes) -> r.PrivacySpent:
    """Return a record with other events, and the price that they have."""
    other = replace(one, **changes)
    price = epsilon(other.events, DELTA)
    return replace(other, epsilon=price, epsilon_prv=price, account_epsilon=price)


def later(kind, after, number: int) -> Edit:
    """Return an edit: the silo records something only after another thing."""

    def move(actions: Script) -> Script:
        mine = [
            i for i, (party, item) in enumerate(actions)
            if party == SILO and getattr(item, "round_number", 0) == number
        ]  # fmt: skip
        (early,) = [i for i in mine if isinstance(actions[i][1], kind)]
        (late,) = [i for i in mine if isinstance(actions[i][1], after)]
        moved = [*actions[: late + 1], actions[early], *actions[late + 1 :]]
        return [*moved[:early], *moved[early + 1 :]]

    return move


def omitted(kind) -> Edit:
    """Return an edit: the aggregator records nothing of a kind about the silo."""

    def omit_all(actions: Script) -> Script:
        return [
            (party, item)
            for party, item in actions
            if not (isinstance(item, kind) and item.silo == SILO)
        ]

    return omit_all


ROWS = [
    Row("neighbours of another kind", "mechanism", "neighbours replace-one",
        (change(SILO, r.LedgerOpened, relation="replace-one"),)),
    Row("more steps than the plan permits", "mechanism", "the plan permits 6",
        (everywhere(lambda one: priced(one, events=(EVENT.times(
            STEPS * one.round_number + 1),))),)),
    Row("spending written down after the update", "mechanism", "writing down before",
        (later(r.PrivacySpent, r.Masked, 2),)),
    Row("an aggregator that was told of no ledger", "ledgers", "says nothing of",
        (omitted(r.LedgerSeen),)),
    Row("an infinite price", "epsilon", "its events cost inf",
        (everywhere(lambda one: replace(one, events=tuple(
            replace(e, noise_multiplier=5e-5) for e in one.events))),)),
    Row("an epsilon below its events", "epsilon", "claims epsilon 0.5",
        (lying(3, epsilon=0.5),)),
    Row("an epsilon above its events", "epsilon", "claims epsilon 50",
        (lying(2, epsilon=50.0),)),
    Row("an account without its earlier runs", "epsilon", "with earlier runs",
        (lying(3, earlier=(EVENT.times(500),)),)),
    Row("a second accountant that differs", "epsilon", "two accountants differ",
        (lying(3, epsilon_prv=9.0),)),
    Row("a second accountant that agrees with anything", "epsilon", "may be off by",
        (lying(3, epsilon_prv=9.0, prv_error=10.0),)),
    Row("no second accountant", "epsilon", "could not compute",
        (lying(3, epsilon_prv=None),), Severity.WARN),
    Row("another noise multiplier", "mechanism", "noise multiplier 0.5",
        (everywhere(lambda one: priced(one, events=tuple(
            replace(e, noise_multiplier=0.5) for e in one.events))),)),
    Row("another sample rate", "mechanism", "sample rate 0.2",
        (everywhere(lambda one: priced(one, events=tuple(
            replace(e, sample_rate=0.2) for e in one.events))),)),
    Row("another clipping norm", "mechanism", "clipping norm 2",
        (everywhere(lambda one: replace(one, events=tuple(
            replace(e, clipping_norm=2.0) for e in one.events))),)),
    Row("a step not counted", "mechanism", "5 steps are on account, 3 rounds took 6",
        (everywhere(lambda one: priced(one, events=(EVENT.times(
            min(5, STEPS * one.round_number)),))),)),
    Row("a round not written down", "mechanism", "without writing down",
        (omit(SILO, r.PrivacySpent, 2),)),
    Row("another unit than the plan's", "mechanism", "per patient",
        (change(SILO, r.LedgerOpened, unit="patient"),)),
    Row("another delta than the plan's", "mechanism", "delta 0.001",
        (change(SILO, r.LedgerOpened, delta=1e-3),)),
    Row("a ledger set back", "ledgers", "set back",
        (lying(3, ledger_size=4, ledger_head=digest("ledger", 1)),
         change(AGGREGATOR, r.LedgerSeen, 3))),
    Row("a ledger rewritten", "ledgers", "set back",
        (lying(3, ledger_size=7, ledger_head=digest("other")),)),
    Row("a head that only the aggregator knows", "ledgers", "does not know",
        (repeat(AGGREGATOR, r.LedgerSeen, 2, silo=SILO, size=99),)),
    Row("no ledger", "ledgers", "opened no ledger", (omit(SILO, r.LedgerOpened),)),
    Row("another data set in the middle", "ledgers", "different data sets",
        (repeat(SILO, r.LedgerOpened, commitment=digest("other")),)),
    Row("a new account", "ledgers", "opened a new account",
        (change(SILO, r.LedgerOpened, fresh=True),), Severity.WARN),
    Row("a fixed seed", "randomness", "fixed seed",
        (change(SILO, r.LedgerOpened, randomness="insecure-seed"),)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_lie_about_the_budget_is_found(tmp_path, row):
    actions = private_script()
    for edit in row.lie:
        actions = edit(actions)
    audit = audit_of(tmp_path / "run", private_parties(), actions)
    found = [
        f
        for f in audit.findings
        if f.check == row.check and f.severity == row.severity and f.party == SILO
    ]
    assert any(row.words in f.statement for f in found), [
        f.statement for f in audit.findings if f.severity != Severity.PASS
    ]


def test_more_than_the_target_fails(tmp_path):
    price = epsilon((EVENT.times(ROUNDS * STEPS),), DELTA)
    parties = private_parties(epsilon=0.9 * price)
    audit = audit_of(tmp_path / "run", parties, private_script())
    failed = [f for f in audit.findings if f.check == "epsilon"]
    assert {f.severity for f in failed} == {Severity.FAIL}
    assert all("the plan permits" in f.statement for f in failed)


def test_steps_repeated_after_a_crash_are_no_lie(tmp_path):  # spare_steps permit it
    actions = [
        (party, replace(spent(item.round_number, steps=2 * item.round_number + 7),
                        ledger_head=item.ledger_head))
        if party == SILO and isinstance(item, r.PrivacySpent)
        else (party, item)
        for party, item in private_script()
    ]  # fmt: skip
    audit = audit_of(tmp_path / "run", private_parties(spare_steps=7), actions)
    assert not audit.with_severity(Severity.FAIL)
    (mine,) = [s for s in spendings(audit.accounts) if s.silo == SILO]
    assert mine.steps == 13


def test_without_a_silos_transcript_its_price_is_not_claimed(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, private_parties(), private_script())
    shutil.rmtree(folder / "silos" / SILO)
    audit = run_audit(load_evidence(folder, None))
    (finding,) = [f for f in audit.findings if f.check == "privacy"]
    assert finding.severity == Severity.WARN
    assert SILO in finding.evidence
    assert "missing" in make_content(audit)["privacy"]["claim"]


def test_nothing_may_be_quoted_of_a_run_that_failed(tmp_path):
    actions = change(SILO, r.LedgerOpened, randomness="insecure-seed")(private_script())
    audit = audit_of(tmp_path / "run", private_parties(), actions)
    (finding,) = [f for f in audit.findings if f.check == "privacy"]
    assert finding.severity == Severity.FAIL
    content = make_content(audit)
    assert content["privacy"]["claim"].startswith("No epsilon may be quoted")
    said = " ".join(content["verdict"]["sentences"])
    assert "No epsilon may be quoted" in said
    assert "is bounded" not in said


def test_a_silo_that_trained_nothing_has_spent_nothing(tmp_path):
    def absent(actions):
        kinds = (r.PrivacySpent, r.Masked, r.Survivors, r.Confirmed, r.Revealed)
        return [
            (party, item)
            for party, item in actions
            if not (party == SILO and isinstance(item, kinds))
            and not (isinstance(item, r.LedgerSeen | r.Masked) and item.silo == SILO)
        ]

    audit = audit_of(tmp_path / "run", private_parties(), absent(private_script()))
    (mine,) = [s for s in spendings(audit.accounts) if s.silo == SILO]
    assert (mine.steps, mine.epsilon) == (0, 0.0)
    assert "missing" not in make_content(audit)["privacy"]["claim"]


def test_without_the_aggregators_transcript_ledgers_are_the_silos_word(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, private_parties(), private_script())
    shutil.rmtree(folder / "aggregator")
    audit = run_audit(load_evidence(folder, None))
    found = [f for f in audit.findings if f.check == "ledgers"]
    assert [f.severity for f in found] == [Severity.WARN]


def test_public_data_is_printed(tmp_path):
    parties = private_parties()
    plan = parties.plan
    names = {field.name for field in dataclasses.fields(plan) if field.init}
    fields = {name: getattr(plan, name) for name in names}
    initial = InitialConfig(name="faces of the web", sha256="ab" * 32)
    changed = type(plan)(**(fields | {"initial": initial}))
    audit = audit_of(tmp_path / "run", Parties(changed, parties.keys), private_script())
    html = render_html(make_content(audit))
    assert "public data: faces of the web" in html
