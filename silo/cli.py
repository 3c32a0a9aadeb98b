"""The ``silo`` command: what an institution runs beside its data."""

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from diffusion.errors import DiffusionError
from protocol.command import (
    EXIT_FAILED,
    missing_extra,
    reporting_errors,
    set_up_logging,
)
from protocol.files import load_identity, save_bytes, save_identity
from protocol.plan import PlanDraft
from protocol.plan_files import load_draft, load_plan
from silo.config import (
    DEFAULT_CONFIG,
    CanaryConfig,
    ComputeConfig,
    DataConfig,
    SiloConfig,
    SiloFolder,
    load_config,
)
from silo.errors import ConfigRejected, PolicyViolation, SiloError
from silo.model_commands import MODEL_COMMANDS
from silo.policy import DEFAULT_POLICY, load_policy, refusals

DirPath = click.Path(file_okay=False, path_type=Path)
FilePath = click.Path(dir_okay=False, path_type=Path)

dir_option = click.option(
    "--dir",
    "folder",
    type=DirPath,
    default=Path(),
    help="This silo's folder.  [default: the current one]",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default=None,
    help="Where to compute.  [default: as in silo.toml, else auto]",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads."
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="An .npz file or a folder of images, instead of silo.toml's.",
)


@click.group()
@click.option("-v", "--verbose", count=True, help="Log more; twice for debugging.")
def cli(verbose: int) -> None:
    """Train a diffusion model with others; the images stay here."""
    set_up_logging(verbose)


@cli.command()
@click.argument("folder", type=DirPath)
def init(folder: Path) -> None:
    """Make a silo's FOLDER: identity key, silo.toml, policy.toml."""
    from crypto.keys import IdentityKey

    files = SiloFolder(folder)
    paths = (files.identity, files.public, files.config, files.policy)
    for path in paths:
        if path.exists():
            raise ConfigRejected(f"{path}: exists; nothing was changed")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = IdentityKey.generate()
    try:
        save_bytes(files.config, DEFAULT_CONFIG.encode())
        save_bytes(files.policy, DEFAULT_POLICY.encode())
        save_bytes(files.public, key.public.hex().encode() + b"\n")
        save_identity(files.identity, key)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    click.echo(f"public key: {key.public.hex()}")
    click.echo(f"Give {files.public} to the aggregator's operator, and read the key")
    click.echo("to them by telephone. Then edit silo.toml and policy.toml.")


@cli.command("check-plan")
@click.argument("plan_path", metavar="PLAN", type=FilePath)
@click.option("--approve", is_flag=True, help="Permit `silo train` to run this plan.")
@click.option("--rounds", is_flag=True, help="Show the bytes of each round, by part.")
@dir_option
def check_plan_command(
    plan_path: Path, approve: bool, rounds: bool, folder: Path
) -> None:
    """Say what PLAN would let leave, at what privacy cost, and what is refused."""
    from silo.check import bytes_lines, canary_lines, explain

    plan, files = load_plan(plan_path), SiloFolder(folder)
    plan.silo_index(load_identity(files.identity).public)
    policy = load_policy(files)
    canaries = load_config(files).canaries if files.config.exists() else CanaryConfig()
    planted = canary_lines(plan, canaries)
    for line in (
        *explain(plan, policy),
        *planted,
        *bytes_lines(plan, per_round=rounds),
    ):
        click.echo(line)
    if reasons := refusals(policy, plan):
        raise PolicyViolation(f"this silo refuses the plan: {reasons[0]}")
    if approve:
        approval = files.approval(plan)
        approval.parent.mkdir(exist_ok=True)
        save_bytes(approval, plan.name.encode() + b"\n")
        click.echo(f"approved: {approval}")
    elif not files.approval(plan).exists():
        click.echo("Not approved yet; run this again with --approve to permit it.")


