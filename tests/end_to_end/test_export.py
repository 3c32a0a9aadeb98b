"""What an aggregator gives away of a finished run, and says of it."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aggregator.auxiliary import LabelledImages, labelled_file
from aggregator.complete import complete_model
from aggregator.errors import ConfigRejected
from aggregator.evaluation import evaluate, load_reference
from aggregator.export import export_run
from aggregator.state import shared_layout
from audits.audit import run_audit
from audits.evidence import load_evidence
from diffusion.checkpoint import load_checkpoint
from diffusion.config import SamplerConfig, ScheduleConfig
from diffusion.errors import CorruptFile
from diffusion.warm_up import WarmUpConfig
from protocol.aggregation_settings import AggregationConfig, EvaluationConfig
from protocol.mechanism import run_epsilon
from protocol.noise_claim import upward
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from protocol.update_settings import UpdateConfig
from simulation.settings import SimulationConfig
from simulation.sources import load_pool
from tests.end_to_end.conftest import Harness, make_harness, tiny_draft

CPU = torch.device("cpu")
EVALUATION = EvaluationConfig(
    in_silos=True,
    num_samples=10,
    extractor="fd-small-digits",
    sampler=SamplerConfig(kind="ddim", num_steps=2),
)
UDEC = UpdateConfig(rounding="nearest", selection="udec")
TRAINING = WarmUpConfig(
    num_steps=3, learning_rate=1e-2, max_signal_to_noise=float("inf")
)


def run_folder(made: Harness) -> Path:
    return made.federation.aggregator.run(made.plan)


@pytest.fixture(scope="module")
def udec(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """Return a finished run that shares the decoder alone."""
    root = tmp_path_factory.mktemp("udec") / "run"
    made = make_harness(root, tiny_draft(update=UDEC, evaluation=EVALUATION))
    made.run()
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """Return a finished run that shares everything."""
    root = tmp_path_factory.mktemp("whole") / "run"
    aggregation = AggregationConfig(ema_decay=0.5)
    evaluation = replace(EVALUATION, in_silos=False, every_rounds=1)
    draft = tiny_draft(aggregation=aggregation, evaluation=evaluation)
    made = make_harness(root, draft)
    made.run()
    return made


def images(name: str, count: int = 40) -> LabelledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return LabelledImages(label="public", pixels=pixels, name=name)


def test_an_export_loads_and_samples_as_the_run_does(
    whole: Harness, tmp_path: Path
) -> None:
    run = run_folder(whole)
    paths = export_run(whole.plan, run, tmp_path / "out", with_latest=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in paths
    }
    exported = load_checkpoint(tmp_path / "out" / "model.safetensors")
    original = load_checkpoint(run / "model.safetensors")
    drawn = [m.images(seed=3, count=4, device=CPU) for m in (exported, original)]
    assert torch.equal(*drawn)
    latest = load_checkpoint(tmp_path / "out" / "latest.safetensors")
    assert any(
        not torch.equal(latest.parameters[name], value)
        for name, value in exported.parameters.items()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: cloister\n")
    assert "epsilon is unbounded" in card
    assert "incomplete" not in card
    assert whole.plan.digest.hex() in card
    assert "10 samples against" in card
    for path in paths[:-1]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    for silo in whole.plan.silos:
        assert silo.identity_key not in card


def test_an_incomplete_model_holds_what_is_shared_and_says_so(
    udec: Harness, tmp_path: Path
) -> None:
    export_run(udec.plan, run_folder(udec), tmp_path / "out")
    exported = load_checkpoint(tmp_path / "out" / "model.safetensors")
    assert set(exported.parameters) == set(shared_layout(udec.plan).names)
    with pytest.raises(CorruptFile, match="parameters of the model are missing"):
        exported.images(seed=0, count=1, device=CPU)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**This model is incomplete.** Its encoder and bottleneck stayed" in card
    assert "over 3 silos" in card
    assert "measured by the silos themselves" in card


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    udec: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigRejected, match="exists"):
        export_run(udec.plan, run_folder(udec), out)
    out.rmdir()

    def full_disk(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("aggregator.export.save_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_run(udec.plan, run_folder(udec), out)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_over_is_refused(udec: Harness, tmp_path: Path) -> None:
    with pytest.raises(ConfigRejected, match="not over"):
        export_run(udec.plan, tmp_path, tmp_path / "out")
    other = dataclasses.replace(udec.plan, seed=6)
    with pytest.raises(ConfigRejected, match="not over"):
        export_run(other, udec.federation.aggregator.run(other), tmp_path / "out")


def test_the_card_tells_the_epsilon_of_the_plan(
    tmp_path: Path, harness: Callable[..., Harness]
) -> None:
    privacy = PrivacyConfig(
        mechanism="dp-sgd", noise_multiplier=1.0, delta=1e-3, sample_rate=0.25
    )
    made = harness(tiny_draft(privacy=privacy, update=UDEC, evaluation=EVALUATION))
    made.run()
    export_run(made.plan, run_folder(made), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    epsilon = upward(run_epsilon(made.plan, 1e-3))
    assert f"epsilon {epsilon} at delta 0.001, per image" in card
    assert "unbounded" not in card
    assert "Not covered by epsilon" in card
    audit = run_audit(load_evidence(made.federation.root, None))
    assert not [f for f in audit.findings if f.severity == "FAIL"]


def test_completing_keeps_what_is_shared_and_trains_the_rest(
    udec: Harness, tmp_path: Path
) -> None:
    out = tmp_path / "completed.safetensors"
    run = run_folder(udec)
    first = tmp_path / "again.safetensors"
    for path in (first, out):
        complete_model(
            udec.plan, run, images("random noise"), path, TRAINING, device=CPU
        )
    made, before = load_checkpoint(out), load_checkpoint(run / "model.safetensors")
    again = load_checkpoint(first).parameters
    assert all(torch.equal(value, again[n]) for n, value in made.parameters.items())
    shared = set(shared_layout(udec.plan).names)
    for name, value in made.parameters.items():
        assert torch.equal(value, before.parameters[name]) or name not in shared
    changed = {
        name
        for name, value in made.parameters.items()
        if not torch.equal(value, before.parameters[name])
    }
    assert changed
    assert not changed & shared
    export_run(udec.plan, run, tmp_path / "out", completed=out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "public: random noise (40 images, 3 steps)" in card
    assert "aggregator sample completed.safetensors" in card
    exported = load_checkpoint(tmp_path / "out" / "completed.safetensors")
    assert exported.images(seed=0, count=2, device=CPU).shape == (2, 1, 8, 8)


def test_what_cannot_be_completed_is_refused(
    udec: Harness, whole: Harness, tmp_path: Path
) -> None:
    def attempt(made: Harness, path: Path, name: str = "noise") -> None:
        complete_model(
            made.plan, run_folder(made), images(name), path, TRAINING, device=CPU
        )

    with pytest.raises(ConfigRejected, match="nothing is missing"):
        attempt(whole, tmp_path / "a")
    with pytest.raises(ConfigRejected, match="--name"):
        attempt(udec, tmp_path / "a", "two\nlines")
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ConfigRejected, match="exists"):
        attempt(udec, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"
    model = run_folder(whole) / "model.safetensors"
    with pytest.raises(ConfigRejected, match="did not make it of this run"):
        export_run(udec.plan, run_folder(udec), tmp_path / "out", completed=model)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((3, 9, 9), np.uint8)}, r"\(n, 8, 8, 1\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "shape"),
        ({"pictures": np.zeros((3, 8, 8), np.uint8)}, "none of the arrays"),
        ({"images": np.full((3, 8, 8), 300.0)}, "outside"),
        ({"images": np.full((3, 8, 8), np.nan)}, "outside"),
        ({"images": np.zeros((3, 8, 8), "U1")}, "outside"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigRejected, match=words):
        labelled_file(path, tiny_draft().model, (0.0, 255.0), name="dots")


def test_images_are_scaled_and_other_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=np.array([[[0] * 8] * 4 + [[16] * 8] * 4], np.uint8))
    made = labelled_file(path, tiny_draft().model, (0.0, 16.0), name="dots")
    loaded = made.tensor()
    assert loaded.shape == (1, 1, 8, 8)
    assert loaded[0, 0, :, 0].tolist() == [-1.0] * 4 + [1.0] * 4
    path.write_bytes(b"no archive")
    with pytest.raises(ConfigRejected, match="not a readable"):
        labelled_file(path, tiny_draft().model, (0.0, 16.0), name="dots")
    with pytest.raises(ConfigRejected, match="No such file"):
        labelled_file(
            tmp_path / "none.npz", tiny_draft().model, (0.0, 16.0), name="dots"
        )


def test_completing_on_digits_is_better_than_first_parts(
    tmp_path: Path, harness: Callable[..., Harness]
) -> None:
    """Two models with the same decoder, on real digits that are in no silo."""
    draft = tiny_draft(
        update=UDEC,
        model=replace(tiny_draft().model, dim=8),
        schedule=ScheduleConfig(kind="cosine", num_timesteps=100),
        training=TrainingConfig(
            local_steps=20, examples_per_step=16, learning_rate=3e-3
        ),
        evaluation=replace(EVALUATION, sampler=SamplerConfig(kind="ddim", num_steps=8)),
    )
    made = harness(draft)
    made.run()
    path, pool = tmp_path / "digits.npz", load_pool(SimulationConfig(num_silos=3), 1)
    np.savez(path, images=pool.dealt.pixels[:200])
    public = labelled_file(path, draft.model, (0.0, 16.0), name="digits")
    config = replace(TRAINING, num_steps=150, learning_rate=3e-3)
    out = tmp_path / "completed.safetensors"
    complete_model(made.plan, run_folder(made), public, out, config, device=CPU)
    reference = load_reference(draft.evaluation, made.federation.reference)
    first, completed = (
        evaluate(load_checkpoint(path), reference, seed=1, num_samples=100, device=CPU)
        for path in (run_folder(made) / "model.safetensors", out)
    )
    assert completed.frechet_distance < 0.93 * first.frechet_distance
