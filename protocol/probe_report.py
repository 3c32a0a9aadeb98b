"""What ``silo probe`` tells others: attacks and memorisation as curves and counts.

A silo attacks models with its own images, inside, and signs what came of it. The file
holds no image, no score of an image and no path. Its figures depend on real images and
have no differential privacy: it is silo-internal unless its operator says otherwise.
"""

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
from protocol.files import save_bytes

Target = Literal["global", "own", "control"]
"""The last global model, this silo's own, or one overfitted on purpose."""

MAX_REPORT_BYTES = 1 << 24


class ProbeRejected(ProtocolError):
    """The file is no probe of this run, or nobody in its plan has signed it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share with its counts and a Clopper–Pearson interval (at ``confidence``)."""

    count: int
    total: int
    low: float
    high: float


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


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Samples of one model beside training and held-out images, as many of each.

    ``nearer_to_training`` of the samples are nearer to a training image than to any
    held-out one (one half if nothing is memorised); ``copies`` are nearer to it than a
    third of the distance to the second nearest, ``copies_of_held_out`` the same on the
    held-out side: what chance alone gives. The histogram counts samples by
    log(distance to training / distance to held-out).
    """

    target: Target
    num_samples: int
    num_training: int
    num_held_out: int
    confidence: float
    distance: str
    nearer_to_training: Share
    copies: Share
    copies_of_held_out: Share
    histogram_edges: tuple[float, ...]
    histogram_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """All that one silo found; ``model`` and ``own_model`` are digests."""

    format: int
    plan: str
    silo: str
    software: str
    round_number: int
    model: str
    own_model: str
    seed: int
    attacks: tuple[AttackResult, ...]
    memorisation: tuple[Memorisation, ...]


def save_probe(path: Path, report: ProbeReport, identity: IdentityKey) -> None:
    """Write a report with its silo's signature, whole or not at all."""
    body = encode(to_table(report))
    signature = sign(identity, labels.PROBE, body)
    save_bytes(path, encode({"body": body.decode(), "signature": signature.hex()}))


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
