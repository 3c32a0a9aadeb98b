"""The ``aggregator`` command: what the coordinating operator runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from aggregator.config import AggregatorFolder
from aggregator.errors import AggregatorError, ConfigRejected
from aggregator.model_commands import MODEL_COMMANDS
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
@click.option("--auxiliary", type=FilePath, help="File of public auxiliary images.")
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
    auxiliary: Path | None,
    wait: float,
    folder: Path,
    reference: Path | None,
    weights: Path | None,
    download: bool,
    device: str,
) -> None:
    """Carry out a PLAN with secure aggregation, evaluation and evidence."""
    from aggregator.auxiliary import check_auxiliary
    from aggregator.serve import (
        RunSettings,
        check_encryption,
        check_evaluation,
        is_over,
        open_folder,
        run_plan,
    )
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
        auxiliary=auxiliary or files.auxiliary,
        allow_download=download,
        evaluate=not no_evaluation,
        on_stage=terminal.stage,
        on_bytes=terminal.count,
        watcher=terminal.watcher(),
    )
    check_encryption(signed)
    check_evaluation(signed, settings)
    if not resume:
        check_auxiliary(signed, settings.auxiliary)
    initial_state(signed, files.initial)
    run_folder = open_folder(files, signed, resume=resume)
    with (
        locked(run_folder),
        LocalSockets(listen, signed, identity, spool=run_folder) as transport,
    ):
        if not is_over(run_folder, signed):
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


for _command in MODEL_COMMANDS:
    cli.add_command(_command)


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
