"""The ``aggregator`` command: what the coordinating operator runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from aggregator.config import AggregatorFolder
from aggregator.errors import AggregatorError, ConfigRejected
from crypto.keys import IdentityKey
from diffusion.errors import DiffusionError
from protocol.command import missing_extra, reporting_errors, set_up_logging
from protocol.encoding import to_table
from protocol.files import (
    load_identity,
    locked,
    parse_key,
    save_bytes,
    save_identity,
)
from protocol.noise_claim import plan_sentences
from protocol.plan import RunPlan, SiloParty, make_plan
from protocol.plan_files import (
    describe,
    load_draft,
    load_plan,
    load_unsigned_plan,
    save_plan,
)
from protocol.traffic_words import traffic_lines

DirPath = click.Path(file_okay=False, path_type=Path)
FilePath = click.Path(dir_okay=False, path_type=Path)

dir_option = click.option(
    "--dir",
    "folder",
    type=DirPath,
    default=Path(),
    help="The aggregator's folder.  [default: the current one]",
)
plan_argument = click.argument("plan_path", metavar="PLAN", type=FilePath)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
)
reference_option = click.option(
    "--reference", type=FilePath, help="File of the reference statistics."
)
weights_option = click.option(
    "--weights", type=FilePath, help="Inception's weights, where the plan uses them."
)
download_option = click.option(
    "--download", is_flag=True, help="Fetch Inception's weights if they are missing."
)


@click.group()
@click.option("-v", "--verbose", count=True, help="Log more; twice for debugging.")
def cli(verbose: int) -> None:
    """Coordinate a federation; see sums, and nothing else."""
    set_up_logging(verbose)


@cli.command()
@click.argument("folder", type=DirPath)
def init(folder: Path) -> None:
    """Make the aggregator's FOLDER with its identity key."""
    files = AggregatorFolder(folder)
    if files.identity.exists():
        raise ConfigRejected(f"{files.identity}: exists; nothing was changed")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = IdentityKey.generate()
    save_bytes(files.public, key.public.hex().encode() + b"\n")
    save_identity(files.identity, key)
    click.echo(f"public key: {key.public.hex()}")
    click.echo("Next: collect the silos' public keys, then `aggregator plan make`.")


@cli.group()
def plan() -> None:
    """Make, sign and show plans."""


@plan.command("make")
@click.argument("draft_path", metavar="DRAFT", type=FilePath)
@click.option(
    "--silo",
    "silos",
    multiple=True,
    required=True,
    metavar="NAME=KEY[,WEIGHT]",
    help="A silo: its name, and its key file or key; once for each silo.",
)
@click.option("--out", type=FilePath, default=Path("plan.toml"), show_default=True)
@dir_option
def plan_make(draft_path: Path, silos: Sequence[str], out: Path, folder: Path) -> None:
    """Make a signed plan of a DRAFT and the silos' public keys."""
    from aggregator.state import with_num_values

    identity = load_identity(AggregatorFolder(folder).identity)
    draft = with_num_values(load_draft(draft_path)[0])
    made = make_plan(draft, identity.public, [_party(text) for text in silos])
    if out.exists():
        raise ConfigRejected(f"{out}: exists; nothing was changed")
    save_plan(out, made, identity)
    click.echo(f"{out}: plan {made.digest.hex()}")
    click.echo("Give it to every silo; their operators run `silo check-plan`.")


def _party(text: str) -> SiloParty:
    """Return the silo of ``NAME=KEY[,WEIGHT]``, KEY a file or the digits."""
    name, _, rest = text.partition("=")
    key, _, weight = rest.partition(",")
    if not name or not key:
        raise click.BadParameter(f"{text!r}: expected NAME=KEY", param_hint="--silo")
    path = Path(key)
    digits = path.read_text() if path.is_file() else key
    public = parse_key(digits, f"--silo {name}")
    try:
        return SiloParty(
            name=name, identity_key=public.hex(), weight=float(weight or 1.0)
        )
    except ValueError as error:
        raise click.BadParameter(f"{name}: {error}", param_hint="--silo") from None


