"""Probes, canaries and rehearsals in a report, and who may read them."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from audits.audit import run_audit
from audits.cli import main
from audits.errors import UnreadableExtra
from audits.evidence import load_evidence
from audits.report import content as content_module
from audits.report.canaries import load_power
from audits.report.classes import TABLE, apply_class
from audits.report.content import make_content
from audits.report.curves import attack_profile
from audits.report.figures.everything import draw_all
from audits.report.inputs import load_inputs
from audits.report.markdown import render_markdown
from audits.report.page import render_html
from audits.report.probes import check_probes, profiles
from privacy.attack_statistics import ceiling, group_of_two
from tests.audits.evidence_builder import (
    SILOS,
    Parties,
    digest,
    make_parties,
    script,
    write_run,
)
from tests.audits.json_schema import errors
from tests.audits.report_inputs import (
    analysis,
    attack,
    probe,
    write_probe,
    write_rehearsal,
)
from tests.audits.test_budget import private_parties, private_script

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "report.schema.json").read_text()
)
MODEL = digest("average", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Parties]:
    """A run without differential privacy, with a probe and a rehearsal."""
    run, parties = tmp_path_factory.mktemp("inputs") / "run", make_parties()
    write_run(run, parties, script())
    plan = parties.plan.digest.hex()
    found = probe(plan, "basel", MODEL)
    write_probe(run / "probe-basel.json", found, parties.keys["basel"])
    write_rehearsal(run / "rehearsal.json", plan)
    return run, parties


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """The audit of a run with differential privacy, and its plan's digest."""
    run, parties = tmp_path_factory.mktemp("private") / "run", private_parties()
    write_run(run, parties, private_script())
    evidence = load_evidence(run)
    return run_audit(evidence), parties


@pytest.fixture(scope="module")
def _content(private):
    return make_content(private[0])


@pytest.fixture
def content(_content):
    """The content of the private run's public report; it may be changed."""
    return deepcopy(_content)


def report(run: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["report", str(run), *map(str, options)])


def findings_of(run: Path) -> list[tuple[str, str]]:
    inputs = load_inputs(load_evidence(run))
    return [(str(f.severity), f.statement) for f in inputs.findings]


