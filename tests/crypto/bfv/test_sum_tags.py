"""The tags of a slot, on slots alone: what is the sum passes, nothing else does."""

import numpy as np
import pytest

from crypto.bfv.digits import Digits, slot_blocks, values_in
from crypto.bfv.parameters import PLAIN_MODULUS as T
from crypto.bfv.parameters import POLY_DEGREE
from crypto.bfv.sum_tags import SumTags
from crypto.bfv.tags import NUM_TAGS, residuals

KEY, T3, OTHER_T3 = b"key of all silos", bytes(32), bytes([1]) * 32
SILOS = (0, 2, 3)
LAYOUT = (Digits.of_whole_words(2048, 5),)
"""4096 values: both tags stand in the second ciphertext."""
STRADDLING = (Digits.of_whole_words(2047, 5), Digits(1, 44, 44))
"""4095 values: the tags stand in two ciphertexts."""
SMALL = (Digits.of_whole_words(3, 5),)
TRIALS = 2_000


def uploads(
    layout, t3: bytes = T3, part: int = 0, silos=SILOS, seed: int = 0
) -> dict[int, np.ndarray]:
    """Every silo's slots with its tags, uint64 [c, N]."""
    tags, found = SumTags(KEY, t3), {}
    for silo in silos:
        rng = np.random.default_rng([seed, silo])
        words = [rng.integers(0, 1 << 29, digits.num_words) for digits in layout]
        blocks = slot_blocks(np.concatenate(words).astype(np.uint64), layout)
        made = tags.with_tags(blocks, layout, part, silo)
        found[silo] = np.concatenate([block.copy() for block in made])
    return found


def passes(slots: np.ndarray, layout, silos=SILOS, part: int = 0) -> bool:
    """Whether decrypted slots are taken for the sum over these silos."""
    tags = SumTags(KEY, T3)
    found = residuals(slots % np.uint64(T), tags.seed(part), 0, values_in(layout))
    return tags.is_sum(found, part, silos)


@pytest.mark.parametrize("layout", [SMALL, LAYOUT, STRADDLING])
def test_the_sum_passes_over_just_its_silos(layout):
    total = sum(uploads(layout).values())
    assert passes(total, layout)
    for silos in ((0, 2), (0, 2, 4), (0, 2, 3, 4), ()):
        assert not passes(total, layout, silos)


@pytest.mark.parametrize("layout", [SMALL, LAYOUT, STRADDLING])
def test_every_slot_counts_but_those_behind_the_tags(layout):
    total, num_values = sum(uploads(layout).values()), values_in(layout)
    places = {0, 1, num_values - 1, num_values, num_values + 1}
    for place in places:
        changed = total.copy()
        changed.reshape(-1)[place] += 1
        assert not passes(changed, layout)
    changed = total.copy()
    changed.reshape(-1)[num_values + NUM_TAGS :] += 1
    assert passes(changed, layout)


def test_one_tag_alone_would_not_do():
    """A residual that is wrong in one place only is wrong."""
    tags = SumTags(KEY, T3)
    total = sum(uploads(SMALL).values()) % np.uint64(T)
    first, second = residuals(total, tags.seed(0), 0, values_in(SMALL))
    assert tags.is_sum((first, second), 0, SILOS)
    assert not tags.is_sum((first + 1, second), 0, SILOS)
    assert not tags.is_sum((first, second + 1), 0, SILOS)


def test_other_slots_and_parts_have_other_tags():
    old = uploads(SMALL, OTHER_T3)
    part = uploads(SMALL, part=1)
    now = uploads(SMALL)
    assert (old[0][:, :6] == now[0][:, :6]).all()  # The same values in the front.
    assert not passes(sum(old.values()), SMALL)
    assert not passes(sum(part.values()), SMALL)
    assert not passes(now[0] + now[2] + old[3], SMALL)
    assert not passes(now[0] + now[2] + part[3], SMALL)
    assert passes(sum(part.values()), SMALL, part=1)
    place = slice(values_in(SMALL), values_in(SMALL) + NUM_TAGS)
    seen = {
        int(tag)
        for made in (old, part, now, uploads(SMALL, seed=1))
        for slots in made.values()
        for tag in slots.reshape(-1)[place]
    }
    assert len(seen) == 4 * len(SILOS) * NUM_TAGS  # No tag is there twice.


def test_tags_say_nothing_alone():
    """The same vector of two silos, or in two slots: tags that look drawn at random."""
    place = values_in(SMALL)
    tags = np.array(
        [
            int(slots.reshape(-1)[place])
            for number in range(100)
            for slots in uploads(SMALL, number.to_bytes(32), silos=(0, 1)).values()
        ]
    )
    assert len(set(tags.tolist())) == len(tags)
    counts, _ = np.histogram(tags, bins=8, range=(0, T))
    assert counts.min() > 8 and counts.max() < 45  # 25 each, five deviations.


def test_no_wrong_combination_passes():
    """Random coefficients of all ciphertexts that there are, with added plaintexts."""
    rng = np.random.default_rng(11)
    made = [*uploads(SMALL).values(), *uploads(SMALL, OTHER_T3).values()]
    made.append(uploads(SMALL, part=1)[0])
    flat = np.array([slots.reshape(-1)[:8] for slots in made], object)
    honest = np.array([1, 1, 1, 0, 0, 0, 0], object)
    accepted = wrong = 0
    for trial in range(TRIALS):
        small = rng.integers(-2, 3, len(made)).astype(object)
        large = rng.integers(0, T, len(made)).astype(object)
        chosen = (small, large, honest, honest + (rng.random(7) < 0.2))[trial % 4]
        slots = chosen @ flat
        if trial % 4 == 2 and trial % 8 < 4:
            slots[rng.integers(0, 8)] += int(rng.integers(1, T))
        values = np.zeros((1, POLY_DEGREE), np.uint64)
        values[0, :8] = [int(slot) % T for slot in slots]
        is_honest = (values[0, :8] == [int(v) % T for v in honest @ flat]).all()
        accepted += passes(values, SMALL) and is_honest
        wrong += passes(values, SMALL) and not is_honest
    assert wrong == 0 and accepted >= TRIALS // 8
