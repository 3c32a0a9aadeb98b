"""What a report may show beside transcripts, made up: a probe, canaries, a rehearsal.

The numbers are drawn, not measured; they have the shapes of real ones.
"""

import base64
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from audits.membership import CanaryAnalysis
from crypto.keys import IdentityKey
from privacy.canary_tests import Power
from privacy.lower_bounds import LowerBound
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
        control_images=256,
        control_steps=4_000,
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
                num_searched=6_000,
                copies_of_any=Share(count=3, total=sum(counts), low=0.0, high=0.004),
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
        plan="three-hospitals",
        digest=plan,
        num_silos=3,
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


def bound(name: str, kind: str, epsilon: float, **changes: object) -> LowerBound:
    """Return a bound at 95 %."""
    fields = {"curve": "any", "num_guesses": 0, "num_correct": 0, "detail": ""}
    fields |= {"confidence": 0.95, "delta": 1e-5, **changes}
    return LowerBound(name=name, kind=kind, epsilon=epsilon, **fields)


def analysis(silo: str, **changes: object) -> CanaryAnalysis:
    """Return canaries whose scores are two Gaussians."""
    normal = NormalDist()
    z = [normal.inv_cdf((i + 0.5) / 100) for i in range(100)]
    made = CanaryAnalysis(
        silo=silo,
        form="gradient",
        num_canaries=200,
        num_included=100,
        included_scores=tuple(2 + x for x in z),
        excluded_scores=tuple(z),
        claimed_epsilon=10.0,
        delta=1e-5,
        expected_gap=2.0,
        expected_stddev=1.0,
        expected_included_stddev=1.1,
        bounds=(
            bound("one-run", "bound", 2.9, num_guesses=120, num_correct=110),
            bound("Clopper–Pearson", "bound", 2.2, detail="at 1/32"),
            bound("Gaussian estimate", "estimate", 9.4, curve="gaussian"),
        ),
        powers=(
            Power(
                fault="noise halved",
                caught=1.0,
                by_test=(("noise", 1.0), ("one-run", 0.0)),
            ),
        ),
        refuted=(),
        doubtful=(),
    )
    return replace(made, **changes)