@plan.command("sign")
@plan_argument
@dir_option
def plan_sign(plan_path: Path, folder: Path) -> None:
    """Sign a PLAN that was edited; its digest, and so its run, is another one."""
    identity = load_identity(AggregatorFolder(folder).identity)
    edited = load_unsigned_plan(plan_path)
    save_plan(plan_path, edited, identity)
    click.echo(f"{plan_path}: plan {edited.digest.hex()}")


@plan.command("show")
@plan_argument
@click.option("--rounds", is_flag=True, help="Show the bytes of each round, by part.")
def plan_show(plan_path: Path, rounds: bool) -> None:
    """Show a PLAN: every field, its digest, and every byte that the run moves."""
    from aggregator.state import shared_segments

    shown = load_plan(plan_path)
    click.echo(f"digest = {shown.digest.hex()}")
    for name, value in describe(to_table(shown)):
        click.echo(f"{name} = {value}")
    for line in traffic_lines(shown, shared_segments(shown), per_round=rounds):
        click.echo(line)
    for line in plan_sentences(shown) if shown.privacy.is_in_sum else ():
        click.echo(line)


@cli.command()
@plan_argument
@click.option(
    "--listen", type=FilePath, required=True, help="The UNIX socket that silos join."
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--no-evaluation", is_flag=True, help="Do not sample or measure.")
@click.option(
    "--wait",
    default=600.0,
    show_default=True,
    help="Seconds to wait for silos at the start.",
)
@dir_option
@reference_option
@weights_option
@download_option
@device_option
def run(
    plan_path: Path,
    listen: Path,
    resume: bool,
    no_evaluation: bool,
    wait: float,
    folder: Path,
    reference: Path | None,
    weights: Path | None,
    download: bool,
    device: str,
) -> None:
    """Carry out a PLAN with secure aggregation, evaluation and evidence."""
    from aggregator.serve import RunSettings, check_evaluation, open_folder, run_plan
    from aggregator.state import initial_state
    from aggregator.terminal import Terminal
    from diffusion.checkpoint import choose_device
    from protocol.transport import LocalSockets

    signed = load_plan(plan_path)
    files = AggregatorFolder(folder)
    identity = load_identity(files.identity)
    terminal = Terminal(signed, Console(stderr=True))
    settings = RunSettings(
        device=choose_device(device),
        reference=None if no_evaluation else reference,
        weights=weights,
        initial=files.initial,
        allow_download=download,
        evaluate=not no_evaluation,
        on_stage=terminal.stage,
        on_bytes=terminal.count,
        watcher=terminal.watcher(),
    )
    check_evaluation(signed, settings)
    initial_state(signed, files.initial)
    run_folder = open_folder(files, signed, resume=resume)
    with (
        locked(run_folder),
        LocalSockets(listen, signed, identity, spool=run_folder) as transport,
    ):
        missing = transport.wait_for_silos(wait)
        terminal.say(_attendance(signed, missing))
        with terminal.shown():
            run_plan(signed, identity, run_folder, transport, settings)
    click.echo(f"model: {run_folder / 'model.safetensors'}")
    click.echo(f"transcript: {run_folder / 'transcript'}")


def _attendance(signed: RunPlan, missing: Sequence[int]) -> str:
    """Say which silos are there."""
    if not missing:
        return f"all {len(signed.silos)} silos are connected"
    names = ", ".join(signed.silos[silo].name for silo in missing)
    return f"going on without {names}"


@cli.command()
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


@cli.command()
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


@cli.command("warm-up")
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


def main() -> None:
    """Run the command; errors become one line and an exit code."""
    with reporting_errors(AggregatorError, DiffusionError):
        try:
            cli.main(standalone_mode=False)
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except ModuleNotFoundError as error:
            sys.exit(missing_extra("aggregator", error.name))
