"""Which errors a silo answers with a refusal, and which of them it keeps to itself."""

from crypto.errors import CryptoError
from diffusion.errors import DiffusionError
from privacy.errors import BudgetExceeded, NotFinite, PrivacyError
from protocol.errors import KeyFileRejected, ProtocolError
from silo.errors import DataError, SiloError, StateBroken
from silo.ledger import LedgerBroken
from silo.overlap import AccountRefused
from silo.partial import CheckpointOutdated
from silo.training import TrainingDiverged

Refusable = (
    CryptoError,
    ProtocolError,
    PrivacyError,
    DiffusionError,
    SiloError,
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
)
"""Errors whose text names this silo's files, its limits, or depends on its data: it is
for the operator alone."""
