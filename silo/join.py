"""A silo's part in a run, and training alone: from its files to the end."""

import hashlib
import os
import resource
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from diffusion.checkpoint import choose_device
from protocol.command import EXIT_INTERRUPTED
from protocol.encoding import encode, to_table
from protocol.files import load_identity, locked
from protocol.mechanism import calibrated
from protocol.plan import PlanDraft, RunPlan
from silo.config import SiloConfig, SiloFolder
from silo.data import load_images
from silo.display import make_display
from silo.errors import ConfigRejected, PolicyViolation
from silo.evaluation import load_report
from silo.local import train_alone
from silo.policy import account_limit, check_approved, load_policy
from silo.private_round import PrivateRounds
from silo.resources import LocalPrivacy, LocalResources
from silo.service import serve
from silo.session import SiloSession
from silo.store import RunStore
from silo.training import Progress

Say = Callable[[str], None]


def resources_of(
    files: SiloFolder,
    config: SiloConfig,
    observe: Callable[[Progress], None],
    *,
    new_ledger: bool = False,
    insecure_seed: int | None = None,
    repeat_reference: bool = False,
) -> LocalResources:
    """Return what a silo brings to a run, from its folder.

    Raises:
        SiloError, ProtocolError, DiffusionError: a file is missing or cannot be used.
    """
    policy, inception = load_policy(files), config.compute.inception_weights
    return LocalResources(
        identity=load_identity(files.identity),
        images=load_images(config.data, files.root),
        policy=policy,
        device=choose_device(config.compute.device),
        observe=observe,
        initial=files.initial,
        inception_weights=files.root / inception if inception else None,
        canaries=config.canaries,
        privacy=LocalPrivacy(
            ledgers=files.ledgers,
            limit=account_limit(policy),
            new_ledger=new_ledger,
            insecure_seed=insecure_seed,
            checkpoint_steps=config.compute.checkpoint_steps,
        ),
        references=files.references,
        repeat_reference=repeat_reference,
    )


def train_with_others(
    plan: RunPlan,
    connect: Path,
    patience: float,
    config: SiloConfig,
    files: SiloFolder,
    say: Say,
    *,
    new_ledger: bool = False,
    insecure_seed: int | None = None,
    repeat_reference: bool = False,
    lines: bool = False,
) -> None:
    """Take part in a run over local sockets, until it is over.

    Raises:
        SiloError, ProtocolError, DiffusionError: one line; what is saved stays.
    """
    identity = load_identity(files.identity)
    check_approved(files, plan)
    store = RunStore(files.run(plan), files.journal(plan))
    if store.is_finished():
        say("this run is over; nothing to do")
        return
    name = plan.silos[plan.silo_index(identity.public)].name
    with (
        locked(store.folder),
        make_display(name, plan.num_rounds, lines=lines) as display,
    ):
        resources = resources_of(
            files,
            config,
            display.training,
            new_ledger=new_ledger,
            insecure_seed=insecure_seed,
            repeat_reference=repeat_reference,
        )
        session = SiloSession(plan, store, resources)
        try:
            serve(
                session,
                plan,
                identity,
                connect,
                spool=store.folder,
                patience_seconds=patience,
                announce=display.say,
            )
        finally:
            session.close()
    say(f"{name}: the run is over; transcript: {store.transcript}")
    say(f"{name}: this silo's model: {store.model}")
    say(f"{name}: sample from it with `silo sample --run {store.folder.name}`")
    if (report := load_report(store.folder)) is not None:
        say(report.in_words())


def train_without_others(
    draft: PlanDraft,
    config: SiloConfig,
    files: SiloFolder,
    out: Path,
    say: Say,
    *,
    new_ledger: bool = False,
    insecure_seed: int | None = None,
) -> None:
    """Train a draft's model on this silo's images alone; nothing leaves.

    With a privacy mechanism the silo's own ledger is charged, within its own limit.

    Raises:
        SiloError, ProtocolError, DiffusionError: one line.
    """
    if not out.parent.is_dir():
        raise ConfigRejected(f"--out: the folder {out.parent} does not exist")
    if draft.privacy.is_in_sum:
        raise ConfigRejected(
            f'privacy.mechanism "{draft.privacy.mechanism}" needs the noise of several '
            "silos; alone, use dp-sgd"
        )
    draft = replace(draft, privacy=calibrated(draft))
    device = choose_device(config.compute.device)
    with make_display("alone", draft.num_rounds, lines=False) as display:
        if not draft.privacy.is_private:
            _check_unlimited(files)
            images = load_images(config.data, files.root)
            train_alone(
                draft,
                images,
                out,
                device=device,
                observe=display.training,
                initial=files.initial,
            )
        else:
            resources = resources_of(
                files,
                config,
                display.training,
                new_ledger=new_ledger,
                insecure_seed=insecure_seed,
            )
            _train_privately_alone(draft, files, resources, out)
    say(f"saved: {out}")


def _check_unlimited(files: SiloFolder) -> None:
    """Refuse to train without a mechanism where the silo's operator sets a limit.

    Raises:
        PolicyViolation: max_epsilon is finite.
    """
    if files.policy.exists() and account_limit(load_policy(files)) is not None:
        raise PolicyViolation(
            "this draft has no privacy mechanism, and policy.toml limits max_epsilon: "
            "what is trained so is under no limit"
        )


def _train_privately_alone(
    draft: PlanDraft, files: SiloFolder, resources: LocalResources, out: Path
) -> None:
    """Train a draft's model alone, on account of this silo's ledgers."""
    digest = hashlib.sha256(encode(to_table(draft))).hexdigest()
    name = f"local-{draft.name}-{secrets.token_hex(8)}"
    folder = files.runs / name
    folder.mkdir(parents=True, mode=0o700)
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder)
        private = PrivateRounds(draft, digest, folder, resources)
        opened.callback(private.close)
        opened.callback(private.finish)
        train_alone(
            draft,
            resources.images,
            out,
            device=resources.device,
            observe=resources.observe,
            initial=resources.initial,
            private=private,
        )


def leave_no_dump() -> None:
    """Write no core dump if this process crashes: keys and images are in its memory."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def end_with_parent() -> None:
    """End this process when the one that started it does, however it ends.

    ``sys.stdin`` would be locked meanwhile, and Python aborts at its own end if it is.
    """
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EXIT_INTERRUPTED)
