"""The plan: everything agreed and public, signed by the aggregator's operator.

A *draft* (:class:`PlanDraft`) says what shall be done; a *plan* (:class:`RunPlan`) adds
who does it: names and identity keys. Both are TOML files. The digest of a plan's
canonical bytes names the run; a fresh nonce in it makes every run another one.
"""

import dataclasses
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Literal

from crypto import labels
from crypto.ring import words_needed
from crypto.secagg.config import SecAggConfig
from diffusion.config import ScheduleConfig, UNetConfig
from privacy import errors
from protocol import noise_plan
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.calibration_settings import (
    CalibrationConfig,
    check_calibration,
    check_share,
)
from protocol.central_images import check_central_images
from protocol.classes import check_classes
from protocol.dealing import members_needed, smallest_group
from protocol.encoding import check_hex, encode, to_table
from protocol.errors import PlanRejected
from protocol.mechanism import calibrated
from protocol.privacy_settings import PrivacyConfig
from protocol.reference_settings import check_reference
from protocol.settings import (
    MAX_SILOS,
    DeadlineConfig,
    InitialConfig,
    TrainingConfig,
    require,
)
from protocol.update_settings import ProtectionConfig, UpdateConfig

RUN_BYTES = 16

AGGREGATOR_NAME = "aggregator"
"""The aggregator's name in transcripts; no silo may have it."""

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


@dataclass(frozen=True, kw_only=True)
class PlanDraft:
    """What a run does, without the parties that do it."""

    format: Literal[1] = 1
    name: str
    num_rounds: int
    seed: int
    model: UNetConfig
    schedule: ScheduleConfig = ScheduleConfig(kind="linear")
    initial: InitialConfig = InitialConfig()
    training: TrainingConfig
    update: UpdateConfig = UpdateConfig()
    protection: ProtectionConfig = ProtectionConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    aggregation: AggregationConfig = AggregationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deadlines: DeadlineConfig = DeadlineConfig()

    def __post_init__(self) -> None:
        """Check the numbers, and the combinations of choices."""
        check_name(self.name)
        require(1 <= self.num_rounds <= 1_000_000, "num_rounds: must be 1 to 1,000,000")
        require(0 <= self.seed < 2**63, "seed: must be 0 to 2^63 - 1")
        check_classes(self)
        if self.model.is_central_images:
            check_central_images(self)
        if self.privacy.is_in_sum:
            noise_plan.check_noisy(self)
        elif self.privacy.is_private:
            self._check_private()
        if self.update.error_feedback:
            self._check_error_feedback()
        if self.calibration.is_on:
            check_calibration(self)
        require(
            self.update.form == "grid" or self.protection.method == "none",
            'update.form: "float32" needs protection.method "none"; masks and '
            "encryption hide the integers of a grid",
        )
        require(
            self.update.is_complete or not self.evaluation.every_rounds,
            f'evaluation.every_rounds: must be 0 with selection "'
            f'{self.update.selection}": the aggregator holds no complete model; with '
            "evaluation.in_silos each silo measures its own",
        )
        self._check_dealing()
        check_reference(self)

    def _check_dealing(self) -> None:
        """Refuse what does not go with parts that are dealt anew in each round."""
        training = self.training
        require(
            training.train_unassigned or self.update.is_dealt,
            'training.train_unassigned: belongs to selection "usplit": with '
            f'"{self.update.selection}" a silo returns the same parts in each round; '
            "see training.local_parts",
        )
        require(
            training.local_parts == "trained" or not self.update.is_complete,
            'training.local_parts: "frozen" has no effect with selection '
            f'"{self.update.selection}": every part is federated',
        )
        require(
            training.train_unassigned or not self.privacy.is_private,
            "training.train_unassigned: must be true with dp-sgd: after a crash a "
            "silo goes on from the middle of a round, where another dealing may have "
            "frozen other parts",
        )

    def _check_error_feedback(self) -> None:
        """Refuse error feedback where it breaks a guarantee, or cannot advance."""
        require(
            not self.privacy.is_in_sum,
            "update.error_feedback: would carry what one example added into later "
            "rounds, beyond the clip that noise inside the sum is made for",
        )
        require(
            self.protection.is_hidden,
            'update.error_feedback: needs protection.method "mask" or "bfv": only SUM '
            "tells a silo that its update was summed",
        )

    def _check_private(self) -> None:
        """Refuse what would release something about the data beside the mechanism."""
        require(
            self.update.weights != "secret",
            'update.weights: "secret" releases the exact sum of the silos\' numbers of '
            'examples, which dp-sgd does not cover; use "equal"',
        )

    def seed_for(self, purpose: str, *numbers: int) -> int:
        """Return a reproducible seed of 63 bits for one purpose, silo and round.

        Never for keys, masks, rounding or noise: those ask the operating system.
        """
        digest = hashlib.sha256(encode(["seed", self.seed, purpose, *numbers])).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class AggregatorParty:
    """The aggregator's entry in a plan: its Ed25519 key as hexadecimal digits."""

    identity_key: str

    def __post_init__(self) -> None:
        """Check the key's form."""
        check_hex("identity_key", self.identity_key, 32)


