"""Merkle trees as in Certificate Transparency: root, inclusion, consistency.

A root commits to a list of leaves in order. The trees' ``append`` takes the leaves' own
bytes; the verifiers take leaf hashes, so that they never need a leaf they do not hold.
Leaves and nodes are hashed with different prefixes: no node can pass for a leaf.

Source: RFC 6962, section 2.1; the verifiers follow RFC 9162, sections 2.1.3.2 and
2.1.4.2.
"""

import hashlib
from collections.abc import Iterable, Sequence

from crypto.encoding import BytesLike
from crypto.errors import ProtocolViolation

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(leaf: BytesLike) -> bytes:
    """Return SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """A tree that grows: O(log n) hashes, rebuilt by streaming the leaves."""

    def __init__(self, leaves: Iterable[BytesLike] = ()) -> None:
        self._peaks: list[bytes] = []
        self.size = 0
        for leaf in leaves:
            self.append(leaf)

    def append(self, leaf: BytesLike) -> None:
        """Add a leaf at the end, in O(log n)."""
        peak, size = leaf_hash(leaf), self.size
        while size & 1:
            peak = node_hash(self._peaks.pop(), peak)
            size >>= 1
        self._peaks.append(peak)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node


class ProvingTree:
    """A tree that grows and can prove: the hash of every complete subtree is kept.

    64 bytes a leaf; ``append`` takes O(1) hashes on average, a proof O(log² n).
    """

    def __init__(self, leaves: Iterable[BytesLike] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: BytesLike) -> None:
        """Add a leaf at the end."""
        node, count, level = leaf_hash(leaf), self.size + 1, 0
        self._levels[0] += node
        while count & 1 == 0:
            left = bytes(self._levels[level][-2 * HASH_BYTES : -HASH_BYTES])
            node, count, level = node_hash(left, node), count >> 1, level + 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += node

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first ``size`` leaves, by default of all."""
        size = self._checked(size)
        return self._hash(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the hashes that lead from one leaf to the root, lowest first.

        Args:
            size: of the first so many leaves, by default of all.

        Raises:
            ValueError: there is no such leaf, or there are not so many.
        """
        size = self._checked(size)
        if not 0 <= index < size:
            raise ValueError(f"index: {index} of {size} leaves")
        start, stop, proof = 0, size, list[bytes]()
        while stop - start > 1:
            middle = start + _largest_power_below(stop - start)
            if index < middle:
                proof.append(self._hash(middle, stop))
                stop = middle
            else:
                proof.append(self._hash(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Return the hashes that show that the first leaves have not changed.

        Args:
            size: as above.

        Raises:
            ValueError: ``old_size`` is not 1 to ``size``, or there are not so many.
        """
        size = self._checked(size)
        if not 1 <= old_size <= size:
            raise ValueError(f"old_size: {old_size} of {size} leaves")
        start, stop, proof = 0, size, list[bytes]()
        while old_size != stop:
            middle = start + _largest_power_below(stop - start)
            if old_size <= middle:
                proof.append(self._hash(middle, stop))
                stop = middle
            else:
                proof.append(self._hash(start, middle))
                start = middle
        if start:
            proof.append(self._hash(start, stop))
        return proof[::-1]

    def _checked(self, size: int | None) -> int:
        """Return a number of leaves that there are."""
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise ValueError(f"size: {size} of {self.size} leaves")
        return size

    def _hash(self, start: int, stop: int) -> bytes:
        """Return the hash over leaves; ``start`` is where a subtree of RFC 6962 is."""
        length = stop - start
        if length & (length - 1) == 0:
            level = length.bit_length() - 1
            place = (start >> level) * HASH_BYTES
            return bytes(self._levels[level][place : place + HASH_BYTES])
        middle = start + _largest_power_below(length)
        return node_hash(self._hash(start, middle), self._hash(middle, stop))


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> None:
    """Return if the leaf of this hash has this index among ``size`` leaves.

    Args:
        leaf: the leaf's hash, from :func:`leaf_hash`.

    Raises:
        ProtocolViolation: the proof does not lead to the root.
    """
    if not 0 <= index < size:
        raise ProtocolViolation(f"leaf {index} of a tree of {size}")
    node, position, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_BYTES:
            raise ProtocolViolation("an inclusion proof that is too long")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            position, last = _skip_lone_levels(position, last)
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or node != expected_root:
        raise ProtocolViolation(f"leaf {index} is not under this root")


def verify_consistency(
    old_size: int, size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Return if the tree of ``new_root`` begins with the leaves of ``old_root``.

    Raises:
        ProtocolViolation: the proof does not show it.
    """
    if not 1 <= old_size <= size:
        raise ProtocolViolation(f"a tree of {size} cannot extend one of {old_size}")
    if old_size == size:
        if proof or old_root != new_root:
            raise ProtocolViolation("two roots of one size")
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path or any(len(node) != HASH_BYTES for node in path):
        raise ProtocolViolation("a consistency proof that is too short")
    if _fold_consistency(old_size - 1, size - 1, path) != (old_root, new_root):
        raise ProtocolViolation(f"the first {old_size} leaves are not the same")


def _fold_consistency(
    position: int, last: int, path: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """Return the two roots that a consistency path leads to."""
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for node in path[1:]:
        if last == 0:
            raise ProtocolViolation("a consistency proof that is too long")
        if position & 1 or position == last:
            old, new = node_hash(node, old), node_hash(node, new)
            position, last = _skip_lone_levels(position, last)
        else:
            new = node_hash(new, node)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProtocolViolation("a consistency proof that is too short")
    return old, new


def _skip_lone_levels(position: int, last: int) -> tuple[int, int]:
    """Climb over levels at which the right-most node has no sibling."""
    while not position & 1 and position:
        position, last = position >> 1, last >> 1
    return position, last


def _largest_power_below(number: int) -> int:
    """Return the largest power of two that is smaller than ``number`` (at least 2)."""
    return 1 << ((number - 1).bit_length() - 1)
