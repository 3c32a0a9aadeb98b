"""Errors of a silo.

SiloError
├── DataError         the silo's images cannot be used
├── ConfigRejected    the silo's own files are missing or malformed
├── PolicyViolation   a request that this silo refuses; ``check`` names what failed
├── ReferenceRefused  its images are in another exact sum of features already
├── ProofBeginsElsewhere   a request that is to come again with another proof
└── StateBroken       the silo's saved state cannot be continued
"""


class SiloError(Exception):
    """Base of all errors of this package; one line, never a file of a patient."""


class DataError(SiloError):
    """Images are missing, unreadable, of mixed sizes, or out of their range."""


class ConfigRejected(SiloError):
    """The silo's own files are missing or malformed."""


class PolicyViolation(SiloError):
    """A plan or request that this silo's operator does not permit."""


class ReferenceRefused(SiloError):
    """Images of this silo are in another run's exact sum of features."""


class ProofBeginsElsewhere(SiloError):
    """A proof of the aggregator's transcript does not begin where this silo stands.

    Nothing is held against the aggregator: it may not know that a request arrived.
    """

    def __init__(self, seen: int) -> None:
        super().__init__(f"this silo has seen a head over {seen} records")
        self.seen = seen


class StateBroken(SiloError):
    """The silo's saved state is missing, cut off, or of another run."""
