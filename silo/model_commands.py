"""What a silo's operator does with its finished models: sample, measure, attack."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from silo.config import DataConfig, SiloFolder, load_config
from silo.errors import ConfigRejected

DirPath = click.Path(file_okay=False, path_type=Path)
FilePath = click.Path(dir_okay=False, path_type=Path)

dir_option = click.option(
    "--dir",
    "folder",
    type=DirPath,
    default=Path(),
    help="This silo's folder.  [default: the current one]",
)


@click.command()
@click.argument(
    "checkpoint_path", metavar="[CHECKPOINT]", type=FilePath, required=False
)
@click.option(
    "--run", help="Instead of a file: this silo's own model of a run, by its name."
)
@click.option("--count", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option(
    "--columns", type=click.IntRange(0, 100), default=0, help="0: one a class, or 8."
)
@click.option("--enlarge", type=click.IntRange(1, 32), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=FilePath, default=Path("samples.png"), show_default=True)
@click.option("--class", "label", type=click.IntRange(0), help="Draw this class alone.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto")
@dir_option
def sample(
    checkpoint_path: Path | None,
    run: str | None,
    out: Path,
    folder: Path,
    **options: Any,
) -> None:
    """Draw images from a CHECKPOINT, or a finished run, into one PNG grid."""
    from diffusion.pictures import draw_samples

    if (checkpoint_path is None) == (run is None):
        raise click.UsageError("give either a CHECKPOINT or --run")
    path = checkpoint_path or model_of_run(SiloFolder(folder), run or "")
    draw_samples(path, out, **options)
    click.echo(f"saved: {out}")


@click.command()
@dir_option
def evaluation(folder: Path) -> None:
    """Say how good this silo's own models are, run by run, where it measured that."""
    from silo.evaluation import reports

    found = [report.in_words() for report in reports(SiloFolder(folder))]
    for line in found or ["no run has measured this silo's model yet"]:
        click.echo(line)


@click.command()
@click.option(
    "--plan",
    "plan_path",
    type=FilePath,
    required=True,
    help="The plan of a finished run.",
)
@click.option(
    "--held-out",
    "held_out",
    type=FilePath,
    help="An .npz file of images like this silo's that no silo trained on.",
)
@click.option(
    "--held-out-split",
    "split",
    type=click.Choice(["train", "test", "val"]),
    help="Which images of that file are held out; without a file, of silo.toml's data.",
)
@click.option(
    "--members",
    type=click.IntRange(16),
    default=1000,
    show_default=True,
    help="Training images that are attacked, at most, and as many held-out ones.",
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=500,
    show_default=True,
    help="Samples whose nearest images are looked up, and images of each side at most.",
)
@click.option(
    "--control-steps",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Steps that the control is overfitted for.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=FilePath, default=Path("probe.json"), show_default=True)
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default=None,
    help="Where to compute.  [default: as in silo.toml]",
)
@dir_option
def probe(
    plan_path: Path,
    held_out: Path | None,
    split: Literal["train", "test", "val"] | None,
    members: int,
    samples: int,
    control_steps: int,
    seed: int,
    out: Path,
    device: Literal["auto", "cuda", "cpu"] | None,
    folder: Path,
) -> None:
    """Attack a finished run's models with this silo's images.

    Membership inference on the global and this silo's own model, with an overfitted
    control, and a search for memorised images. Images and their scores stay here;
    curves and counts are signed and saved. They are not differentially private.
    """
    import torch

    from protocol.plan_files import load_plan
    from silo.display import make_display
    from silo.probe import ProbeOptions, run_probe

    files = SiloFolder(folder)
    plan, config = load_plan(plan_path), load_config(files)
    if device is not None:
        config = replace(config, compute=replace(config.compute, device=device))
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    options = ProbeOptions(
        max_members=members,
        num_samples=samples,
        control_steps=control_steps,
        seed=seed,
    )
    source = held_out_data(config.data, held_out, split)
    with make_display("control", 1, lines=False) as display:
        lines = run_probe(
            plan, files, config, source, options, out, display.say, display.training
        )
    for line in lines:
        click.echo(line)


def held_out_data(
    data: DataConfig, file: Path | None, split: Literal["train", "test", "val"] | None
) -> DataConfig:
    """Return where held-out images are: a split of a file, or of this silo's data.

    Raises:
        ConfigRejected: neither is given, or the data have no splits.
    """
    if file is not None:
        is_npz = data.source == "npz"
        return DataConfig(
            source="npz",
            path=str(file.resolve()),
            split=split or "train",
            value_range=data.value_range,
            patients=data.patients if is_npz else "",
        )
    if split is None:
        raise ConfigRejected("give --held-out FILE.npz or --held-out-split")
    if data.source == "folder":
        raise ConfigRejected(
            "--held-out-split: a folder of images has no splits; give --held-out"
        )
    return replace(data, split=split)


def model_of_run(files: SiloFolder, name: str) -> Path:
    """Return the finished model of the one run whose folder begins with a name.

    Raises:
        ConfigRejected: no run does, several do, or it is not over.
    """
    from silo.store import MODEL_FILE

    names = sorted(path.name for path in files.runs.glob("*") if path.is_dir())
    fitting = [one for one in names if one == name] or [
        one for one in names if name and one.startswith(name)
    ]
    if len(fitting) != 1:
        known = ", ".join(fitting or names) or "none"
        what = "several runs begin so" if fitting else "there is no such run"
        raise ConfigRejected(f"--run {name}: {what}; {files.runs} holds {known}")
    path = files.runs / fitting[0] / MODEL_FILE
    if not path.exists():
        raise ConfigRejected(
            f"--run {name}: {path} does not exist: the run is not over"
        )
    return path


MODEL_COMMANDS = (sample, evaluation, probe)
"""What ``silo.cli`` adds to its own commands."""