@dataclass(frozen=True, kw_only=True)
class SiloParty:
    """A silo's entry in a plan: name, key, and its declared weight in the mean."""

    name: str
    identity_key: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check name, key and weight."""
        check_name(self.name)
        require(
            self.name != AGGREGATOR_NAME,
            f'name: "{AGGREGATOR_NAME}" is the name of the aggregator in transcripts',
        )
        check_hex("identity_key", self.identity_key, 32)
        require(0 < self.weight < 1e12, "weight: must be positive and finite")


@dataclass(frozen=True, kw_only=True)
class RunPlan(PlanDraft):
    """A draft with its parties: what every party of one run agrees on."""

    nonce: str
    aggregator: AggregatorParty
    silos: tuple[SiloParty, ...]
    digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the parties, and compute the digest."""
        super().__post_init__()
        check_hex("nonce", self.nonce, RUN_BYTES)
        require(
            self.privacy.noise_multiplier > 0 or self.privacy.mechanism != "dp-sgd",
            "privacy.noise_multiplier: a finished plan says it; `aggregator plan make` "
            "finds it for a target epsilon",
        )
        check_share(self.calibration, len(self.silos))
        require(len(self.silos) <= MAX_SILOS, f"silos: must be at most {MAX_SILOS:,}")
        for what in ("name", "identity_key"):
            values = [getattr(silo, what) for silo in self.silos]
            require(len(set(values)) == len(values), f"silos: two have the same {what}")
        require(
            self.aggregator.identity_key not in {s.identity_key for s in self.silos},
            "aggregator.identity_key: is also the key of a silo",
        )
        try:
            self.protection.check_silos(len(self.silos))
        except ValueError as error:
            raise ValueError(f"protection.{error}") from None
        maker = self.protection.key_maker
        require(
            not maker or maker in {silo.name for silo in self.silos},
            f"protection.key_maker: {maker!r:.80} is no silo of the plan",
        )
        self._check_groups()
        if self.privacy.is_in_sum:
            noise_plan.check_noisy_plan(self)
        canonical = labels.PLAN + b"\x00" + encode(to_table(self))
        object.__setattr__(self, "digest", hashlib.sha256(canonical).digest())

    def _check_groups(self) -> None:
        """Refuse silos that are too few to hide an update in a group of them."""
        least, silos = self.protection.min_cohort, len(self.silos)
        if not self.update.is_dealt or not self.protection.is_hidden:
            return
        require(
            smallest_group(silos) >= least,
            f'silos: {silos} are too few for selection "usplit": a part would be '
            f"summed over {smallest_group(silos)} of them, protection.min_cohort is "
            f"{least}; it takes at least {members_needed(least)}",
        )

    @property
    def run(self) -> bytes:
        """The 16 bytes that stand for this run in every message header."""
        return self.digest[:RUN_BYTES]

    @property
    def roster(self) -> tuple[bytes, ...]:
        """The silos' identity keys, by silo index."""
        return tuple(bytes.fromhex(silo.identity_key) for silo in self.silos)

    @property
    def aggregator_key(self) -> bytes:
        """The aggregator's identity key."""
        return bytes.fromhex(self.aggregator.identity_key)

    def silo_index(self, identity_key: bytes) -> int:
        """Return the index of the silo that has a key.

        Raises:
            PlanRejected: no silo of the plan has it.
        """
        try:
            return self.roster.index(identity_key)
        except ValueError:
            raise PlanRejected(
                f"this identity key is not in the plan ({len(self.silos)} silos: "
                f"{', '.join(silo.name for silo in self.silos)})"
            ) from None

    @property
    def skips_confirm(self) -> bool:
        """Whether silos reveal without seeing that others confirmed the survivors.

        A plan that trusts the aggregator to follow the protocol saves that exchange.
        """
        is_masked = self.protection.method == "mask"
        return is_masked and self.protection.trust == "semi-honest"

    def secagg_config(self) -> SecAggConfig:
        """Return the parameters of the secure aggregation."""
        names = [silo.name for silo in self.silos]
        maker = self.protection.key_maker
        return self.protection.secagg_config(
            len(names), names.index(maker) if maker else 0
        )

    def field_bits(self, round_number: int) -> int:
        """Return the bits that one packed value occupies in a round."""
        if self.privacy.is_in_sum:
            return noise_plan.FIELD_BITS
        return self.update.field_bits(round_number, len(self.silos))

    def sum_bits(self, round_number: int) -> int:
        """Return the bits of the largest sum that a packed value can have in a round.

        At most :meth:`field_bits`: encryption packs more closely than words do.
        """
        if self.privacy.is_in_sum:
            return noise_plan.FIELD_BITS
        num_silos = len(self.silos)
        value_bits = self.update.value_bits_in(round_number, num_silos)
        return (num_silos * ((1 << value_bits) - 1)).bit_length()

    def num_words(self, round_number: int, num_parameters: int) -> int:
        """Return the length of a packed stretch: values, padding and weight.

        A round's vector is one stretch, or one for each part where parts are dealt.
        Everything that is sent, allocated, stored or accounted for has this length. A
        secret weight is the last word, after the fields of the values.
        """
        num_values = self.update.num_values(num_parameters)
        field_bits = self.field_bits(round_number)
        return words_needed(num_values, field_bits) + (self.update.weights == "secret")

    def vector_bytes(self, round_number: int, num_parameters: int) -> int:
        """Return the bytes of a packed stretch, exactly."""
        return 8 * self.num_words(round_number, num_parameters)

    def relative_weights(self) -> tuple[float, ...]:
        """Return each silo's factor in the sum, 1 for the heaviest.

        Raises:
            ValueError: the weights are secret.
        """
        require(self.update.weights != "secret", "weights: are secret, not in the plan")
        if self.update.weights == "equal":
            return (1.0,) * len(self.silos)
        heaviest = max(silo.weight for silo in self.silos)
        return tuple(silo.weight / heaviest for silo in self.silos)


