"""What a plan says about the model: network, schedule, sampler, loss.

Standard library only, so that parties without torch can read and check a plan.
Every field may be published. Each class checks itself; a wrong field is a
``ValueError`` of one line that names the field and its bound.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal["residual", "feddiffuse", "means"]
ScheduleKind = Literal["linear", "cosine"]
SamplerKind = Literal["ancestral", "ddim"]
LossKind = Literal["mse", "huber"]

MAX_DIM = 512
MAX_CHANNELS = 16
MAX_LEVELS = 6
MAX_DIM_MULTIPLE = 16
MAX_IMAGE_SIZE = 1024
MAX_TIMESTEPS = 10_000
MAX_CLASSES = 10_000
MAX_GUIDANCE = 100.0


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}")


def _check_integer(field: str, value: object, lowest: int, highest: int) -> None:
    """Raise unless the value is an integer within the bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} must be an integer; got {value!r}")
    if not lowest <= value <= highest:
        raise ValueError(f"{field} must lie in {lowest}..{highest}; got {value}")


def _check_real(field: str, value: object, highest: float) -> None:
    """Raise unless the value is a number from 0 up to a bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} must be a number; got {value!r}")
    if not (math.isfinite(value) and 0.0 <= value <= highest):
        raise ValueError(f"{field} must lie in 0..{highest:g}; got {value}")


def check_loss_kind(value: str) -> None:
    """Check the name of a training loss.

    Raises:
        ValueError: it is neither ``mse`` nor ``huber``.
    """
    _check_choice("loss", value, get_args(LossKind))


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The denoising network, or the stack of central images in its place.

    Args:
        architecture: ``residual`` (Ho et al., 2020; the fast default),
            ``feddiffuse`` (de Goede et al., 2024; for reproducing that paper), or
            ``means``: no network, but central images (``diffusion/means.py``).
        dim: channels of the first level, a multiple of 4; of ``means`` the number of
            central images.
        channels: colour channels of an image.
        dim_mults: channels of each level, as multiples of ``dim``; one level per
            entry, the first at full resolution, each next one at half of it. Empty
            for ``means``.
        image_size: height and width in pixels.
        num_classes: 0 for a network that knows no labels; otherwise at least 2, and
            images need labels 0 … num_classes - 1.

    Raises:
        ValueError: a field is out of its bounds, the lowest level would be smaller
            than 2 pixels, or central images have classes.
    """

    architecture: Architecture
    dim: int
    channels: int
    dim_mults: tuple[int, ...]
    image_size: int
    num_classes: int = 0

    def __post_init__(self) -> None:
        _check_choice("architecture", self.architecture, get_args(Architecture))
        _check_integer("channels", self.channels, 1, MAX_CHANNELS)
        if not isinstance(self.dim_mults, tuple):
            raise ValueError("dim_mults must be a tuple of integers")
        _check_integer("num_classes", self.num_classes, 0, MAX_CLASSES)
        if self.num_classes == 1:
            raise ValueError(
                "num_classes must be 0, or at least 2; one class tells nothing"
            )
        if self.is_central_images:
            _check_integer("dim (the number of central images)", self.dim, 1, MAX_DIM)
            if self.dim_mults:
                raise ValueError('dim_mults must be empty with architecture "means"')
            if self.num_classes:
                raise ValueError(
                    'num_classes must be 0 with architecture "means": a central image '
                    "is a mean over all classes"
                )
            _check_integer("image_size", self.image_size, 2, MAX_IMAGE_SIZE)
            return
        _check_integer("dim", self.dim, 4, MAX_DIM)
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4; got {self.dim}")
        _check_integer("number of dim_mults", len(self.dim_mults), 1, MAX_LEVELS)
        for multiple in self.dim_mults:
            _check_integer("dim_mults", multiple, 1, MAX_DIM_MULTIPLE)
        self._check_is_heard()
        smallest = 2 ** len(self.dim_mults)
        _check_integer("image_size", self.image_size, smallest, MAX_IMAGE_SIZE)

    def _check_is_heard(self) -> None:
        """Refuse classes where group normalisation would remove what tells them.

        An embedding is added to whole channels. A residual block normalises what
        follows in at most 8 groups; a group of one channel loses the addition.
        """
        widest = self.dim * max(self.dim_mults)
        if self.num_classes and self.architecture == "residual" and widest <= 8:
            raise ValueError(
                "num_classes must be 0 where dim times the largest of dim_mults is at "
                f"most 8, here {widest}: so narrow a network does not hear of classes"
            )

    @property
    def is_central_images(self) -> bool:
        """Whether these are central images, which cannot predict noise."""
        return self.architecture == "means"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The variance schedule of the forward process.

    Args:
        kind: ``linear`` (Ho et al., 2020) or ``cosine`` (Nichol & Dhariwal, 2021).
        num_timesteps: length T of the forward process.

    Raises:
        ValueError: a field is out of its bounds.
    """

    kind: ScheduleKind = "linear"
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, get_args(ScheduleKind))
        _check_integer("num_timesteps", self.num_timesteps, 2, MAX_TIMESTEPS)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How images are drawn from a trained network.

    Args:
        kind: ``ancestral`` (all T timesteps) or ``ddim`` (``num_steps`` of them).
        num_steps: network evaluations per image; read by ``ddim`` only.
        eta: DDIM's share of fresh noise, 0 (deterministic) to 1; ``ddim`` only.
        clamp: whether the predicted clean image is clamped to [-1, 1] in each step.
        guidance: w of classifier-free guidance, from 0, the plain conditional model;
            for networks with classes alone. Above 0 a step costs two evaluations.

    Raises:
        ValueError: a field is out of its bounds.
    """

    kind: SamplerKind = "ddim"
    num_steps: int = 50
    eta: float = 1.0
    clamp: bool = True
    guidance: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, get_args(SamplerKind))
        _check_integer("num_steps", self.num_steps, 1, MAX_TIMESTEPS)
        _check_real("eta", self.eta, 1.0)
        _check_real("guidance", self.guidance, MAX_GUIDANCE)
        if not isinstance(self.clamp, bool):
            raise ValueError(f"clamp must be true or false; got {self.clamp!r}")
