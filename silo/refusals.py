"""Which errors a silo answers with a refusal, and which of them it keeps to itself."""

import logging

from crypto.errors import CryptoError, DecryptionRefused, WorkerFailed
from diffusion.errors import DiffusionError
from privacy.errors import BudgetExceeded, NotFinite, PrivacyError
from protocol.envelope import Refusal
from protocol.errors import KeyFileRejected, ProtocolError
from silo.errors import (
    DataError,
    ProofBeginsElsewhere,
    ReferenceRefused,
    SiloError,
    StateBroken,
)
from silo.ledger import LedgerBroken
from silo.overlap import AccountRefused
from silo.partial import CheckpointOutdated
from silo.training import TrainingDiverged

logger = logging.getLogger(__name__)

Refusable = (
    CryptoError,
    ProtocolError,
    PrivacyError,
    DiffusionError,
    SiloError,
    WorkerFailed,
)

LocalTrouble = (
    AccountRefused,
    CheckpointOutdated,
    DataError,
    LedgerBroken,
    StateBroken,
    KeyFileRejected,
    TrainingDiverged,
    NotFinite,
    BudgetExceeded,
    ReferenceRefused,
    WorkerFailed,
)
"""Errors whose text names this silo's files, its limits, or depends on its data: it is
for the operator alone."""


def refusal_of(stage: str, error: Exception) -> Refusal:
    """Return what an error says to the aggregator; its own operator is told in full."""
    check = str(error)[:400]
    if isinstance(error, LocalTrouble):
        logger.warning("refused at %s: %s", stage, error)
        task = "encrypt or decrypt" if isinstance(error, WorkerFailed) else "train"
        check = f"this silo cannot {task}: its operator was told why"
    elif isinstance(error, DecryptionRefused):
        logger.warning(
            "refused at %s: %s; the aggregator may be dishonest", stage, error
        )
    else:
        logger.info("refused at %s: %s", stage, error)
    accused = getattr(error, "silo", None)
    return Refusal(
        stage=stage,
        check=check,
        accused=-1 if accused is None else accused,
        seen=error.seen if isinstance(error, ProofBeginsElsewhere) else -1,
    )
