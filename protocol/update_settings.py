"""Sections of a plan: what leaves a silo, and how it is hidden from the aggregator."""

from dataclasses import dataclass
from typing import Annotated, Literal

from crypto.bfv.noise import max_summed
from crypto.bfv.parameters import MIN_NOISE_BUDGET_BITS
from crypto.ring import field_bits_for
from crypto.secagg.config import SecAggConfig
from privacy.rotation import padded_length
from protocol.dealing import PARTS
from protocol.encoding import NotOffered
from protocol.settings import require

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


NO_CKKS = NotOffered(
    "ckks",
    "is not offered: it decrypts approximately, and from the sums of ciphertexts with "
    "their approximate mean, which the aggregator of every run sees, the secret key "
    'follows; use "bfv", which is exact (docs/homomorphic-encryption.md)',
)
"""Li & Micciancio, EUROCRYPT 2021."""


BROADCAST_BITS = (4, 16)
"""Fewest and most bits of a level of the quantised down-link."""


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """What leaves a silo, and in which form.

    ``selection`` names the parts of the UNet that are federated (FedDiffuse): all, all
    of which each silo returns some ("usplit", ``protocol.dealing``), bottleneck and
    decoder, the decoder, or with "parts" those that ``parts`` lists.

    ``clipping_norm`` bounds the L2 norm of the update; with ``clipping``
    "previous-mean" the bound of a round is three times the norm of the mean update
    before it, if that is less. ``value_bits`` are the bits of one quantised value.
    ``rotation`` spreads an update evenly over its values before it is quantised.
    ``rounding`` is stochastic with dither from the operating system, or nearest for
    comparisons of runs.

    ``weights`` are equal, or the numbers declared for the silos in the plan, or secret:
    each silo's number of examples, up to ``max_weight``, of which the aggregator learns
    the sum alone.

    ``form`` "float32" sends updates unquantised, in the clear: FedAvg as it is, for
    comparisons. With ``broadcast_bits`` from 4 to 16 the way down is quantised, too
    (``protocol.broadcast``); 0 broadcasts float32. With ``error_feedback`` a silo adds
    what quantisation took from its last summed update to the next one.
    """

    selection: Literal["full", "usplit", "ulatdec", "udec", "parts"] = "full"
    parts: tuple[str, ...] = ()
    clipping_norm: float = 5.0
    clipping: Literal["fixed", "previous-mean"] = "fixed"
    value_bits: int = 16
    rotation: bool = False
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    weights: Literal["equal", "declared", "secret"] = "equal"
    max_weight: int = 0
    form: Literal["grid", "float32"] = "grid"
    broadcast_bits: int = 0
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._check_parts()
        require(
            MIN_CLIPPING_NORM <= self.clipping_norm <= MAX_CLIPPING_NORM,
            f"clipping_norm: must be {MIN_CLIPPING_NORM} to {MAX_CLIPPING_NORM}, "
            f"is {self.clipping_norm}",
        )
        require(
            2 <= self.value_bits <= MAX_VALUE_BITS,
            f"value_bits: must be 2 to {MAX_VALUE_BITS}, is {self.value_bits}",
        )
        least, most = BROADCAST_BITS
        require(
            self.broadcast_bits == 0 or least <= self.broadcast_bits <= most,
            f"broadcast_bits: must be 0 (float32) or {least} to {most}, is "
            f"{self.broadcast_bits}",
        )
        if self.form == "float32":
            self._check_float32()
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

    def _check_float32(self) -> None:
        """Refuse what belongs to a grid, which unquantised updates do not have."""
        require(
            not self.rotation,
            'rotation: spreads an update for its quantisation; with form "float32" '
            "nothing is quantised",
        )
        require(
            self.weights != "secret",
            'weights: "secret" hides in a secure sum, which form "float32" does not '
            'have; use "declared" or "equal"',
        )
        require(
            not self.error_feedback,
            'error_feedback: makes up for a quantisation that form "float32" does not '
            "have",
        )
        require(
            not self.is_dealt,
            f'selection: "{self.selection}" deals parts of the vector; form "float32" '
            "sums whole ones",
        )

    def _check_parts(self) -> None:
        """Check that parts are named where the selection asks for them."""
        if self.selection != "parts":
            require(
                not self.parts,
                f'parts: belongs to selection "parts", not "{self.selection}"',
            )
            return
        require(
            bool(self.parts) and set(self.parts) <= set(PARTS),
            "parts: must name one or more of encoder, bottleneck, decoder with "
            'selection "parts"',
        )
        require(len(set(self.parts)) == len(self.parts), "parts: names a part twice")

    @property
    def is_dealt(self) -> bool:
        """Whether silos return parts that are dealt to them anew in each round."""
        return self.selection == "usplit"

    @property
    def is_complete(self) -> bool:
        """Whether all parts are federated: the aggregator has a complete model."""
        return self.selection in ("full", "usplit") or set(self.parts) == set(PARTS)

    def is_wide(self, round_number: int) -> bool:
        """Return whether a round has wide fields: it is the first, without rotation."""
        return round_number == 1 and not self.rotation

    def field_bits(self, round_number: int, num_silos: int) -> int:
        """Return the bits that one packed value occupies in a round."""
        if self.is_wide(round_number) or self.form == "float32":
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

    With method "bfv" updates are encrypted instead, under a key that all silos share:
    nothing is lost with a silo, but one that gives the aggregator the key gives it
    every update. ``key_maker`` names the silo that makes it; by default the first one.
    """

    method: Annotated[Literal["mask", "bfv", "none"], NO_CKKS] = "mask"
    threshold: int = 0
    min_cohort: int = 3
    max_colluding: int = 1
    trust: Literal["malicious", "semi-honest"] = "malicious"
    slots_per_setup: int = 16
    key_maker: str = ""

    def __post_init__(self) -> None:
        """Check the ranges that do not depend on the silos."""
        require(self.threshold >= 0, "threshold: must not be negative")
        require(self.min_cohort >= 2, "min_cohort: must be at least 2")
        require(self.max_colluding >= 0, "max_colluding: must not be negative")
        require(1 <= self.slots_per_setup <= 64, "slots_per_setup: must be 1 to 64")
        require(
            self.method == "bfv" or not self.key_maker,
            f'key_maker: belongs to method "bfv", not "{self.method}"',
        )
        require(
            self.method != "bfv" or self.trust == "malicious",
            'trust: must be "malicious" with method "bfv": without CONFIRM an '
            "aggregator could have the sums over two lists of silos decrypted, and "
            "subtract them",
        )

    @property
    def is_hidden(self) -> bool:
        """Whether the aggregator sees sums alone."""
        return self.method != "none"

    @property
    def is_encrypted(self) -> bool:
        """Whether updates are encrypted, in place of masks."""
        return self.method == "bfv"

    def threshold_for(self, num_silos: int) -> int:
        """Return the threshold for a number of silos, the default filled in."""
        if self.threshold:
            return self.threshold
        demanded = (num_silos + self.max_colluding) // 2 + 1
        return min(num_silos, max(2 * num_silos // 3 + 1, demanded))

    def secagg_config(self, num_silos: int, key_maker: int = 0) -> SecAggConfig:
        """Return the parameters of secure aggregation among so many silos.

        Args:
            key_maker: index of the silo that makes the key, with method "bfv".

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
            protection="bfv" if self.is_encrypted else "mask",
            key_maker=key_maker,
        )

    def check_silos(self, num_silos: int) -> None:
        """Raise ``ValueError`` when this protection cannot hold for so many silos."""
        require(
            num_silos >= self.min_cohort,
            f"min_cohort: {num_silos} silos are fewer than the smallest cohort of "
            f"{self.min_cohort}",
        )
        if self.is_encrypted:
            require(
                num_silos <= max_summed(),
                f'method: "bfv" sums {max_summed()} silos at most, these are '
                f"{num_silos}: the noise of more could leave fewer than the "
                f"{MIN_NOISE_BUDGET_BITS} bits that must be left of its budget",
            )
        if self.is_hidden:
            self.secagg_config(num_silos)
