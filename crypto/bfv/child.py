"""A child process of homomorphic encryption: limits first, then requests until the end.

It answers on the pipe that was its standard output; what native code prints goes
nowhere. Its memory is limited, and a crash leaves no dump. It ends with its parent, or
after the first request that fails: the next one gets a fresh child.
"""

import contextlib
import os
import resource
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from crypto.bfv import pipes
from crypto.bfv.parameters import POLY_DEGREE, SECRET_KEY_BYTES, SEED_BYTES, Slots
from crypto.bfv.pipes import Code
from crypto.bfv.tags import TAG_SEED_BYTES, residuals

if TYPE_CHECKING:
    from crypto.homomorphic import SecretContext


@dataclass
class _Held:
    """One vector that is being decrypted: what never leaves before it is released."""

    secret: "SecretContext" = field(repr=False)
    tag_seed: bytes = field(repr=False)
    num_values: int
    blocks: list[Slots] = field(default_factory=list, repr=False)


@dataclass
class _Answer:
    """Three numbers and a body."""

    numbers: tuple[int, int, int] = (0, 0, 0)
    body: bytes | memoryview = b""


def serve(memory_bytes: int) -> None:
    """Answer requests until the parent closes the pipe: the whole life of a child."""
    requests, answers = _take_pipes()
    _limit(memory_bytes)
    try:
        child = _Child()
        _write(answers, Code.READY, _Answer())
        while header := _read(requests, pipes.HEADER.size, is_start=True):
            code, x, y, z, size = pipes.HEADER.unpack(header)
            if size > pipes.MAX_BODY_BYTES:
                raise ValueError("a body beyond all limits")
            body = _read(requests, size)
            _write(answers, Code.DONE, child.answer(Code(code), x, y, z, body))
    except BrokenPipeError:
        return
    except Exception as error:
        line = _describe(error).encode()[: pipes.MAX_ERROR_BYTES]
        with contextlib.suppress(OSError):
            _write(answers, Code.FAILED, _Answer(body=line))
        raise SystemExit(1) from None


class _Child:
    """Keys by number, and vectors that are held, by handle."""

    def __init__(self) -> None:
        from crypto.homomorphic import PublicContext, SecretContext

        self._secret_type: type[SecretContext] = SecretContext
        self._public = PublicContext()
        self._keys: dict[int, SecretContext] = {}
        self._held: dict[int, _Held] = {}

    def answer(self, code: Code, x: int, y: int, z: int, body: bytearray) -> _Answer:
        """Do what a request asks."""
        match code:
            case Code.MAKE_KEY:
                made = self._secret_type.generate(self._public)
                return _Answer(body=made.export_key_for_sealing())
            case Code.SET_KEY:
                _check_size(body, SECRET_KEY_BYTES)
                self._keys[x] = self._secret_type(bytes(body), self._public)
            case Code.FORGET_KEY:
                self._keys.pop(x, None)
            case Code.ENCRYPT:
                slots = _words(body, y, 1)[:, 0]
                return _Answer(body=self._keys[x].encrypt(slots).data.cast("B"))
            case Code.EXPAND:
                _check_size(body, x * y * SEED_BYTES)
                seeds = np.frombuffer(body, np.uint8).reshape(x, y, SEED_BYTES)
                return _Answer(body=self._public.expand_sum(seeds).data.cast("B"))
            case Code.OPEN:
                _check_size(body, TAG_SEED_BYTES)
                self._held[x] = _Held(self._keys[y], bytes(body), z)
            case Code.DECRYPT:
                return _decrypt(self._held[x], y, z, body)
            case Code.RELEASE:
                return _Answer(body=self._held[x].blocks.pop(0).data.cast("B"))
            case Code.DISCARD:
                self._held.pop(x, None)
            case _:
                raise ValueError("not a request")
        return _Answer()


def _decrypt(held: _Held, first_chunk: int, num: int, body: bytearray) -> _Answer:
    """Decrypt one block and keep its slots; tell residuals and noise budget alone."""
    slots, noise_budget_bits = held.secret.decrypt(_words(body, num, 2))
    first, second = residuals(slots, held.tag_seed, first_chunk, held.num_values)
    held.blocks.append(slots)
    return _Answer((first, second, noise_budget_bits))


def _words(body: bytearray, num: int, num_polys: int) -> Slots:
    """View a body as uint64 ``[num, num_polys, N]``."""
    if not 1 <= num <= pipes.MAX_BLOCK_CIPHERTEXTS:
        raise ValueError(f"a block of {num} ciphertexts")
    _check_size(body, num * num_polys * POLY_DEGREE * 8)
    return np.frombuffer(body, "<u8").reshape(num, num_polys, POLY_DEGREE)


def _check_size(body: bytearray, size: int) -> None:
    """Refuse a body of another length."""
    if len(body) != size:
        raise ValueError(f"a body of {len(body)} bytes instead of {size}")


def _take_pipes() -> tuple[int, int]:
    """Return the two ends; whatever else reads or prints finds nothing there."""
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    return requests, answers


def _limit(memory_bytes: int) -> None:
    """Limit memory, leave no dump of it, and leave Ctrl-C to the parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Some systems know this limit but refuse to set it.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(pipe: int, size: int, *, is_start: bool = False) -> bytearray:
    """Return so many bytes; none where the parent is gone before a request."""
    data = bytearray(size)
    done = 0
    while done < size:
        got = os.readv(pipe, [memoryview(data)[done:]])
        if not got and is_start and not done:
            return bytearray()
        if not got:
            raise BrokenPipeError
        done += got
    return data


def _write(pipe: int, code: Code, answer: _Answer) -> None:
    """Write one answer."""
    body = memoryview(answer.body)
    for part in (pipes.HEADER.pack(code, *answer.numbers, body.nbytes), body):
        view = memoryview(part)
        while view:
            view = view[os.write(pipe, view) :]


def _describe(error: Exception) -> str:
    """Return one line without anything secret."""
    if isinstance(error, MemoryError):
        return "it went beyond its memory limit"
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
