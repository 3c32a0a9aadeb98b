"""Exact BFV by SEAL, through TenSEAL's ``sealapi``: an adapter that decides nothing.

Imported only in child processes (crypto/bfv/child.py): native code that reads a peer's
numbers may crash. Contexts are made of the pinned parameters and key material, never
read from the wire, and there are two types of them: :class:`PublicContext` knows no
key; :class:`SecretContext` has one, and cannot be copied, pickled or shown.

SEAL reads and writes files only: here one file in memory. What it reads is rebuilt
around numbers that were checked: a prefix that SEAL itself wrote at the start, then
residues below q and, where c1 follows from one, a seed of 64 bytes. What it writes is
always compressed, and is unpacked with a bound on its size.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import zstandard
from tenseal import sealapi

from crypto.bfv.parameters import (
    COEFF_MODULUS,
    FRESH_BYTES,
    PLAIN_MODULUS,
    POLY_BYTES,
    POLY_DEGREE,
    SEED_BYTES,
    Residues,
    Slots,
)
from crypto.bfv.residues import check_range, pack_residues, unpack_residues
from crypto.errors import WorkerFailed

_WORD_BYTES = 8 * POLY_DEGREE
_HEADER = bytes.fromhex("5ea110")
"""Magic number and length of the header of SEAL's streams; two bytes of version, the
compression, two bytes of zeros, and the length of the whole in eight bytes follow."""
_HEADER_BYTES = 16
_ZSTD = 2
_MAX_STREAM_BYTES = 1 << 17
_CIPHERTEXT_PREFIX_BYTES = 97
"""Parameters' digest (32), NTT flag (1), size, N, number of primes, and two factors (8
each), then the header (16) and length (8) of the array of residues."""
_KEY_PREFIX_BYTES = 72
"""Parameters' digest (32), N and a factor (8 each), then as above."""
_GENERATOR_BYTES = 17
"""Between c0 and the seed: a header (16) and the kind of generator (1)."""

Streams = npt.NDArray[np.uint8]


class PublicContext:
    """The pinned parameters: what anybody may do. ``seal`` is for secret contexts."""

    def __init__(self) -> None:
        self.seal = _Seal()
        self._evaluator = sealapi.Evaluator(self.seal.context)

    def expand_sum(self, seeds: Streams) -> Residues:
        """Return the sums modulo q of the second polynomials that seeds stand for.

        Args:
            seeds: uint8 ``[n, c, SEED_BYTES]``, n at least 1.

        Returns:
            uint64 ``[c, N]``: over the n seeds of each ciphertext.
        """
        if (
            seeds.dtype != np.uint8
            or seeds.shape[2:] != (SEED_BYTES,)
            or not len(seeds)
        ):
            raise ValueError(f"seeds: {seeds.dtype} {seeds.shape}")
        total, term = sealapi.Ciphertext(), sealapi.Ciphertext()
        sums = np.empty((seeds.shape[1], POLY_DEGREE), np.uint64)
        for chunk in range(seeds.shape[1]):
            self.seal.load_seed(total, seeds[0, chunk].tobytes())
            for seed in seeds[1:, chunk]:
                self.seal.load_seed(term, seed.tobytes())
                self._evaluator.add_inplace(total, term)
            sums[chunk] = self.seal.residues(total)[1]
        return sums


