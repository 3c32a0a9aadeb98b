import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import merkle
from crypto.errors import ProtocolViolation
from tests.crypto import references
from tests.crypto.vectors import load

leaf_lists = st.lists(st.binary(max_size=3), min_size=1, max_size=40)


def check(case):
    proof = [bytes.fromhex(node) for node in case["proof"]]
    root, size = bytes.fromhex(case["root"]), case["size"]
    if case["kind"] == "inclusion":
        leaf = merkle.leaf_hash(bytes.fromhex(case["leaf"]))
        merkle.verify_inclusion(leaf, case["index"], size, proof, root)
    else:
        old_root = bytes.fromhex(case["old_root"])
        merkle.verify_consistency(case["old_size"], size, old_root, root, proof)


@pytest.mark.parametrize("case", load("merkle", "generate"))
def test_known_roots(case):
    leaves = [bytes.fromhex(leaf) for leaf in case["leaves"]]
    assert merkle.MerkleTree(leaves).root().hex() == case["root"]


@pytest.mark.parametrize("case", load("merkle", "verify"))
def test_known_proofs(case):
    check(case)


@pytest.mark.parametrize("case", load("merkle", "invalid"), ids=lambda c: c["why"])
def test_invalid_proofs_raise(case):
    with pytest.raises(ProtocolViolation):
        check(case)


@given(leaf_lists)
def test_growing_tree_is_the_definition(leaves):
    tree = merkle.MerkleTree()
    for size, leaf in enumerate(leaves, start=1):
        tree.append(leaf)
        assert tree.size == size
        assert tree.root() == references.merkle_root(leaves[:size])
    assert merkle.MerkleTree(leaves).root() == tree.root()


@given(leaf_lists)
def test_a_tree_that_proves_is_the_slow_definition(leaves):
    tree = merkle.ProvingTree()
    assert tree.root() == merkle.EMPTY_ROOT == tree.root(0)
    for size, leaf in enumerate(leaves, start=1):
        tree.append(leaf)
        assert tree.size == size
        assert tree.root() == references.merkle_root(leaves[:size])
    for size in range(1, len(leaves) + 1):
        first = leaves[:size]
        assert tree.root(size) == references.merkle_root(first)
        for place in range(size):
            path = references.merkle_consistency(first, place + 1)
            assert tree.consistency_proof(place + 1, size) == path
            proof = references.merkle_inclusion(first, place)
            assert tree.inclusion_proof(place, size) == proof


def test_what_a_tree_cannot_prove():
    tree = merkle.ProvingTree([b"a", b"b", b"c"])
    for ask in (
        lambda: tree.root(4),
        lambda: tree.consistency_proof(0),
        lambda: tree.consistency_proof(3, 2),
        lambda: tree.consistency_proof(1, 4),
        lambda: tree.inclusion_proof(3),
        lambda: tree.inclusion_proof(2, 2),
        lambda: tree.inclusion_proof(-1),
    ):
        with pytest.raises(ValueError, match="leaves"):
            ask()


@given(leaf_lists, st.data())
def test_proofs_verify_and_any_change_breaks_them(leaves, data):
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    root, leaf = references.merkle_root(leaves), merkle.leaf_hash(leaves[index])
    proof = references.merkle_inclusion(leaves, index)
    merkle.verify_inclusion(leaf, index, size, proof, root)
    old_size = index + 1
    old_root = references.merkle_root(leaves[:old_size])
    path = references.merkle_consistency(leaves, old_size)
    merkle.verify_consistency(old_size, size, old_root, root, path)
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        proof[place] = bytes(32)
        with pytest.raises(ProtocolViolation):
            merkle.verify_inclusion(leaf, index, size, proof, root)
    if path:
        path[data.draw(st.integers(0, len(path) - 1))] = bytes(32)
        with pytest.raises(ProtocolViolation):
            merkle.verify_consistency(old_size, size, old_root, root, path)


def test_a_node_cannot_pass_for_a_leaf():
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.MerkleTree([b"a", b"b"]).root() == merkle.node_hash(left, right)
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
