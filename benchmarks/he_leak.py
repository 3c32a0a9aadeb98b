"""What sums and means give away under CKKS and under exact BFV, in figures."""

from dataclasses import replace

import numpy as np

from benchmarks.ckks_key_recovery import (
    CHEAP,
    LARGE_PRIMES,
    NVFLARE,
    CkksSetting,
    Federation,
    KnownSum,
    Values,
    decrypt_with,
    fraction_right,
    make_exact_sum,
    recover_key,
    solve_bfv,
    true_key,
)
from benchmarks.he_cost import Rows, Seconds

NUM_SILOS = 5
DIGITS = (12, 9, 6)


def measure() -> Rows:
    """Attack every setting, with means as they are and rounded."""
    randomness = np.random.default_rng(0)
    rows: Rows = []
    for setting in (CHEAP, LARGE_PRIMES, NVFLARE):
        rows += attack(Federation.play(setting, NUM_SILOS, randomness))
    known = make_exact_sum(NUM_SILOS, randomness)
    found = 100 * fraction_right(solve_bfv(known), known.key)
    told = 100 * fraction_right(solve_bfv(known, known.noise), known.key)
    return [
        *rows,
        ("key recovered, BFV, ours", found, "%", "<= 1"),
        ("key recovered, BFV, ours, were the noise known", told, "%", ">= 100"),
    ]


def attack(federation: Federation) -> Rows:
    """Return how much of the key two sums give, how fast, and what it opens."""
    setting = federation.setting
    sums = federation.known_sums()
    clocked = Seconds()
    with clocked.count():
        key = recover_key(sums[0], sums[1], setting)
    opened = decrypt_with(key, federation.stored_upload(0, 0), setting)
    error = np.abs(opened - federation.updates[0, 0]).max()
    name = name_of(setting)
    rows: Rows = [
        (f"key recovered, {name}", percent(federation, sums), "%", ">= 100"),
        (f"key recovered, {name}: time", 1e3 * clocked.cpu, "CPU ms", ""),
        (
            f"a silo's upload opened, {name}: largest error",
            1e9 * error,
            "1e-9",
            "<= 1e4",
        ),
    ]
    single = [with_values(one, one.values.astype(np.float32)) for one in sums]
    rows.append(
        (f"key recovered, {name}: float32", percent(federation, single), "%", "")
    )
    for digits in DIGITS:
        rounded = [with_values(one, one.values.round(digits)) for one in sums]
        label = f"key recovered, {name}: means rounded to 1e-{digits}"
        rows.append((label, percent(federation, rounded), "%", ""))
    if len(setting.prime_bits) > 2:
        divided = federation.known_sums(divide=True)
        label = f"key recovered, {name}: divided and rescaled before"
        rows.append((label, percent(federation, divided), "%", ">= 100"))
    return rows


def percent(federation: Federation, sums: list[KnownSum]) -> float:
    """Return which part of the key's residues two sums give, in per cent."""
    setting = federation.setting
    found = recover_key(sums[0], sums[1], setting)
    return 100 * fraction_right(found, true_key(federation.secret, setting))


def with_values(known: KnownSum, values: Values) -> KnownSum:
    """Return a sum of which the aggregator was told less exactly."""
    return replace(known, values=values.astype(np.float64))


def name_of(setting: CkksSetting) -> str:
    """Return how rows call a setting."""
    primes = ", ".join(map(str, setting.prime_bits))
    return f"CKKS {setting.poly_degree} [{primes}] scale 2^{setting.scale_bits}"
