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
from protocol.measurement import MEASURE
from protocol.noise_claim import claim, upward
from protocol.plan import RunPlan
from protocol.reference import REFERENCE, REFERENCE_ROUND
from protocol.tally import CONNECTION, StageBytes, StageName

REFUSAL = "refusal"
"""How a table of disclosures names refusals, which any stage may be answered with."""
UNREAD = "unknown"
"""The stage of a request that could not be read; its only answer is a refusal."""

STAGE_ORDER = (
    *(CONNECTION, AUXILIARY, "setup", "shares", "envelopes", REFERENCE, "broadcast"),
    *("ready", MEASURE, "masked", "confirm", "reveal", "end", UNREAD),
)
"""The stages in the order of a run."""


class Form(StrEnum):
    """In which form something leaves: who could read it on its way."""

    MASKED = "masked"
    SEALED = "sealed"
    PLAIN = "plain"
    PUBLIC = "public"


class Cover(StrEnum):
    """What limits what a recipient learns of the images from it."""

    SECURE_AGGREGATION = "secure-aggregation"
    DIFFERENTIAL_PRIVACY = "differential-privacy"
    INDEPENDENT = "independent-of-images"
    NONE = "none"


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
    "confirm": _public("a signature under the list of survivors", EVERYONE),
    "reveal": StageContents(
        rest=Content(
            what="shares that unmask the sum",
            recipient=AGGREGATOR,
            form=Form.PLAIN,
            covers=(Cover.SECURE_AGGREGATION,),
        )
    ),
}


def contents_of(
    plan: RunPlan, stage: str, round_number: int = 0
) -> StageContents | None:
    """Return what leaves a silo in a stage; None where a run of this plan has no such.

    A refusal may be the answer in any stage, also in one that the plan does not have;
    it is :func:`refusal`.
    """
    is_masked = plan.protection.method == "mask"
    if stage in _ALWAYS:
        return _ALWAYS[stage]
    if is_masked and stage in _WITH_MASKS:
        is_left_out = stage == "confirm" and plan.skips_confirm
        return None if is_left_out else _WITH_MASKS[stage]
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
    if stage == "masked" and is_masked:
        return _masked(plan, round_number)
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
    to = EVERYONE if plan.protection.method == "mask" else AGGREGATOR
    return Content(what=what, recipient=to, form=Form.PUBLIC, covers=_INDEPENDENT)


def _plain(plan: RunPlan, what: str) -> Content | None:
    """Return a vector in the clear, where the plan has no masks."""
    if plan.protection.method == "mask":
        return None
    return Content(
        what=f"{what}, in the clear",
        recipient=AGGREGATOR,
        form=Form.PLAIN,
        covers=_private(plan) or (Cover.NONE,),
    )


def _masked(plan: RunPlan, round_number: int) -> StageContents:
    """Return a masked vector, and the frame around it."""
    what = _update(plan) if round_number <= plan.num_rounds else _DISTANCE
    private = _private(plan)
    if plan.evaluation.is_pooled and round_number == REFERENCE_ROUND:
        what = _FEATURES
        private = private if plan.evaluation.is_noised else ()
    vector = Content(
        what=f"{what}, masked",
        recipient=AGGREGATOR,
        form=Form.MASKED,
        covers=(Cover.SECURE_AGGREGATION, *private),
    )
    frame = _public("header and signature of the masked message")
    return StageContents(rest=frame.rest, vector=vector)


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


def cover_words(
    plan: RunPlan, covers: tuple[Cover, ...], epsilon: float | None = None
) -> str:
    """Return in words which guarantee covers something that left.

    Args:
        epsilon: what the silo recorded as spent in the run; None for the plan's target.
    """
    return "; ".join(_cover_words(plan, cover, epsilon) for cover in covers)


def _cover_words(plan: RunPlan, cover: Cover, epsilon: float | None) -> str:
    """Return one guarantee in words."""
    if cover == Cover.SECURE_AGGREGATION:
        return _secure_aggregation_words(plan)
    if cover == Cover.DIFFERENTIAL_PRIVACY:
        return _privacy_words(plan, epsilon)
    is_independent = cover == Cover.INDEPENDENT
    return "does not depend on the images" if is_independent else "none"


def _secure_aggregation_words(plan: RunPlan) -> str:
    """Say what secure aggregation promises in this plan, and up to which collusion."""
    protection = plan.protection
    least = max(protection.min_cohort, protection.threshold)
    if plan.update.is_dealt:
        least = protection.min_cohort
    follows = "follows the protocol and " * (protection.trust == "semi-honest")
    most = protection.max_colluding
    return (
        f"secure aggregation: only sums of at least {least} silos are opened, as long "
        f"as the aggregator {follows}colludes with at most {most} "
        f"silo{'s' * (most != 1)}"
    )


def _privacy_words(plan: RunPlan, epsilon: float | None) -> str:
    """Say what differential privacy promises over the run."""
    privacy = plan.privacy
    spent = epsilon if epsilon is not None else privacy.epsilon or None
    if privacy.is_in_sum:
        return f"{claim(plan, spent)}, under the assumptions of its mechanism"
    amount = f"epsilon {upward(spent)}" if spent else "an epsilon that the plan implies"
    unit = "image" if privacy.unit == "example" else "patient"
    return (
        f"differential privacy: {amount} at delta {privacy.delta:g} per {unit}, over "
        "the whole run"
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
