"""Errors of the audits. A check that fails is a finding, not an exception.

AuditError
├── UnreadableTranscript   plan or transcripts that cannot be found, read or told apart
├── ExtractRejected        one record with its proof that cannot be made, or is wrong
├── UnreadableSamples      a file of samples that is no PNG image, or too large
└── UnreadableExtra        a probe, rehearsal or power table that cannot be used
"""


class AuditError(Exception):
    """Base of all errors of this package; its text is one line for a person."""


class UnreadableTranscript(AuditError):
    """There is nothing to check: say what is wrong, where, and what to do."""


class ExtractRejected(AuditError):
    """A record cannot be shown alone, or what was shown does not hold."""


class UnreadableSamples(AuditError):
    """The file of samples cannot be shown in a report."""


class UnreadableExtra(AuditError):
    """A file that a report was to show cannot be used: say which, and why."""
