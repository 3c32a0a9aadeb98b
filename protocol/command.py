"""What the four commands share: one line for an error, an exit code, a log."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from crypto.errors import CryptoError
from privacy.errors import PrivacyError
from protocol.errors import ProtocolError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@contextmanager
def reporting_errors(*own: type[Exception]) -> Iterator[None]:
    """Turn known errors into one line on standard error and a non-zero exit.

    Args:
        own: the base errors of the calling package and those below it.

    ``Ctrl-C`` ends with 130 and one line. Any other exception is a bug of ours and
    keeps its traceback.
    """
    known: tuple[type[Exception], ...] = (
        *own,
        CryptoError,
        PrivacyError,
        ProtocolError,
    )
    try:
        yield
    except known as error:
        _say(f"error: {error}")
        sys.exit(EXIT_FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"error: {where}{error.strerror or error}")
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        _say("interrupted; what is finished is saved")
        sys.exit(EXIT_INTERRUPTED)


def set_up_logging(verbosity: int) -> None:
    """Send log lines to standard error: warnings, with -v info, with -vv debug."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def missing_extra(extra: str, module: str | None) -> str:
    """Say which extra a command needs when a library is not installed."""
    return (
        f"error: {module or 'a library'} is not installed; this command needs "
        f"the extra [{extra}]: pip install 'cloister[{extra}]'"
    )


def _say(text: str) -> None:
    """Print one line to standard error, even if nobody reads it any more."""
    try:
        print(" ".join(text.split("\n")), file=sys.stderr, flush=True)
    except BrokenPipeError:
        os._exit(EXIT_FAILED)
