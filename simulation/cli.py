"""The ``cloister`` command: a whole federation on one machine."""

import sys
import time
from importlib import resources
from pathlib import Path

import click
from rich.console import Console

from aggregator.errors import AggregatorError
from aggregator.measurement import in_words
from audits.findings import Severity
from diffusion.errors import DiffusionError
from protocol.command import reporting_errors, set_up_logging
from protocol.plan_files import load_draft
from silo.errors import SiloError
from simulation.deal import deal
from simulation.display import table
from simulation.encryption import check_encryption
from simulation.errors import SimulationError
from simulation.federation import Federation, make_federation
from simulation.quality import measure
from simulation.rehearsal_files import rehearse_files
from simulation.rehearsal_pages import rehearsal_table, uniformity_table
from simulation.run import Outcome, draw_samples, run_federation
from simulation.settings import SimulationConfig, load_settings
from simulation.sources import load_pool

QUALITY_SAMPLES = 500
EXAMPLE = resources.files("simulation").joinpath("plans/digits.toml")


def _example_plan() -> str:
    """Return an example plan, as the help text shows it."""
    lines = EXAMPLE.read_text().splitlines()
    return "\b\nAn example plan:\n\n\b\n" + "\n".join(
        f"  {line}" if line else "  " for line in lines
    )


out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The run's folder; must not exist.  [default: runs/NAME-TIME]",
)
weights_option = click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Inception's weights, where the plan's extractor is inception.",
)
resume_option = click.option(
    "--resume",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=None,
    metavar="RUN",
    help="Go on with an interrupted run.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where silos train and the aggregator samples.",
)


@click.group()
@click.option("-v", "--verbose", count=True, help="Log more; twice for debugging.")
def cli(verbose: int) -> None:
    """Run a whole federation on one machine."""
    set_up_logging(verbose)


@cli.command()
@out_option
@resume_option
@device_option
def demo(out: Path | None, resume: Path | None, device: str) -> None:
    """Train a DDPM on handwritten digits in three silos: two minutes on two cores."""
    console = Console()
    began = time.monotonic()
    with resources.as_file(EXAMPLE) as path:
        federation, config, outcome = _simulate(
            path, out, resume, device, console, None, None
        )
    quality = _quality_rows(federation, config, device)
    _show(console, federation, outcome, quality, time.monotonic() - began)


@cli.command(epilog=_example_plan())
@click.argument(
    "plan_path", metavar="PLAN", type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="An .npz file or a folder of images, instead of the plan's own.",
)
@weights_option
@out_option
@resume_option
@device_option
def simulate(
    plan_path: Path,
    data: Path | None,
    weights: Path | None,
    out: Path | None,
    resume: Path | None,
    device: str,
) -> None:
    """Run the federation of PLAN, a draft with a [simulation] table, to its report."""
    console = Console()
    began = time.monotonic()
    federation, config, outcome = _simulate(
        plan_path, out, resume, device, console, data, weights
    )
    plan = federation.load_plan()
    quality = []
    has_samples = plan.update.selection == "full"
    if plan.model.num_classes and has_samples and config.data.source == "digits":
        quality = _quality_rows(federation, config, device)
    _show(console, federation, outcome, quality, time.monotonic() - began)


@cli.command("deal")
@click.argument(
    "plan_path", metavar="PLAN", type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="An .npz file or a folder of images, instead of the plan's own.",
)
@weights_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("shares"),
    show_default=True,
    help="The folder of the shares; must not exist.",
)
def deal_command(
    plan_path: Path, data: Path | None, weights: Path | None, out: Path
) -> None:
    """Deal PLAN's public images into one file a silo, to try the roles by hand."""
    draft, settings = load_draft(plan_path)
    config = load_settings(settings, plan_path, data)
    paths, (low, high) = deal(out, draft, config, weights)
    for path in paths:
        click.echo(str(path))
    click.echo(f"value_range = [{low:g}, {high:g}]")


