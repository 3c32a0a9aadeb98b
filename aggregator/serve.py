"""One run of a plan, from the files on disk to the finished model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from aggregator.checkpoints import CheckpointStore
from aggregator.config import AggregatorFolder
from aggregator.errors import ConfigRejected
from aggregator.evaluation import Reference, load_reference
from aggregator.exchanges import Exchanges, Stage
from aggregator.rounds import Run, Watcher
from aggregator.said import Said
from aggregator.state import RoundState
from crypto.bfv.installed import check_installed
from crypto.bfv.workers import Workers
from crypto.keys import IdentityKey
from diffusion.features import FeatureExtractor, load_extractor
from protocol.plan import RunPlan
from protocol.transcript import TranscriptWriter
from protocol.transport import Transport


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Local matters of a run: nothing that the silos need to know.

    ``reference`` is a file of published statistics; ``evaluate`` off leaves the
    plan's evaluations out. ``weights`` is Inception's file, where the plan asks for it;
    ``initial`` that of the parameters which the run begins with; ``auxiliary`` that of
    public auxiliary images.
    """

    device: torch.device
    reference: Path | None = None
    weights: Path | None = None
    initial: Path | None = None
    auxiliary: Path | None = None
    allow_download: bool = False
    evaluate: bool = True
    watcher: Watcher = Watcher()
    on_stage: Callable[[Stage], None] = lambda stage: None
    on_bytes: Callable[[int, int], None] = lambda sent, received: None


def open_folder(folder: AggregatorFolder, plan: RunPlan, *, resume: bool) -> Path:
    """Return the run's folder, once it is clear whether it may exist.

    Raises:
        ConfigRejected: it exists without ``resume``, or is missing with it.
    """
    run = folder.run(plan)
    if run.exists() and not resume:
        raise ConfigRejected(f"{run}: exists; continue it with --resume")
    if resume and not run.exists():
        raise ConfigRejected(f"{run}: does not exist; start without --resume")
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    return run


def run_plan(
    plan: RunPlan,
    identity: IdentityKey,
    folder: Path,
    transport: Transport,
    settings: RunSettings,
) -> RoundState:
    """Carry out a plan, or what is left of it; return the last state.

    Raises:
        AggregatorError, DiffusionError, ProtocolError: what is finished is saved.
    """
    check_encryption(plan)
    reference = check_evaluation(plan, settings)
    store = CheckpointStore(folder, plan)
    with (
        TranscriptWriter(
            store.transcript,
            party="aggregator",
            plan_digest=plan.digest,
            identity=identity,
        ) as transcript,
        Workers() as workers,
    ):
        exchanges = Exchanges(
            plan,
            identity,
            transport,
            transcript,
            settings.on_stage,
            settings.on_bytes,
        )
        run = Run(
            exchanges,
            store,
            reference=reference,
            extractor=_pooling_extractor(plan, settings, reference),
            workers=workers,
            device=settings.device,
            watcher=settings.watcher,
            initial=settings.initial,
            auxiliary=settings.auxiliary,
        )
        return run.run()


def is_over(folder: Path, plan: RunPlan) -> bool:
    """Return whether a run has told its silos of the end: it needs them no more.

    Raises:
        StateBroken, TranscriptBroken: what is on disk cannot be read.
    """
    store = CheckpointStore(folder, plan)
    return store.transcript.exists() and Said.read(store, 1).is_finished


def check_encryption(plan: RunPlan) -> None:
    """Check that what encrypts is installed, where the plan asks for encryption.

    Raises:
        ConfigRejected: a library of the extra "aggregator" is not.
    """
    if not plan.protection.is_encrypted:
        return
    try:
        check_installed()
    except ModuleNotFoundError as error:
        raise ConfigRejected(
            f'the plan encrypts updates (protection.method "bfv"), and {error}; it '
            "comes with the extra [aggregator]: pip install 'cloister[aggregator]'"
        ) from None


def check_evaluation(plan: RunPlan, settings: RunSettings) -> Reference | None:
    """Load what evaluation needs, before anything else begins.

    Raises:
        ConfigRejected: the plan asks for evaluation, but there is no reference.
        DiffusionError: weights or statistics cannot be used.
    """
    config = plan.evaluation
    if not config.is_asked_for or not settings.evaluate:
        return None
    if settings.reference is None and config.is_pooled:
        return None
    if settings.reference is None:
        field = "every_rounds" if config.every_rounds else "in_silos"
        raise ConfigRejected(
            f"the plan asks for evaluation (evaluation.{field}): give the file of "
            "reference statistics with --reference, or --no-evaluation"
        )
    return load_reference(
        plan.evaluation,
        settings.reference,
        weights=settings.weights,
        allow_download=settings.allow_download,
    )


def _pooling_extractor(
    plan: RunPlan, settings: RunSettings, reference: Reference | None
) -> FeatureExtractor | None:
    """Load what the silos' own reference is made with, where the plan asks for one.

    Raises:
        DiffusionError: the weights cannot be used.
    """
    config = plan.evaluation
    if not config.is_pooled or not settings.evaluate:
        return None
    if reference is not None:
        return reference.extractor
    return load_extractor(
        config.extractor,
        weights=settings.weights,
        sha256=config.extractor_sha256 or None,
        allow_download=settings.allow_download,
    )
