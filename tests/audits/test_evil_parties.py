"""What an evil aggregator, an evil silo, or both together could do to the evidence.

Rows as in ``test_tampering.py``, which has the table of single alterations. What must
pass stands at the end, and what is refused before anything is read.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import protocol.transcript
from audits.audit import run_audit
from audits.errors import UnreadableTranscript
from audits.evidence import load_evidence
from audits.findings import Severity
from protocol import records as r
from protocol.audit_records import Connected
from protocol.plan import make_plan
from protocol.plan_files import save_plan
from protocol.transcript import HEADS_FILE, RECORDS_FILE, TranscriptWriter, read_records
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Parties,
    Script,
    SeeHead,
    change,
    digest,
    find,
    folder_of,
    make_parties,
    repeat,
    script,
    write_run,
)
from tests.audits.test_tampering import (
    Row,
    Tamper,
    everywhere,
    matches,
    on_lines,
    resign,
)


def both(*tampers: Tamper) -> Tamper:
    def tamper(run: Path, parties: Parties) -> None:
        for one in tampers:
            one(run, parties)

    return tamper


def without(silo: str) -> Callable[[Script], Script]:
    """Return an edit that forgets a silo: every record that names it, or the name."""

    def edit(actions: Script) -> Script:
        kept: Script = []
        for party, item in actions:
            if getattr(item, "silo", "") == silo:
                continue
            changes = {
                name: tuple(each for each in getattr(item, name) if each != silo)
                for name in ("silos", "survivors", "members", "self_masks_of")
                if silo in getattr(item, name, ())
            }
            kept.append((party, replace(item, **changes)))  # type: ignore[type-var]
        return kept

    return edit


def gone(silo: str) -> Tamper:
    return lambda run, parties: shutil.rmtree(folder_of(run, silo))


def heads_over_nothing(party: str) -> Tamper:
    """Replace all heads by one that signs no record, as its party may."""

    def tamper(run: Path, parties: Parties) -> None:
        with TranscriptWriter(
            run.parent / "empty",
            party=party,
            plan_digest=parties.plan.digest,
            identity=parties.keys[party],
        ) as writer:
            writer.sign_head()
        shutil.copy(run.parent / "empty" / HEADS_FILE, folder_of(run, party))

    return tamper


def exchanged(name: str) -> Tamper:
    """Exchange one file of two silos."""

    def tamper(run: Path, parties: Parties) -> None:
        left, right = (folder_of(run, silo) / name for silo in ("basel", "cork"))
        content = left.read_bytes()
        left.write_bytes(right.read_bytes())
        right.write_bytes(content)

    return tamper


def another_plan(run: Path, parties: Parties) -> None:
    """Put another plan of the same parties in the place of the run's."""
    plan = make_plan(parties.plan, parties.plan.aggregator_key, parties.plan.silos)
    save_plan(run / "plan.toml", plan, parties.keys[AGGREGATOR])


def long_line(run: Path, parties: Parties) -> None:
    """Let a record be as long as nobody's memory; the file is sparse."""
    with (folder_of(run, "cork") / RECORDS_FILE).open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.truncate()
        file.truncate(1 << 26)


def emptied(run: Path, parties: Parties) -> None:
    for name in (RECORDS_FILE, HEADS_FILE):
        (folder_of(run, "cork") / name).write_bytes(b"")


def at_last(party: str, old: bytes, new: bytes) -> Tamper:
    """Replace bytes in a transcript's last record."""
    return on_lines(party, lambda lines: [*lines[:-1], lines[-1].replace(old, new)])


def times(party: str, change_time: Callable[[int], float]) -> Tamper:
    """Write a party's transcript anew with its own key, at other times."""

    def tamper(run: Path, parties: Parties) -> None:
        folder = folder_of(run, party)
        items = [entry.record for entry in read_records(folder)]
        shutil.rmtree(folder)
        with TranscriptWriter(
            folder,
            party=party,
            plan_digest=parties.plan.digest,
            identity=parties.keys[party],
            clock=lambda: change_time(writer.size),
        ) as writer:
            for item in items:
                writer.append(item)
            writer.sign_head()

    return tamper


