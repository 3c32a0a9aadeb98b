import pytest

from crypto.secagg import digests
from crypto.secagg.config import SecAggConfig
from crypto.secagg.parts import Part, whole
from tests.crypto.secagg.federation import make_identities

CONFIG = SecAggConfig(num_silos=3, threshold=3)
*SILOS, AGGREGATOR = [identity.public for identity in make_identities(3)]
PINNED = (CONFIG, SILOS, AGGREGATOR, bytes(16), 1)
ALL = (0, 1, 2)
SLOT = (bytes(32), 0, 1, bytes(32), ALL, whole(5, ALL), 3)


def variants(arguments, changes):
    for place, value in changes:
        yield (*arguments[:place], value, *arguments[place + 1 :])


def test_setup_digest_names_everything_that_is_pinned():
    other = SecAggConfig(num_silos=3, threshold=3, slots_per_setup=1)
    changes = [
        (0, other),
        (1, SILOS[::-1]),
        (2, bytes(32)),
        (3, b"\x01" * 16),
        (4, 2),
    ]
    found = {digests.setup_digest(*v) for v in variants(PINNED, changes)}
    assert len(found | {digests.setup_digest(*PINNED)}) == 6


def test_slot_digest_names_members_slot_round_model_cohort_and_parts():
    one = b"\x01" * 32
    dealings = [
        whole(6, ALL),
        whole(5, (0, 1)),
        (Part(2, ALL), Part(3, ALL)),
        (Part(3, ALL), Part(2, ALL)),
        (Part(2, (0, 1)), Part(3, ALL)),
        (Part(2, ALL), Part(3, (0, 1))),
    ]
    changes = [(0, one), (1, 1), (2, 2), (3, one), (4, (0, 1))]
    changes += [(5, parts) for parts in dealings]
    found = {digests.slot_digest(*v) for v in variants(SLOT, changes)}
    assert len(found | {digests.slot_digest(*SLOT)}) == 12
    swapped = digests.slot_digest(bytes(32), 1, 0, bytes(32), ALL, whole(5, ALL), 3)
    assert swapped not in found


def test_contributors_outside_the_cohort_do_not_count():
    """Two silos that know different outsiders agree on the slot."""
    arguments = (bytes(32), 0, 1, bytes(32), (0, 1))
    with_stranger = digests.slot_digest(*arguments, whole(5, ALL), 3)
    assert with_stranger == digests.slot_digest(*arguments, whole(5, (0, 1)), 3)


def test_commitments_differ_by_setup_silo_slot_and_seed():
    base, one = (bytes(32), 0, 0, bytes(32)), b"\x01" * 32
    changes = [(0, one), (1, 1), (2, 1), (3, one)]
    found = {digests.commit_to_seed(*v) for v in variants(base, changes)}
    assert len(found | {digests.commit_to_seed(*base)}) == 5


def test_the_chain_hangs_together():
    keys = digests.keys_digest(bytes(32), b"keys")
    assert keys != digests.keys_digest(b"\x01" * 32, b"keys")
    assert keys != digests.keys_digest(bytes(32), b"other")
    members = digests.members_digest(keys, (0, 1, 2), 3)
    assert members == digests.members_digest(keys, (2, 1, 0), 3)
    assert members != digests.members_digest(keys, (0, 1), 3)
    assert members != digests.members_digest(bytes(32), (0, 1, 2), 3)


@pytest.mark.parametrize(
    ("roster", "aggregator"),
    [
        (SILOS[:2], AGGREGATOR),
        ([SILOS[0]] * 3, AGGREGATOR),
        (SILOS, SILOS[0]),
        ([*SILOS[:2], bytes(31)], AGGREGATOR),
    ],
)
def test_rosters_that_cannot_be(roster, aggregator):
    with pytest.raises(ValueError):
        digests.setup_digest(CONFIG, roster, aggregator, bytes(16), 1)
