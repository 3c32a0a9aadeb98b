"""Slow and obvious versions of what ``crypto`` does, straight from the definitions."""

import hashlib
import hmac
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

PRIME = 2**256 + 297


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with an empty salt, by HMAC alone."""
    key = hmac.digest(bytes(32), secret, "sha256")
    block, output, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        output, counter = output + block, counter + 1
    return output[:length]


def labelled(label: bytes, data: bytes) -> bytes:
    """A label behind its length, before the data."""
    return bytes([len(label)]) + label + data


def header(kind, run, setup, slot, sender, recipient) -> bytes:
    """The frame header, as the documentation draws it."""
    return struct.pack(
        ">2sBB16sIIHH", b"Cl", 1, kind, run, setup, slot, sender, recipient
    )


def keystream(mask_seed: bytes, num_words: int) -> np.ndarray:
    """AES-256 of one counter block after another, in ECB mode."""
    encryptor = Cipher(AES256(mask_seed), ECB()).encryptor()
    blocks = []
    for number in range(-(-num_words // 2)):
        segment, inside = divmod(number, (4 << 20) // 16)
        block = segment.to_bytes(12, "big") + (2 + inside).to_bytes(4, "big")
        blocks.append(encryptor.update(block))
    words = struct.unpack(f"<{2 * len(blocks)}Q", b"".join(blocks))
    return np.array(words[:num_words], np.uint64)


def pack(fields: list[int], field_bits: int) -> list[int]:
    """Field j of word w is element j·W + w, at bit j·b."""
    fields_per_word = 64 // field_bits
    num_words = -(-len(fields) // fields_per_word)
    words = [0] * num_words
    for element, value in enumerate(fields):
        plane, word = divmod(element, num_words)
        words[word] += value << (plane * field_bits)
    return words


def polynomial(coefficients: list[int], x: int) -> int:
    """A polynomial's value, power by power."""
    return sum(c * x**k for k, c in enumerate(coefficients)) % PRIME


def interpolate_at_zero(points: list[tuple[int, int]], prime: int = PRIME) -> int:
    """Lagrange's formula, written out."""
    total = 0
    for i, (x_i, y_i) in enumerate(points):
        term = y_i
        for j, (x_j, _) in enumerate(points):
            if i != j:
                term = term * x_j * pow(x_j - x_i, -1, prime) % prime
        total += term
    return total % prime


def merkle_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, by its recursion."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    middle = 1
    while 2 * middle < len(leaves):
        middle *= 2
    pair = merkle_root(leaves[:middle]) + merkle_root(leaves[middle:])
    return hashlib.sha256(b"\1" + pair).digest()


def digest(label: bytes, *parts: bytes) -> bytes:
    """SHA-256 of a label and parts, each behind its length."""
    data = bytes([len(label)]) + label
    for part in parts:
        data += struct.pack(">Q", len(part)) + part
    return hashlib.sha256(data).digest()


def merkle_inclusion(leaves: list[bytes], index: int) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    middle = half(len(leaves))
    if index < middle:
        return [*merkle_inclusion(leaves[:middle], index), merkle_root(leaves[middle:])]
    rest = merkle_inclusion(leaves[middle:], index - middle)
    return [*rest, merkle_root(leaves[:middle])]


def merkle_consistency(leaves: list[bytes], size: int, whole: bool = True):
    """PROOF of RFC 6962, section 2.1.2."""
    if size == len(leaves):
        return [] if whole else [merkle_root(leaves)]
    middle = half(len(leaves))
    if size <= middle:
        rest = merkle_consistency(leaves[:middle], size, whole)
        return [*rest, merkle_root(leaves[middle:])]
    rest = merkle_consistency(leaves[middle:], size - middle, whole=False)
    return [*rest, merkle_root(leaves[:middle])]


def half(number: int) -> int:
    """The largest power of two below a number."""
    return 2 ** max(n for n in range(number.bit_length()) if 2**n < number)
