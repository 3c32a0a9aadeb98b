"""The Fréchet distance of this silo's own finished model, measured once in a run.

The distance itself stays in this silo, in a report for its operator; its two words
(``protocol.measurement``) leave like an update. Order: check → note what is measured →
measure → report → save the words (``fsync``) → transcript → reply. Asked again after a
crash the silo answers from what it saved; for another model it refuses.

Whether a silo answers may not depend on its own parts, or a refusal would tell of one
silo what the sum hides. Whatever can be wrong with the request alone is refused before
the note; from there on every model has a distance, if need be the largest that there
is, and no other model is ever measured.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crypto.secagg.upload import Upload
from diffusion.checkpoint import Checkpoint
from diffusion.errors import DiffusionError
from diffusion.evaluation import Evaluation, evaluate
from diffusion.features import check_takes, load_extractor
from diffusion.fid import FeatureStatistics, read_statistics
from protocol.encoding import decode, encode, from_table, to_table
from protocol.errors import EncodingError
from protocol.files import save_bytes
from protocol.measurement import (
    MAX_DISTANCE,
    NUM_WORDS,
    MeasureRequest,
    check_measurement,
    measurement_round,
    silo_seed,
    to_words,
)
from protocol.plan import RunPlan
from silo.config import SiloFolder
from silo.entries import LedgerHead
from silo.errors import PolicyViolation, StateBroken
from silo.resources import LocalResources
from silo.store import RunStore, TrainedRound

logger = logging.getLogger(__name__)

REPORT_FILE = "evaluation.json"
BEGUN_FILE = "measuring"
"""Holds the digest of the one request that this silo has begun to measure for."""


@dataclass(frozen=True, kw_only=True)
class SiloReport:
    """What this silo measured, for its operator alone.

    ``reference`` is the SHA-256 of the file of reference statistics, ``model`` the
    digest of average and statistics that the silo signed.
    """

    plan: str
    silo: str
    model: str
    extractor: str
    extractor_digest: str
    reference: str
    reference_count: int
    num_samples: int
    frechet_distance: float
    class_shares: tuple[float, ...]

    def in_words(self) -> str:
        """Return the report in one sentence."""
        return (
            f"{self.silo}: {self.extractor} {self.frechet_distance:.4f} "
            f"({self.num_samples} samples of this silo's own model against "
            f"{self.reference_count:,} images, reference {self.reference[:16]})"
        )


class SiloEvaluation:
    """One silo's measurement in one run.

    Args:
        weights: Inception's, where the plan measures with them; none for the cache.

    Raises:
        DiffusionError: the extractor is missing, or does not take the model's images.
    """

    def __init__(
        self,
        plan: RunPlan,
        silo: int,
        store: RunStore,
        device: torch.device,
        *,
        weights: Path | None = None,
    ) -> None:
        self._plan, self._silo = plan, silo
        self._store, self._device = store, device
        self._number = measurement_round(plan)
        config, size = plan.evaluation, plan.model.image_size
        self._extractor = load_extractor(
            config.extractor, weights=weights, sha256=config.extractor_sha256 or None
        )
        check_takes(self._extractor, (plan.model.channels, size, size))

    def check(self, request: MeasureRequest) -> None:
        """Refuse what the plan does not ask for, and a second measurement.

        Raises:
            EnvelopeRejected, PolicyViolation: with the reason.
        """
        check_measurement(request, self._plan)
        begun = self._begun
        if begun.exists() and begun.read_text() != request.model_digest().hex():
            raise PolicyViolation("this silo has measured another model already")
        trained = self._store.load_trained()
        if trained is None or trained.round_number < self._number:
            return
        if not self._store.has_update(self._number):
            raise PolicyViolation("what this silo measured was revealed already")

    def measure_once(
        self,
        request: MeasureRequest,
        model: Checkpoint,
        ledger: LedgerHead | None,
    ) -> None:
        """Measure this silo's finished model, unless that is on disk.

        Args:
            ledger: the head of the privacy ledger, which does not change.

        Raises:
            DiffusionError: the statistics are damaged or another extractor's; nothing
                is stored then.
        """
        trained = self._store.load_trained()
        if trained is not None and trained.round_number == self._number:
            return
        content = bytes(request.statistics)
        reference = read_statistics(content, self._extractor, "the request")
        digest = request.model_digest().hex()
        save_bytes(self._begun, digest.encode())
        result = self._evaluate(model, reference)
        report = SiloReport(
            plan=self._plan.digest.hex(),
            silo=self._plan.silos[self._silo].name,
            model=digest,
            extractor=result.extractor,
            extractor_digest=self._extractor.digest,
            reference=hashlib.sha256(content).hexdigest(),
            reference_count=reference.count,
            num_samples=result.num_samples,
            frechet_distance=result.frechet_distance,
            class_shares=result.class_shares,
        )
        save_bytes(self._store.folder / REPORT_FILE, encode(to_table(report)))
        logger.info("measured: %s", report.in_words())
        state, local = self._store.load_training()
        self._store.save_round(
            TrainedRound(round_number=self._number, model=digest, ledger=ledger),
            to_words(result.frechet_distance),
            state,
            local,
        )

    @property
    def _begun(self) -> Path:
        """The file of :data:`BEGUN_FILE`."""
        return self._store.folder / BEGUN_FILE

    def _evaluate(self, model: Checkpoint, reference: FeatureStatistics) -> Evaluation:
        """Return how good a model is; the largest distance where none can be computed.

        Samples may not be finite, and a stranger's statistics may overflow.
        """
        num_samples = self._plan.evaluation.num_samples
        useless = Evaluation(
            extractor=self._extractor.name,
            frechet_distance=float(MAX_DISTANCE),
            num_samples=num_samples,
            class_shares=(),
        )
        try:
            with np.errstate(all="ignore"):
                result = evaluate(
                    model,
                    self._extractor,
                    reference,
                    seed=silo_seed(self._plan, self._silo),
                    num_samples=num_samples,
                    device=self._device,
                )
        except (DiffusionError, np.linalg.LinAlgError) as error:
            logger.warning("measured as %d: %s", MAX_DISTANCE, error)
            return useless
        return result if result.frechet_distance < MAX_DISTANCE else useless

    def upload(self) -> Upload:
        """Return the two words, ready to be masked.

        Raises:
            PolicyViolation: nothing was measured, it was revealed, or is damaged.
        """
        upload = self._store.load_update(self._number)
        if upload is None or upload.words.size != NUM_WORDS:
            raise PolicyViolation("there is no measurement to send")
        return upload


def make_evaluation(
    plan: RunPlan, silo: int, store: RunStore, resources: LocalResources
) -> SiloEvaluation | None:
    """Return what measures this silo's model, where the plan asks for that.

    Raises:
        DiffusionError: as :class:`SiloEvaluation`.
    """
    if not plan.evaluation.in_silos:
        return None
    return SiloEvaluation(
        plan, silo, store, resources.device, weights=resources.inception_weights
    )


def load_report(folder: Path) -> SiloReport | None:
    """Return what a silo measured in the run of a folder, if it did.

    Raises:
        StateBroken: the file is damaged.
    """
    path = folder / REPORT_FILE
    if not path.exists():
        return None
    try:
        return from_table(SiloReport, decode(path.read_bytes()))
    except (OSError, EncodingError) as error:
        raise StateBroken(f"{path}: {error}") from None


def reports(files: SiloFolder) -> Iterator[SiloReport]:
    """Yield what a silo measured in its runs, by the names of their folders.

    Raises:
        StateBroken: a file is damaged.
    """
    for folder in sorted(files.runs.glob("*")):
        if (report := load_report(folder)) is not None:
            yield report
