"""What a report may show beside transcripts, made up: a probe, canaries, a rehearsal.

The numbers are drawn, not measured; they have the shapes of real ones.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np

from crypto.keys import IdentityKey
from protocol.encoding import encode, to_table
from protocol.probe_report import (
    AttackResult,
    Memorisation,
    ProbeReport,
    Share,
    save_probe,
)
from protocol.rehearsal import Rehearsal, Uniformity, View

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJ"
    "RU5ErkJggg=="
)
HELD_OUT = 2_000
RATES = (0.001, 0.01)


def attack(name: str, target: str, mu: float, ceiling: float = 0.0) -> AttackResult:
    """Return an attack whose ROC is that of two Gaussians, mu apart."""
    normal = NormalDist()
    fpr = [0.0, *np.logspace(-3, 0, 40).tolist()]
    tpr = [0.0] + [normal.cdf(normal.inv_cdf(min(f, 1 - 1e-9)) + mu) for f in fpr[1:]]
    found = [round(HELD_OUT * normal.cdf(normal.inv_cdf(f) + mu)) for f in RATES]
    auc = normal.cdf(mu / 2**0.5)
    return AttackResult(
        attack=name,
        target=target,
        settings="t = 200",
        num_members=HELD_OUT,
        num_held_out=HELD_OUT,
        confidence=0.95,
        auc=auc,
        auc_low=auc - 0.02,
        auc_high=min(1.0, auc + 0.02),
        at_fpr=RATES,
        tpr_at=tuple(
            Share(
                count=count,
                total=HELD_OUT,
                low=0.7 * count / HELD_OUT,
                high=min(1.0, 1.3 * count / HELD_OUT),
            )
            for count in found
        ),
        false_positives_at=tuple(round(HELD_OUT * f) for f in RATES),
        roc_fpr=tuple(fpr),
        roc_tpr=tuple(tpr),
        ceiling_epsilon=ceiling,
        ceiling_delta=1e-5 if ceiling else 0.0,
    )


def probe(
    plan: str, silo: str, model: str, *, mu: float = 0.1, ceiling: float = 0.0
) -> ProbeReport:
    """Return a probe of the global model, with a control on which attacks succeed."""
    counts = tuple(int(c) for c in 400 * np.exp(-(np.linspace(-2, 2, 20) ** 2)))
    return ProbeReport(
        format=1,
        plan=plan,
        silo=silo,
        software="cloister test",
        round_number=3,
        model=model,
        own_model="ab" * 32,
        seed=1,
        attacks=(
            attack("loss", "global", mu, ceiling),
            attack("PIA", "global", 1.2 * mu, ceiling),
            attack("loss", "control", 2.5),
            attack("PIA", "control", 3.0),
        ),
        memorisation=(
            Memorisation(
                target="global",
                num_samples=sum(counts),
                num_training=2_000,
                num_held_out=2_000,
                confidence=0.95,
                distance="pixels, L2",
                nearer_to_training=Share(
                    count=sum(counts) // 2, total=sum(counts), low=0.48, high=0.52
                ),
                copies=Share(count=2, total=sum(counts), low=0.0, high=0.003),
                copies_of_held_out=Share(
                    count=1, total=sum(counts), low=0.0, high=0.002
                ),
                histogram_edges=tuple(np.linspace(-1, 1, 21).tolist()),
                histogram_counts=counts,
            ),
        ),
    )


def write_probe(path: Path, report: ProbeReport, identity: IdentityKey) -> Path:
    """Write a probe with its silo's signature."""
    save_probe(path, report, identity)
    return path


def rehearsal(plan: str) -> Rehearsal:
    """Return a rehearsal of two views."""
    picture = base64.b64encode(PIXEL).decode()
    views = tuple(
        View(
            name=name,
            explanation=f"What the {name} gives away.",
            num_examples=1,
            num_steps=1,
            psnr=(psnr, psnr + 1),
            psnr_guess=(9.0, 10.0),
            picture=shown,
        )
        for name, psnr, shown in (
            ("plain update", 24.0, picture),
            ("masked update", 6.0, ""),
        )
    )
    return Rehearsal(
        format=1,
        plan=plan,
        software="cloister test",
        images="digits of scikit-learn",
        attack="gradient inversion, 500 steps of Adam",
        seed=3,
        views=views,
        uniformity=(
            Uniformity(
                test="Kolmogorov-Smirnov", num_values=10_000, statistic=0.008,
                p_value=0.53,
            ),
        ),
    )  # fmt: skip


def write_rehearsal(path: Path, plan: str) -> Path:
    """Write a rehearsal."""
    path.write_bytes(encode(to_table(rehearsal(plan))))
    return path


@dataclass(frozen=True)
class Bound:
    name: str
    kind: str
    epsilon: float
    confidence: float = 0.95
    delta: float = 1e-5
    num_guesses: int = 0
    num_correct: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Analysis:
    silo: str
    form: str = "gradient"
    num_canaries: int = 200
    num_included: int = 100
    included_scores: tuple[float, ...] = ()
    excluded_scores: tuple[float, ...] = ()
    claimed_epsilon: float = 10.0
    delta: float = 1e-5
    expected_gap: float = 2.0
    expected_stddev: float = 1.0
    bounds: tuple[Bound, ...] = field(
        default=(
            Bound("one run", "bound", 2.9, num_guesses=120, num_correct=110),
            Bound("Clopper-Pearson", "bound", 2.2),
            Bound("Gaussian", "estimate", 9.4, detail="an estimate, not a bound"),
        )
    )


def analysis(silo: str, **changes: object) -> Analysis:
    """Return canaries whose scores are two Gaussians."""
    normal = NormalDist()
    z = [normal.inv_cdf((i + 0.5) / 100) for i in range(100)]
    return Analysis(
        silo=silo,
        included_scores=tuple(2 + x for x in z),
        excluded_scores=tuple(z),
        **changes,
    )