def no_time(run: Path, parties: Parties) -> None:
    """Write a silo's transcript anew with a text in the place of every time."""
    with pytest.MonkeyPatch.context() as patch:
        text = "2025-13-99T99:99:99Z"
        patch.setattr(protocol.transcript, "_utc", lambda seconds: text)
        times("cork", lambda size: 0.0)(run, parties)


UPLOAD = digest("upload", {"round_number": 2, "setup": 1, "slot": 1}, "basel")

FILES = (
    Row(
        "one silo's transcript and all mentions of it removed",
        "heads-seen",
        AGGREGATOR,
        "two versions",
        tamper=both(
            gone("cork"), resign(AGGREGATOR, own_key=True, edit=without("cork"))
        ),
    ),
    Row(
        "aggregator and a silo rewrite an upload together",
        "heads-seen",
        AGGREGATOR,
        "two versions",
        tamper=both(
            *(
                resign(p, own_key=True, edit=change(p, r.Masked, 2, upload=digest("x")))
                for p in (AGGREGATOR, "amsterdam")
            )
        ),
    ),
    Row(
        "aggregator rewrites whom a round was closed with",
        "heads-seen",
        AGGREGATOR,
        "two versions",
        tamper=resign(
            AGGREGATOR,
            own_key=True,
            edit=change(AGGREGATOR, r.RoundClosed, 1, parameters=digest("mine")),
        ),
    ),
    Row(
        "aggregator's heads left, its records another run's",
        "records",
        AGGREGATOR,
        "altered, inserted or removed between record 0",
        tamper=on_lines(
            AGGREGATOR,
            lambda lines: (
                [lines[0].replace(b"cloister test", b"cloister best"), *lines[1:]]
            ),
        ),
    ),
    Row(
        "a head over no record in the place of all",
        "signatures",
        "basel",
        "signed no head over any record",
        tamper=heads_over_nothing("basel"),
    ),
    Row(
        "records of two silos exchanged",
        "records",
        "basel",
        "altered, inserted or removed",
        tamper=exchanged(RECORDS_FILE),
    ),
    Row(
        "records of two silos exchanged: the other one",
        "opened",
        "cork",
        "names another party, basel",
        tamper=exchanged(RECORDS_FILE),
    ),
    Row(
        "another plan of the same parties",
        "signatures",
        "amsterdam",
        "not for this plan",
        tamper=another_plan,
    ),
    Row(
        "a transcript emptied",
        "present",
        "silos/cork/state/transcript",
        "it names no party",
        tamper=emptied,
    ),
    Row(
        "a line longer than memory",
        "records",
        "cork",
        "is cut off",
        tamper=long_line,
    ),
    Row(
        "bytes that are no text",
        "records",
        "cork",
        "not valid JSON",
        tamper=at_last("cork", b"end", b"\xff\xfe\x00"),
    ),
    Row(
        "a number of five thousand digits",
        "records",
        "cork",
        "record 41: not valid JSON",
        tamper=at_last("cork", b'"sent_bytes":300', b'"sent_bytes":' + b"9" * 5000),
    ),
    Row(
        "a value nested too deeply",
        "records",
        "cork",
        "record 41: ",
        tamper=at_last("cork", b'"end"', b"[" * 100_000 + b"]" * 100_000),
    ),
    Row(
        "a name twice in one record",
        "records",
        "cork",
        "not in canonical form",
        tamper=at_last("cork", b'"kind":', b'"kind":"finished","kind":'),
    ),
    Row(
        "a time that is none",
        "times",
        "cork",
        "record 0: '2025-13-99T99:99:99Z' is no time",
        tamper=no_time,
    ),
    Row(
        "a record between two lines' ends",
        "records",
        "cork",
        "record 1: not valid JSON",
        tamper=on_lines("cork", lambda lines: [lines[0], b"\n", *lines[1:]]),
    ),
)


def silo_claims(kind: r.Record) -> Callable[[Script], Script]:
    """Let a silo write a record that is not its to write."""

    def edit(actions: Script) -> Script:
        index = find(actions, "cork", r.Masked, 2)
        return [*actions[:index], ("cork", kind), *actions[index:]]

    return edit


def forked(actions: Script) -> Script:
    """The aggregator shows one silo, in one round, the head of another history."""
    index = next(
        i
        for i, (party, item) in enumerate(actions)
        if party == "basel" and isinstance(item, SeeHead) and item.round_number == 2
    )
    return [*actions[:index], ("basel", FORK), *actions[index + 1 :]]


