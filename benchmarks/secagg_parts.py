"""What the seconds of secure aggregation are spent on, by part of the cryptography.

A handful of functions is replaced, wherever a module of ours names them, by one that
takes the time: a profiler would slow Python down and AES not at all, and so lie about
their shares. Time within a part that is called by another counts for the inner one
alone. What no part claims is the rest: encoding, parsing, checks, and the state that
is made to be saved.
"""

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import crypto.encoding
import crypto.frame
from crypto import aead, kdf, prg, ring, shamir, signatures
from crypto.keys import AgreementKey, IdentityKey
from crypto.secagg import recovery

KEYSTREAM = "keystream and its addition"
REST = "encoding, checks, state"
ENVELOPES = "HKDF and ChaCha20-Poly1305"

FUNCTIONS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (KEYSTREAM, prg.add_keystreams),
    ("Ed25519", signatures.verify),
    ("Ed25519", signatures.sign),
    ("Shamir", shamir.split),
    ("Shamir", recovery.open_secrets),
    (ENVELOPES, kdf.derive),
    (ENVELOPES, aead.seal_once),
    (ENVELOPES, aead.open_once),
    ("SHA-256", crypto.encoding.digest),
    ("addition of uploads", ring.add_into),
)
METHODS: tuple[tuple[str, type, str], ...] = (
    ("X25519", AgreementKey, "exchange"),
    ("X25519", AgreementKey, "generate"),
    ("X25519", AgreementKey, "from_bytes"),
    ("Ed25519", IdentityKey, "sign_unlabelled"),
)


class Timers:
    """CPU seconds of this process by side and part."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[str, float]] = {}
        self._side, self._stack, self._since = "", [REST], 0.0

    @contextmanager
    def side(self, side: str) -> Iterator[None]:
        """Count what happens within for one side."""
        self._side, self._since = side, time.process_time()
        try:
            yield
        finally:
            self._turn()
            self._side = ""

    @contextmanager
    def part(self, part: str) -> Iterator[None]:
        """Count what happens within for one part, but not for the part around it."""
        self._turn()
        self._stack.append(part)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def _turn(self) -> None:
        """Count the time since the last turn for the part that is running."""
        now = time.process_time()
        if self._side:
            parts = self._seconds.setdefault(self._side, defaultdict(float))
            parts[self._stack[-1]] += now - self._since
        self._since = now

    def seconds(self, *sides: str) -> dict[str, float]:
        """Return the seconds of each part, of several sides together, most first."""
        total: dict[str, float] = defaultdict(float)
        for side in sides:
            for part, seconds in self._seconds[side].items():
                total[part] += seconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time counted for a part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*arguments, **options)

        return timed


@contextmanager
def wrapped(timers: Timers) -> Iterator[None]:
    """Take the time of every part as long as the block runs."""
    undo: list[tuple[object, str, object]] = []

    def replace(owner: Any, name: str, value: object) -> None:
        undo.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    modules = [module for name, module in sys.modules.items() if _is_ours(name)]
    for part, function in FUNCTIONS:
        timed = timers.around(part, function)
        for module in modules:
            for name, value in list(vars(module).items()):
                if value is function:
                    replace(module, name, timed)
    for part, owner, name in METHODS:
        timed = timers.around(part, getattr(owner, name))
        is_bound = isinstance(vars(owner)[name], classmethod)
        replace(owner, name, staticmethod(timed) if is_bound else timed)
    sha256 = timers.around("SHA-256", hashlib.sha256)
    replace(crypto.frame, "hashlib", SimpleNamespace(sha256=sha256))
    try:
        yield
    finally:
        for changed, name, value in reversed(undo):
            setattr(changed, name, value)


def _is_ours(name: str) -> bool:
    """Return whether a module is one whose names are replaced."""
    return name.split(".")[0] == "crypto"
