"""Small checks that both sides make: sets of silos, order of calls, one answer each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from crypto.errors import CryptoError, ProtocolViolation
from crypto.secagg.config import SecAggConfig


def check_enough(
    config: SecAggConfig, silos: Sequence[int] | Mapping[int, object], what: str
) -> None:
    """Raise ``ProtocolViolation`` if a set of silos is too small to hide one of them.

    The bound is max(threshold, min_cohort), for members, cohort and survivors alike.
    """
    if len(silos) < config.min_survivors:
        raise ProtocolViolation(
            f"{what}: {len(silos)} silos, at least {config.min_survivors} are needed"
        )


def check_threshold(
    config: SecAggConfig, silos: Mapping[int, object], what: str
) -> None:
    """Raise ``ProtocolViolation`` if fewer silos have signed than open a secret."""
    if len(silos) < config.threshold:
        raise ProtocolViolation(
            f"{what}: {len(silos)} silos, {config.threshold} are needed"
        )


def check_part(
    silos: Sequence[int], whole: Sequence[int] | Mapping[int, object], what: str
) -> None:
    """Raise ``ProtocolViolation`` if a set names a silo that an earlier set did not."""
    strangers = sorted(set(silos) - set(whole))
    if strangers:
        raise ProtocolViolation(f"{what}: silo {strangers[0]} does not belong there")


def check_inside(index: int, silos: Sequence[int], what: str) -> None:
    """Raise ``ProtocolViolation`` if a set leaves out the silo that is asked."""
    if index not in silos:
        raise ProtocolViolation(f"{what}: this silo, {index}, is not in it")


def check_same(is_same: bool, what: str, where: str) -> None:
    """Raise ``ProtocolViolation``: a stage answers one request, and again only that."""
    if not is_same:
        raise ProtocolViolation(f"another {what} than the one answered in this {where}")


def is_new(
    table: Mapping[int, bytes], silo: int, entry: bytes, is_closed: bool
) -> bool:
    """Whether an entry is to be stored, which it is not if it already stands there.

    Raises:
        ProtocolViolation: the silo has another entry, or the stage is closed.
    """
    if table.get(silo) == entry:
        return False
    if silo in table:
        raise ProtocolViolation("a second, different answer to one stage")
    if is_closed:
        raise ProtocolViolation("an answer after its stage was closed")
    return True


def has_twins(keys: Iterable[bytes]) -> bool:
    """Whether one of the 32-byte keys in these strings occurs twice, in any two places.

    Sorted as one array: a set of Python objects would take five times the memory.
    """
    sorted_keys = np.sort(np.frombuffer(b"".join(keys), "S32"))
    return bool((sorted_keys[1:] == sorted_keys[:-1]).any())


def are_canonical(keys: bytes) -> bool:
    """Whether all of these X25519 keys, 32 bytes each, are below 2^255 - 19.

    X25519 takes every other number for one of them: a key could occur twice in two
    spellings, and a key that was opened would not equal the one that was advertised.
    """
    limit = 2**255 - 19
    places = range(0, len(keys), 32)
    return all(int.from_bytes(keys[i : i + 32], "little") < limit for i in places)


@contextmanager
def naming(silo: int) -> Iterator[None]:
    """Put the silo's index before the message of a ``CryptoError``."""
    try:
        yield
    except CryptoError as error:
        raise type(error)(f"silo {silo}: {error}", silo=error.silo) from None


def require_call(is_in_order: bool, message: str) -> None:
    """Raise ``RuntimeError``: a call out of order is the caller's bug."""
    if not is_in_order:
        raise RuntimeError(message)
