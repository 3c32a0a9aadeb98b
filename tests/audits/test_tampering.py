"""Tampered evidence is found and named: a row for each way, beside the honest run.

``lie`` changes what a party records before it is signed; ``tamper`` changes the files
afterwards. A row says which check must fail, whom it must name, and in which words.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.keys import IdentityKey
from protocol import records as r
from protocol.encoding import decode, encode
from protocol.plan import make_plan
from protocol.transcript import (
    HEADS_FILE,
    TranscriptWriter,
    read_heads,
    read_records,
)
from tests.audits.evidence_builder import (
    AGGREGATOR,
    SILOS,
    Edit,
    Parties,
    Script,
    SeeHead,
    change,
    digest,
    folder_of,
    make_parties,
    omit,
    repeat,
    script,
    write_run,
)

Tamper = Callable[[Path, Parties], None]


@dataclass(frozen=True)
class Row:
    """One way to tamper, and what must be found."""

    name: str
    check: str
    party: str | None
    words: str
    lie: tuple[Edit, ...] = ()
    tamper: Tamper | None = None


def lines_of(run: Path, party: str, name: str = "transcript.jsonl") -> list[bytes]:
    """Return the records of a transcript, or its heads, each a note of six lines."""
    lines = (folder_of(run, party) / name).read_bytes().splitlines(keepends=True)
    if name == HEADS_FILE:
        return [b"".join(lines[i : i + 6]) for i in range(0, len(lines), 6)]
    return lines


def put(
    run: Path, party: str, lines: list[bytes], name: str = "transcript.jsonl"
) -> None:
    (folder_of(run, party) / name).write_bytes(b"".join(lines))


def renumber(lines: list[bytes]) -> list[bytes]:
    tables = [decode(line[:-1]) for line in lines]
    return [encode(t | {"index": i}) + b"\n" for i, t in enumerate(tables)]


def on_lines(
    party: str, edit: Callable[[list[bytes]], list[bytes]], name="transcript.jsonl"
) -> Tamper:
    def tamper(run: Path, parties: Parties) -> None:
        put(run, party, edit(lines_of(run, party, name)), name)

    return tamper


def swap(lines: list[bytes], i: int) -> list[bytes]:
    return [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]


def other_digit(lines: list[bytes], i: int) -> list[bytes]:
    """Alter one byte of a digest; the line stays canonical."""
    at = lines[i].index(b'"model":"') + len(b'"model":"')
    new = b"0" if lines[i][at : at + 1] != b"0" else b"1"
    return [*lines[:i], lines[i][:at] + new + lines[i][at + 1 :], *lines[i + 1 :]]


def spaced(lines: list[bytes], i: int) -> list[bytes]:
    """Alter one byte so that the line is canonical no more."""
    return [*lines[:i], lines[i].replace(b":", b" ", 1), *lines[i + 1 :]]


def another_spelling(lines: list[bytes]) -> list[bytes]:
    """Put a bit into the first signature's base64 that its bytes do not hold."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    at = len(lines[0]) - 4  # The last digit before "=" and two line ends.
    digit = alphabet[alphabet.index(lines[0][at]) ^ 1]
    return [lines[0][:at] + bytes([digit]) + lines[0][at + 1 :], *lines[1:]]


def other_root(lines: list[bytes]) -> list[bytes]:
    """Alter one byte of the second head's root."""
    note = lines[1].split(b"\n")
    note[2] = (b"A" if note[2][:1] != b"A" else b"B") + note[2][1:]
    return [lines[0], b"\n".join(note), *lines[2:]]


def enormous_number(lines: list[bytes]) -> list[bytes]:
    """Put a whole number where a real one belongs."""
    i = next(i for i, line in enumerate(lines) if b'"frechet_distance":' in line)
    line = lines[i].replace(
        b'"frechet_distance":90.5', b'"frechet_distance":1' + b"0" * 400
    )
    return [*lines[:i], line, *lines[i + 1 :]]


def cut(party: str, records: int, heads: int) -> Tamper:
    def tamper(run: Path, parties: Parties) -> None:
        put(run, party, lines_of(run, party)[:-records])
        if heads:
            put(run, party, lines_of(run, party, HEADS_FILE)[:-heads], HEADS_FILE)

    return tamper


