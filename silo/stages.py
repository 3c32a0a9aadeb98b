"""What a silo may be asked, and the stage that each request belongs to.

========== =================== ==================================================
request    reply               what happens
========== =================== ==================================================
AUXILIARY  AUXILIARY_SENT      this silo's own model, or samples of it
REFERENCE  READY               sums of this silo's features, before round 1
OPEN_SETUP ADVERTISE           fresh keys for the slots of a setup
KEYS       SHARES              shares of the slot keys and seeds, sealed pairwise
ENVELOPES  JOINED              what the other silos have sealed to this one is opened
BROADCAST  HELD                the next global model, where the down-link is quantised
ROUND      READY (or PLAIN)    training, update, quantisation
MEASURE    READY (or PLAIN)    sampling, the distance of this silo's own model
ACTIVE     MASKED              the update leaves, masked
SURVIVORS  CONFIRM             this silo signs whose updates the sum holds
CONFIRMS   REVEAL              shares of the masks; the update is destroyed
MEASURE    READY (or PLAIN)    the finished model is measured, where the plan says so
BROADCAST  HELD                the differences to the next global model, where quantised
END        END_SEEN            the run is over; nothing else is answered from now on
========== =================== ==================================================

With encryption in place of masks (``protection.method = "bfv"``) these differ:

========== =================== ==================================================
KEYS       DEALT               one silo deals the key that all share, sealed to each
HANDED     JOINED              the key that was sealed to this silo is taken
ACTIVE     ENCRYPTED           the update leaves, encrypted
DECRYPT    DECRYPTED           the confirmed sum, decrypted; the update is destroyed
========== =================== ==================================================

AUXILIARY and REFERENCE are asked before round 1, where the plan says so; ACTIVE and
what follows it then serve REFERENCE as they serve a round.
With ``trust = "semi-honest"`` SURVIVORS itself is answered with REVEAL. OPEN_SETUP,
ROUND and END also bring SUM, the digest of the sum before.
"""

from collections.abc import Mapping

from crypto.frame import Kind as SecAggKind
from protocol.envelope import Kind
from protocol.measurement import MEASURE
from protocol.plan import RunPlan
from protocol.reference import REFERENCE
from silo.errors import PolicyViolation

STAGES: Mapping[int, str] = {
    Kind.OPEN_SETUP: "setup",
    SecAggKind.KEYS: "shares",
    SecAggKind.ENVELOPES: "envelopes",
    SecAggKind.HANDED: "handed",
    Kind.BROADCAST: "broadcast",
    Kind.ROUND: "ready",
    Kind.MEASURE: MEASURE,
    SecAggKind.ACTIVE: "masked",
    SecAggKind.SURVIVORS: "confirm",
    SecAggKind.CONFIRMS: "reveal",
    SecAggKind.DECRYPT: "decrypt",
    Kind.END: "end",
    Kind.AUXILIARY: "auxiliary",
    Kind.REFERENCE: REFERENCE,
}
"""What a silo may be asked, and the name of the stage."""

WITH_ENCRYPTION: Mapping[int, str] = {
    SecAggKind.KEYS: "key",
    SecAggKind.ACTIVE: "encrypted",
}
"""Stages that are called otherwise where updates are encrypted."""

OF_MASKS = ("shares", "envelopes", "masked", "reveal")
"""Stages that only masks have."""

OF_ENCRYPTION = ("key", "handed", "encrypted", "decrypt")
"""Stages that only encryption has."""

OUTSIDE_ROUNDS = (
    *("auxiliary", "setup", "shares", "envelopes", "key", "handed"),
    *(REFERENCE, "end"),
)
"""Stages that belong to no round; their records carry round 0."""

IN_SLOT = ("masked", "encrypted", "confirm", "reveal", "decrypt")
"""Stages that belong to the round of the latest slot."""

WITHOUT_MASKS = ("auxiliary", "broadcast", "ready", MEASURE, "end")
"""The only stages of a run whose updates leave in the clear."""

AFTER_THE_END = ("broadcast", "end")
"""Stages that a silo answers again when the run is over for it; nothing changes."""


def stage_of(plan: RunPlan, kind: int) -> str:
    """Return the stage of a request of this kind in a run of this plan.

    Raises:
        PolicyViolation: a silo is never asked that.
    """
    if kind not in STAGES:
        raise PolicyViolation(f"a request of kind {kind}")
    if kind == SecAggKind.SURVIVORS and plan.skips_confirm:
        return "reveal"
    if plan.protection.is_encrypted and kind in WITH_ENCRYPTION:
        return WITH_ENCRYPTION[kind]
    return STAGES[kind]


def check_stage(plan: RunPlan, stage: str, *, is_finished: bool) -> None:
    """Refuse what a finished run, or a run of this plan, does not have.

    Raises:
        PolicyViolation: with the reason.
    """
    if is_finished and stage not in AFTER_THE_END:
        raise PolicyViolation("the run is over")
    protection = plan.protection
    if not protection.is_hidden and stage not in WITHOUT_MASKS:
        raise PolicyViolation(f"{stage} in a run without secure aggregation")
    if protection.is_encrypted and stage in OF_MASKS:
        raise PolicyViolation(f"{stage} in a run whose updates are encrypted")
    if not protection.is_encrypted and stage in OF_ENCRYPTION:
        raise PolicyViolation(f"{stage} in a run whose updates are masked")
    if stage == "broadcast" and not plan.update.broadcast_bits:
        raise PolicyViolation("a broadcast in a run whose rounds bring the model")
