"""What a silo may be asked, and the stage that each request belongs to."""

from collections.abc import Mapping

from crypto.frame import Kind as SecAggKind
from protocol.envelope import Kind

STAGES: Mapping[int, str] = {
    Kind.OPEN_SETUP: "setup",
    SecAggKind.KEYS: "shares",
    SecAggKind.ENVELOPES: "envelopes",
    Kind.BROADCAST: "broadcast",
    Kind.ROUND: "ready",
    SecAggKind.ACTIVE: "masked",
    SecAggKind.SURVIVORS: "confirm",
    SecAggKind.CONFIRMS: "reveal",
    Kind.END: "end",
}
"""What a silo may be asked, and the name of the stage."""

OUTSIDE_ROUNDS = ("setup", "shares", "envelopes", "end")
"""Stages that belong to no round; their records carry round 0."""

IN_SLOT = ("masked", "confirm", "reveal")
"""Stages that belong to the round of the latest slot."""

WITHOUT_MASKS = ("broadcast", "ready", "end")
"""The only stages of a run whose updates leave in the clear."""

AFTER_THE_END = ("broadcast", "end")
"""Stages that a silo answers again when the run is over for it; nothing changes."""
