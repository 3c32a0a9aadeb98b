"""What the aggregator's operator does with models: measure, sample, export, …"""

import math
from pathlib import Path
from typing import Any

import click

from aggregator.config import AggregatorFolder
from aggregator.options import (
    DirPath,
    FilePath,
    device_option,
    dir_option,
    download_option,
    plan_argument,
    reference_option,
    weights_option,
)
from protocol.plan_files import load_draft, load_plan


@click.command()
@click.argument("checkpoint_path", metavar="CHECKPOINT", type=FilePath)
@click.option(
    "--extractor",
    type=click.Choice(["fd-small-digits", "fd-small-fashion", "inception"]),
    required=True,
)
@click.option("--num-samples", type=click.IntRange(2), default=500, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@reference_option
@weights_option
@download_option
@device_option
def evaluate(
    checkpoint_path: Path,
    extractor: str,
    num_samples: int,
    seed: int,
    reference: Path | None,
    weights: Path | None,
    download: bool,
    device: str,
) -> None:
    """Measure the Fréchet distance of a CHECKPOINT's samples to a reference."""
    from aggregator.evaluation import evaluate as measure
    from aggregator.evaluation import load_reference
    from diffusion.checkpoint import choose_device, load_checkpoint
    from protocol.aggregation_settings import EvaluationConfig

    if reference is None:
        raise click.UsageError("give --reference, a file of reference statistics")
    config = EvaluationConfig(extractor=extractor)  # type: ignore[arg-type]
    loaded = load_reference(config, reference, weights=weights, allow_download=download)
    result = measure(
        load_checkpoint(checkpoint_path),
        loaded,
        seed=seed,
        num_samples=num_samples,
        device=choose_device(device),
    )
    click.echo(
        f"{loaded.extractor.name}: {result.frechet_distance:.4f} ({num_samples} "
        f"samples against {loaded.statistics.count} images)"
    )
    if result.class_shares:
        shares = " ".join(f"{share:.1%}" for share in result.class_shares)
        click.echo(f"classes: {shares}")


@click.command()
@click.argument("checkpoint_path", metavar="CHECKPOINT", type=FilePath)
@click.option("--count", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option(
    "--columns", type=click.IntRange(0, 100), default=0, help="0: one a class, or 8."
)
@click.option("--enlarge", type=click.IntRange(1, 32), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=FilePath, default=Path("samples.png"), show_default=True)
@click.option("--class", "label", type=click.IntRange(0), help="Draw this class alone.")
@device_option
def sample(checkpoint_path: Path, out: Path, **options: Any) -> None:
    """Draw images from a CHECKPOINT into one PNG grid."""
    from diffusion.pictures import draw_samples

    draw_samples(checkpoint_path, out, **options)
    click.echo(f"saved: {out}")


@click.command("warm-up")
@click.argument("central", metavar="CENTRAL_MODEL", type=FilePath)
@click.argument("draft_path", metavar="DRAFT", type=FilePath)
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="[default: the draft's]",
)
@click.option(
    "--shift",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Move each drawn image by up to so many pixels.",
)
@click.option(
    "--max-signal-to-noise",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Train only timesteps with at most this ratio; inf: all.",
)
@click.option(
    "--out", type=FilePath, default=Path("initial.safetensors"), show_default=True
)
@click.option("--picture", type=FilePath, help="Show the central images in a PNG.")
@device_option
def warm_up(
    central: Path,
    draft_path: Path,
    steps: int,
    learning_rate: float | None,
    shift: int,
    max_signal_to_noise: float,
    out: Path,
    picture: Path | None,
    device: str,
) -> None:
    """Train a DRAFT's model on the central images of a finished run.

    CENTRAL_MODEL is that run's model. No private data is read: what is made is as
    private as the central images are.
    """
    from aggregator.warm_up import warm_up_draft
    from diffusion.checkpoint import choose_device
    from diffusion.warm_up import WarmUpConfig

    draft, _ = load_draft(draft_path)
    config = WarmUpConfig(
        num_steps=steps,
        learning_rate=learning_rate or draft.training.learning_rate,
        loss=draft.training.loss,
        max_shift_pixels=shift,
        max_signal_to_noise=max_signal_to_noise,
    )
    made = warm_up_draft(
        central, draft, out, config, device=choose_device(device), picture=picture
    )
    click.echo(
        f"{out}: trained for {steps:,} steps on {made.num_images} central images, "
        f"loss {made.loss:.4g}"
    )
    click.echo(f"sha256: {made.sha256}")
    click.echo("Every party needs it as initial.safetensors; this goes into the draft:")
    click.echo(f"\n{made.table}")


@click.command()
@plan_argument
@click.option(
    "--data",
    type=FilePath,
    required=True,
    help="An .npz file of images that may be seen by all (array: images or train).",
)
@click.option(
    "--name", required=True, help="What these images are; it goes into the model."
)
@click.option(
    "--value-range",
    type=(float, float),
    default=(0.0, 255.0),
    show_default=True,
    help="The smallest and largest value that a pixel may have.",
)
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    help="[default: the plan's]",
)
@click.option(
    "--out", type=FilePath, help="[default: completed.safetensors in the run's folder]"
)
@dir_option
@device_option
def complete(
    plan_path: Path,
    data: Path,
    name: str,
    value_range: tuple[float, float],
    steps: int,
    learning_rate: float | None,
    out: Path | None,
    folder: Path,
    device: str,
) -> None:
    """Train the parts that a finished run of PLAN left in the silos, on public images.

    What the silos share stays as it is. The result can be sampled from here; it never
    saw the silos' own parts, and is no silo's model.
    """
    from aggregator.auxiliary import labelled_file
    from aggregator.complete import COMPLETED_FILE, complete_model
    from diffusion.checkpoint import choose_device
    from diffusion.warm_up import WarmUpConfig

    plan, files = load_plan(plan_path), AggregatorFolder(folder)
    run = files.run(plan)
    config = WarmUpConfig(
        num_steps=steps,
        learning_rate=learning_rate or plan.training.learning_rate,
        loss=plan.training.loss,
        examples_per_step=plan.training.examples_per_step,
        max_signal_to_noise=math.inf,
    )
    target = out or run / COMPLETED_FILE
    loss = complete_model(
        plan,
        run,
        labelled_file(data, plan.model, value_range, name=name),
        target,
        config,
        device=choose_device(device),
    )
    click.echo(f"{target}: trained for {steps:,} steps, loss {loss:.4g}")


@click.command()
@plan_argument
@click.option(
    "--out", type=DirPath, required=True, help="The folder that is made; must not be."
)
@click.option(
    "--latest", is_flag=True, help="Add the latest parameters beside their average."
)
@click.option(
    "--completed",
    type=FilePath,
    help="Add what `aggregator complete` made of the run's model.",
)
@dir_option
def export(
    plan_path: Path, out: Path, latest: bool, completed: Path | None, folder: Path
) -> None:
    """Write the model of a finished run of PLAN, with a model card."""
    from aggregator.export import export_run

    plan, files = load_plan(plan_path), AggregatorFolder(folder)
    for path in export_run(
        plan, files.run(plan), out, with_latest=latest, completed=completed
    ):
        click.echo(f"saved: {path}")


MODEL_COMMANDS = (evaluate, sample, warm_up, complete, export)
"""What ``aggregator.cli`` adds to its own commands."""