FORK = r.HeadSeen(round_number=2, size=9, root="", signature="")
SPENT = r.PrivacySpent(
    round_number=2,
    ledger_size=1,
    ledger_head=digest("ledger"),
    multiplicity=1,
    events=(),
    earlier=(),
    epsilon=0.0,
    epsilon_prv=0.0,
    prv_error=0.0,
    account_epsilon=0.0,
)
CLOSED = r.RoundClosed(
    round_number=2, survivors=SILOS, parameters=digest("parameters", 2)
)

LIES = (
    Row(
        "a silo closes a round",
        "plausible",
        "cork",
        "only the aggregator writes `round-closed`",
        lie=(silo_claims(CLOSED),),
    ),
    Row(
        "a silo speaks of another's traffic",
        "plausible",
        "cork",
        "it is cork's transcript, and speaks for basel",
        lie=(repeat("cork", r.Traffic, 2, silo="basel"),),
    ),
    Row(
        "a silo records another's upload",
        "plausible",
        "cork",
        "speaks for basel",
        lie=(change("cork", r.Masked, 2, silo="basel"),),
    ),
    Row(
        "a silo reveals in another's name",
        "plausible",
        "cork",
        "speaks for basel",
        lie=(change("cork", r.Revealed, 2, silos=("basel", "cork")),),
    ),
    Row(
        "the aggregator keeps a silo's ledger",
        "plausible",
        AGGREGATOR,
        "only a silo writes `privacy-spent`",
        lie=(
            lambda actions: [
                *actions[: find(actions, AGGREGATOR, r.RoundClosed, 2)],
                (AGGREGATOR, SPENT),
                *actions[find(actions, AGGREGATOR, r.RoundClosed, 2) :],
            ],
        ),
    ),
    Row(
        "one upload in two slots, both ends agree",
        "slots",
        "basel",
        "one message in two slots",
        lie=(
            change("basel", r.Masked, 3, upload=UPLOAD),
            lambda actions: [
                (
                    party,
                    replace(item, upload=UPLOAD)
                    if party == AGGREGATOR
                    and isinstance(item, r.Masked)
                    and (item.silo, item.round_number) == ("basel", 3)
                    else item,
                )
                for party, item in actions
            ],
        ),
    ),
    Row(
        "bytes in a stage that no run has",
        "disclosures",
        "cork",
        "160 bytes of cork left in stage 'extra'",
        lie=tuple(
            repeat(party, r.Traffic, 2, silo="cork", stage="extra", sent_bytes=160)
            for party in ("cork", AGGREGATOR)
        ),
    ),
    Row(
        "a vector where the plan lets none leave",
        "disclosures",
        "cork",
        "a vector of 150 bytes of cork left in stage 'ready'",
        lie=tuple(
            repeat(
                party,
                r.Traffic,
                2,
                silo="cork",
                stage="ready",
                sent_bytes=160,
                vector_bytes=150,
            )
            for party in ("cork", AGGREGATOR)
        ),
    ),
    Row(
        "both ends keep quiet about the bytes of an upload",
        "disclosures",
        "cork",
        "40,160 bytes of cork left in stage masked; 0 are counted",
        lie=(
            lambda actions: [
                (party, item)
                for party, item in actions
                if not (
                    isinstance(item, r.Traffic)
                    and (item.silo, item.stage, item.round_number)
                    == ("cork", "masked", 2)
                )
            ],
        ),
    ),
    Row(
        "more bytes of connections than can be",
        "plausible",
        "cork",
        "frame_bytes is",
        lie=(
            silo_claims(
                Connected(
                    transport="-",
                    sent_bytes=1,
                    received_bytes=1,
                    frame_bytes=1 << 60,
                )
            ),
        ),
    ),
    Row(
        "a silo finishes before the others began",
        "ending",
        "cork",
        "the run goes on at record",
        lie=(
            silo_claims(
                r.Finished(
                    round_number=3,
                    parameters=digest("parameters", 3),
                    average=digest("average", 3),
                )
            ),
        ),
    ),
    Row(
        "all say that a silo survived which revealed nothing of itself",
        "revealed",
        "cork",
        "the wrong kind of share",
        lie=everywhere(r.Revealed, 2, self_masks_of=SILOS[:2], slot_keys_of=SILOS[2:]),
    ),
)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return make_parties()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, parties: Parties) -> Path:
    run = tmp_path_factory.mktemp("honest") / "run"
    write_run(run, parties, script())
    return run


