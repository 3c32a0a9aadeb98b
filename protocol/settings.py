"""The sections of a plan: everything that all parties of a run agree on.

One frozen dataclass per section of the TOML file; each checks its own numbers. Model,
noise schedule and sampler are described in ``diffusion.config``. Fields are public by
definition: nothing secret and nothing computed from data belongs here.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from crypto.ring import field_bits_for
from crypto.secagg.config import SecAggConfig
from diffusion.config import SamplerConfig
from privacy.noise import MAX_VARIANCE
from privacy.rotation import padded_length
from protocol.encoding import check_hex

FIRST_ROUND_FIELD_BITS = 32
"""Width of a packed field in a run's first round, when no mean update is known yet and
no rotation makes do without one."""

MAX_VALUE_BITS = 24
"""Most bits a quantised value may have; beyond, float32 updates have none to give."""

MIN_CLIPPING_NORM = 1e-9
MAX_CLIPPING_NORM = 1e9
"""Within these bounds the clip and the grid stay clear of float32's limits."""

MAX_WEIGHT = 1 << 32
"""The largest ``max_weight`` of secret weights."""

MAX_MULTIPLICITY = 1024
MAX_IMAGES_PER_PATIENT = 1024

MAX_SILOS = 1000


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError`` with a message that begins with the field's name."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a silo trains in one round.

    Exactly one of ``local_steps`` and ``local_epochs`` is positive. The learning rate
    rises linearly during the first ``warm_up_fraction`` of the run, and falls linearly
    over the whole run to ``final_learning_rate_fraction`` of its start.
    ``optimizer_state`` says whether Adam's moments are kept over rounds or made anew,
    as FedDiffuse does (de Goede et al. 2024). ``local_parts`` says whether the parts
    that are not federated are trained, or stay as the run began.
    """

    local_steps: int = 0
    local_epochs: int = 0
    examples_per_step: int = 32
    learning_rate: float = 1e-4
    warm_up_fraction: float = 0.0
    final_learning_rate_fraction: float = 1.0
    optimizer_state: Literal["kept", "fresh"] = "kept"
    loss: Literal["mse", "huber"] = "mse"
    local_parts: Literal["trained", "frozen"] = "trained"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("local_steps", "local_epochs"):
            require(getattr(self, name) >= 0, f"{name}: must not be negative")
        require(
            (self.local_steps > 0) != (self.local_epochs > 0),
            "local_steps: exactly one of local_steps and local_epochs must be positive",
        )
        require(self.examples_per_step >= 1, "examples_per_step: must be at least 1")
        require(0 < self.learning_rate <= 1, "learning_rate: must be in (0, 1]")
        require(0 <= self.warm_up_fraction < 1, "warm_up_fraction: must be in [0, 1)")
        require(
            0 < self.final_learning_rate_fraction <= 1,
            "final_learning_rate_fraction: must be in (0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """The parameters that a run begins with: drawn from the seed, or those of a file.

    ``name`` says what the file's parameters were trained on and ``sha256`` is its
    digest; every party has the file. ``origin`` is "public" for data that need no
    protection, or "run" for what an earlier run of the silos released: that one's
    ledgers account for it.
    """

    name: str = ""
    sha256: str = ""
    origin: Literal["public", "run"] = "public"

    def __post_init__(self) -> None:
        """Check that both are given, or neither."""
        require(
            bool(self.name) == bool(self.sha256),
            "name: name and sha256 belong together: what the parameters were trained "
            "on, and the digest of their file",
        )
        require(len(self.name) <= 200, "name: must be at most 200 characters")
        if self.sha256:
            check_hex("sha256", self.sha256, 32)


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What leaves a silo, and in which form.

    ``selection`` names the parts of the UNet that are federated (FedDiffuse).

    ``clipping_norm`` bounds the L2 norm of the update; with ``clipping``
    "previous-mean" the bound of a round is three times the norm of the mean update
    before it, if that is less. ``value_bits`` are the bits of one quantised value.
    ``rotation`` spreads an update evenly over its values before it is quantised.
    ``rounding`` is stochastic with dither from the operating system, or nearest for
    comparisons of runs.

    ``weights`` are equal, or the numbers declared for the silos in the plan, or secret:
    each silo's number of examples, up to ``max_weight``, of which the aggregator learns
    the sum alone.
    """

    selection: Literal["full", "ulatdec", "udec"] = "full"
    clipping_norm: float = 5.0
    clipping: Literal["fixed", "previous-mean"] = "fixed"
    value_bits: int = 16
    rotation: bool = False
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    weights: Literal["equal", "declared", "secret"] = "equal"
    max_weight: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            MIN_CLIPPING_NORM <= self.clipping_norm <= MAX_CLIPPING_NORM,
            f"clipping_norm: must be {MIN_CLIPPING_NORM} to {MAX_CLIPPING_NORM}, "
            f"is {self.clipping_norm}",
        )
        require(
            2 <= self.value_bits <= MAX_VALUE_BITS,
            f"value_bits: must be 2 to {MAX_VALUE_BITS}, is {self.value_bits}",
        )
        if self.weights == "secret":
            require(
                1 <= self.max_weight <= MAX_WEIGHT,
                f'max_weight: must be 1 to {MAX_WEIGHT:,} with weights "secret": the '
                f"most examples that a silo may have; is {self.max_weight}",
            )
        else:
            require(
                self.max_weight == 0,
                f'max_weight: belongs to weights "secret", not "{self.weights}"',
            )

    def is_wide(self, round_number: int) -> bool:
        """Return whether a round has wide fields: it is the first, without rotation."""
        return round_number == 1 and not self.rotation

    def field_bits(self, round_number: int, num_silos: int) -> int:
        """Return the bits that one packed value occupies in a round."""
        if self.is_wide(round_number):
            return FIRST_ROUND_FIELD_BITS
        return field_bits_for(self.value_bits, num_silos)

    def value_bits_in(self, round_number: int, num_silos: int) -> int:
        """Return the bits of one value in a round; wide fields use all they have."""
        if self.is_wide(round_number):
            return FIRST_ROUND_FIELD_BITS - (num_silos - 1).bit_length()
        return self.value_bits

    def num_values(self, num_parameters: int) -> int:
        """Return the length of the vector of so many parameters, with its padding."""
        return padded_length(num_parameters) if self.rotation else num_parameters


