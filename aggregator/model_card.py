"""A model card: what an exported model is, what it is not, and how private."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.complete import COMPLETED_ON
from aggregator.measurement import in_words
from protocol.encoding import to_table
from protocol.mechanism import not_covered, run_epsilon
from protocol.model_records import Evaluated, MeasuredInSilos, MeasurementSkipped
from protocol.noise_claim import as_sentence, plan_sentences, upward
from protocol.plan import RunPlan
from protocol.plan_files import describe
from protocol.transcript import read_records
from protocol.version import SOFTWARE

PARTIES = ("nonce", "aggregator", "silos")
"""Fields of a plan that name its parties; a card does not."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One exported file: its name, what it holds, its digest and length."""

    name: str
    content: str
    sha256: str
    size_bytes: int
    notes: Mapping[str, str]


def model_card(
    plan: RunPlan,
    transcript: Path,
    files: Sequence[ModelFile],
    missing: Sequence[str],
    num_rounds: int,
) -> str:
    """Return the card of a run's model as Markdown, with a YAML head.

    Args:
        transcript: the aggregator's own; distances are taken from it.
        missing: the parts of the model that stay in the silos.
        num_rounds: rounds that were carried out.
    """
    sections = [
        _head(plan),
        *_summary(plan, files, missing),
        "## Files",
        _table(
            ("file", "what", "bytes", "SHA-256"),
            ((f.name, f.content, f"{f.size_bytes:,}", f.sha256) for f in files),
        ),
        "## How it was trained",
        _table(("what", "value"), _training(plan, num_rounds)),
        "## Privacy",
        *_privacy(plan),
        "## How good it is",
        *_quality(transcript),
        "## How to load and sample",
        *_use(files, missing),
        "## The plan",
        _plan(plan),
    ]
    return "\n\n".join(sections) + "\n"


def _head(plan: RunPlan) -> str:
    """Return the YAML that model hubs read; names of plans need no quotes."""
    return "\n".join(
        [
            "---",
            "library_name: cloister",
            f"model_name: {plan.name}",
            "pipeline_tag: unconditional-image-generation",
            "tags:",
            "- diffusion",
            "- ddpm",
            "- federated-learning",
            "- secure-aggregation",
            *(["- differential-privacy"] if plan.privacy.is_private else []),
            "---",
        ]
    )


def _summary(
    plan: RunPlan, files: Sequence[ModelFile], missing: Sequence[str]
) -> Iterable[str]:
    """Yield the title, and what the model is."""
    model = plan.model
    shape = f"{model.channels} × {model.image_size} × {model.image_size}"
    yield f"# {plan.name}"
    yield (
        f"A denoising diffusion model of images of {shape}, trained by "
        f"{len(plan.silos)} institutions together; their images stayed with them. "
        f"Made with {SOFTWARE}."
    )
    if missing:
        parts = " and ".join(missing)
        yield (
            f"**This model is incomplete.** Its {parts} stayed in the silos, each of "
            f"which has its own (selection {plan.update.selection}). The files hold "
            "what the silos share. Whether a silo gives its complete model away is for "
            "that silo to decide."
        )
    for file in files:
        if COMPLETED_ON in file.notes:
            yield (
                f"**{file.name}** is completed: the parts that stayed in the silos "
                "were trained by the aggregator's operator on images that it calls "
                f"public: {_plain(file.notes[COMPLETED_ON])} "
                f"({_plain(file.notes.get('completed_with', ''))}). It is no silo's "
                "model, and saw none of their parts; no distance below is of it."
            )


def _training(plan: RunPlan, num_rounds: int) -> Iterable[tuple[str, str]]:
    """Yield the method in pairs of words."""
    training, update, protection = plan.training, plan.update, plan.protection
    amount = (
        f"{training.local_steps:,} steps"
        if training.local_steps
        else f"{training.local_epochs:,} epochs"
    )
    hidden = {
        "none": "none: each silo's update was seen by the aggregator",
        "mask": f"secure aggregation ({protection.trust} aggregator, up to "
        f"{protection.max_colluding} colluding): only sums were seen",
        "bfv": f"secure aggregation by homomorphic encryption, exact BFV "
        f"({protection.trust} aggregator, sums that {protection.threshold} silos "
        "have signed): only sums were seen, if no silo gave the aggregator the key",
    }[protection.method]
    rotated = ", rotated" if update.rotation else ""
    yield "Digest of the plan", plan.digest.hex()
    yield "Rounds", f"{num_rounds:,} of {plan.num_rounds:,}"
    yield "Silos", f"{len(plan.silos)}"
    yield "What was federated", update.selection
    yield "Training in a round", f"{amount} of {training.examples_per_step} examples"
    form = f"{update.value_bits} bits a value{rotated}"
    yield "Form of an update", "float32" if update.form == "float32" else form
    yield "Protection of updates", hidden
    yield "Aggregation", f"{plan.aggregation.optimizer}, weights {update.weights}"
    if update.broadcast_bits:
        yield "Form of the model's way down", f"{update.broadcast_bits} bits a value"
    if training.proximal_mu:
        yield "Proximal term", f"mu {training.proximal_mu:g}"
    if plan.calibration.is_on:
        config = plan.calibration
        yield (
            "After the mean",
            f"trained on auxiliary images ({config.when}): {config.steps} steps each "
            f'time, images "{config.images}"',
        )
    if plan.initial.name:
        yield "Began with", f"{plan.initial.name} ({plan.initial.origin})"


