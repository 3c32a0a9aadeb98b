"""Sections of a plan: how a silo trains, what the run begins with, how long to wait.

One frozen dataclass per section of the TOML file; each checks its own numbers. The
other sections are in the modules beside this one, model, noise schedule and sampler in
``diffusion.config``. Fields are public by definition: nothing secret and nothing
computed from data belongs here.
"""

import math
from dataclasses import dataclass
from typing import Literal

from protocol.encoding import check_hex

MAX_SILOS = 1000
DEFAULT_LABEL_DROPOUT = 0.1

MAX_PROXIMAL_MU = 1_000_000


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
    that are not federated are trained, or stay as the run began;
    ``train_unassigned`` whether a silo that returns some of the federated parts in a
    round ("usplit") trains the others, too, as FedDiffuse's published code does.

    ``proximal_mu`` is mu of a term mu / 2 |θ - θ_t|² that is added to the loss, over
    the parts that are federated: it keeps a silo near the parameters θ_t that the round
    began with (FedProx, Li et al. 2020; FedDM-prox); 0 switches it off.
    ``label_dropout`` is the probability that an example's label is withheld (Ho &
    Salimans 2022); it is read where the model has classes.
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
    train_unassigned: bool = True
    proximal_mu: float = 0.0
    label_dropout: float = DEFAULT_LABEL_DROPOUT

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
        require(
            0 <= self.proximal_mu <= MAX_PROXIMAL_MU,
            f"proximal_mu: must be 0 to {MAX_PROXIMAL_MU:,}",
        )
        require(
            self.proximal_mu == 0 or self.local_steps != 1,
            "proximal_mu: has no effect with local_steps 1: the one step is taken "
            "where the round began, where the term is zero",
        )
        require(0 <= self.label_dropout < 1, "label_dropout: must be in [0, 1)")


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
class DeadlineConfig:
    """How long the aggregator waits: for training, and for any other exchange."""

    training_seconds: float = 3600.0
    exchange_seconds: float = 120.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("training_seconds", "exchange_seconds"):
            require(0 < getattr(self, name) < math.inf, f"{name}: must be positive")