def resign(party: str, *, own_key: bool, edit: Edit | None = None) -> Tamper:
    """Write a party's transcript anew, signed with its own or with another key."""

    def tamper(run: Path, parties: Parties) -> None:
        folder = folder_of(run, party)
        items = [entry.record for entry in read_records(folder)]
        sizes = [head.size for head in read_heads(folder)]
        if edit:
            items = [item for _, item in edit([(party, item) for item in items])]
        shutil.rmtree(folder)
        with TranscriptWriter(
            folder,
            party=party,
            plan_digest=parties.plan.digest,
            identity=parties.keys[party] if own_key else IdentityKey.generate(),
            clock=lambda: 1_760_000_000.0,
        ) as writer:
            for item in items:
                writer.append(item)
                for _ in range(sizes.count(writer.size)):
                    writer.sign_head()

    return tamper


def replay(party: str) -> Tamper:
    """Put in its place the transcript of the same party from another run."""

    def tamper(run: Path, parties: Parties) -> None:
        plan = make_plan(parties.plan, parties.plan.aggregator_key, parties.plan.silos)
        other = run.parent / "other-run"
        write_run(other, Parties(plan, parties.keys), script())
        shutil.rmtree(folder_of(run, party))
        shutil.copytree(folder_of(other, party), folder_of(run, party))

    return tamper


def head_of_somebody_else(run: Path, parties: Parties) -> None:
    """Add a head that the silo signed, but in another silo's name."""
    with TranscriptWriter(
        run.parent / "spare",
        party="basel",
        plan_digest=parties.plan.digest,
        identity=parties.keys["cork"],
    ) as writer:
        for entry in read_records(folder_of(run, "cork")):
            writer.append(entry.record)
        writer.sign_head()
    added = (run.parent / "spare" / HEADS_FILE).read_bytes()
    put(run, "cork", [*lines_of(run, "cork", HEADS_FILE), added], HEADS_FILE)


def stranger(run: Path, parties: Parties) -> None:
    """Add the transcript of somebody who is not in the plan."""
    with TranscriptWriter(
        run / "delft",
        party="delft",
        plan_digest=parties.plan.digest,
        identity=IdentityKey.generate(),
    ) as writer:
        writer.append(r.Opened(plan="00", party="delft", software="-"))
        writer.sign_head()


def forged_head(actions: Script) -> Script:
    """A silo records a head that the aggregator never signed."""
    index = next(
        i for i, (p, a) in enumerate(actions) if p == "basel" and isinstance(a, SeeHead)
    )
    head = r.HeadSeen(round_number=1, size=4, root=digest("x"), signature="00" * 64)
    return [*actions[:index], ("basel", head), *actions[index + 1 :]]


def everywhere(
    kind: type[r.Record], number: int, **changes: object
) -> tuple[Edit, ...]:
    return tuple(
        change(party, kind, number, **changes) for party in (AGGREGATOR, *SILOS)
    )


