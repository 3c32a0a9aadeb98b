"""Errors of the privacy mathematics.

PrivacyError
├── NotFinite       an update holds NaN or infinity
├── GridTooCoarse   a grid cannot represent what it is given
├── Overflow        the cohort's sum would not fit its fields
├── Uncalibrated    no noise multiplier reaches a target
└── BudgetExceeded  a mechanism would spend more than is left
"""


class PrivacyError(Exception):
    """Base of all errors of this package; its text never holds a value of data."""


class NotFinite(PrivacyError):
    """A vector holds NaN or infinity; it is refused, never clipped silently."""


class GridTooCoarse(PrivacyError):
    """A grid's ranges are not positive, or do not fit the vector."""


class Overflow(PrivacyError):
    """Values, or the sum of a cohort's values, would not fit their fields."""


class Uncalibrated(PrivacyError):
    """No noise multiplier reaches the target; the message says what would."""


class BudgetExceeded(PrivacyError):
    """A mechanism would spend more than a limit permits; nothing was run."""