class SecretContext:
    """The pinned parameters and the silos' secret key.

    Guarantees: no copy, pickle, representation or attribute that is public holds the
    key; only :meth:`export_key_for_sealing` gives it out.
    """

    def __init__(self, key: bytes, public: PublicContext | None = None) -> None:
        """Take a key as :meth:`export_key_for_sealing` gave it.

        Args:
            key: ``SECRET_KEY_BYTES``.
            public: a public context that exists, which saves making another.

        Raises:
            MalformedMessage: not the packed residues of one polynomial.
        """
        residues = unpack_residues(key, 1)
        self._seal = public.seal if public else _Seal()
        self.__key = self._seal.load_key(residues[0].tobytes())
        self._encryptor = sealapi.Encryptor(self._seal.context, self.__key)
        self._decryptor = sealapi.Decryptor(self._seal.context, self.__key)
        self._encoder = sealapi.BatchEncoder(self._seal.context)

    @classmethod
    def generate(cls, public: PublicContext | None = None) -> "SecretContext":
        """Make a new key, from the operating system's randomness."""
        public = public or PublicContext()
        return cls(pack_residues(public.seal.new_key()).tobytes(), public)

    def export_key_for_sealing(self) -> bytes:
        """Return the secret key, to be sealed to another silo: nothing else."""
        return pack_residues(self._seal.key_residues(self.__key)).tobytes()

    def encrypt(self, slots: Slots) -> Streams:
        """Encrypt vectors of slots.

        Args:
            slots: uint64 ``[c, N]``, each below t.

        Returns:
            Fresh ciphertexts, uint8 ``[c, FRESH_BYTES]``: packed c0, seed of c1.
        """
        if slots.dtype != np.uint64 or slots.shape[1:] != (POLY_DEGREE,):
            raise ValueError(f"slots: {slots.dtype} {slots.shape}")
        if slots.size and int(slots.max()) >= PLAIN_MODULUS:
            raise ValueError("slots: one is t or more")
        first = np.empty((len(slots), POLY_DEGREE), np.uint64)
        fresh = np.empty((len(slots), FRESH_BYTES), np.uint8)
        plain = sealapi.Plaintext()
        for index, row in enumerate(slots):
            self._encoder.encode(row.tolist(), plain)
            c0, seed = self._seal.fresh(self._encryptor.encrypt_symmetric(plain))
            first[index] = c0
            fresh[index, POLY_BYTES:] = seed
        fresh[:, :POLY_BYTES] = pack_residues(first)
        return fresh

    def decrypt(self, residues: Residues) -> tuple[Slots, int]:
        """Decrypt ciphertexts, and tell how far they are from being too noisy.

        Args:
            residues: uint64 ``[c, 2, N]``, c at least 1.

        Returns:
            Slots, uint64 ``[c, N]``, meaningless where the budget is 0; the smallest
            noise budget in bits.

        Raises:
            MalformedMessage: a residue of q or more.
        """
        if residues.dtype != np.uint64 or residues.shape[1:] != (2, POLY_DEGREE):
            raise ValueError(f"residues: {residues.dtype} {residues.shape}")
        check_range(residues)
        slots = np.empty((len(residues), POLY_DEGREE), np.uint64)
        budgets = []
        summed, plain = sealapi.Ciphertext(), sealapi.Plaintext()
        for index, pair in enumerate(residues):
            self._seal.load_summed(summed, pair)
            budgets.append(int(self._decryptor.invariant_noise_budget(summed)))
            self._decryptor.decrypt(summed, plain)
            values = self._encoder.decode_uint64(plain)
            slots[index] = np.fromiter(values, np.uint64, POLY_DEGREE)
        return slots, min(budgets)

    def __repr__(self) -> str:
        return "SecretContext(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret context cannot be pickled or copied")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret context cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret context cannot be pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret context cannot be pickled or copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a secret context cannot be pickled or copied")