def _privacy(plan: RunPlan) -> Iterable[str]:
    """Yield what epsilon is and covers, and what it does not."""
    privacy = plan.privacy
    if not privacy.is_private:
        yield (
            "**No differential privacy: epsilon is unbounded.** Nothing limits what "
            "the model may reveal about an image that it was trained on."
        )
        return
    if privacy.is_in_sum:
        yield "\n".join(f"- {_plain(each)}" for each in plan_sentences(plan))
    else:
        unit = "image" if privacy.unit == "example" else "patient"
        epsilon = upward(run_epsilon(plan, privacy.delta))
        yield (
            f"**Differential privacy: epsilon {epsilon} at delta {privacy.delta:g}, "
            f"per {unit}** of one silo, against everyone outside it; "
            "neighbouring data sets differ by adding or removing one. It is the price "
            "of the whole plan (DP-SGD, noise multiplier "
            f"{privacy.noise_multiplier:g}), spare steps included; the silos' ledgers "
            "and the audit's report say what was spent."
        )
    yield "Not covered by epsilon:"
    yield "\n".join(f"- {as_sentence(_plain(each))}" for each in not_covered(plan))


def _quality(transcript: Path) -> Iterable[str]:
    """Yield the Fréchet distances that the run recorded."""
    last: Evaluated | None = None
    silos: MeasuredInSilos | MeasurementSkipped | None = None
    for entry in read_records(transcript):
        if isinstance(entry.record, Evaluated):
            last = entry.record
        elif isinstance(entry.record, MeasuredInSilos | MeasurementSkipped):
            silos = entry.record
    if last is not None:
        yield (
            f"Fréchet distance of the average after round {last.round_number}: "
            f"{last.frechet_distance:.4f} ({last.extractor}, {last.num_samples:,} "
            f"samples against {last.reference_count:,} images; extractor "
            f"`{last.extractor_digest}`, reference `{last.reference}`)."
        )
    if isinstance(silos, MeasuredInSilos):
        yield (
            f"{as_sentence(in_words(silos))} Against {silos.reference_count:,} images; "
            f"extractor `{silos.extractor_digest}`, reference `{silos.reference}`. "
            "These are the silos' own models, not the files here."
        )
    elif silos is not None:
        yield as_sentence(_plain(in_words(silos)))
    if last is None and silos is None:
        yield "No Fréchet distance was measured in the run."
        return
    yield (
        "Distances of other extractors, references or numbers of samples cannot be "
        "compared with these. A Fréchet distance is called FID on Inception's features "
        "only."
    )


def _use(files: Sequence[ModelFile], missing: Sequence[str]) -> Iterable[str]:
    """Yield how the files are used."""
    complete = [f.name for f in files if not missing or COMPLETED_ON in f.notes]
    if complete:
        name = complete[0]
        yield f"```\naggregator sample {name} --count 64 --out samples.png\n```"
        yield (
            "```python\nfrom pathlib import Path\n\nimport torch\n\n"
            "from diffusion.checkpoint import load_checkpoint\n\n"
            f'model = load_checkpoint(Path("{name}"))\n'
            'images = model.images(seed=0, count=64, device=torch.device("cpu"))\n```'
        )
    else:
        yield (
            "It cannot be sampled from as it is: the parts that are missing have to "
            "come from a silo (`silo sample`, in that silo), or be trained on public "
            "images (`aggregator complete`). `load_checkpoint` reads what is there."
        )
    yield (
        "The files are safetensors with the model's configuration, noise schedule and "
        "sampler in their headers; nothing in them is code."
    )


def _plan(plan: RunPlan) -> str:
    """Return all fields of the plan but those that name its parties."""
    table = {n: v for n, v in to_table(plan).items() if n not in PARTIES}
    lines = (f"{name} = {_plain(value)}" for name, value in describe(table))
    return "```\n" + "\n".join(lines) + "\n```"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [names, ["---"] * len(names)]
    lines += [[_plain(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """Return a text on one line, without what would end a cell or a block."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown.replace("|", "/").replace("`", "'").replace("<", "‹")
