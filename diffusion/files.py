"""Whole files or none: the atomic write behind everything that is saved here."""

import os
import secrets
from pathlib import Path


def save_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half.

    Guarantees:
        The content is on the disk before the name points to it: a temporary file in
        the same folder is written, flushed and renamed, then the folder is flushed.
        A killed process leaves a name that ``protocol.files.remove_leftovers`` knows.

    Raises:
        OSError: the folder is missing or not writable; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries where the system can (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
