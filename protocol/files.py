"""Files that are never half-written, and key files that nobody else can read."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crypto.encoding import BytesLike
from crypto.keys import IdentityKey
from protocol.errors import FolderInUse, KeyFileRejected

SECRET_MODE = 0o600
TEMPORARY_SUFFIX, PARTIAL_SUFFIX = ".tmp", ".partial"
"""How hidden names end while a file or a folder is made."""
PUBLIC_MODE = 0o644


def save_bytes(path: Path, data: BytesLike, *, mode: int = PUBLIC_MODE) -> None:
    """Write a file whole or not at all.

    Guarantees: after a crash or a full disk at any point the path holds either its
    former content or the new one (temporary file beside it, ``fsync``, rename). What a
    killed process leaves beside it is found by :func:`remove_leftovers`.

    Raises:
        OSError: the file system refuses; nothing is changed.
    """
    descriptor, name = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Lend a folder to fill, readable by its owner alone; it appears whole or not.

    The files in it must be on disk when the block ends; what an earlier crash left of
    the same folder is removed; :func:`remove_leftovers` removes that of any.

    Raises:
        OSError: the file system refuses, or the folder exists and is not empty.
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        yield partial
        sync_folder(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder while they wrote files or folders.

    It may hold secrets that the finished files no longer do. Only who holds the folder
    alone (:func:`locked`) may call this: it would take another's work away.

    Raises:
        OSError: the file system refuses; the rest may stay.
    """
    files = [path for path in folder.glob(f".*{TEMPORARY_SUFFIX}") if path.is_file()]
    folders = [path for path in folder.glob(f".*{PARTIAL_SUFFIX}") if path.is_dir()]
    for path in files:
        path.unlink()
    for path in folders:
        shutil.rmtree(path)
    if files or folders:
        sync_folder(folder)


def save_secret(path: Path, data: BytesLike) -> None:
    """Write a file as :func:`save_bytes` does, readable by its owner alone."""
    save_bytes(path, data, mode=SECRET_MODE)


def load_secret(path: Path) -> bytes:
    """Return the content of a secret file.

    Raises:
        KeyFileRejected: the file is missing, or others may read or write it.
    """
    check_secret(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileRejected(f"{path}: {error.strerror}") from None


def check_secret(path: Path) -> None:
    """Return if a secret file is there and its owner alone may read it.

    Raises:
        KeyFileRejected: the file is missing, or others may read or write it.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileRejected(f"{path}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileRejected(
            f"{path}: other users may read this secret file "
            f"(mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
        )


def save_identity(path: Path, key: IdentityKey) -> None:
    """Write an identity key as hexadecimal text with mode 0600.

    Raises:
        KeyFileRejected: the file exists; a key is never overwritten.
    """
    if path.exists():
        raise KeyFileRejected(f"{path}: exists; a key is never overwritten")
    save_secret(path, key.to_bytes().hex().encode() + b"\n")


def load_identity(path: Path) -> IdentityKey:
    """Return the identity key of a file.

    Raises:
        KeyFileRejected: missing, malformed, or readable by others.
    """
    return IdentityKey.from_bytes(
        parse_key(load_secret(path).decode(errors="replace"), str(path))
    )


def parse_key(text: str, where: str) -> bytes:
    """Return the 32 bytes of a key written as 64 hexadecimal digits.

    Raises:
        KeyFileRejected: another text; ``where`` names its place, the text is not shown.
    """
    digits = text.strip()
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != 32 or len(digits) != 64:
        raise KeyFileRejected(f"{where}: not a key of 64 hexadecimal digits")
    return key


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one process, as long as the block runs.

    Raises:
        FolderInUse: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"{folder}: another process works here") from None
        yield
    finally:
        os.close(descriptor)