class TestClasses:
    def test_the_public_report_leaves_out_what_is_not_private(self, made, tmp_path):
        result = report(made[0], "--out", tmp_path)
        assert result.stderr == ""
        table = json.loads((tmp_path / "report.json").read_text())
        assert table["class"] == "public"
        assert table["membership"] is None and table["memorisation"] is None
        page = (tmp_path / "report.html").read_text()
        for name in ("report.json", "report.html", "report.md"):
            text = (tmp_path / name).read_text()
            assert "AUC" not in text.replace("Attack AUC", "") and "auc" not in text
        assert "Not in this report: it depends on real images" in page
        assert "Left out of this public report, membership inference" in page

    def test_the_internal_one_shows_it_under_another_name(self, made, tmp_path):
        result = report(made[0], "--class", "silo-internal", "--out", tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [f"report-internal.{end}" for end in ("html", "json", "md")]
        page = (tmp_path / "report-internal.html").read_text()
        sentence = "no differential privacy covers. It is not for readers outside"
        assert sentence in page and sentence in result.stderr
        assert "Attacks of basel on the global model." in page
        assert "Positive control: overfitted on purpose" in page
        assert "No epsilon bounds these attacks." in page
        assert "(2 of 2,000)" in page

    def test_an_operator_may_publish_it_and_says_so(self, made, tmp_path):
        result = report(made[0], "--include-unprotected", "--out", tmp_path)
        sentence = "Public, by decision of its operator (--include-unprotected)."
        assert sentence in result.stderr
        for name in ("report.html", "report.md", "report.json"):
            assert sentence in (tmp_path / name).read_text()
        assert json.loads((tmp_path / "report.json").read_text())["membership"]

    @pytest.mark.parametrize("rule", TABLE, ids=lambda rule: rule.title)
    def test_each_row_of_the_table_takes_something_out(self, rule, made):
        audit = run_audit(load_evidence(made[0]))
        content = make_content(
            audit, load_inputs(audit.evidence), report_class="silo-internal"
        )
        loss = {"loss_before": 1.0, "loss_after": 0.5}
        content["calibration"] = {"rounds": [loss]}
        content["canaries"]["silos"] = [{"form": "input"}, {"form": "gradient"}]
        plan = SimpleNamespace(
            privacy=SimpleNamespace(is_private=False),
            calibration=SimpleNamespace(images="silo-models"),
            evaluation=SimpleNamespace(is_asked_for=False),
        )
        assert rule.concerns(plan, content)
        public = apply_class(plan, content, "public")
        assert rule.title in [row["what"] for row in public["withheld"]]
        before = apply_class(plan, content, "silo-internal")
        assert public["unprotected"] == before["withheld"] == []
        after = deepcopy(before)
        rule.strip(after)
        assert after != before


class TestProbes:
    def test_a_signed_probe_below_the_run_is_found(self, made):
        assert findings_of(made[0]) == [
            ("PASS", "1 probe of this run, signed by basel.")
        ]

    def test_one_with_a_wrong_signature_fails_the_report(self, made, tmp_path):
        run, parties = made
        path = write_probe(
            tmp_path / "probe.json",
            probe(parties.plan.digest.hex(), "cork", MODEL),
            parties.keys["basel"],
        )
        result = report(run, "--probe", path, "--out", tmp_path)
        assert result.exit_code == 2
        assert "choose another file with --probe" in result.stderr
        assert len(result.stderr.splitlines()) == 1

        lost = run / "silos" / "probe-cork.json"
        lost.write_bytes(path.read_bytes())
        try:
            assert findings_of(run)[1][0] == "FAIL"
            result = report(run, "--out", tmp_path)
            assert result.exit_code == 1
            assert result.stdout.splitlines()[-1].startswith("FAIL: ")
        finally:
            lost.unlink()

    def test_one_of_another_run_is_left_out_and_said(self, made, tmp_path):
        run, parties = made
        path = run / "probe-other.json"
        write_probe(path, probe("00" * 32, "cork", MODEL), parties.keys["cork"])
        try:
            ((_, _), (severity, statement)) = findings_of(run)
        finally:
            path.unlink()
        assert severity == "WARN" and "about another run" in statement

    def test_one_of_another_model_is_doubted(self, private):
        audit, parties = private
        report = probe(parties.plan.digest.hex(), "cork", "ee" * 32)
        (found,) = check_probes(audit, [report], {})
        assert (found.severity, found.party) == ("WARN", "cork")

    def test_an_attack_above_the_ceiling_is_doubtful(self, private):
        """No failure: held-out images of another kind do the same."""
        audit, parties = private
        plan = parties.plan.digest.hex()
        good = probe(plan, "cork", MODEL, mu=0.1, ceiling=2.0)
        bounds = profiles(audit.accounts, [good])
        assert check_probes(audit, [good], bounds) == []
        beaten = probe(plan, "cork", MODEL, mu=3.0, ceiling=2.0)
        found = check_probes(audit, [beaten], bounds)
        assert {finding.severity for finding in found} == {"WARN"}
        assert all("another kind" in finding.statement for finding in found)
        assert all("control" not in finding.statement for finding in found)
        # Without a guarantee there is nothing to beat.
        free = probe(plan, "cork", MODEL, mu=3.0)
        assert check_probes(audit, [free], bounds) == []

    def test_an_image_of_a_patient_is_two_units(self, private):
        """As the probe itself says: one image in the place of none, of a patient."""
        accounts = private[0].accounts
        plan, silos = accounts.plan, accounts.silos
        privacy = SimpleNamespace(mechanism="dp-sgd", unit="patient")
        patients = SimpleNamespace(privacy=privacy, initial=plan.initial)
        of_images = attack_profile(accounts, "cork")
        changed = SimpleNamespace(plan=patients, silos=silos)
        of_patients = attack_profile(changed, "cork")
        assert of_patients[1] == list(group_of_two(*of_images[1]))
        assert ceiling(0.01, of_patients) > 1.5 * ceiling(0.01, of_images)
        privacy.mechanism = "example-in-sum"
        assert attack_profile(changed, "cork") == []

    def test_the_ceiling_stands_beside_the_attack(self, private):
        audit, parties = private
        probes = (probe(parties.plan.digest.hex(), "cork", MODEL, ceiling=2.0),)
        inputs = replace(content_module.NO_INPUTS, probes=probes)
        content = make_content(audit, inputs, report_class="silo-internal")
        first, control = content["membership"]
        assert first["ceiling"] == content["privacy"]["trade_off"]
        points = first["attacks"][0]["true_positives"]
        at = [[row["fpr"], row["ceiling"]] for row in points]
        assert at == content["privacy"]["ceilings"][:2]
        assert control["ceiling"] == [] and control["target"] == "control"
        page = render_html(content)
        assert page.count("with the ceiling of epsilon") == 1
        assert page.count("without the ceiling of epsilon") == 1

    def test_a_control_that_resists_is_said(self, private):
        audit, parties = private
        weak = replace(
            probe(parties.plan.digest.hex(), "cork", MODEL),
            attacks=(attack("loss", "global", 0.1), attack("loss", "control", 0.2)),
        )
        inputs = replace(content_module.NO_INPUTS, probes=(weak,))
        content = make_content(audit, inputs, report_class="silo-internal")
        assert "the other results say nothing" in render_markdown(content)


class TestCanaries:
    def shown(self, audit, monkeypatch, **changes) -> tuple[dict, str]:
        made = (analysis("cork", **changes),)
        monkeypatch.setattr(content_module, "analyse_canaries", lambda accounts: made)
        content = make_content(audit)
        return content, render_markdown(content)

    def test_a_pass_is_no_proof(self, private, monkeypatch):
        content, page = self.shown(private[0], monkeypatch)
        assert "No violation was found. That is no proof" in page
        assert "at least 2.9" in page and "about 9.4" in page
        assert "empirical" not in page
        drawn = draw_all(content)
        assert "100 planted canaries with a mean score of 2" in (
            drawn["canary-scores-0"].description
        )
        assert "claimed 10" in drawn["canary-bounds-0"].description
        assert list(errors(content, SCHEMA, SCHEMA)) == []

    def test_what_refutes_the_claim_is_said(self, private, monkeypatch):
        _, page = self.shown(private[0], monkeypatch, refuted=("noise: too small",))
        assert "The canaries contradict the claim:" in page
        assert "No violation was found" not in page

    def test_what_may_be_chance_is_said(self, private, monkeypatch):
        _, page = self.shown(private[0], monkeypatch, doubtful=("one-run",))
        assert "Above the claim, which may be chance: one-run." in page

    def test_input_canaries_without_privacy_are_internal(self, made, monkeypatch):
        audit = run_audit(load_evidence(made[0]))
        changes = {"form": "input", "claimed_epsilon": None}
        content, page = self.shown(audit, monkeypatch, **changes)
        assert content["canaries"]["silos"] == []
        assert "scores of input canaries" in page

    def test_what_they_bound_is_internal_too(self, made):
        """The finding's evidence has bounds that were computed from the losses."""
        audit = run_audit(load_evidence(made[0]))
        lines = ("cork, 30 input canaries, 17 included: …", "cork: found among …")
        seen = replace(audit.findings[0], check="canaries", evidence=lines)
        content = make_content(replace(audit, findings=(seen,)))
        rows = {"canaries": {"silos": [{"form": "input"}]}, "findings": [
            {"check": "canaries", "evidence": list(lines)}]}  # fmt: skip
        rule = next(each for each in TABLE if "canaries" in each.title)
        assert rule.concerns(audit.evidence.plan, content | rows)
        rule.strip(rows)
        assert rows["findings"][0]["evidence"] == [lines[1]]

    def test_the_power_table_was_measured(self):
        table = load_power()
        assert table is not None and table["rows"]
        assert {row["mutation"] for row in table["rows"]} >= {"none"}
        assert all(0 <= row["caught"] <= row["runs"] for row in table["rows"])


class TestRehearsal:
    def test_an_attack_that_fails_where_it_should_not_is_said(self, made):
        """Few steps find nothing in a plain update: then masks are not the reason."""
        evidence = load_evidence(made[0])
        inputs = load_inputs(evidence)
        said = "found nothing elsewhere says nothing"
        audit = run_audit(evidence)
        assert said not in render_markdown(make_content(audit, inputs))
        views = tuple(
            replace(view, psnr=(8.0,), psnr_guess=(11.0,))
            for view in inputs.rehearsal.views
        )
        weak = replace(inputs, rehearsal=replace(inputs.rehearsal, views=views))
        assert said in render_markdown(make_content(audit, weak))

    def test_one_of_ciphertexts_speaks_of_encryption(self, made):
        evidence = load_evidence(made[0])
        inputs, audit = load_inputs(evidence), run_audit(evidence)
        assert "Are masked values uniform?" in render_markdown(
            make_content(audit, inputs)
        )
        found = inputs.rehearsal
        views = (found.views[0], replace(found.views[1], name="encrypted update"))
        tests = [
            replace(found.uniformity[0], words=words)
            for words in ("encrypted", "not encrypted")
        ]
        found = replace(found, views=views, uniformity=tuple(tests))
        content = make_content(audit, replace(inputs, rehearsal=found))
        said = render_markdown(content)
        assert "Are encrypted values uniform?" in said
        assert "Encrypted update, worst case" in said
        assert "| not encrypted |" in said and "| not masked |" not in said
        part = SCHEMA["properties"]["rehearsal"]
        assert list(errors(content["rehearsal"], part, SCHEMA)) == []

    def test_its_views_and_pictures_are_shown(self, made, tmp_path):
        report(made[0], "--out", tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert "Plain update, worst case" in page
        assert page.count("data:image/png;base64,") == 1
        assert "24.5 dB in the mean of 2 images" in page
        assert "Kolmogorov-Smirnov" in page
        table = json.loads((tmp_path / "report.json").read_text())
        assert table["rehearsal"]["is_of_this_plan"]
        assert "picture" not in table["rehearsal"] and len(page) < 400_000

    def test_one_that_is_none_is_one_line(self, made, tmp_path):
        path = tmp_path / "r.json"
        path.write_text("{}")
        result = report(made[0], "--rehearsal", path, "--out", tmp_path)
        assert result.exit_code == 2 and result.stderr.startswith("error: ")
        with pytest.raises(UnreadableExtra, match=r"r\.json"):
            load_inputs(load_evidence(made[0]), rehearsal=path)


class TestSchema:
    @pytest.mark.parametrize("report_class", ["public", "silo-internal"])
    def test_it_describes_a_run_without_privacy(self, made, report_class):
        audit = run_audit(load_evidence(made[0]))
        inputs = load_inputs(audit.evidence)
        content = make_content(audit, inputs, report_class=report_class)
        assert list(errors(content, SCHEMA, SCHEMA)) == []

    def test_it_describes_a_private_run(self, content):
        assert content["privacy"]["over_rounds"]
        assert list(errors(content, SCHEMA, SCHEMA)) == []

    @pytest.mark.parametrize(
        ("change", "where"),
        [
            (lambda c: c.pop("limits"), "$: required"),
            (lambda c: c.update(more=1), "$.more: unknown"),
            (lambda c: c.update(format=1), "$.format: const"),
            (lambda c: c["run"].update(plan_digest="xy"), "$.run.plan_digest: pattern"),
            (lambda c: c["rounds"][0].update(cohort=-1), "cohort: minimum"),
            (lambda c: c["findings"][0].update(severity="OK"), "severity: enum"),
            (lambda c: c["verdict"].update(headline=None), "headline: type"),
        ],
    )
    def test_it_refuses_what_is_not_so(self, content, change, where):
        change(content)
        assert any(where in error for error in errors(content, SCHEMA, SCHEMA))

    def test_every_definition_is_used(self):
        text = json.dumps({k: v for k, v in SCHEMA.items() if k != "$defs"})
        text += json.dumps(SCHEMA["$defs"])
        for name in SCHEMA["$defs"]:
            assert f'"#/$defs/{name}"' in text


def test_epsilon_over_rounds_ends_at_what_was_spent(content):
    privacy = content["privacy"]
    for line in privacy["over_rounds"]:
        numbers, prices = zip(*line["points"], strict=True)
        assert numbers == (1, 2, 3) and list(prices) == sorted(prices)
        assert prices[-1] == privacy["budget"]["spent"]
    deltas = [delta for _, delta in privacy["profile"]]
    assert deltas == sorted(deltas, reverse=True) and len(deltas) > 50
    assert all(tpr >= fpr for fpr, tpr in privacy["trade_off"])


def test_the_claim_names_its_parts(content):
    facts = dict(content["verdict"]["claim"])
    assert set(facts) >= {"Privacy unit", "Epsilon", "Delta", "Against", "Rounds"}
    assert "added to or removed" in facts["Neighbouring data sets"]


def _states(content: dict) -> dict[str, str]:
    return {row["pitfall"]: row["state"] for row in content["checklist"]}


def test_pitfalls_are_held_against_the_run(made, content):
    audit = run_audit(load_evidence(made[0]))
    open_run = _states(make_content(audit))
    closed = _states(content)
    assert open_run["No differential privacy"] == "present"
    assert closed["No differential privacy"] == "avoided"
    assert closed["Noise from a seed that somebody knows"] == "avoided"
    assert closed["Steps that are not counted"] == "avoided"
    assert closed["The same people in several silos"] == "unknown"
    assert len(SILOS) == 3 and closed["Too few updates in a sum"] == "present"