class _Seal:
    """SEAL's context of the pinned parameters, and its streams in and out."""

    def __init__(self) -> None:
        self.context = _make_context()
        self._file, self._seed_file = _MemoryFile(), _MemoryFile()
        self._unpack = zstandard.ZstdDecompressor()
        self._learn_prefixes()
        c0 = bytes(_WORD_BYTES)
        stream = self._fresh_prefix + c0 + self._generator + bytes(SEED_BYTES)
        self._seed_file.write(self._header(len(stream)), stream)

    def _learn_prefixes(self) -> None:
        """Have SEAL write a key and ciphertexts that are thrown away, and compare."""
        keys = [sealapi.KeyGenerator(self.context).secret_key() for _ in range(2)]
        streams = [self._written(key.save) for key in keys]
        self._file.wipe()
        self._key_prefix = _prefix(streams, _KEY_PREFIX_BYTES, _WORD_BYTES)
        encryptor, plain = sealapi.Encryptor(self.context, keys[0]), sealapi.Plaintext()
        sealapi.BatchEncoder(self.context).encode([1] * POLY_DEGREE, plain)
        streams = []
        for _ in range(2):
            summed = sealapi.Ciphertext()
            encryptor.encrypt_symmetric(plain, summed)
            streams.append(self._written(summed.save))
        rest = 2 * _WORD_BYTES
        self._summed_prefix = _prefix(streams, _CIPHERTEXT_PREFIX_BYTES, rest)
        made = [encryptor.encrypt_symmetric(plain) for _ in range(2)]
        streams = [self._written(fresh.save) for fresh in made]
        rest = _WORD_BYTES + _GENERATOR_BYTES + SEED_BYTES
        self._fresh_prefix = _prefix(streams, _CIPHERTEXT_PREFIX_BYTES, rest)
        tails = [stream[-_GENERATOR_BYTES - SEED_BYTES :] for stream in streams]
        self._generator = _prefix(tails, _GENERATOR_BYTES, SEED_BYTES)

    def load_seed(self, ciphertext: Any, seed: bytes) -> None:
        """Have SEAL read the c1 that follows from a seed, beside a c0 of zeros."""
        self._seed_file.replace_end(seed)
        ciphertext.load(self.context, self._seed_file.path)

    def load_summed(self, ciphertext: Any, residues: Residues) -> None:
        """Have SEAL read c0 and c1: ``[2, N]``, contiguous."""
        self._load(ciphertext, self._summed_prefix, residues.data)

    def load_key(self, residues: bytes) -> Any:
        """Return the secret key of some residues."""
        key = sealapi.SecretKey()
        self._load(key, self._key_prefix, residues)
        self._file.wipe()
        return key

    def new_key(self) -> Residues:
        """Return the residues ``[N]`` of a new secret key."""
        return self.key_residues(sealapi.KeyGenerator(self.context).secret_key())

    def key_residues(self, key: Any) -> Residues:
        """Return the residues ``[N]`` of a secret key."""
        stream = self._written(key.save)
        self._file.wipe()
        return _words(_after(stream, self._key_prefix, _WORD_BYTES))

    def fresh(self, made: Any) -> tuple[Residues, Streams]:
        """Return c0 and the seed of c1 of a ciphertext that was just made."""
        stream = self._written(made.save)
        rest = _WORD_BYTES + _GENERATOR_BYTES + SEED_BYTES
        data = _after(stream, self._fresh_prefix, rest)
        tail = _after(data[_WORD_BYTES:], self._generator, SEED_BYTES)
        return _words(data[:_WORD_BYTES]), np.frombuffer(tail, np.uint8)

    def residues(self, ciphertext: Any) -> Residues:
        """Return c0 and c1 as uint64 ``[2, N]``."""
        stream = self._written(ciphertext.save)
        data = _after(stream, self._summed_prefix, 2 * _WORD_BYTES)
        return _words(data).reshape(2, POLY_DEGREE)

    def _load(self, target: Any, prefix: bytes, rest: bytes | memoryview) -> None:
        """Have SEAL read a stream of ours, not compressed."""
        size = len(prefix) + memoryview(rest).nbytes
        self._file.write(self._header(size) + prefix, rest)
        target.load(self.context, self._file.path)

    def _header(self, size: int) -> bytes:
        """Return the header of a stream of so many bytes that is not compressed."""
        return self._plain_header + (_HEADER_BYTES + size).to_bytes(8, "little")

    def _written(self, save: Callable[[str], None]) -> bytes:
        """Return what SEAL writes, without its header and compression."""
        data = self._file.read_after(save)
        header, rest = data[:_HEADER_BYTES], data[_HEADER_BYTES:]
        if (
            not header.startswith(_HEADER)
            or header[5] != _ZSTD
            or int.from_bytes(header[8:], "little") != len(data)
        ):
            raise WorkerFailed("SEAL wrote another header than expected")
        self._plain_header = header[:5] + bytes(3)
        try:
            return self._unpack.decompress(rest, max_output_size=_MAX_STREAM_BYTES)
        except zstandard.ZstdError as error:
            raise WorkerFailed("SEAL wrote a stream that does not unpack") from error


