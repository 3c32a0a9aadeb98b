"""The rotation against scipy's matrix, by property, and by what it is good for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from crypto.prg import SecretRandom
from privacy.clipping import norm
from privacy.errors import NotFinite
from privacy.grids import Grid, even_range, rotated_range
from privacy.quantization import Quantizer, dequantize_sum
from privacy.rotation import COLUMN, hadamard_root, padded_length, rotate, rotate_back

COLUMNS = [1, 2, 255, 256, 300]


def secret(seed):
    """Return the real stream, under a seed that only tests may fix."""
    return SecretRandom(bytes([seed]) * 32)


def no_signs(words):
    """Flip nothing."""
    words[:] = 0


def all_signs(words):
    """Flip everything."""
    words[:] = np.uint64(2**64 - 1)


def normal(columns, seed=1):
    generator = np.random.default_rng(seed)
    return generator.standard_normal(COLUMN * columns).astype(np.float32)


@pytest.mark.parametrize(
    ("length", "padded"), [(0, 0), (1, 4096), (4096, 4096), (4097, 8192)]
)
def test_the_padded_length_by_hand(length, padded):
    assert padded_length(length) == padded


def test_the_root_is_the_orthonormal_matrix():
    assert (hadamard_root() == hadamard(64) / 8).all()


def test_one_value_becomes_a_row_of_the_matrix():
    vector = np.zeros(COLUMN, np.float32)
    vector[3] = 64.0
    rotate(vector, no_signs)
    assert vector.tolist() == hadamard(COLUMN)[3].tolist()
    vector = np.zeros(COLUMN, np.float32)
    vector[0] = -64.0
    rotate(vector, all_signs)
    assert (vector == 1.0).all()


def slow_signs(length, random):
    """Return the signs one at a time: bit 31 - s of word w is that of s · n + w."""
    signs = np.empty(length)
    for start in range(0, length, 1 << 16):
        size = min(1 << 16, length - start)
        words = np.zeros(size // 64, np.uint64)
        random(words)
        bits = np.unpackbits(words.view(np.uint32).astype(">u4").view(np.uint8))
        # [words, bits], the top bit first.
        signs[start : start + size] = 1 - 2.0 * bits.reshape(-1, 32).T.reshape(-1)
    return signs


@pytest.mark.parametrize("columns", COLUMNS)
def test_it_is_signs_and_the_hadamard_matrix_of_every_column(columns):
    vector = normal(columns)
    expected = vector * slow_signs(vector.size, secret(4))
    expected = hadamard(COLUMN) @ expected.reshape(COLUMN, columns) / 64
    rotate(vector, secret(4))
    assert np.abs(vector - expected.reshape(-1)).max() < 4e-6


@pytest.mark.parametrize("columns", COLUMNS)
def test_back_is_the_inverse_and_the_norm_is_kept(columns):
    before = normal(columns)
    vector = before.copy()
    rotate(vector, secret(1))
    assert norm(vector) == pytest.approx(norm(before), rel=1e-6)
    assert np.abs(vector - before).max() > 1
    rotate_back(vector, secret(1))
    assert np.abs(vector - before).max() < 4e-6
    rotate(vector, secret(1))
    rotate_back(vector, secret(2))
    assert np.abs(vector - before).max() > 1


@settings(max_examples=20)
@given(st.integers(0, 255), st.floats(-3, 3), st.floats(-3, 3))
def test_it_is_linear(seed, a, b):
    left, right = normal(2, 1), normal(2, 2)
    both = (a * left + b * right).astype(np.float32)
    for vector in (left, right, both):
        rotate(vector, secret(seed))
    assert np.abs(both - (a * left + b * right)).max() < 1e-4


def test_every_column_mixes_the_whole_vector():
    """A tensor at either end of the vector reaches values all over it."""
    for place in (slice(0, 5), slice(-5, None)):
        vector = np.zeros(COLUMN * 5, np.float32)
        vector[place] = 1.0
        rotate(vector, secret(1))
        assert (vector != 0).all()


def test_signs_are_even_and_differ_from_block_to_block():
    vector = np.ones(COLUMN * 32, np.float32)
    rotate_back(vector, secret(1))  # Signs come last: only one value a column is left.
    rotate(vector, secret(1))
    signs = slow_signs(vector.size, secret(1))
    assert abs(signs.mean()) < 6 / vector.size**0.5
    assert (signs[: 1 << 16] != signs[1 << 16 :]).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 77, COLUMN, 300 * COLUMN - 1])
def test_what_is_not_finite_is_refused(value, place):
    vector = np.zeros(300 * COLUMN, np.float32)
    vector[place] = value
    for turn in (rotate, rotate_back):
        with pytest.raises(NotFinite):
            turn(vector.copy(), secret(1))


def test_wrong_types_and_shapes():
    for vector in (
        np.zeros(4095, np.float32),
        np.zeros(4096),
        np.zeros((64, 64), np.float32),
        np.zeros(8192, np.float32)[::2],
    ):
        with pytest.raises(ValueError, match="vector"):
            rotate(vector, secret(1))
    frozen = np.zeros(4096, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        rotate(frozen, secret(1))
    empty = np.zeros(0, np.float32)
    rotate(empty, secret(1))
    rotate_back(empty, secret(1))


# What it is good for.


def heavy_tailed_updates(num_silos, rng):
    """Return updates of layers of very different size, Student-t(4), and segments."""
    segments = tuple(int(n) for n in rng.integers(50, 60_000, 40))
    sizes = np.repeat(10.0 ** rng.uniform(-4, -2, len(segments)), segments)
    common = rng.standard_t(4, sizes.size)
    return [
        ((common + rng.standard_t(4, sizes.size)) * sizes).astype(np.float32)
        for _ in range(num_silos)
    ], segments


def error_of_the_mean(updates, value_bits, rotated):
    """Return the relative L2 error of the mean on a grid of even ranges."""
    length = padded_length(updates[0].size)
    clipping_norm = max(norm(update) for update in updates)
    range_ = even_range(clipping_norm, length)
    if rotated:
        range_ = rotated_range(clipping_norm, length, value_bits)
    grid = Grid(value_bits, np.array([range_]), (length,))
    total = np.zeros(length, np.uint64)
    for silo, update in enumerate(updates):
        vector = np.zeros(length, np.float32)
        vector[: update.size] = update
        if rotated:
            rotate(vector, secret(99))
        fields = np.empty(length, np.uint32)
        Quantizer(vector, grid, secret(silo)).fill(0, fields)
        total += fields
    num_silos = len(updates)
    mean = dequantize_sum(
        [(0, total)], grid, num_contributors=num_silos, total_weight=float(num_silos)
    )
    if rotated:
        rotate_back(mean, secret(99))
    exact = np.mean(updates, axis=0, dtype=np.float64)
    error = np.linalg.norm(mean[: exact.size] - exact)
    return float(error / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("value_bits", "largest"), [(4, 1.2e-1), (8, 1e-2), (12, 1e-3)]
)
def test_the_mean_of_five_heavy_tailed_updates_is_close(value_bits, largest):
    updates, _ = heavy_tailed_updates(5, np.random.default_rng(1))
    error = error_of_the_mean(updates, value_bits, rotated=True)
    assert error < largest
    assert error_of_the_mean(updates, value_bits, rotated=False) > 2 * error