def check_name(name: str) -> None:
    """Raise ``ValueError`` unless a name is 1 to 64 of the permitted characters."""
    require(
        0 < len(name) <= 64 and NAME_CHARACTERS.issuperset(name),
        f"name: must be 1 to 64 of a-z, 0-9, - and _, is {name!r:.80}",
    )


def make_plan(
    draft: PlanDraft, aggregator_key: bytes, silos: Sequence[SiloParty]
) -> RunPlan:
    """Return the plan of a new run: the draft, its parties, and a fresh nonce.

    The noise of a target epsilon is found here, once for all silos; and the threshold
    and the maker of a key, where the draft leaves them open.

    Raises:
        PlanRejected: the draft cannot be carried out by these parties.
    """
    sections = {f.name: getattr(draft, f.name) for f in dataclasses.fields(PlanDraft)}
    protection = dataclasses.replace(
        draft.protection, threshold=draft.protection.threshold_for(len(silos))
    )
    if protection.is_encrypted and silos and not protection.key_maker:
        protection = dataclasses.replace(protection, key_maker=silos[0].name)
    sections |= {"protection": protection}
    try:
        privacy = calibrated(draft)
        if privacy.is_in_sum:
            protection.check_silos(len(silos))
            privacy = noise_plan.finished(SimpleNamespace(**sections, silos=silos))
        return RunPlan(
            **(sections | {"privacy": privacy}),
            nonce=secrets.token_hex(RUN_BYTES),
            aggregator=AggregatorParty(identity_key=aggregator_key.hex()),
            silos=tuple(silos),
        )
    except (ValueError, errors.PrivacyError) as error:
        raise PlanRejected(str(error)) from None
