"""What ``silo probe`` tells others: attacks and memorisation as curves and counts.

A silo attacks models with its own images, inside, and signs what came of it. The file
holds no image, no score of an image and no path. Its figures depend on real images and
have no differential privacy: it is silo-internal unless its operator says otherwise.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crypto import labels
from crypto.errors import InvalidSignature
from crypto.keys import IdentityKey
from crypto.signatures import sign, verify
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError, ProtocolError
from protocol.files import save_secret
from protocol.plan import RunPlan
from protocol.settings import require

Target = Literal["global", "own", "control"]
"""The last global model, this silo's own, or one overfitted on purpose."""

MAX_REPORT_BYTES = 1 << 24
MAX_CURVE_POINTS = 200
MAX_RATES = 16
"""False-positive rates at which one attack is counted."""
MAX_LOGARITHM = 1e3
"""Of a ratio of distances in a histogram."""
MAX_COUNT = 10**9
"""Of images or samples; more are none."""
POWERFUL_AUC = 0.8
"""Where no attack reaches this on the control, the other results say nothing."""
NOT_PRIVATE = "membership results on real images are not differentially private"
"""What is said wherever such results are shown."""


class ProbeRejected(ProtocolError):
    """The file is no probe of this run, or nobody in its plan has signed it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share with its counts and a Clopper–Pearson interval (at ``confidence``)."""

    count: int
    total: int
    low: float
    high: float

    def __post_init__(self) -> None:
        """Check that it is a share, inside its interval."""
        require(0 <= self.count <= self.total > 0, "count: must be 0 to total")
        require(self.total <= MAX_COUNT, f"total: must be at most {MAX_COUNT:,}")
        value = self.count / self.total
        require(
            0 <= self.low <= value <= self.high <= 1,
            "low, high: must enclose the share, in [0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One membership attack on one model.

    ``settings`` says which timesteps, norms and numbers of noises. ``auc`` has a
    bootstrap interval; ``tpr_at`` holds the true positives at the false-positive rates
    of ``at_fpr``. The ROC is given at some points, both coordinates ascending.
    ``ceiling_epsilon`` and ``ceiling_delta`` are the guarantee that bounds the curve
    from above, 0 and 0 where there is none.
    """

    attack: str
    target: Target
    settings: str
    num_members: int
    num_held_out: int
    confidence: float
    auc: float
    auc_low: float
    auc_high: float
    at_fpr: tuple[float, ...]
    tpr_at: tuple[Share, ...]
    false_positives_at: tuple[int, ...]
    roc_fpr: tuple[float, ...]
    roc_tpr: tuple[float, ...]
    ceiling_epsilon: float = 0.0
    ceiling_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check that the figures can be of one curve."""
        require(
            len(self.at_fpr)
            == len(self.tpr_at)
            == len(self.false_positives_at)
            <= MAX_RATES,
            "at_fpr, tpr_at, false_positives_at: must be of one length, at most "
            f"{MAX_RATES}",
        )
        require(
            all(0 <= rate <= 1 for rate in self.at_fpr),
            "at_fpr: must be rates, in [0, 1]",
        )
        require(
            1 <= self.num_members <= MAX_COUNT and 1 <= self.num_held_out <= MAX_COUNT,
            f"num_members, num_held_out: must be 1 to {MAX_COUNT:,}",
        )
        require(
            all(0 <= wrong <= self.num_held_out for wrong in self.false_positives_at)
            and all(found.total == self.num_members for found in self.tpr_at),
            "tpr_at, false_positives_at: must be counts of members and held-out images",
        )
        require(0 < self.confidence < 1, "confidence: must be in (0, 1)")
        require(
            len(self.roc_fpr) == len(self.roc_tpr) <= MAX_CURVE_POINTS,
            f"roc_fpr, roc_tpr: must be of one length, at most {MAX_CURVE_POINTS}",
        )
        for name in ("roc_fpr", "roc_tpr"):
            curve = (0.0, *getattr(self, name), 1.0)
            require(
                list(curve) == sorted(curve), f"{name}: must ascend from 0 on up to 1"
            )
        require(
            0 <= self.auc_low <= self.auc <= self.auc_high <= 1,
            "auc: must lie in its interval, and that in [0, 1]",
        )
        require(
            self.ceiling_epsilon >= 0 and 0 <= self.ceiling_delta <= 1,
            "ceiling_epsilon, ceiling_delta: must be a guarantee",
        )


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Samples of one model beside training and held-out images, as many of each.

    ``nearer_to_training`` of the samples are nearer to a training image than to any
    held-out one (one half if nothing is memorised); ``copies`` are nearer to it than a
    third of the distance to the second nearest, ``copies_of_held_out`` the same on the
    held-out side: what chance alone gives. ``copies_of_any`` are the copies of one of
    all ``num_searched`` images that the model was trained on here, of which
    ``num_training`` were drawn for the comparison. The histogram counts samples by
    log(distance to training / distance to held-out); its first and last bin hold
    whatever lies beyond, too.
    """

    target: Target
    num_samples: int
    num_training: int
    num_held_out: int
    num_searched: int
    confidence: float
    distance: str
    nearer_to_training: Share
    copies: Share
    copies_of_held_out: Share
    copies_of_any: Share
    histogram_edges: tuple[float, ...]
    histogram_counts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the histogram has its bins."""
        edges, counts = self.histogram_edges, self.histogram_counts
        require(
            len(edges) == len(counts) + 1 <= MAX_CURVE_POINTS
            and all(low < high for low, high in itertools.pairwise(edges))
            and max(map(abs, edges)) <= MAX_LOGARITHM
            and all(0 <= number <= MAX_COUNT for number in counts),
            "histogram_edges, histogram_counts: must be ascending edges of the counts",
        )


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """All that one silo found, at the end of a run.

    ``model`` is the digest of the federated parameters as this silo's transcript gives
    it (``Finished.average``); ``own_model`` that of all parameters of this silo's own
    model, "" where nothing in it is its own. The control was trained for
    ``control_steps`` on ``control_images`` of the silo's images.
    """

    format: int
    plan: str
    silo: str
    software: str
    round_number: int
    model: str
    own_model: str
    seed: int
    control_images: int
    control_steps: int
    attacks: tuple[AttackResult, ...]
    memorisation: tuple[Memorisation, ...]

    def __post_init__(self) -> None:
        """Check the format, and that there is a control."""
        require(self.format == 1, "format: must be 1")
        require(
            any(each.target == "control" for each in self.attacks),
            "attacks: must hold those on the control",
        )

    @property
    def control_auc(self) -> float:
        """The best AUC of an attack on the control."""
        return max(each.auc for each in self.attacks if each.target == "control")

    @property
    def has_power(self) -> bool:
        """Whether the attacks succeed where they should; if not, they say nothing."""
        return self.control_auc >= POWERFUL_AUC


def save_probe(path: Path, report: ProbeReport, identity: IdentityKey) -> None:
    """Write a report with its silo's signature, whole or not at all.

    Its owner alone may read it: who else does is for the operator to say.
    """
    body = encode(to_table(report))
    signature = sign(identity, labels.PROBE, body)
    save_secret(path, encode({"body": body.decode(), "signature": signature.hex()}))


def load_probe(path: Path, public_key: bytes | None = None) -> ProbeReport:
    """Return a report.

    Args:
        public_key: the silo's identity key, to verify the signature with; None only to
            learn whose report it is.

    Raises:
        ProbeRejected: malformed, or signed by somebody else.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_REPORT_BYTES + 1)
    try:
        if len(data) > MAX_REPORT_BYTES:
            raise EncodingError("too large")
        table = decode(data)
        if not isinstance(table, dict) or set(table) != {"body", "signature"}:
            raise EncodingError("must hold exactly body and signature")
        body = str(table["body"]).encode()
        if public_key is not None:
            signature = bytes.fromhex(str(table["signature"]))
            verify(public_key, labels.PROBE, body, signature)
        report: ProbeReport = from_table(ProbeReport, decode(body))
    except (EncodingError, InvalidSignature, ValueError, json.JSONDecodeError) as error:
        raise ProbeRejected(f"{path.name}: {error}") from None
    return report


def load_probe_of(path: Path, plan: RunPlan) -> ProbeReport:
    """Return a report on a plan's run, signed by the silo that it names.

    Raises:
        ProbeRejected: malformed, of another plan, or not signed by a silo of this one.
        OSError: it cannot be read.
    """
    stated = load_probe(path)
    if stated.plan != plan.digest.hex():
        raise ProbeRejected(f"{path.name}: is of another plan, {stated.plan:.16}")
    for silo in plan.silos:
        if silo.name == stated.silo:
            return load_probe(path, bytes.fromhex(silo.identity_key))
    raise ProbeRejected(f"{path.name}: {stated.silo:.64} is no silo of the plan")