@dataclass(frozen=True, kw_only=True)
class ProtectionConfig:
    """How updates are hidden from the aggregator.

    ``threshold`` silos can reconstruct the masks of those that are lost; ``min_cohort``
    is the smallest number of silos in a sum; ``max_colluding`` the number of silos that
    may collude with the aggregator; ``slots_per_setup`` the number of vectors that one
    key exchange serves. A threshold of 0 means two thirds of the silos plus one, or
    what ``max_colluding`` demands if that is more.
    """

    method: Literal["mask", "none"] = "mask"
    threshold: int = 0
    min_cohort: int = 3
    max_colluding: int = 1
    trust: Literal["malicious", "semi-honest"] = "malicious"
    slots_per_setup: int = 16

    def __post_init__(self) -> None:
        """Check the ranges that do not depend on the silos."""
        require(self.threshold >= 0, "threshold: must not be negative")
        require(self.min_cohort >= 2, "min_cohort: must be at least 2")
        require(self.max_colluding >= 0, "max_colluding: must not be negative")
        require(1 <= self.slots_per_setup <= 64, "slots_per_setup: must be 1 to 64")

    def threshold_for(self, num_silos: int) -> int:
        """Return the threshold for a number of silos, the default filled in."""
        if self.threshold:
            return self.threshold
        demanded = (num_silos + self.max_colluding) // 2 + 1
        return min(num_silos, max(2 * num_silos // 3 + 1, demanded))

    def secagg_config(self, num_silos: int) -> SecAggConfig:
        """Return the parameters of secure aggregation among so many silos.

        Raises:
            ValueError: it could not hide an update among them; names the field.
        """
        return SecAggConfig(
            num_silos=num_silos,
            threshold=self.threshold_for(num_silos),
            min_cohort=self.min_cohort,
            max_colluding=self.max_colluding,
            trust=self.trust,
            slots_per_setup=self.slots_per_setup,
        )

    def check_silos(self, num_silos: int) -> None:
        """Raise ``ValueError`` when this protection cannot hold for so many silos."""
        require(
            num_silos >= self.min_cohort,
            f"min_cohort: {num_silos} silos are fewer than the smallest cohort of "
            f"{self.min_cohort}",
        )
        if self.method == "mask":
            self.secagg_config(num_silos)


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


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """What the aggregator does with the mean update.

    With ``optimizer`` "sgd" the mean times ``learning_rate`` is added to the global
    parameters; with "adam" it is the negative gradient of FedAdam, whose moments decay
    by ``decay_mean`` and ``decay_square`` and whose ``adaptivity`` is added to the root
    of the second (Reddi et al. 2021). The moving average of the global parameters, from
    which samples are drawn, decays by ``ema_decay`` per round (0: the latest ones).
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1.0
    decay_mean: float = 0.9
    decay_square: float = 0.99
    adaptivity: float = 1e-3
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.learning_rate <= 10, "learning_rate: must be in (0, 10]")
        for name in ("decay_mean", "decay_square", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"{name}: must be in [0, 1)")
        require(1e-12 <= self.adaptivity <= 1, "adaptivity: must be 1e-12 to 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how a Fréchet distance is measured.

    ``every_rounds`` 0 switches it off; the last round is always evaluated otherwise.
    ``extractor_sha256``, where given, is the full SHA-256 of the Inception weights.
    """

    every_rounds: int = 0
    num_samples: int = 500
    extractor: Literal["fd-small-digits", "fd-small-fashion", "inception"] = (
        "fd-small-fashion"
    )
    extractor_sha256: str = ""
    sampler: SamplerConfig = SamplerConfig(kind="ddim", num_steps=50)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.every_rounds >= 0, "every_rounds: must not be negative")
        require(self.num_samples >= 2, "num_samples: must be at least 2")
        if self.extractor_sha256:
            check_hex("extractor_sha256", self.extractor_sha256, 32)

    def is_due(self, round_number: int, num_rounds: int) -> bool:
        """Return whether a round is followed by an evaluation."""
        if not self.every_rounds:
            return False
        return round_number % self.every_rounds == 0 or round_number == num_rounds


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig:
    """How long the aggregator waits: for training, and for any other exchange."""

    training_seconds: float = 3600.0
    exchange_seconds: float = 120.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("training_seconds", "exchange_seconds"):
            require(0 < getattr(self, name) < math.inf, f"{name}: must be positive")
