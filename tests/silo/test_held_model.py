"""The model that a silo holds: moved, saved, or left as it is."""

import numpy as np
import pytest

import diffusion.files
from diffusion.parameters import ParameterLayout
from protocol.bodies import floats_to_bytes
from protocol.broadcast import Broadcast, Difference, make_difference, moved
from protocol.errors import EnvelopeRejected
from silo.errors import PolicyViolation
from silo.held_model import HELD_FILE, HeldModel

LAYOUT = ParameterLayout(("a", "b"), ((3,), (2, 2)))
FIRST = np.arange(7, dtype=np.float32)
BITS = 4


class Chain:
    """Models that follow from each other, as an aggregator makes them."""

    def __init__(self, folder, length=4):
        self.folder, random = folder, np.random.default_rng(0)
        self.vectors, self.differences = [FIRST], []
        for _ in range(length):
            base = self.vectors[-1]
            target = base + random.normal(0, 1, 7).astype(np.float32)
            parts = make_difference(base, target, LAYOUT.segments, BITS)
            following = moved(base, *parts, LAYOUT.segments, BITS)
            self.vectors.append(following)
            self.differences.append(
                Difference(*parts, self.open().digest_of(following))
            )

    def open(self):
        """Return what a process finds on disk."""
        return HeldModel(self.folder, LAYOUT, FIRST, BITS)

    def model(self, index):
        return self.open().digest_of(self.vectors[index])

    def message(self, first, last):
        """Return the differences from one model to another."""
        row = self.differences[first:last]
        return Broadcast.of_differences(2, self.model(first), row)

    def whole(self, index, **changes):
        fields = {"parameters": floats_to_bytes(self.vectors[index])}
        fields |= {"models": (self.model(index),)} | changes
        return Broadcast(round_number=2, **fields)


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


def test_it_begins_with_the_first_model(chain):
    assert chain.open().digest() == chain.model(0)
    assert np.array_equal(chain.open().vector(), FIRST)
    assert not list(chain.folder.iterdir())


@pytest.mark.parametrize("steps", [[1, 2, 3, 4], [4], [2, 4], [1, 1, 4, 4]])
def test_one_by_one_in_a_row_and_again(chain, steps):
    at = 0
    for to in steps:
        first = min(at, to - 1)
        assert chain.open().take(chain.message(first, to)) == chain.model(to)
        at = to
    assert chain.open().digest() == chain.model(4)
    assert chain.open().vector().tobytes() == chain.vectors[4].tobytes()


def test_a_row_that_begins_before_what_is_held(chain):
    chain.open().take(chain.message(0, 2))
    assert chain.open().take(chain.message(0, 4)) == chain.model(4)


def test_a_difference_to_another_base_changes_nothing(chain):
    assert chain.open().take(chain.message(2, 3)) == chain.model(0)
    assert not list(chain.folder.iterdir())
    chain.open().take(chain.message(0, 1))
    assert chain.open().take(chain.message(2, 4)) == chain.model(1)
    assert chain.open().digest() == chain.model(1)


def test_all_parameters(chain):
    assert chain.open().take(chain.whole(3)) == chain.model(3)
    assert chain.open().take(chain.message(3, 4)) == chain.model(4)


def test_a_lying_broadcast_is_refused_and_changes_nothing(chain):
    chain.open().take(chain.message(0, 1))
    lie = Difference(*make_difference(FIRST, FIRST + 1, (3, 4), 4), chain.model(2))
    for message in (
        Broadcast.of_differences(2, chain.model(1), [lie]),
        Broadcast.of_differences(2, chain.model(1), [lie, chain.differences[2]]),
        chain.whole(3, models=(chain.model(2),)),
    ):
        with pytest.raises(PolicyViolation, match="another model than it names"):
            chain.open().take(message)
        assert chain.open().digest() == chain.model(1)


def test_another_length_is_refused(chain):
    short = Difference(b"", chain.differences[0].levels, chain.model(1))
    for message in (
        Broadcast.of_differences(2, chain.model(0), [short]),
        chain.whole(3, parameters=b"1234"),
        chain.whole(3, parameters=b"\0\0\xc0\x7f" * 7),
    ):
        with pytest.raises(EnvelopeRejected):
            chain.open().take(message)
    assert chain.open().digest() == chain.model(0)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_file_is_the_first_model_again(chain, damage):
    chain.open().take(chain.message(0, 2))
    path = chain.folder / HELD_FILE
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-1] ^= damage == "flip"
        path.write_bytes({"cut": data[:-5], "flip": data, "empty": b""}[damage])
    assert chain.open().digest() == chain.model(0)
    assert chain.open().take(chain.whole(2)) == chain.model(2)


def test_a_crash_while_it_is_saved(chain, monkeypatch):
    chain.open().take(chain.message(0, 1))

    def fail(descriptor):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(diffusion.files.os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            chain.open().take(chain.message(1, 2))
    assert chain.open().digest() == chain.model(1)
    assert chain.open().take(chain.message(1, 2)) == chain.model(2)