FILES = (
    Row(
        "one byte",
        "records",
        "basel",
        "between record 0 and record 12",
        tamper=on_lines("basel", lambda lines: other_digit(lines, 4)),
    ),
    Row(
        "one byte, not canonical",
        "records",
        "basel",
        "record 9: not valid JSON",
        tamper=on_lines("basel", lambda lines: spaced(lines, 9)),
    ),
    Row(
        "record removed",
        "records",
        "cork",
        "record 7 was removed",
        tamper=on_lines("cork", lambda lines: [*lines[:7], *lines[8:]]),
    ),
    Row(
        "three records removed",
        "records",
        "cork",
        "records 7 to 9 were removed",
        tamper=on_lines("cork", lambda lines: [*lines[:7], *lines[10:]]),
    ),
    Row(
        "record removed, the rest numbered anew",
        "records",
        "cork",
        "between record 13 and record 24",
        tamper=on_lines("cork", lambda lines: renumber([*lines[:15], *lines[16:]])),
    ),
    Row(
        "two records swapped",
        "records",
        AGGREGATOR,
        "records 20 and 21 were swapped",
        tamper=on_lines(AGGREGATOR, lambda lines: swap(lines, 20)),
    ),
    Row(
        "two records swapped and numbered anew",
        "records",
        AGGREGATOR,
        "between record 8 and record 31",
        tamper=on_lines(AGGREGATOR, lambda lines: renumber(swap(lines, 20))),
    ),
    Row(
        "record repeated",
        "records",
        "basel",
        "a record was inserted or repeated",
        tamper=on_lines("basel", lambda lines: [*lines[:5], *lines[4:]]),
    ),
    Row(
        "tail cut off, records only",
        "records",
        "basel",
        "the tail is cut off: records 36 to 41",
        tamper=cut("basel", 6, 0),
    ),
    Row(
        "tail cut off inside a record",
        "records",
        "basel",
        "line 41: is cut off",
        tamper=on_lines("basel", lambda lines: [*lines[:-1], lines[-1][:-9]]),
    ),
    Row(
        "aggregator's tail and heads cut off",
        "heads-seen",
        AGGREGATOR,
        "the transcript was longer: of 81 records",
        tamper=cut(AGGREGATOR, 21, 3),
    ),
    Row(
        "silo's tail and heads cut off",
        "silo-heads",
        "cork",
        "the transcript was longer: of 41 records",
        tamper=cut("cork", 10, 3),
    ),
    Row(
        "records are gone",
        "records",
        "cork",
        "transcript.jsonl is missing",
        tamper=lambda run, _: (folder_of(run, "cork") / "transcript.jsonl").unlink(),
    ),
    Row(
        "heads are gone",
        "signatures",
        "cork",
        "heads.txt is missing",
        tamper=lambda run, _: (folder_of(run, "cork") / HEADS_FILE).unlink(),
    ),
    Row(
        "all heads removed",
        "signatures",
        "cork",
        "signed no head",
        tamper=on_lines("cork", lambda lines: [], HEADS_FILE),
    ),
    Row(
        "heads signed with another key",
        "signatures",
        "amsterdam",
        "5 of 5 heads of amsterdam are not signed by the key",
        tamper=resign("amsterdam", own_key=False),
    ),
    Row(
        "a head's root altered",
        "signatures",
        "amsterdam",
        "1 of 5 heads",
        tamper=on_lines(
            "amsterdam",
            other_root,
            HEADS_FILE,
        ),
    ),
    Row(
        "one bit of a signature, which then means the same",
        "signatures",
        "amsterdam",
        "1 of 5 heads",
        tamper=on_lines("amsterdam", another_spelling, HEADS_FILE),
    ),
    Row(
        "a number too large for any machine",
        "records",
        AGGREGATOR,
        "record 31: ",
        tamper=on_lines(AGGREGATOR, enormous_number),
    ),
    Row(
        "two heads swapped",
        "signatures",
        "amsterdam",
        "head 2 is out of place",
        tamper=on_lines("amsterdam", lambda lines: swap(lines, 1), HEADS_FILE),
    ),
    Row(
        "a head in another silo's name",
        "signatures",
        "cork",
        "1 of 6 heads",
        tamper=head_of_somebody_else,
    ),
    Row(
        "transcript of another run",
        "opened",
        "amsterdam",
        "comes from another run",
        tamper=replay("amsterdam"),
    ),
    Row(
        "heads of another run",
        "signatures",
        AGGREGATOR,
        "or not for this plan",
        tamper=replay(AGGREGATOR),
    ),
    Row(
        "aggregator writes history anew, with its own key",
        "heads-seen",
        AGGREGATOR,
        "there are two versions",
        tamper=resign(
            AGGREGATOR,
            own_key=True,
            edit=change(AGGREGATOR, r.Evaluated, 1, frechet_distance=1.0),
        ),
    ),
    Row(
        "silo writes history anew, with its own key",
        "silo-heads",
        "cork",
        "there are two versions",
        tamper=resign(
            "cork",
            own_key=True,
            edit=change("cork", r.Traffic, 1, received_bytes=40_200, stage="ready "),
        ),
    ),
    Row(
        "a stranger's transcript",
        "present",
        "delft",
        "nobody in the plan",
        tamper=stranger,
    ),
)