@cli.command("rehearse")
@click.argument(
    "plan_path", metavar="PLAN", type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="PUBLIC images, an .npz file or a folder.  [default: the plan's, or digits]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The folder of the results; must not exist.  [default: rehearsals/NAME-TIME]",
)
@click.option(
    "--initial",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The parameters that PLAN begins with, where it names a file.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--quick", is_flag=True, help="A few steps of everything: a try-out.")
def rehearse_command(
    plan_path: Path,
    data: Path | None,
    out: Path | None,
    initial: Path | None,
    seed: int,
    quick: bool,
) -> None:
    """Show what the aggregator of PLAN would see of one round, on PUBLIC images.

    PLAN is a draft or a signed plan. Gradient inversion is tried on one silo's update
    in the clear, on the masked or encrypted one, on the mean, and on the mean under
    DP. The results hold the images: they must be public ones; a silo's are never read.
    """
    console = Console()
    console.print("for public images only: the results show them")
    rehearsal, folder = rehearse_files(
        plan_path,
        data,
        out,
        initial,
        seed=seed,
        is_quick=quick,
        observe=lambda view: console.print(f"{view.setting}, {view.name}: looked at"),
    )
    console.print(rehearsal_table(rehearsal), uniformity_table(rehearsal))
    for warning in rehearsal.warnings:
        console.print(f"warning: {warning}")
    console.print(f"results: {folder}", highlight=False)


def _simulate(
    plan_path: Path,
    out: Path | None,
    resume: Path | None,
    device: str,
    console: Console,
    data: Path | None,
    weights: Path | None,
) -> tuple[Federation, SimulationConfig, Outcome]:
    """Make or resume a federation, and run it to its end."""
    if out is not None and resume is not None:
        raise click.UsageError("give either --out or --resume")
    draft, settings = load_draft(plan_path)
    config = load_settings(settings, plan_path, data)
    if draft.protection.is_encrypted:
        check_encryption()
    if resume is not None:
        federation = Federation(resume)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        root = out or Path("runs") / f"{draft.name}-{stamp}"
        federation = make_federation(root, draft, config, weights=weights)
    console.print(f"run folder: {federation.root}", highlight=False)
    outcome = run_federation(
        federation,
        config,
        console,
        device=device,
        weights=weights,
        resume=resume is not None,
    )
    return federation, config, outcome


def _quality_rows(
    federation: Federation, config: SimulationConfig, device: str
) -> list[tuple[str, str]]:
    """Return what was measured on the demo's samples, as rows of the table."""
    plan = federation.load_plan()
    pool = load_pool(config, plan.seed_for("partition"))
    samples = draw_samples(federation, QUALITY_SAMPLES, device)
    quality = measure(samples, pool.dealt, pool.held_out)
    shares = " ".join(f"{share:.0%}" for share in quality.class_shares)
    asked = []
    if quality.as_asked is not None:
        asked = [("as asked", f"{quality.as_asked:.1%} show the digit asked for")]
    return [
        (
            "recognisable",
            f"{quality.recognised:.1%} of {quality.num_samples} samples have a "
            f"probability above 0.5 (real digits: {quality.recognised_real:.1%})",
        ),
        *asked,
        ("digits 0 … 9", shares),
        ("copies", f"{quality.copies} of {quality.num_samples} samples"),
    ]


def _show(
    console: Console,
    federation: Federation,
    outcome: Outcome,
    more: list[tuple[str, str]],
    seconds: float,
) -> None:
    """Show the results, and where they are."""
    rows = []
    for number, result in sorted(outcome.distances.items()):
        rows.append(
            (
                f"round {number}",
                f"{result.extractor} {result.frechet_distance:.3f} "
                f"({result.num_samples} samples against {result.reference_count} "
                "held-out images)",
            )
        )
    if outcome.measured is not None:
        rows.append(("in the silos", in_words(outcome.measured)))
    overhead = outcome.sent_bytes - outcome.vector_bytes
    rows += more
    rows += [
        (
            "bytes up",
            f"{outcome.sent_bytes:,}, {outcome.vector_bytes:,} of them vectors "
            f"({overhead / max(outcome.vector_bytes, 1):.2%} overhead)",
        ),
        ("bytes down", f"{outcome.received_bytes:,}"),
        ("audit", outcome.audit.verdict.value),
        ("report", str(outcome.report)),
        ("time", f"{seconds:.0f} s"),
    ]
    if outcome.samples.exists():
        rows.append(("samples", str(outcome.samples)))
    console.print(table(federation.load_plan().name, rows))
    if outcome.audit.verdict == Severity.FAIL:
        raise SimulationError(f"the audit failed; read {outcome.report}")


def main() -> None:
    """Run the command; errors become one line and an exit code."""
    own = (SimulationError, AggregatorError, SiloError, DiffusionError)
    with reporting_errors(*own):
        try:
            cli.main(standalone_mode=False)
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