@pytest.mark.parametrize("row", FILES, ids=lambda row: row.name)
def test_what_is_done_to_files_is_found_and_named(
    row: Row, honest: Path, parties: Parties, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    assert row.tamper is not None
    row.tamper(run, parties)
    failed = run_audit(load_evidence(run)).with_severity(Severity.FAIL)
    assert any(matches(row, finding) for finding in failed), failed


@pytest.mark.parametrize("row", LIES, ids=lambda row: row.name)
def test_what_parties_say_together_is_found_and_named(
    row: Row, parties: Parties, tmp_path: Path
) -> None:
    actions = script()
    for lie in row.lie:
        actions = lie(actions)
    write_run(tmp_path, parties, actions)
    failed = run_audit(load_evidence(tmp_path)).with_severity(Severity.FAIL)
    assert any(matches(row, finding) for finding in failed), failed


def test_a_history_shown_to_one_silo_alone_is_found(
    parties: Parties, tmp_path: Path
) -> None:
    """Both heads are signed by the aggregator; only one fits its transcript."""
    folder = tmp_path / "fork"
    with TranscriptWriter(
        folder,
        party=AGGREGATOR,
        plan_digest=parties.plan.digest,
        identity=parties.keys[AGGREGATOR],
    ) as writer:
        for number in range(9):
            writer.append(r.Resumed(software=f"fork {number}"))
        head = writer.sign_head()
    shutil.rmtree(folder)
    shown = replace(FORK, root=head.root, signature=head.signature)
    actions = [
        (party, shown if item is FORK else item) for party, item in forked(script())
    ]
    write_run(tmp_path, parties, actions)
    failed = run_audit(load_evidence(tmp_path)).with_severity(Severity.FAIL)
    (found,) = [finding for finding in failed if finding.check == "heads-seen"]
    assert (found.party, found.round_number) == (AGGREGATOR, 2)
    assert "two versions" in found.statement and "basel" in found.statement


def test_a_clock_that_goes_back_is_told(
    honest: Path, parties: Parties, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    times("cork", lambda size: 1_760_000_000.0 + 60 * size - 7200 * (size == 5))(
        run, parties
    )
    warned = run_audit(load_evidence(run)).with_severity(Severity.WARN)
    (found,) = [finding for finding in warned if finding.check == "times"]
    assert found.party == "cork"
    assert "record 5" in found.statement and "7,140 seconds" in found.statement


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero")],
    ids=["pipe", "device"],
)
@pytest.mark.parametrize("name", [RECORDS_FILE, HEADS_FILE])
def test_what_is_no_file_is_refused_and_not_read(
    honest: Path, tmp_path: Path, make, name: str
) -> None:
    """A pipe would never end; a link may lead out of the run's folder."""
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    path = folder_of(run, "cork") / name
    path.unlink()
    make(path)
    with pytest.raises(UnreadableTranscript, match="no regular file"):
        load_evidence(run)


def test_a_folder_that_is_a_link_is_a_transcript_that_is_missing(
    honest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    shutil.rmtree(folder_of(run, "cork"))
    folder_of(run, "cork").symlink_to(folder_of(run, "basel"))
    audit = run_audit(load_evidence(run))
    assert audit.evidence.missing == ("cork",)


def test_a_copy_of_a_transcript_is_refused_by_name(
    honest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    shutil.copytree(folder_of(run, "cork"), run / "silos" / "copy")
    with pytest.raises(UnreadableTranscript, match="cork has two transcripts"):
        load_evidence(run)


def test_whose_transcript_it_is_does_not_depend_on_its_folder(
    honest: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    left, right = folder_of(run, "basel"), folder_of(run, AGGREGATOR)
    left.rename(run / "spare")
    right.rename(left)
    (run / "spare").rename(right)
    audit = run_audit(load_evidence(run))
    assert audit.with_severity(Severity.FAIL) == ()


def test_names_of_rows_differ() -> None:
    names = [row.name for row in (*FILES, *LIES)]
    assert len(set(names)) == len(names)