LIES = (
    Row(
        "upload differs",
        "uploads",
        "basel",
        "another message",
        lie=(change("basel", r.Masked, 2, upload=digest("another")),),
    ),
    Row(
        "size of upload differs",
        "uploads",
        "basel",
        "another message",
        lie=(change("basel", r.Masked, 2, size_bytes=7),),
    ),
    Row(
        "silo never recorded an upload",
        "uploads",
        "basel",
        "never recorded",
        lie=(omit("basel", r.Masked, 2),),
    ),
    Row(
        "aggregator hides an upload",
        "uploads",
        "amsterdam",
        "does not show",
        lie=(omit(AGGREGATOR, r.Masked, 2),),
    ),
    Row(
        "survivor without upload",
        "uploads",
        AGGREGATOR,
        "no upload of it",
        lie=(omit(AGGREGATOR, r.Masked, 2), omit("amsterdam", r.Masked, 2)),
    ),
    Row(
        "threshold not kept",
        "confirmed",
        AGGREGATOR,
        "1 confirmation; the threshold is 2",
        lie=(change(AGGREGATOR, r.Confirmed, 2, silos=("cork",)),),
    ),
    Row(
        "two sums of one slot",
        "same-sum",
        "cork",
        "another sum of slot 1",
        lie=(change("cork", r.Summed, 2, sum=digest("another sum")),),
    ),
    Row(
        "revealed without confirmation",
        "confirmed",
        "cork",
        "before the survivors",
        lie=(omit("cork", r.Confirmed, 2),),
    ),
    Row(
        "cohort too small",
        "survivors",
        AGGREGATOR,
        "has 1 survivor",
        lie=everywhere(r.Survivors, 2, silos=("cork",)),
    ),
    Row(
        "survivors differ",
        "survivors",
        "cork",
        "names other survivors",
        lie=(change("cork", r.Survivors, 2, silos=SILOS[1:]),),
    ),
    Row(
        "survivor outside the cohort",
        "survivors",
        AGGREGATOR,
        "outside the cohort",
        lie=(change(AGGREGATOR, r.Cohort, 2, silos=SILOS[1:]),),
    ),
    Row(
        "closed with other survivors",
        "survivors",
        AGGREGATOR,
        "who were not announced",
        lie=(change(AGGREGATOR, r.RoundClosed, 2, survivors=SILOS[1:]),),
    ),
    Row(
        "slot used twice",
        "slots",
        "basel",
        "slot 0 of setup 1 for two updates",
        lie=(change("basel", r.Masked, 2, slot=0),),
    ),
    Row(
        "both kinds of share",
        "revealed",
        "amsterdam",
        "both kinds of share",
        lie=(
            change(
                "cork", r.Revealed, 2, self_masks_of=SILOS[1:], slot_keys_of=SILOS[:1]
            ),
        ),
    ),
    Row(
        "wrong kind of share",
        "revealed",
        "amsterdam",
        "the wrong kind of share",
        lie=everywhere(r.Revealed, 2, self_masks_of=SILOS[1:], slot_keys_of=SILOS[:1]),
    ),
    Row(
        "a round opened twice",
        "revealed",
        AGGREGATOR,
        "opened twice, in slots 1 and 9",
        lie=(
            repeat(AGGREGATOR, r.Revealed, 2, slot=9),
            repeat(AGGREGATOR, r.Confirmed, 2, slot=9),
        ),
    ),
    Row(
        "model differs",
        "same-model",
        "cork",
        "began round 2 with another model",
        lie=(change("cork", r.RoundOpened, 2, model=digest("mine")),),
    ),
    Row(
        "sent bytes differ",
        "traffic",
        "cork",
        "round 2, ready: the silo counts sent 9 bytes",
        lie=(change("cork", r.Traffic, 2, sent_bytes=9),),
    ),
    Row(
        "a model of another size",
        "traffic",
        "cork",
        "round 2, ready: the silo counts a model of 9 bytes",
        lie=(change("cork", r.Traffic, 2, broadcast_bytes=9),),
    ),
    Row(
        "a model larger than its message",
        "traffic",
        "cork",
        "the vector or the model is larger than the message",
        lie=(change("cork", r.Traffic, 2, broadcast_bytes=1 << 40),),
    ),
    Row(
        "traffic kept quiet",
        "traffic",
        "cork",
        "the silo counts sent 0 bytes",
        lie=(omit("cork", r.Traffic, 3),),
    ),
    Row(
        "sent in the clear",
        "protection",
        "basel",
        'sent its update as "none"',
        lie=(change("basel", r.Masked, 2, protection="none"),),
    ),
    Row(
        "round closed twice",
        "rounds",
        AGGREGATOR,
        "round 2 ended twice",
        lie=(repeat(AGGREGATOR, r.RoundClosed, 2),),
    ),
    Row(
        "round skipped",
        "rounds",
        AGGREGATOR,
        "beginning with round 2",
        lie=(omit(AGGREGATOR, r.RoundClosed, 2),),
    ),
    Row(
        "rounds out of order",
        "rounds",
        AGGREGATOR,
        "round 1 ended out of order",
        lie=(repeat(AGGREGATOR, r.RoundClosed, 2, round_number=1, survivors=SILOS),),
    ),
    Row(
        "last model differs",
        "parameters",
        "basel",
        "ended the run",
        lie=(change("basel", r.Finished, 3, parameters=digest("q")),),
    ),
    Row(
        "finished too soon",
        "parameters",
        "basel",
        "finished after round 2 of 3",
        lie=(
            change(
                "basel",
                r.Finished,
                3,
                round_number=2,
                parameters=digest("parameters", 2),
            ),
        ),
    ),
    Row("head never signed", "heads-seen", "basel", "did not sign", lie=(forged_head,)),
    Row(
        "opened for another plan",
        "opened",
        "cork",
        "another plan",
        lie=(change("cork", r.Opened, plan=digest("plan")),),
    ),
    Row(
        "another plan followed",
        "same-plan",
        "cork",
        "followed another plan",
        lie=(change("cork", r.Opened, plan=digest("plan")),),
    ),
    Row(
        "not opened",
        "opened",
        "cork",
        "record 0 is not `opened`",
        lie=(omit("cork", r.Opened),),
    ),
    Row(
        "opened twice",
        "opened",
        "cork",
        "record 1 opens it again",
        lie=(repeat("cork", r.Opened),),
    ),
    Row(
        "goes on after the end",
        "ending",
        AGGREGATOR,
        "the run goes on at record",
        lie=(
            lambda actions: [
                *actions,
                (
                    AGGREGATOR,
                    r.RoundOpened(
                        round_number=3,
                        attempt=2,
                        setup=1,
                        slot=9,
                        model=digest("model", 3),
                        field_bits=32,
                    ),
                ),
            ],
        ),
    ),
    Row(
        "a silo that does not exist",
        "plausible",
        AGGREGATOR,
        "'delft' is no silo",
        lie=(change(AGGREGATOR, r.Cohort, 2, silos=("delft", *SILOS)),),
    ),
    Row(
        "a round that cannot be",
        "plausible",
        "cork",
        "round 99 of 3",
        lie=(repeat("cork", r.Traffic, 2, round_number=99),),
    ),
    Row(
        "a number that cannot be",
        "plausible",
        "cork",
        "sent_bytes is -1",
        lie=(repeat("cork", r.Traffic, 2, sent_bytes=-1),),
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


def test_the_honest_run_passes(honest: Path) -> None:
    audit = run_audit(load_evidence(honest))
    assert [f for f in audit.findings if f.severity == Severity.FAIL] == []
    assert [f.check for f in audit.findings if f.severity == Severity.WARN] == [
        "privacy"
    ]


@pytest.mark.parametrize("row", FILES, ids=lambda row: row.name)
def test_tampered_files_are_found_and_named(
    row: Row, honest: Path, parties: Parties, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    assert row.tamper is not None
    row.tamper(run, parties)
    failed = run_audit(load_evidence(run)).with_severity(Severity.FAIL)
    assert any(matches(row, finding) for finding in failed), failed
    if row.name != "heads of another run":  # The silos' heads are then not its own.
        accused = {finding.party for finding in failed}
        assert accused == {row.party}, "somebody else is accused"


def test_a_transcript_that_breaks_off_is_held_to_what_it_says(
    honest: Path, parties: Parties, tmp_path: Path
) -> None:
    """What follows a broken line cannot be read; nobody is accused of lacking it."""
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    put(run, "basel", spaced(lines_of(run, "basel"), 9))
    failed = run_audit(load_evidence(run)).with_severity(Severity.FAIL)
    assert [finding.check for finding in failed] == ["records"]


@pytest.mark.parametrize("row", LIES, ids=lambda row: row.name)
def test_lies_in_signed_transcripts_are_found_and_named(
    row: Row, parties: Parties, tmp_path: Path
) -> None:
    actions = script()
    for lie in row.lie:
        actions = lie(actions)
    write_run(tmp_path, parties, actions)
    audit = run_audit(load_evidence(tmp_path))
    failed = audit.with_severity(Severity.FAIL)
    assert any(matches(row, finding) for finding in failed), failed
    assert {f.check for f in failed}.isdisjoint({"records", "signatures"})


def matches(row: Row, finding) -> bool:
    return (
        finding.check == row.check
        and finding.party == row.party
        and row.words in finding.statement
    )


def test_every_check_that_can_fail_has_a_row() -> None:
    from audits.findings import CHECKS

    never = {"plan-signature", "refusals", "members", "privacy"}
    never |= {"mechanism", "epsilon", "ledgers", "randomness"}  # in test_budget.py
    never |= {"dealing"}  # in test_dealings.py
    never |= {"measurement"}  # in test_measurement.py
    never |= {"auxiliary", "calibration"}  # in test_calibration.py
    never |= {"held"}  # in test_held.py
    never |= {"canaries"}  # in test_membership.py
    never |= {"disclosures", "times"}  # in test_evil_parties.py
    never |= {"probes"}  # in test_report_inputs.py
    never |= {"reference"}  # in test_reference.py
    never |= {"witnesses"}  # in test_witnesses.py
    never |= {"key-shared", "decrypted"}  # in test_encrypted_runs.py
    assert {row.check for row in (*FILES, *LIES)} == set(CHECKS) - never


def test_names_of_rows_differ() -> None:
    names = [row.name for row in (*FILES, *LIES)]
    assert len(set(names)) == len(names) >= 14
