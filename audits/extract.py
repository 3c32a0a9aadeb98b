"""One record with its proof: to be shown without the rest of a transcript.

An extract holds a record's line, the RFC 6962 inclusion proof and a head that its party
signed. Whoever has the plan can verify it; nothing else of the transcript is told but
how many records it had, and hashes.
"""

from dataclasses import dataclass
from pathlib import Path

from audits.errors import ExtractRejected
from audits.evidence import AGGREGATOR, Evidence, Transcript
from crypto.errors import CryptoError
from crypto.merkle import ProvingTree, leaf_hash, verify_inclusion
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError, TranscriptBroken
from protocol.heads import Head
from protocol.plan import RunPlan
from protocol.transcript import read_heads, read_records

FORMAT = "cloister/1/extract"
MAX_EXTRACT_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Extract:
    """One record of a party's transcript, and what proves it.

    ``record`` is the record's line as it stands in the transcript; ``proof`` the
    hashes from its leaf to the root of ``head``, lowest first, hexadecimal.
    """

    format: str
    plan: str
    index: int
    record: str
    proof: tuple[str, ...]
    head: Head

    def to_bytes(self) -> bytes:
        """Return the extract as canonical bytes."""
        return encode(to_table(self))


def make_extract(evidence: Evidence, party: str, index: int) -> Extract:
    """Return one record of a party under the first signed head that covers it.

    Guarantees: it holds; :func:`check_extract` accepts it.

    Raises:
        ExtractRejected: no such transcript or record, no head that covers it and
            holds, or a transcript that cannot be read.
    """
    transcript = _transcript(evidence, party)
    try:
        head = _covering(transcript, index)
        tree, line = ProvingTree(), b""
        for entry in read_records(transcript.folder):
            if entry.index == head.size:
                break
            tree.append(entry.line)
            line = entry.line if entry.index == index else line
    except TranscriptBroken as error:
        raise ExtractRejected(f"{transcript.name}: {error}") from None
    made = Extract(
        format=FORMAT,
        plan=evidence.plan.digest.hex(),
        index=index,
        record=line.decode(),
        proof=tuple(node.hex() for node in tree.inclusion_proof(index)),
        head=head,
    )
    check_extract(made, evidence.plan)
    return made


def load_extract(path: Path) -> Extract:
    """Return the extract of a file.

    Raises:
        ExtractRejected: it cannot be read, is too large, or no extract.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_EXTRACT_BYTES + 1)
        if len(data) > MAX_EXTRACT_BYTES:
            raise ExtractRejected(f"{path}: larger than {MAX_EXTRACT_BYTES:,} bytes")
        return from_table(Extract, decode(data))
    except OSError as error:
        raise ExtractRejected(f"{path}: {error.strerror}") from None
    except EncodingError as error:
        raise ExtractRejected(f"{path}: no extract: {error}") from None


def check_extract(extract: Extract, plan: RunPlan) -> None:
    """Return if a record is part of the transcript that its party signed.

    Guarantees: from the plan's keys alone.

    Raises:
        ExtractRejected: another format or plan, a party that is not in the plan, a
            head that the party did not sign, a record at another place, or a proof
            that does not lead from the record to the head.
    """
    if extract.format != FORMAT:
        raise ExtractRejected(f"format {extract.format!r:.40}, expected {FORMAT!r}")
    if extract.plan != plan.digest.hex():
        raise ExtractRejected("the extract is of a run of another plan")
    try:
        extract.head.check(plan.digest, _key_of(plan, extract.head.party))
        table = decode(extract.record.encode())
        if not isinstance(table, dict) or table.get("index") != extract.index:
            raise ExtractRejected("the record says that it has another index")
        verify_inclusion(
            leaf_hash(extract.record.encode()),
            extract.index,
            extract.head.size,
            [bytes.fromhex(node) for node in extract.proof],
            bytes.fromhex(extract.head.root),
        )
    except (TranscriptBroken, EncodingError, CryptoError, ValueError) as error:
        raise ExtractRejected(f"the extract does not hold: {error}") from None


def _transcript(evidence: Evidence, party: str) -> Transcript:
    """Return the transcript of a party."""
    for transcript in evidence.transcripts:
        if transcript.party == party:
            return transcript
    known = ", ".join(transcript.party for transcript in evidence.transcripts)
    raise ExtractRejected(f"no transcript of {party!r:.80}; there are: {known}")


def _covering(transcript: Transcript, index: int) -> Head:
    """Return the first head over more records than an index."""
    for head in read_heads(transcript.folder):
        if head.size > index >= 0:
            return head
    raise ExtractRejected(
        f"{transcript.name}: no signed head covers a record {index:,}; records count "
        "from 0"
    )


def _key_of(plan: RunPlan, party: str) -> bytes:
    """Return the identity key of a party of the plan."""
    keys = {silo.name: bytes.fromhex(silo.identity_key) for silo in plan.silos}
    keys[AGGREGATOR] = plan.aggregator_key
    if party not in keys:
        raise ExtractRejected(f"{party!r:.80} is no party of the plan")
    return keys[party]
