"""Frames that silo 0 of the whole run must refuse, made by the second computation.

Each is the honest frame of a stage with one change, signed by the aggregator unless
the change is about the signature.
"""

from collections.abc import Callable

from tests.crypto.secagg.reference_run import AGGREGATOR, EVERYONE, NO_SLOT, Run

STAGES = ("keys", "envelopes", "active", "survivors", "confirms", "sum")
Change = Callable[[bytes], bytes]


def put(place: int, data: bytes) -> Change:
    """Overwrite a body at a place."""
    return lambda body: body[:place] + data + body[place + len(data) :]


def flip(place: int) -> Change:
    """Change one bit of a body; -1 is its last byte."""
    return lambda body: put(place % len(body), bytes([body[place] ^ 1]))(body)


SIGNED: list[tuple[str, str, Change, str]] = [
    ("keys", "a key of silo 1 changed", flip(1 + 224 + 5), "InvalidSignature"),
    ("keys", "own keys changed", flip(1 + 5), "InvalidSignature"),
    ("keys", "the set names a fifth silo", put(0, b"\x1f"), "MalformedMessage"),
    ("keys", "two silos alone", lambda b: b"\x03" + b[1:449], "ProtocolViolation"),
    ("keys", "a byte more", lambda b: b + b"\x00", "MalformedMessage"),
    ("envelopes", "a bit of the first envelope", flip(33), "DecryptionFailed"),
    ("envelopes", "a bit of the last tag", flip(-1), "DecryptionFailed"),
    ("envelopes", "another T1", flip(0), "ProtocolViolation"),
    ("envelopes", "the last one missing", lambda b: b[:-148], "MalformedMessage"),
    (
        "envelopes",
        "members without silo 0",
        lambda b: b[:32] + b"\x0e" + b[33:-148],
        "ProtocolViolation",
    ),
    ("active", "another T2", flip(0), "ProtocolViolation"),
    ("active", "another round", flip(35), "ProtocolViolation"),
    ("active", "another model", flip(36), "ProtocolViolation"),
    ("active", "a head of another size", flip(75), "ProtocolViolation"),
    ("active", "another signature of the head", flip(171), "ProtocolViolation"),
    (
        "active",
        "two silos alone",
        lambda b: b[:172] + b"\x03" + b[173:301],
        "ProtocolViolation",
    ),
    ("active", "a signature changed", flip(173 + 64), "InvalidSignature"),
    ("survivors", "another T3", flip(0), "ProtocolViolation"),
    ("survivors", "two survivors", put(32, b"\x03"), "ProtocolViolation"),
    ("survivors", "survivors without silo 0", put(32, b"\x0e"), "ProtocolViolation"),
    ("survivors", "a survivor beyond the roster", put(32, b"\x17"), "MalformedMessage"),
    ("confirms", "another list", put(32, b"\x0f"), "ProtocolViolation"),
    ("confirms", "a signature changed", flip(-1), "InvalidSignature"),
    (
        "confirms",
        "two signatures",
        lambda b: b[:33] + b"\x03" + b[34:162],
        "ProtocolViolation",
    ),
    ("sum", "other survivors", put(32, b"\x0f"), "ProtocolViolation"),
    ("sum", "another T3", flip(0), "ProtocolViolation"),
]

UNSIGNED: list[tuple[str, str, str]] = [
    ("run", "of another run", "ProtocolViolation"),
    ("setup", "of another setup", "ProtocolViolation"),
    ("slot", "of another slot", "ProtocolViolation"),
    ("sender", "signed by silo 1", "InvalidSignature"),
    ("recipient", "to another recipient", "ProtocolViolation"),
]


def make_refusals(whole_run: dict) -> list[dict]:
    """Return all cases of ``invalid.json``."""
    run, cases = Run(whole_run), []
    for stage, why, change, raises in SIGNED:
        body = honest(whole_run, stage)[32:-64]
        frame = sign(run, stage, change(body))
        cases.append(case(stage, why, frame, raises))
    for stage in STAGES:
        body = honest(whole_run, stage)[32:-64]
        for field, why, raises in UNSIGNED:
            cases.append(case(stage, why, with_header(run, stage, field, body), raises))
        frame = honest(whole_run, stage)
        damaged = frame[:40] + bytes([frame[40] ^ 128]) + frame[41:]
        cases.append(
            case(stage, "a bit changed on its way", damaged, "InvalidSignature")
        )
        cases.append(case(stage, "cut off", frame[:95], "MalformedMessage"))
    return cases


def case(stage: str, why: str, frame: bytes, raises: str) -> dict:
    """Return one case."""
    return {"stage": stage, "why": why, "frame": frame.hex(), "raises": raises}


def honest(whole_run: dict, stage: str) -> bytes:
    """Return the frame that silo 0 awaits in a stage of slot 0."""
    value = whole_run["slots"][0].get(stage) or whole_run[stage]
    return bytes.fromhex(value[0] if isinstance(value, list) else value)


def sign(run: Run, stage: str, body: bytes) -> bytes:
    """Return a frame of the aggregator with the header that silo 0 expects."""
    slot = NO_SLOT if stage in ("keys", "envelopes") else 0
    recipient = 0 if stage == "envelopes" else EVERYONE
    return run.frame(stage, body, AGGREGATOR, slot, recipient)


def with_header(run: Run, stage: str, field: str, body: bytes) -> bytes:
    """Return the honest body under a header with one field changed."""
    slot = NO_SLOT if stage in ("keys", "envelopes") else 0
    recipient = 0 if stage == "envelopes" else EVERYONE
    if field == "sender":
        run.identities.append(run.identities[1])
        frame = run.frame(stage, body, AGGREGATOR, slot, recipient)
        run.identities.pop()
        return frame
    if field == "slot":
        return run.frame(stage, body, AGGREGATOR, 1, recipient)
    if field == "recipient":
        return run.frame(stage, body, AGGREGATOR, slot, 2)
    kept = dict(run.case)
    changed = {"run": bytes(16).hex()} if field == "run" else {"setup": 8}
    run.case = kept | changed
    frame = run.frame(stage, body, AGGREGATOR, slot, recipient)
    run.case = kept
    return frame
