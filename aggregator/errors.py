"""Errors of the aggregator.

AggregatorError
├── ConfigRejected     its own files are missing or malformed
├── CalibrationFailed  training after the mean diverged
├── CohortTooSmall     too few silos are left to sum; nothing was revealed
├── RoundAborted       a round was closed without a sum, after shares were asked for
└── StateBroken        a checkpoint or saved round cannot be continued
"""


class AggregatorError(Exception):
    """Base of all errors of this package; one line for a person."""


class ConfigRejected(AggregatorError):
    """The aggregator's own files are missing or malformed."""


class CalibrationFailed(AggregatorError):
    """Training after the mean diverged; what was finished before is saved."""


class CohortTooSmall(AggregatorError):
    """Too few silos are left; nothing was revealed, the round can be tried again."""


class RoundAborted(AggregatorError):
    """Shares were asked for, but too few or wrong ones came: no sum, ever."""


class StateBroken(AggregatorError):
    """A checkpoint or the state of a round is missing, cut off, or of another run."""
