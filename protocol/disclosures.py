"""What leaves a silo, and what covers it: one table for silo, audit and report.

Every byte that leaves a silo's process belongs to a stage. For a plan and a stage
:func:`contents_of` says what leaves, to whom, in which form, and which guarantee covers
it. A stage that is not in the table has no description, and the audit fails. The bytes
come from ``protocol.tally``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from protocol.auxiliary import STAGE as AUXILIARY
from protocol.cover_words import Cover, cover_words
from protocol.measurement import MEASURE
from protocol.plan import RunPlan
from protocol.reference import REFERENCE, REFERENCE_ROUND
from protocol.tally import CONNECTION, StageBytes, StageName

REFUSAL = "refusal"
"""How a table of disclosures names refusals, which any stage may be answered with."""
UNREAD = "unknown"
"""The stage of a request that could not be read; its only answer is a refusal."""

STAGE_ORDER = (
    *(CONNECTION, AUXILIARY, "setup", "shares", "envelopes", "key", "handed"),
    *(REFERENCE, "broadcast", "ready", MEASURE, "masked", "encrypted", "confirm"),
    *("reveal", "decrypt", "end", UNREAD),
)
"""The stages in the order of a run."""


class Form(StrEnum):
    """In which form something leaves: who could read it on its way."""

    MASKED = "masked"
    ENCRYPTED = "encrypted"
    SEALED = "sealed"
    PLAIN = "plain"
    PUBLIC = "public"


@dataclass(frozen=True, kw_only=True)
class Content:
    """One thing that leaves: what, to whom, in which form, and what covers it."""

    what: str
    recipient: str
    form: Form
    covers: tuple[Cover, ...]


@dataclass(frozen=True, kw_only=True)
class StageContents:
    """What leaves in a stage: the vector, if the stage has one, and all the rest."""

    rest: Content
    vector: Content | None = None


AGGREGATOR = "the aggregator"
EVERYONE = "the aggregator, which shows it to all silos"
KEYLESS = "the aggregator, which cannot decrypt it unless a silo gives it the key"
OTHERS = "one other silo each; the aggregator carries them and cannot open them"

_INDEPENDENT = (Cover.INDEPENDENT,)
_REFUSED = Content(
    what="a refusal: the stage, and in words which check failed",
    recipient=AGGREGATOR,
    form=Form.PLAIN,
    covers=(Cover.NONE,),
)
"""Errors whose text depends on a silo's files or images are held back
(``silo.refusals``); that it refused is told."""


def _public(what: str, recipient: str = AGGREGATOR) -> StageContents:
    """Return a stage of public numbers and signatures."""
    content = Content(
        what=what, recipient=recipient, form=Form.PUBLIC, covers=_INDEPENDENT
    )
    return StageContents(rest=content)


_SEEN = "or first, how many records of the aggregator it has seen"
"""Where a proof is to come again from there (``silo.errors.ProofBeginsElsewhere``)."""
_LEDGER = "; size and hash of its privacy ledger"

_ALWAYS: Mapping[str, StageContents] = {
    CONNECTION: _public("signed answers to challenges, and the length of each message"),
    UNREAD: StageContents(rest=_REFUSED),
    "end": _public(
        f"word that the run is over, with the head of its transcript; {_SEEN}"
    ),
}
_CONFIRM = _public("a signature under the list of survivors", EVERYONE)
_WITH_MASKS: Mapping[str, StageContents] = {
    "setup": _public("fresh public keys, and commitments to mask seeds", EVERYONE),
    "shares": StageContents(
        rest=Content(
            what="shares of keys and mask seeds",
            recipient=OTHERS,
            form=Form.SEALED,
            covers=_INDEPENDENT,
        )
    ),
    "envelopes": _public("word that the others' shares have arrived"),
    "confirm": _CONFIRM,
    "reveal": StageContents(
        rest=Content(
            what="shares that unmask the sum",
            recipient=AGGREGATOR,
            form=Form.PLAIN,
            covers=(Cover.SECURE_AGGREGATION,),
        )
    ),
}
_WITH_ENCRYPTION: Mapping[str, StageContents] = {
    "setup": _public("a fresh public key", EVERYONE),
    "key": StageContents(
        rest=Content(
            what="word that the others' public keys have arrived; from the silo that "
            "makes it, the key that all silos share",
            recipient=OTHERS,
            form=Form.SEALED,
            covers=_INDEPENDENT,
        )
    ),
    "handed": _public("word that the shared key has arrived"),
    "confirm": _CONFIRM,
}


_IN_SECRET = {"mask": _WITH_MASKS, "bfv": _WITH_ENCRYPTION}
"""By method: the stages in which no vector leaves."""


def contents_of(
    plan: RunPlan, stage: str, round_number: int = 0
) -> StageContents | None:
    """Return what leaves a silo in a stage; None where a run of this plan has no such.

    A refusal may be the answer in any stage, also in one that the plan does not have;
    it is :func:`refusal`.
    """
    if stage in _ALWAYS:
        return _ALWAYS[stage]
    if stage in _IN_SECRET.get(plan.protection.method, {}):
        is_left_out = stage == "confirm" and plan.skips_confirm
        return None if is_left_out else _IN_SECRET[plan.protection.method][stage]
    if stage == "broadcast" and plan.update.broadcast_bits:
        return _public("the digest of the global model that it holds")
    if stage == "ready":
        ready = _ready(plan, "model received", plan.privacy.is_private)
        return StageContents(rest=ready, vector=_plain(plan, _update(plan)))
    if stage == MEASURE and plan.evaluation.in_silos:
        ready = _ready(plan, "model and reference received", has_ledger=False)
        return StageContents(rest=ready, vector=_plain(plan, _DISTANCE))
    if stage == REFERENCE and plan.evaluation.is_pooled:
        is_noised = plan.evaluation.is_noised
        return StageContents(rest=_ready(plan, "extractor", has_ledger=is_noised))
    if stage == "masked" and plan.protection.method == "mask":
        return _hidden(plan, round_number, Form.MASKED, AGGREGATOR)
    if stage == "encrypted" and plan.protection.is_encrypted:
        return _hidden(plan, round_number, Form.ENCRYPTED, KEYLESS)
    if stage == "decrypt" and plan.protection.is_encrypted:
        return StageContents(rest=_decrypted(plan, round_number))
    if stage == AUXILIARY and plan.calibration.asks_silos:
        return StageContents(rest=_auxiliary(plan))
    return None


def refusal() -> Content:
    """Return what a refusal tells."""
    return _REFUSED


_DISTANCE = "the Fréchet distance of its own model, and its square"
_FEATURES = "number, sums and outer products of its images' features"


def _ready(plan: RunPlan, signed: str, has_ledger: bool) -> Content:
    """Return the signature under a round, and what goes with it."""
    what = f"a signature under the round and the digest of the {signed}"
    if plan.protection.method == "none":
        what = "header and signature of the message"
    what += f"{_LEDGER * has_ledger}; {_SEEN}"
    to = EVERYONE if plan.protection.is_hidden else AGGREGATOR
    return Content(what=what, recipient=to, form=Form.PUBLIC, covers=_INDEPENDENT)


def _plain(plan: RunPlan, what: str) -> Content | None:
    """Return a vector in the clear, where the plan does not hide it."""
    if plan.protection.is_hidden:
        return None
    return Content(
        what=f"{what}, in the clear",
        recipient=AGGREGATOR,
        form=Form.PLAIN,
        covers=_private(plan) or (Cover.NONE,),
    )


def _hidden(
    plan: RunPlan, round_number: int, form: Form, recipient: str
) -> StageContents:
    """Return a masked or encrypted vector, and the frame around it."""
    what, covers = _summed(plan, round_number)
    vector = Content(
        what=f"{what}, {form}", recipient=recipient, form=form, covers=covers
    )
    frame = _public(f"header and signature of the {form} message")
    return StageContents(rest=frame.rest, vector=vector)


def _decrypted(plan: RunPlan, round_number: int) -> Content:
    """Return the sum that a silo has decrypted, if it is asked to."""
    what, covers = _summed(plan, round_number)
    return Content(
        what=f"the sum over all survivors of what each uploaded ({what}), in the clear",
        recipient=AGGREGATOR,
        form=Form.PLAIN,
        covers=covers,
    )


def _summed(plan: RunPlan, round_number: int) -> tuple[str, tuple[Cover, ...]]:
    """Name the vector of a silo that a slot sums, and what covers it."""
    what = _update(plan) if round_number <= plan.num_rounds else _DISTANCE
    private = _private(plan)
    if plan.evaluation.is_pooled and round_number == REFERENCE_ROUND:
        what = _FEATURES
        private = private if plan.evaluation.is_noised else ()
    return what, (Cover.SECURE_AGGREGATION, *private)


def _auxiliary(plan: RunPlan) -> Content:
    """Return what a silo gives for auxiliary images, which no sum hides."""
    is_model = plan.calibration.images == "silo-models"
    what = "its own model" if is_model else "samples of its own model"
    return Content(
        what=f"{what}, for auxiliary images, in the clear"
        + _LEDGER * plan.privacy.is_private,
        recipient=AGGREGATOR,
        form=Form.PLAIN,
        covers=_private(plan) or (Cover.NONE,),
    )


def _update(plan: RunPlan) -> str:
    """Name the update."""
    counted = " and its number of examples" * (plan.update.weights == "secret")
    return f"its update{counted}"


def _private(plan: RunPlan) -> tuple[Cover, ...]:
    """Return differential privacy, where the plan has it."""
    return (Cover.DIFFERENTIAL_PRIVACY,) if plan.privacy.is_private else ()


# ----------------------------------------------------------------- the whole ledger


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a silo's ledger: bytes of one content, in all rounds of a stage.

    ``content`` is None where nothing describes what left: the audit fails then.
    """

    stage: str
    content: Content | None
    sent_bytes: int


