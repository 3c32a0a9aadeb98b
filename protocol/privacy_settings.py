"""The section of a plan on differential privacy."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from privacy.noise import MAX_VARIANCE
from protocol.settings import require
from protocol.update_settings import MAX_CLIPPING_NORM, MIN_CLIPPING_NORM

MAX_MULTIPLICITY = 1024


MAX_IMAGES_PER_PATIENT = 1024


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """The differential-privacy mechanism of the run, or none.

    With "dp-sgd" and "record-distributed" every privacy unit (``unit``: an image, or
    all images of a patient) is drawn in a step with probability ``sample_rate``; its
    gradient, the mean over ``multiplicity`` draws of timestep and noise (0: as suits
    the device), is clipped to ``clipping_norm``. Rate and divisor
    (``training.examples_per_step``) are public and the same for all silos, so that
    neither depends on anybody's data. With "dp-sgd" Gaussian noise of
    ``noise_multiplier`` times the norm is added to the sum, which is then divided.

    With "record-distributed" and "silo" the noise is in the secure sum
    (docs/noise-inside-the-sum.md): every silo adds discrete Gaussian noise of
    ``share_variance``, grid steps squared, to each of its ``num_values`` levels. With
    "silo" the unit is a silo: its whole update is clipped, to ``update.clipping_norm``.

    A draft gives ``epsilon``, the target at ``delta`` for the whole run, or the noise
    itself (``noise_multiplier``, ``share_variance``); a plan has the noise in any case.
    ``spare_steps`` are counted in beforehand: steps (rounds with noise in the sum) that
    a silo may repeat after crashes.
    """

    mechanism: Literal["none", "dp-sgd", "record-distributed", "silo"] = "none"
    epsilon: float = 0.0
    delta: float = 0.0
    noise_multiplier: float = 0.0
    share_variance: int = 0
    num_values: int = 0
    clipping_norm: float = 1.0
    sample_rate: float = 0.0
    multiplicity: int = 0
    unit: Literal["example", "patient", "silo"] = "example"
    max_images_per_patient: int = 4
    spare_steps: int = 0

    def __post_init__(self) -> None:
        """Check the ranges, and that nothing of another mechanism is given."""
        for f in fields(self)[1:]:
            owners = _OWNERS.get(f.name, (*_SAMPLED, "silo"))
            require(
                self.mechanism in owners or getattr(self, f.name) == f.default,
                f'{f.name}: belongs to mechanism "{owners[0]}", not "{self.mechanism}"',
            )
        if not self.is_private:
            return
        noise = "share_variance" if self.is_in_sum else "noise_multiplier"
        require(
            self.epsilon > 0 or getattr(self, noise) > 0,
            f"epsilon: give the target epsilon, or {noise}",
        )
        is_possible = (self.unit == "silo") == (self.mechanism == "silo")
        require(is_possible, f'unit: "{self.unit}" with mechanism "{self.mechanism}"')
        is_possible = 0 <= self.share_variance <= MAX_VARIANCE and self.num_values >= 0
        require(is_possible, "share_variance, num_values: must be 0 or more, to 2^48")
        for name in ("epsilon", "noise_multiplier"):
            is_possible = 0 <= getattr(self, name) < math.inf
            require(is_possible, f"{name}: must be positive and finite")
        require(0 < self.delta < 1, "delta: must be in (0, 1)")
        require(
            MIN_CLIPPING_NORM <= self.clipping_norm <= MAX_CLIPPING_NORM,
            f"clipping_norm: must be {MIN_CLIPPING_NORM} to {MAX_CLIPPING_NORM}",
        )
        require(
            0 < self.sample_rate <= 1 or self.mechanism == "silo",
            "sample_rate: must be in (0, 1]",
        )
        is_possible = 0 <= self.multiplicity <= MAX_MULTIPLICITY
        require(is_possible, f"multiplicity: must be 0 to {MAX_MULTIPLICITY}")
        is_possible = 1 <= self.max_images_per_patient <= MAX_IMAGES_PER_PATIENT
        most = MAX_IMAGES_PER_PATIENT
        require(is_possible, f"max_images_per_patient: must be 1 to {most}")
        require(self.spare_steps >= 0, "spare_steps: must not be negative")

    @property
    def is_private(self) -> bool:
        """Whether there is differential privacy."""
        return self.mechanism != "none"

    @property
    def is_in_sum(self) -> bool:
        """Whether the noise of several silos protects, together in their sum."""
        return self.mechanism in _IN_SUM


_SAMPLED, _IN_SUM = ("dp-sgd", "record-distributed"), ("record-distributed", "silo")


_OWNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("clipping_norm", "sample_rate", "multiplicity"), _SAMPLED),
    **dict.fromkeys(("share_variance", "num_values"), _IN_SUM),
    "max_images_per_patient": _SAMPLED,
    "noise_multiplier": ("dp-sgd",),
}
"""The mechanisms that read a field; those that are not named belong to all but none."""
