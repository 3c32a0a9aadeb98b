import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.errors import UnreadableSamples
from audits.evidence import load_evidence
from audits.report.content import make_content
from audits.report.figures.rounds import draw_round_bytes
from audits.report.inputs import Inputs
from audits.report.page import (
    MAX_ROUNDS_SHOWN,
    render_html,
    shorten,
    words,
    write_report,
)
from audits.report.plan_words import plan_in_brief
from audits.report.samples import MAX_SAMPLES_BYTES, load_samples
from audits.report.units import format_bytes, format_share
from protocol import records as r
from protocol.encoding import decode
from protocol.update_settings import ProtectionConfig
from tests.audits.evidence_builder import (
    AGGREGATOR,
    Script,
    change,
    make_parties,
    script,
    write_run,
)
from tests.audits.report_inputs import PIXEL

VOID = {"meta", "img", "br", "hr", "link", "path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what a reader could be sent to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.names.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()}"


def content_of(run: Path, actions: Script, **options: str) -> dict:
    write_run(run, make_parties(**options), actions)
    return make_content(run_audit(load_evidence(run)))


def said(content: dict) -> str:
    return " ".join(content["verdict"]["sentences"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "run"
    write_run(run, make_parties(), script(lost={2: "cork"}))
    (run / "samples.png").write_bytes(PIXEL)
    return run


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, str]:
    audit = run_audit(load_evidence(run))
    samples = load_samples(run / "samples.png")
    paths = write_report(audit, Inputs(samples=samples), run / "out")
    return {path.suffix: path.read_text() for path in paths}


def test_the_page_is_well_formed_and_loads_nothing(files: dict[str, str]) -> None:
    page = Page(files[".html"])
    assert "script" not in page.names and "link" not in page.names
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "http:" not in files[".html"] and "https:" not in files[".html"]
    assert "@import" not in files[".html"]
    outside = [u for u in re.findall(r"url\(([^)]*)\)", files[".html"]) if u[0] != "#"]
    assert outside == []
    assert len(set(page.ids)) == len(page.ids)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)


def test_the_page_says_the_verdict_first(files: dict[str, str]) -> None:
    text = files[".html"]
    verdict = text.index("No check failed; 2 reservations to know of.")
    assert (
        verdict
        < text.index("What this audit does not cover")
        < text.index("<h2>Findings")
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_figures_have_words_axes_and_units(files: dict[str, str]) -> None:
    text = files[".html"]
    assert text.count('<svg role="img"') == 6 == text.count("</svg>")
    for said_there in (
        "sent to the aggregator (kB)",
        "Fréchet distance (no unit)",
        "records",
        "samples (%)",
        "FD-small (fashion), 500 samples, reference of 10,000",
        "from 90.50 in round 1 to 30.17 in round 3",
        "all silos together (kB)",
        "Between 2 and 3 updates in a sum; at least 2 are needed.",
    ):
        assert said_there in text
    assert "FID" not in text


def test_the_json_is_canonical_and_says_the_same(files: dict[str, str]) -> None:
    table = decode(files[".json"].encode())
    assert table == json.loads(files[".json"])
    assert table["format"] == 2
    assert table["verdict"]["severity"] == "WARN"
    assert [row["outcome"] for row in table["rounds"]] == ["closed"] * 3
    assert table["rounds"][1]["dropped"] == [{"silo": "cork", "stage": "masked"}]
    assert table["rounds"][1]["survivors"] == ["amsterdam", "basel"]
    assert [row["frechet_distance"] for row in table["evaluations"]] == [
        90.5,
        45.25,
        90.5 / 3,
    ]
    sent = {row["silo"]: row["sent_bytes"] for row in table["disclosures"]}
    assert sent["amsterdam"] - sent["cork"] == 129 + 227  # No confirm, no reveal.
    for row in table["disclosures"]:
        for part in ("stages", "rounds"):
            assert sum(x["sent_bytes"] for x in row[part]) == row["sent_bytes"]
    assert table["samples"]["width"] == 1


def test_the_markdown_says_the_same(files: dict[str, str]) -> None:
    text = files[".md"]
    assert text.startswith("# Audit of three-hospitals\n\n**WARN: No check failed;")
    for sentence in decode(files[".json"].encode())["verdict"]["sentences"]:
        assert sentence in text
    assert "| 2 | closed | 3 | 2 | 2 | 2 | 3 | cork (masked) |" in text
    assert "## 7. Membership inference\n\nNo silo attacked the models" in text
    sha256 = hashlib.sha256(files[".json"].encode()).hexdigest()
    assert sha256 in text and sha256 in files[".html"]


def test_markdown_and_page_have_the_same_sections(files: dict[str, str]) -> None:
    in_page = re.findall(r'<h2 id="section-\d+">(.*?)</h2>', files[".html"])
    in_markdown = re.findall(r"^## (\d+\. .*)$", files[".md"], re.M)
    assert in_page == in_markdown
    assert [int(title.split(".")[0]) for title in in_page] == list(range(1, 17))
    for title, after in zip(in_page, [*in_page[1:], "</main>"], strict=True):
        section = files[".html"].split(f"{title}</h2>")[1].split(after)[0]
        assert len(re.sub(r"<[^>]*>", "", section).split()) > 5, f"{title} says nothing"


def test_a_figure_of_many_rounds_stays_small() -> None:
    def traffic(rounds: int) -> list[dict[str, int]]:
        names = ("sent_bytes", "received_bytes", "vector_bytes", "broadcast_bytes")
        sizes = dict(zip(names, (90, 80, 70, 60), strict=True))
        return [{"round_number": number, **sizes} for number in range(rounds)]

    few, many = draw_round_bytes(traffic(100)), draw_round_bytes(traffic(2_000))
    assert few is not None and many is not None
    assert "updates up 140,000 bytes in all" in many.description
    assert len(many.svg) < 20 * len(few.svg) / 3


def test_commands_stand_as_code_and_nothing_else_does() -> None:
    assert words("run `audits verify` <b>") == (
        "run <code>audits verify</code> &lt;b&gt;"
    )
    assert words("one ` alone") == "one ` alone"


def test_an_honest_masked_run_claims_what_it_can_show(tmp_path: Path) -> None:
    words = said(content_of(tmp_path, script()))
    assert "3 silos trained one model together in 3 of 3 planned rounds." in words
    assert "Each silo sent 123.7 kB to the aggregator, 97.0 % of it masked" in words
    assert "could not read any silo's own update: it opened 3 sums" in words


def test_a_failed_run_claims_nothing(tmp_path: Path) -> None:
    lie = change("cork", r.Masked, 2, upload="00")
    content = content_of(tmp_path, lie(script()))
    assert content["verdict"]["severity"] == "FAIL"
    assert content["verdict"]["headline"].startswith("Do not rely on this run")
    assert said(content).startswith("What failed first: Round 2: cork uploaded another")
    assert "could not read" not in said(content)


def test_a_plain_run_says_that_updates_were_readable(tmp_path: Path) -> None:
    content = content_of(tmp_path, script(method="none"), method="none")
    assert "could read every silo's update" in said(content)
    assert "updates in the clear" in said(content)
    ready = content["disclosures"][0]["stages"][0]
    assert ready["content"].startswith("its update, in the clear; header")
    update = content["disclosures"][0]["ledger"][0]
    assert (update["form"], update["covered_by"]) == ("plain", ["none"])


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    lie = change(AGGREGATOR, r.Evaluated, 3, extractor=evil + "$\\frac{")
    software = change("cork", r.Opened, software=evil)
    content = content_of(tmp_path, software(lie(script())))
    text = render_html(content)
    assert evil not in text and "&lt;script&gt;" in text
    Page(text)


def test_a_report_needs_no_evaluation_and_no_samples(tmp_path: Path) -> None:
    actions = [(p, i) for p, i in script() if not isinstance(i, r.Evaluated)]
    text = render_html(content_of(tmp_path, actions))
    assert "No Fréchet distance was recorded." in text
    assert "<img" not in text
    Page(text)


def test_many_rounds_are_shortened_in_the_middle() -> None:
    rounds = list(range(1000))
    shown = shorten(rounds)
    assert len(shown) == MAX_ROUNDS_SHOWN + 1
    assert (shown[0], shown[30], shown[-1]) == (0, None, 999)
    assert shorten(rounds[:60]) == rounds[:60]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a PNG"),
        (PIXEL[:16], "not a PNG"),
        (b"GIF89a" + b"\x01" * 40, "not a PNG"),
        (PIXEL[:16] + b"\0" * 8 + PIXEL[24:], "0 × 0 pixels"),
        (PIXEL + b"\0" * MAX_SAMPLES_BYTES, "larger than"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "s.png").write_bytes(data)
    with pytest.raises(UnreadableSamples, match=words):
        load_samples(tmp_path / "s.png")


def test_bytes_and_shares_in_words() -> None:
    assert [format_bytes(n) for n in (0, 1, 999, 1000, 12_345, 70_000_000)] == [
        "0 bytes",
        "1 byte",
        "999 bytes",
        "1.00 kB",
        "12.3 kB",
        "70.0 MB",
    ]
    assert format_share(9_999_999, 10_000_000) == "99.9 %"
    assert (format_share(1, 1), format_share(0, 0)) == ("100 %", "0 %")
    assert (format_share(1, 9_999), format_share(1, 3)) == ("< 0.1 %", "33.3 %")


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "up to 0 colluding silos)"), (1, "up to 1 colluding silo)")],
)
def test_colluding_silos_are_counted_in_good_english(number, words):
    protection = ProtectionConfig(max_colluding=number, min_cohort=number + 2)
    plan = replace(make_parties().plan, protection=protection)
    rows = dict(plan_in_brief(plan))
    assert words in rows["Protection"]
