"""Secret randomness of DP-SGD: AES-128 in counter mode, keyed by the operating system.

Everything on which the guarantee rests is drawn here: which privacy units take part in
a step, and the Gaussian noise. Whoever could predict them could take them out again.
"""

import os
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from randomgen import AESCounter

KEY_BYTES = 16
"""What AES-128 takes as its key, and again as the place where it begins to count."""

BLOCK_VALUES = 1 << 14
"""Normals that are made at a time, so that they stay in the processor's cache."""

NUM_ADDENDS = 4
"""How many normals are added up for one."""

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_num_forks = 0


def _count_fork() -> None:
    """Note, in a child process, that what it holds was copied from its parent."""
    global _num_forks
    _num_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class PrivateRandom:
    """A cryptographic generator for sampling and noise; no two give the same numbers.

    Guarantees:
        AES-128 in counter mode; key and first counter, 128 bits each, come from the
        operating system. It cannot be copied or saved, and in a forked child it
        refuses, so that no number is ever used twice.

    Args:
        insecure_seed: makes the numbers repeatable, **for debugging only**: whoever
            knows it can take the noise out again.
    """

    def __init__(self, insecure_seed: int | None = None) -> None:
        self._is_secure = insecure_seed is None
        if insecure_seed is None:
            key, counter = (
                int.from_bytes(os.urandom(KEY_BYTES), "little") for _ in range(2)
            )
            bits = AESCounter(key=key, counter=counter)
        else:
            bits = AESCounter(insecure_seed)
        self._values = Generator(bits)
        self._num_forks = _num_forks

    def __reduce_ex__(self, _: Any) -> NoReturn:
        """Refuse to be copied or saved."""
        raise TypeError("secret randomness cannot be copied or saved")

    @property
    def is_secure(self) -> bool:
        """Whether the operating system chose the key; false for a debugging seed."""
        return self._is_secure

    def poisson_sample(self, num_units: int, rate: float) -> npt.NDArray[np.int64]:
        """Draw every unit independently with the same probability.

        Args:
            rate: 0 … 1; kept exactly up to 2^-53. At 1 every unit is drawn.

        Returns:
            The drawn indices, ascending, int64 ``[m]``; m is random and may be 0.

        Raises:
            ValueError: the rate is not within 0 … 1.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate: must be 0 to 1, is {rate}")
        return np.flatnonzero(self._generator().random(num_units) < rate)

    def choose(self, n: int, k: int) -> npt.NDArray[np.int64]:
        """Draw k of the indices below n, all subsets equally likely, int64 ``[k]``.

        Raises:
            ValueError: k is more than n.
        """
        return self._generator().choice(n, k, replace=False)

    def normal_(self, out: Floats) -> None:
        """Fill an array with independent standard normals.

        Args:
            out: float32 or float64, contiguous, any shape.

        Source:
            As :meth:`add_noise_`.
        """
        flat = _flat(out)
        for place, normals in self._blocks(flat.size):
            flat[place] = normals

    def add_noise_(self, values: npt.NDArray[np.float64], noise_stddev: float) -> None:
        """Add independent Gaussian noise to values in place, in float64.

        Guarantees:
            A single floating-point normal takes so few values that a noisy sum may
            give the sum away. Each normal here is the sum of four, halved: to undo it
            an attacker would have to search some 2^159 combinations. Memory for
            2^14 values at a time, whatever the size. Costs 35 nanoseconds a value.

        Args:
            values: contiguous, any shape.
            noise_stddev: not negative; at 0 nothing is drawn.

        Raises:
            ValueError: the standard deviation is negative, NaN or infinite.

        Source:
            Mironov, 2012 (the attack); Holohan & Braghin, 2021 (arXiv 2107.10138),
            section 5.1, with n = 2, as Opacus does in its secure mode.
        """
        if not 0.0 <= noise_stddev < np.inf:
            raise ValueError(f"noise_stddev: must be 0 or more, is {noise_stddev}")
        if not noise_stddev:
            return
        flat = _flat(values)
        for place, normals in self._blocks(flat.size):
            normals *= noise_stddev
            flat[place] += normals

    def integers(self, high: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Draw numbers from 0 to high - 1, all equally likely, int64."""
        return self._generator().integers(high, size=shape)

    def normals(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Draw standard normals, float32: the noise of the diffusion process.

        They are secret but hide nothing: one normal each will do.
        """
        return self._generator().standard_normal(shape, dtype=np.float32)

    def torch_seed(self) -> int:
        """Draw a seed of 63 bits for a generator of torch's.

        On a CPU torch keeps no more than 32 of them: not for secrets there.
        """
        return int(self._generator().integers(1 << 63))

    def _blocks(self, size: int) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Yield a place, and the standard normals for it, which may be overwritten."""
        buffer = np.empty(NUM_ADDENDS * min(size, BLOCK_VALUES))
        for start in range(0, size, BLOCK_VALUES):
            stop = min(start + BLOCK_VALUES, size)
            addends = buffer[: NUM_ADDENDS * (stop - start)]
            self._generator().standard_normal(out=addends)
            normals = addends.reshape(NUM_ADDENDS, -1).sum(axis=0)
            normals /= np.sqrt(NUM_ADDENDS)
            yield slice(start, stop), normals

    def _generator(self) -> Generator:
        """Return the generator.

        Raises:
            RuntimeError: this process was forked from the one that it belongs to.
        """
        if self._num_forks != _num_forks:
            raise RuntimeError(
                "secret randomness belongs to the process that made it; this one was "
                "forked from it and must make its own"
            )
        return self._values


def _flat(values: Floats) -> Floats:
    """Return a contiguous array as ``[n]``, sharing its memory.

    Raises:
        ValueError: it is not contiguous, or neither float32 nor float64.
    """
    if values.dtype not in (np.float32, np.float64) or not values.flags.c_contiguous:
        raise ValueError("values: must be contiguous, float32 or float64")
    return values.reshape(-1)
