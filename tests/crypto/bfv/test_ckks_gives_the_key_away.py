"""Why CKKS is not offered: sums and means give the secret key; exact BFV does not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.ckks_key_recovery import (
    CHEAP,
    NVFLARE,
    CkksSetting,
    Federation,
    Residues,
    decrypt_with,
    fraction_right,
    make_exact_sum,
    recover_key,
    solve_bfv,
    true_key,
)
from benchmarks.negacyclic import to_coefficients, to_values

NUM_SILOS = 3
NAMES = {"ids": ["cheap", "NVFlare"]}


@cache
def federation_of(setting: CkksSetting) -> Federation:
    """Return three silos that encrypted two chunks each, once for all tests."""
    return Federation.play(setting, NUM_SILOS, np.random.default_rng(0))


def right_of(found: Residues, setting: CkksSetting) -> float:
    """Return which part of a recovered key is right."""
    return fraction_right(found, true_key(federation_of(setting).secret, setting))


@pytest.mark.parametrize("setting", [CHEAP, NVFLARE], **NAMES)
def test_two_sums_and_their_values_give_the_whole_key(setting: CkksSetting) -> None:
    federation = federation_of(setting)
    assert not federation.public.has_secret_key()
    key = recover_key(*federation.known_sums(), setting)
    assert key.shape == (len(setting.prime_bits) - 1, setting.poly_degree)
    assert right_of(key, setting) == 1
    # The aggregator sees by itself that it succeeded: keys have small coefficients.
    assert set(to_coefficients(key[0], setting.primes[0])) == {-1, 0, 1}
    # An individual upload that it kept then opens.
    opened = decrypt_with(key, federation.stored_upload(1, 0), setting)
    assert np.abs(opened - federation.updates[1, 0]).max() < 1e-5
    assert np.abs(opened - federation.updates[2, 0]).max() > 0.1


def test_dividing_before_decryption_does_not_help() -> None:
    federation = federation_of(NVFLARE)
    key = recover_key(*federation.known_sums(divide=True), NVFLARE)
    assert len(key) == 1  # Rescaling took a prime; uploads open with the one left.
    assert right_of(key, NVFLARE) == 1
    opened = decrypt_with(key, federation.stored_upload(2, 1), NVFLARE)
    assert np.abs(opened - federation.updates[2, 1]).max() < 1e-5


@pytest.mark.parametrize(("setting", "right"), [(CHEAP, 1), (NVFLARE, 0)], **NAMES)
def test_float32_means_are_enough_where_the_scale_is_small(
    setting: CkksSetting, right: float
) -> None:
    sums = [
        replace(one, values=one.values.astype(np.float32).astype(np.float64))
        for one in federation_of(setting).known_sums()
    ]
    assert right_of(recover_key(*sums, setting), setting) == right


def test_exact_bfv_leaves_an_equation_with_unknown_noise() -> None:
    known = make_exact_sum(NUM_SILOS, np.random.default_rng(0))
    assert 0 < np.abs(known.noise).max() < 1000
    assert fraction_right(solve_bfv(known), known.key) < 0.01
    # The control: with the noise, which nobody publishes, the same lines find the key.
    assert fraction_right(solve_bfv(known, known.noise), known.key) == 1


def test_the_transform_by_hand() -> None:
    # Modulo 17, N = 4: the smallest primitive 8th root of unity is 2; places hold the
    # values at 2^1, 2^5, 2^3, 2^7 = 2, 15, 8, 9. Of X they are these numbers.
    x = np.array([0, 1, 0, 0], object)
    assert to_values(x, 17).tolist() == [2, 15, 8, 9]
    assert to_coefficients(to_values(x, 17), 17).tolist() == [0, 1, 0, 0]
    # X^3 times X is X^4 = -1.
    cube = to_values(np.array([0, 0, 0, 1], object), 17)
    product = to_coefficients(cube * to_values(x, 17) % 17, 17)
    assert product.tolist() == [-1, 0, 0, 0]