def ledger_lines(
    plan: RunPlan, stages: Mapping[StageName, StageBytes]
) -> tuple[Line, ...]:
    """Return what left a silo, line by line, in the stages' order.

    Guarantees: the lines' bytes are those of the stages, every one once.
    """
    found: dict[tuple[str, Content | None], int] = {}
    for (number, stage), each in in_order(stages):
        for content, name, count in _split(plan, stage, number, each):
            place = (name, content)
            found[place] = found.get(place, 0) + count
    return tuple(
        Line(stage=stage, content=content, sent_bytes=count)
        for (stage, content), count in found.items()
        if count
    )


def in_order(
    stages: Mapping[StageName, StageBytes],
) -> list[tuple[StageName, StageBytes]]:
    """Return the bytes of stages in the stages' order, unknown ones last."""

    def place(item: tuple[StageName, StageBytes]) -> tuple[int, StageName]:
        name = item[0][1]
        known = STAGE_ORDER.index(name) if name in STAGE_ORDER else len(STAGE_ORDER)
        return known, item[0]

    return sorted(stages.items(), key=place)


def _split(
    plan: RunPlan, stage: str, round_number: int, each: StageBytes
) -> tuple[tuple[Content | None, str, int], ...]:
    """Return the bytes of one stage by content: vector, refusals, and the rest."""
    contents = contents_of(plan, stage, round_number)
    rest = contents.rest if contents else None
    vector = contents.vector if contents else None
    is_only_refusals = stage == UNREAD
    refused = each.sent if is_only_refusals else each.refusal
    return (
        (vector, stage, each.vector),
        (rest, stage, each.sent - each.vector - refused),
        (_REFUSED, REFUSAL, refused),
    )


def ledger_line(line: Line, plan: RunPlan, epsilon: float | None) -> dict[str, object]:
    """Return a line as a table of texts and numbers, for reports and commands."""
    content = line.content
    covers = content.covers if content else ()
    return {
        "stage": line.stage,
        "what": content.what if content else "not described",
        "recipient": content.recipient if content else AGGREGATOR,
        "form": str(content.form) if content else "unknown",
        "covered_by": [str(cover) for cover in covers],
        "guarantee": cover_words(plan, covers, epsilon) or "unknown",
        "sent_bytes": line.sent_bytes,
    }
