"""Errors of the protocol.

ProtocolError
├── EncodingError        bytes or a table that do not say what they should
├── PlanRejected         a plan that is malformed, impossible or wrongly signed
├── EnvelopeRejected     a message of the wrong kind, run, sender or shape
├── TranscriptBroken     a transcript that cannot be read, continued or believed
├── KeyFileRejected      a key file that is missing, malformed or readable by others
├── FolderInUse          another process works in the same folder
├── TransportFailed      the engine could not carry what it was given
└── SpoolFailed          our own disk did not take a long message
"""


class ProtocolError(Exception):
    """Base of all errors of this package; its text is one line for a person."""


class EncodingError(ProtocolError):
    """Bytes are not canonical, or a table has the wrong fields or types."""


class PlanRejected(ProtocolError):
    """A plan is malformed, asks for the impossible, or carries a wrong signature."""


class EnvelopeRejected(ProtocolError):
    """A message is of the wrong kind, run, sender or shape."""


class TranscriptBroken(ProtocolError):
    """A transcript cannot be read, continued or believed."""


class KeyFileRejected(ProtocolError):
    """A key file is missing, malformed, or readable by other users."""


class FolderInUse(ProtocolError):
    """Another process works in the same folder."""


class TransportFailed(ProtocolError):
    """The transport could not be opened or carried a message wrongly."""


class SpoolFailed(ProtocolError):
    """A long message could not be put on this machine's disk."""
