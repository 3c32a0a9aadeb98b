"""The exchange before round 1: silos give auxiliary images, or a model to draw them of.

It takes place only in a run whose plan says so (``calibration.images``), and only where
a silo's policy permits it. What a silo sends depends on its own data alone and is not
hidden in a sum: docs/calibration.md.
"""

from dataclasses import dataclass

from crypto.encoding import BytesLike
from diffusion.config import UNetConfig
from protocol.bodies import check_names, join_body, split_body
from protocol.calibration_settings import FROM_SILOS
from protocol.errors import EnvelopeRejected
from protocol.plan import RunPlan

STAGE = "auxiliary"
"""The name of the exchange in records."""

MAX_TABLE_BYTES = 1 << 10
"""What a reply holds beside its content and its frame, at most."""


@dataclass(frozen=True, kw_only=True)
class AuxiliaryRequest:
    """The aggregator asks for what the plan says, by its privacy label."""

    label: str

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        return join_body({"label": self.label})

    @classmethod
    def from_body(cls, body: memoryview) -> "AuxiliaryRequest":
        """Return the request of a body.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, _ = split_body(body, 0)
        check_names(table, ("label",))
        return cls(label=_label(table["label"]))


@dataclass(frozen=True, kw_only=True)
class AuxiliaryReply:
    """What a silo gives, in the clear.

    ``content`` is, with "silo-models", all parameters of the silo's own model as
    little-endian float32 in the order of the layout; with "silo-samples", samples of
    that model, 8-bit ``[n, h, w, c]``.
    """

    label: str
    content: BytesLike

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        return join_body({"label": self.label}, self.content)

    @classmethod
    def from_body(cls, body: memoryview) -> "AuxiliaryReply":
        """Return the reply of a body; ``content`` is a view of it.

        Raises:
            EnvelopeRejected: malformed.
        """
        table, (content,) = split_body(body, 1)
        check_names(table, ("label",))
        return cls(label=_label(table["label"]), content=content)


def samples_per_silo(plan: RunPlan) -> tuple[int, ...]:
    """Return how many auxiliary images each silo stands for, by silo index.

    Proportional to the declared weights, rounded, at least one; where the plan declares
    none all are alike. It depends on nothing but the plan.
    """
    is_declared = plan.update.weights == "declared"
    weights = [silo.weight if is_declared else 1.0 for silo in plan.silos]
    each, total = plan.calibration.num_images, sum(weights)
    return tuple(max(1, round(each * weight / total)) for weight in weights)


def image_bytes(model: UNetConfig) -> int:
    """Return the bytes of one 8-bit image."""
    return model.channels * model.image_size**2


def content_bytes(plan: RunPlan, silo: int, num_parameters: int) -> int:
    """Return the bytes of what one silo gives, exactly."""
    if plan.calibration.images == "silo-models":
        return 4 * num_parameters
    return samples_per_silo(plan)[silo] * image_bytes(plan.model)


def _label(value: object) -> str:
    """Return a label for which silos are asked."""
    if value not in FROM_SILOS:
        raise EnvelopeRejected(f"label must be {' or '.join(FROM_SILOS)}")
    return str(value)
