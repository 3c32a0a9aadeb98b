"""Choices of a plan, combined at random: each is refused in one line, or it runs.

A run must end with one model at all parties, pass its audit, and have moved the bytes
that the plan predicts, whoever is lost and whatever dies in it.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.errors import CohortTooSmall
from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from crypto.frame import Kind as SecAggKind
from protocol.calibration_settings import CalibrationConfig
from protocol.envelope import Kind
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.records import RoundClosed
from protocol.transcript import read_records
from tests.end_to_end.conftest import Crash, Harness, make_harness, tiny_draft
from tests.end_to_end.test_bytes import counted, predicted
from tests.end_to_end.test_calibration import public_file
from tests.end_to_end.test_transport import check_one_model

UNDISTURBED = (108, 172, 184, 213, 229, 248)
DISTURBED = (10, 44, 83, 105, 214, 230)
"""Draws in which, together, most of the pairs of choices meet."""

CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "update": {
        "selection": ("full", "usplit", "ulatdec", "udec", "parts"),
        "weights": ("equal", "declared", "secret"),
        "value_bits": (2, 4, 8, 24),
        "rotation": (False, True),
        "clipping": ("fixed", "previous-mean"),
        "clipping_norm": (0.05, 5.0),
        "broadcast_bits": (0, 4, 9, 16),
        "error_feedback": (False, True),
        "rounding": ("stochastic", "nearest"),
        "form": ("grid", "grid", "grid", "float32"),
    },
    "training": {
        "proximal_mu": (0.0, 0.1),
        "optimizer_state": ("kept", "fresh"),
        "local_parts": ("trained", "frozen"),
        "train_unassigned": (True, False),
        "loss": ("mse", "huber"),
    },
    "aggregation": {
        "optimizer": ("sgd", "momentum", "adam"),
        "ema_decay": (0.0, 0.5),
    },
    "protection": {
        "method": ("mask", "mask", "none"),
        "trust": ("malicious", "semi-honest"),
        "slots_per_setup": (1, 16),
    },
    "evaluation": {"in_silos": (False, False, True), "every_rounds": (0, 0, 2)},
    "model": {"num_classes": (0, 10)},
    "calibration": {
        "images": ("", "", "public", "aggregate", "silo-samples", "silo-models")
    },
    "privacy": {"mechanism": ("", "", "dp-sgd", "silo", "record-distributed")},
}


def combined(draw: random.Random, public: CalibrationConfig) -> PlanDraft:
    """Return a draft of the choices that go together, made one after the other.

    A choice that is refused is left out; that must be one line which begins with the
    name of a field.
    """
    sampler = replace(tiny_draft().evaluation.sampler, num_steps=2)
    draft = tiny_draft(
        training=replace(tiny_draft().training, local_steps=2, learning_rate=1e-2),
        evaluation=replace(
            tiny_draft().evaluation,
            num_samples=12,
            extractor="fd-small-digits",
            sampler=sampler,
        ),
    )
    places = [(section, name) for section in CHOICES for name in CHOICES[section]]
    draw.shuffle(places)
    for section, name in places:
        value = draw.choice(CHOICES[section][name])
        try:
            draft = chosen(draft, section, {name: value}, draw, public)
        except ValueError as error:
            field, _, reason = str(error).partition(":")
            assert field.replace("_", "").replace(".", "").split()[0].isalnum()
            assert reason and "\n" not in reason
    return draft


def chosen(
    draft: PlanDraft,
    section: str,
    changes: dict[str, Any],
    draw: random.Random,
    public: CalibrationConfig,
) -> PlanDraft:
    """Return a draft with one more choice, and what belongs to it."""
    others: dict[str, Any] = {}
    value = next(iter(changes.values()))
    if changes.get("weights") == "secret":
        changes["max_weight"] = 64
    if value == "parts":
        changes["parts"] = draw.choice([("encoder", "decoder"), ("bottleneck",)])
    if section == "model" and value:
        changes |= {"dim": 16, "dim_mults": (1,)}
        guided = replace(draft.evaluation.sampler, guidance=draw.choice((0.0, 0.5)))
        others["evaluation"] = replace(draft.evaluation, sampler=guided)
    if section in ("calibration", "privacy") and not value:
        return draft
    if section == "calibration":
        others["calibration"] = calibration(draw, value, public)
    elif section == "privacy":
        others |= mechanism(draft, value)
    else:
        others[section] = replace(getattr(draft, section), **changes)
    return replace(draft, **others)


def calibration(
    draw: random.Random, images: Any, public: CalibrationConfig
) -> CalibrationConfig:
    """Return the section with images of one label, and one of the triggers."""
    config = public
    if images != "public":
        rest = {"source_round": 1} if images == "aggregate" else {"local_steps": 2}
        config = replace(
            config, images=images, name="", sha256="", num_images=9, **rest
        )
    if draw.random() < 0.5:
        config = replace(config, when="slow-learning", window=1, min_improvement=0.9)
    return config


def mechanism(draft: PlanDraft, name: Any) -> dict[str, Any]:
    """Return the sections of a plan with a mechanism, and what it demands."""
    own: dict[str, Any] = {"sample_rate": 0.25, "multiplicity": 1}
    if name == "dp-sgd":
        own |= {"noise_multiplier": 1.0}
        return {
            "privacy": PrivacyConfig(mechanism=name, delta=1e-3, spare_steps=9, **own)
        }
    if name == "silo":
        own = {"unit": "silo"}
    own |= {"share_variance": 250_000_000}
    steps = draft.training.local_steps if name == "silo" else 1
    return {
        "privacy": PrivacyConfig(mechanism=name, delta=1e-3, spare_steps=2, **own),
        "update": replace(draft.update, value_bits=24, rounding="stochastic"),
        "training": replace(draft.training, optimizer_state="fresh", local_steps=steps),
    }


def made(root: Path, seed: int) -> tuple[Harness, random.Random]:
    """Return the federation of one draw, of as many silos as it takes."""
    draw, public = random.Random(seed), public_file(root / "public.npz")
    draft = combined(draw, public)
    num_silos = 3 + draw.randrange(2)
    if draft.privacy.is_in_sum:
        num_silos = 5
    if draft.update.is_dealt and draft.protection.method == "mask":
        num_silos = 6
    auxiliary = str(root / "public.npz") if draft.calibration.name else ""
    return make_harness(root / "run", draft, num_silos, auxiliary=auxiliary), draw


def check_bytes(run: Harness) -> None:
    """Check that both ends counted what the plan predicts, stage by stage.

    A model that stood still is not broadcast again (docs/bytes.md).
    """
    transcript = run.federation.aggregator.run(run.plan) / "transcript"
    said = [entry.record for entry in read_records(transcript)]
    closed = {one.parameters for one in said if isinstance(one, RoundClosed)}
    if run.plan.update.broadcast_bits and len(closed) < run.plan.num_rounds:
        return
    for silo in run.plan.silos:
        own = counted(run.federation.silo(silo.name).run(run.plan), silo.name)
        folder = run.federation.aggregator.run(run.plan)
        assert counted(folder, silo.name) == own
        assert own == predicted(run, silo.name)


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    public = public_file(tmp_path / "public.npz")
    drafts = [combined(random.Random(seed), public) for seed in range(200)]
    for section, names in CHOICES.items():
        for name in names:
            assert len({getattr(getattr(each, section), name) for each in drafts}) > 1


@pytest.mark.parametrize("seed", UNDISTURBED)
def test_a_combination_runs_and_passes_its_audit(tmp_path: Path, seed: int) -> None:
    run, _ = made(tmp_path, seed)
    check_one_model(run, run.run())
    check_bytes(run)


@pytest.mark.parametrize("seed", DISTURBED)
def test_a_combination_in_which_a_silo_is_lost_and_all_die(
    tmp_path: Path, seed: int
) -> None:
    run, draw = made(tmp_path, seed)
    lost = draw.choice([(Kind.ROUND, "before"), (SecAggKind.ACTIVE, "after")])
    last, messages, losses = len(run.plan.silos) - 1, iter(range(10**6)), iter([True])
    dies_at = draw.randrange(20, 60)

    def fault(moment: str, kind: int, silo: int) -> bool:
        if next(messages) == dies_at:
            raise Crash
        return (kind, moment, silo) == (*lost, last) and next(losses, False)

    try:
        run.run(fault)
    except Crash:
        run.run()
    except CohortTooSmall:
        assert len(run.plan.silos) < 2 * run.plan.protection.min_cohort
    audit = run_audit(load_evidence(run.federation.root, None))
    assert [f.statement for f in audit.with_severity(Severity.FAIL)] == []
