"""Homomorphic encryption on this machine: lent for a while; its failures, one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from crypto.bfv.workers import Workers
from crypto.errors import WorkerFailed
from simulation.errors import EncryptionFailed


@contextmanager
def lent_workers(num: int | None = None) -> Iterator[Workers]:
    """Lend processes that encrypt and decrypt: as many as processors, or ``num``.

    Raises:
        EncryptionFailed: TenSEAL is not installed, or a process of it crashed.
    """
    try:
        with Workers(num) as workers:
            yield workers
    except WorkerFailed as error:
        raise EncryptionFailed(str(error)) from None


def check_encryption() -> None:
    """Check that this machine can encrypt, before anything long is begun.

    Raises:
        EncryptionFailed: as :func:`lent_workers`.
    """
    with lent_workers(1) as workers:
        workers.make_key()