class _MemoryFile:
    """One file by whose path SEAL reads and writes, in memory where there is a way.

    Elsewhere it lies in a private folder that is removed when the process ends; what
    is secret in it is overwritten and cut off as soon as it was read.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("ciphertext")
            self.path = f"/proc/self/fd/{self._file}"
        else:
            memory = "/dev/shm"  # noqa: S108
            place = memory if os.access(memory, os.W_OK) else None
            folder = tempfile.mkdtemp(dir=place)
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.path = str(Path(folder) / "ciphertext")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            self._file = os.open(self.path, flags, 0o600)
        self._size = 0
        weakref.finalize(self, os.close, self._file)

    def write(self, first: bytes, rest: bytes | memoryview) -> None:
        """Replace what the file holds."""
        size = len(first) + memoryview(rest).nbytes
        if os.pwritev(self._file, [first, rest], 0) != size:
            raise WorkerFailed("a file in memory could not be written")
        os.ftruncate(self._file, size)
        self._size = size

    def replace_end(self, data: bytes) -> None:
        """Replace the last bytes of what was written last."""
        if os.pwrite(self._file, data, self._size - len(data)) != len(data):
            raise WorkerFailed("a file in memory could not be written")

    def read_after(self, save: Callable[[str], None]) -> bytes:
        """Return what ``save`` writes to the file."""
        os.ftruncate(self._file, 0)
        save(self.path)
        return os.pread(self._file, _MAX_STREAM_BYTES, 0)

    def wipe(self) -> None:
        """Overwrite and cut off what the file holds."""
        os.pwrite(self._file, bytes(os.fstat(self._file).st_size), 0)
        os.ftruncate(self._file, 0)


def _make_context() -> Any:
    """Return SEAL's context of the pinned parameters."""
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(POLY_DEGREE)
    modulus = sealapi.Modulus(COEFF_MODULUS)
    parameters.set_coeff_modulus([modulus])
    parameters.set_plain_modulus(sealapi.Modulus(PLAIN_MODULUS))
    context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set() or not modulus.is_prime():
        raise WorkerFailed(f"SEAL refuses: {context.parameters_error_message()}")
    if not context.first_context_data().qualifiers().using_batching:
        raise WorkerFailed("SEAL refuses: this plain modulus has no slots")
    return context


def _prefix(streams: list[bytes], size: int, rest: int) -> bytes:
    """Return the first bytes, which all streams of this length must share."""
    if {len(stream) for stream in streams} != {size + rest}:
        raise WorkerFailed("SEAL wrote a stream of another length than expected")
    if len({stream[:size] for stream in streams}) != 1:
        raise WorkerFailed("SEAL wrote streams that begin differently")
    return streams[0][:size]


def _after(stream: bytes, prefix: bytes, rest: int) -> bytes:
    """Return what follows the prefix, which must be there."""
    if len(stream) != len(prefix) + rest or not stream.startswith(prefix):
        raise WorkerFailed("SEAL wrote another stream than expected")
    return stream[len(prefix) :]


def _words(data: bytes) -> Residues:
    """View bytes as words."""
    return np.frombuffer(data, "<u8")
