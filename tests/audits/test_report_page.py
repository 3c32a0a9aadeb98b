"""The pages in a real browser, where one is installed: console, and width."""

from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.report.compare import Compared, compare_content, write_comparison
from audits.report.inputs import load_inputs
from audits.report.page import write_report
from audits.report.samples import load_samples
from tests.audits.chromium import WIDTHS, find_chromium, show
from tests.audits.report_inputs import PIXEL, probe, write_probe, write_rehearsal
from tests.audits.test_budget import private_parties, private_script
from tests.audits.test_report_inputs import MODEL

CHROMIUM = find_chromium()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A report with everything in it, and a comparison."""
    from tests.audits.evidence_builder import write_run

    run, parties = tmp_path_factory.mktemp("page") / "run", private_parties()
    write_run(run, parties, private_script())
    plan = parties.plan.digest.hex()
    found = probe(plan, "basel", MODEL, ceiling=2.0)
    write_probe(run / "probe.json", found, parties.keys["basel"])
    write_rehearsal(run / "rehearsal.json", plan)
    (run / "samples.png").write_bytes(PIXEL)
    evidence = load_evidence(run)
    audit = run_audit(evidence)
    inputs = load_inputs(evidence, samples=load_samples(run / "samples.png"))
    report = write_report(audit, inputs, run, report_class="silo-internal")[0]
    compared = [Compared(str(run), audit, inputs), Compared("x" * 80, audit, inputs)]
    return [report.read_text(), _comparison(compared, run).read_text()]


def _comparison(compared: list[Compared], out: Path) -> Path:
    content = compare_content(compared, report_class="silo-internal")
    return write_comparison(content, out)[0]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_pages_fit_their_screens_and_their_consoles_are_silent(
    pages: list[str],
) -> None:
    broken = (
        "<!doctype html><body><h2>x</h2><div style='width:2000px'>x</div>"
        "<script>console.error('as it should')</script></body>"
    )
    shown, console = show(str(CHROMIUM), [*pages, broken])
    assert len(shown) == 3 * len(WIDTHS)
    fitting, too_wide = shown[: -len(WIDTHS)], shown[-len(WIDTHS) :]
    for each in fitting:
        assert each.scroll_width <= each.width, each.wide
        assert each.wide == ""
    assert [each.num_headings for each in fitting[: len(WIDTHS)]] == [19, 19]
    # The page that is broken on purpose shows that all of this is seen.
    assert all(each.scroll_width > each.width for each in too_wide)
    assert all("as it should" in line for line in console), console
    assert len(console) == len(WIDTHS)