@cli.command()
@click.option(
    "--plan", "plan_path", type=FilePath, help="A signed plan: train with others."
)
@click.option(
    "--local", "draft_path", type=FilePath, help="A draft: train alone, nothing leaves."
)
@click.option("--connect", type=FilePath, help="The aggregator's UNIX socket.")
@click.option("--out", type=FilePath, help="With --local: where to save the model.")
@click.option(
    "--patience",
    default=600.0,
    show_default=True,
    help="Seconds to wait for the aggregator.",
)
@click.option(
    "--new-ledger",
    is_flag=True,
    help="With dp-sgd: leave what earlier runs spent on the same data out of account. "
    "The report says so.",
)
@click.option(
    "--insecure-seed",
    type=click.IntRange(0),
    default=None,
    help="With dp-sgd, for debugging only: predictable sampling and noise. Nothing is "
    "private then, and the report fails.",
)
@click.option(
    "--repeat-reference",
    is_flag=True,
    help="Let images enter an exact sum of features although another run's holds some "
    "of them. DANGER: the difference of the sums may be this silo's own statistics.",
)
@click.option("--progress-lines", is_flag=True, hidden=True)
@dir_option
@data_option
@device_option
@threads_option
def train(
    plan_path: Path | None,
    draft_path: Path | None,
    connect: Path | None,
    out: Path | None,
    patience: float,
    new_ledger: bool,
    insecure_seed: int | None,
    repeat_reference: bool,
    progress_lines: bool,
    folder: Path,
    data: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Join a run and train until it ends; or, with --local, train alone."""
    if (plan_path is None) == (draft_path is None):
        raise click.UsageError("give either --plan or --local")
    if plan_path is not None and connect is None:
        raise click.UsageError("--plan needs --connect, the aggregator's socket")
    from silo import join

    join.leave_no_dump()
    files = SiloFolder(folder)
    config = _config(files, data, device, threads, must_exist=plan_path is not None)
    _use_threads(config.compute.threads)
    if progress_lines:
        threading.Thread(target=join.end_with_parent, daemon=True).start()
    if draft_path is not None:
        join.train_without_others(
            load_draft(draft_path)[0],
            config,
            files,
            out or Path("model.safetensors"),
            click.echo,
            new_ledger=new_ledger,
            insecure_seed=insecure_seed,
        )
    elif plan_path is not None and connect is not None:
        join.train_with_others(
            load_plan(plan_path),
            connect,
            patience,
            config,
            files,
            click.echo,
            new_ledger=new_ledger,
            insecure_seed=insecure_seed,
            repeat_reference=repeat_reference,
            lines=progress_lines,
        )


def _config(
    files: SiloFolder,
    data: Path | None,
    device: str | None,
    threads: int | None,
    *,
    must_exist: bool,
) -> SiloConfig:
    """Return silo.toml with the command line's words over it."""
    config = SiloConfig()
    if must_exist or files.config.exists():
        config = load_config(files)
    compute = ComputeConfig(
        device=device or config.compute.device,  # type: ignore[arg-type]
        threads=threads or config.compute.threads,
        checkpoint_steps=config.compute.checkpoint_steps,
        inception_weights=config.compute.inception_weights,
    )
    source = config.data
    if data is not None:
        kind: Literal["folder", "npz"] = "folder" if data.is_dir() else "npz"
        if config.data.patients and kind != config.data.source:
            raise ConfigRejected(
                f"--data: silo.toml says whose the images are for source "
                f'"{config.data.source}", this is "{kind}"; change [data] there'
            )
        source = DataConfig(
            source=kind,
            path=str(data.resolve()),
            value_range=config.data.value_range,
            patients=config.data.patients,
        )
    return SiloConfig(data=source, compute=compute, canaries=config.canaries)


@cli.command("self-test")
@click.option(
    "--plan", "plan_path", type=FilePath, help="A signed plan, whose mechanism to test."
)
@click.option(
    "--draft", "draft_path", type=FilePath, help="A draft, instead of a plan."
)
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Steps in which the noise is measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@dir_option
@data_option
@device_option
@threads_option
def self_test_command(
    plan_path: Path | None,
    draft_path: Path | None,
    steps: int,
    as_json: bool,
    folder: Path,
    data: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Test on this machine whether the privacy mechanism is what it says.

    A few steps of private training on some of this silo's images, or on made-up ones
    where there are none. Nothing is kept or charged to a ledger. The exit status is 1
    if a check fails.
    """
    if plan_path is not None and draft_path is not None:
        raise click.UsageError("give either --plan or --draft")
    from silo import self_test

    draft: PlanDraft | None = load_plan(plan_path) if plan_path else None
    if draft_path is not None:
        draft = load_draft(draft_path)[0]
    files = SiloFolder(folder)
    config = _config(files, data, device, threads, must_exist=False)
    _use_threads(config.compute.threads)
    passed = self_test.run_self_test(
        draft,
        config,
        files.root,
        num_steps=steps,
        must_have_data=data is not None,
        as_json=as_json,
        say=click.echo,
    )
    if not passed:
        sys.exit(EXIT_FAILED)


@cli.command()
@dir_option
def ledger(folder: Path) -> None:
    """Say what this silo has spent of its privacy budget, run by run."""
    from silo.policy import account_limit
    from silo.spent import explain_spent

    files = SiloFolder(folder)
    for line in explain_spent(files, account_limit(load_policy(files))):
        click.echo(line)


@cli.command()
@click.option(
    "--extractor",
    type=click.Choice(["fd-small-digits", "fd-small-fashion", "inception"]),
    required=True,
    help="What features are measured with; as in the plan.",
)
@click.option(
    "--weights", type=FilePath, help="Inception's weights, if they are not cached."
)
@click.option(
    "--split",
    type=click.Choice(["train", "test", "val"]),
    default="test",
    show_default=True,
)
@click.option("--out", type=FilePath, default=Path("reference.npz"), show_default=True)
@dir_option
@data_option
def reference(
    extractor: str,
    weights: Path | None,
    split: str,
    out: Path,
    folder: Path,
    data: Path | None,
) -> None:
    """Make reference statistics of images, to be published for evaluation.

    They are means and covariances of features. Use images that may be described in
    public: nothing protects the statistics.
    """
    from silo.data import load_images
    from silo.reference import save_reference

    files = SiloFolder(folder)
    config = _config(files, data, None, None, must_exist=False)
    source = replace(config.data, split=split)  # type: ignore[arg-type]
    images = load_images(source, files.root)
    count = save_reference(out, images, extractor, weights)  # type: ignore[arg-type]
    click.echo(f"saved: {out}, statistics of {count:,} images")


for _command in MODEL_COMMANDS:
    cli.add_command(_command)


def _use_threads(threads: int) -> None:
    """Set the number of CPU threads, if one is given."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def main() -> None:
    """Run the command; errors become one line and an exit code."""
    with reporting_errors(SiloError, DiffusionError):
        try:
            cli.main(standalone_mode=False)
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except ModuleNotFoundError as error:
            sys.exit(missing_extra("silo", error.name))
