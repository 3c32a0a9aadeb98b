"""The public parameters of one secure aggregation, checked where they are made.

Everything here may be published. The parts of the vector and their lengths are
arguments of each slot, because one setup may serve different vectors.
"""

from dataclasses import dataclass
from typing import Literal

from crypto.encoding import Writer

MAX_SILOS = 1000
MAX_SLOTS_PER_SETUP = 64
MAX_WORDS = 1 << 28
"""Longest vector, in 64-bit words: 2 GiB."""
MAX_PARTS = 256
"""Most parts that one vector is dealt in."""

Trust = Literal["malicious", "semi-honest"]
Protection = Literal["mask", "bfv"]


@dataclass(frozen=True, kw_only=True)
class SecAggConfig:
    """Who can be lost, who may collude, and how many slots one setup serves.

    Guarantees: under ``trust="malicious"`` an aggregator that colludes with up to
    ``max_colluding`` silos and sends anything it likes learns no more about an honest
    silo's vector than the sum over at least two honest survivors; under
    ``"semi-honest"`` the same holds for one that follows the protocol and looks on.

    Attributes:
        num_silos: n, silos of the roster.
        threshold: t, shares that open a mask seed. Malicious: 2t > n + c, so that no
            two disjoint groups of honest silos can open both masks of one silo.
            Semi-honest: t > c.
        min_cohort: the fewest silos that are summed; at least c + 2, so that a sum
            never shows one honest silo to the others.
        max_colluding: c, silos that may share all they know with the aggregator.
        slots_per_setup: R, vectors that one key exchange serves.
        protection: what hides a vector, masks or encryption (``crypto.bfv``). Under
            "bfv" every silo holds the key: the guarantee above holds against an
            aggregator that no silo gives it to, and c counts silos that sign for it.
        key_maker: index of the silo that makes the key under "bfv"; if it is not in
            the setup, the next one of the roster that is.
    """

    num_silos: int
    threshold: int
    min_cohort: int = 3
    max_colluding: int = 1
    trust: Trust = "malicious"
    slots_per_setup: int = 16
    protection: Protection = "mask"
    key_maker: int = 0

    def __post_init__(self) -> None:
        """Check every field; ``ValueError`` names the first that cannot hold."""
        n, t, c = self.num_silos, self.threshold, self.max_colluding
        _require(2 <= n <= MAX_SILOS, f"num_silos: must be 2 to {MAX_SILOS}, is {n}")
        _require(1 <= t <= n, f"threshold: must be 1 to num_silos = {n}, is {t}")
        _require(c >= 0, f"max_colluding: must not be negative, is {c}")
        _require(
            c + 2 <= self.min_cohort <= n,
            f"min_cohort: must be max_colluding + 2 = {c + 2} to num_silos = {n}, "
            f"is {self.min_cohort}",
        )
        _require(
            1 <= self.slots_per_setup <= MAX_SLOTS_PER_SETUP,
            f"slots_per_setup: must be 1 to {MAX_SLOTS_PER_SETUP}, "
            f"is {self.slots_per_setup}",
        )
        _require(
            self.trust in ("malicious", "semi-honest"),
            f'trust: must be "malicious" or "semi-honest", is {self.trust!r}',
        )
        if self.trust == "malicious":
            _require(
                2 * t > n + c,
                f"threshold: 2 * {t} must be above num_silos + max_colluding = {n + c}",
            )
        _require(t > c, f"threshold: must be above max_colluding = {c}, is {t}")
        _require(
            self.protection in ("mask", "bfv"),
            f'protection: must be "mask" or "bfv", is {self.protection!r}',
        )
        _require(
            self.protection == "mask" or self.trust == "malicious",
            'trust: must be "malicious" with protection "bfv": without CONFIRM an '
            "aggregator could have sums over two lists decrypted",
        )
        _require(
            0 <= self.key_maker < (n if self.protection == "bfv" else 1),
            f"key_maker: must be the index of a silo, is {self.key_maker}",
        )

    @property
    def min_survivors(self) -> int:
        """The fewest silos that a setup, cohort or set of survivors may have."""
        return max(self.threshold, self.min_cohort)

    @property
    def num_slot_keys(self) -> int:
        """How many slots a silo makes keys of its own for: R, none under "bfv"."""
        return self.slots_per_setup if self.protection == "mask" else 0

    def to_bytes(self) -> bytes:
        """Return the canonical bytes that every silo's keys are bound to."""
        writer = Writer()
        for number in (
            self.num_silos,
            self.threshold,
            self.min_cohort,
            self.max_colluding,
            self.slots_per_setup,
        ):
            writer.integer(number, 4)
        writer.integer(self.trust == "malicious", 1)
        if self.protection == "bfv":
            writer.integer(self.key_maker, 2)
        return writer.to_bytes()


def _require(condition: bool, message: str) -> None:
    """Raise ``ValueError`` with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
