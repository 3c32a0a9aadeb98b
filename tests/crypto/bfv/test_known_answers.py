"""What encryption computes without SEAL, against known answers."""

import hashlib

import numpy as np
import pytest

from crypto.bfv.digits import Digits, chunks_in, slot_blocks, sum_words, values_in
from crypto.bfv.parameters import COEFF_MODULUS, POLY_DEGREE
from crypto.bfv.residues import pack_residues, unpack_residues
from crypto.bfv.shared_key import commit_to_key
from crypto.bfv.sum_tags import SumTags
from crypto.frame import Kind
from crypto.secagg import digests
from crypto.secagg.config import SecAggConfig
from crypto.secagg.setup import max_frame_bytes
from tests.crypto.bfv.make_vectors import all_cases
from tests.crypto.vectors import load


def words_of(texts: list[str]) -> np.ndarray:
    return np.array(list(map(int, texts)), np.uint64)


@pytest.mark.parametrize("case", load("bfv", "digits"))
def test_words_as_slots_and_back(case):
    layout = tuple(Digits(**stretch) for stretch in case["stretches"])
    assert chunks_in(layout) == case["num_ciphertexts"]
    total = np.zeros((chunks_in(layout), POLY_DEGREE), np.uint64)
    for words, slots in zip(case["words"], case["slots"], strict=True):
        [(_, block)] = slot_blocks(words_of(words), layout)
        assert block.reshape(-1)[: values_in(layout)].tolist() == list(map(int, slots))
        total += block
    assert sum_words([total], layout).tolist() == list(map(int, case["total"]))


@pytest.mark.parametrize("case", load("bfv", "residues"))
def test_residues_packed(case):
    factor = int(case["factor"])
    residues = [i * factor % COEFF_MODULUS for i in range(POLY_DEGREE)]
    packed = pack_residues(np.array([residues], np.uint64)).tobytes()
    assert packed[:70].hex() == case["first_bytes"]
    assert packed[-16:].hex() == case["last_bytes"]
    assert hashlib.sha256(packed).hexdigest() == case["packed_sha256"]
    assert unpack_residues(packed, 1).tolist() == [residues]


@pytest.mark.parametrize("case", load("bfv", "tags"))
def test_tags(case):
    key, t3 = bytes.fromhex(case["secret_key"]), bytes.fromhex(case["slot_digest"])
    slots, part, silo = words_of(case["slots"]), case["part"], case["silo"]
    block = np.zeros((1, POLY_DEGREE), np.uint64)
    block[0, : slots.size] = slots
    layout = (Digits(slots.size, 44, 44),)
    made = SumTags(key, t3).with_tags([(0, block)], layout, part, silo)
    [tagged] = made
    tags = tagged[0, slots.size : slots.size + 2]
    assert tags.tolist() == list(map(int, case["tags"]))


@pytest.mark.parametrize("case", load("bfv", "setup"))
def test_the_digests_of_a_setup(case):
    def unhex(name):
        return bytes.fromhex(case[name])

    numbers = ("num_silos", "threshold", "min_cohort", "max_colluding")
    config = SecAggConfig(
        **{name: case[name] for name in (*numbers, "slots_per_setup", "key_maker")},
        protection="bfv",
    )
    roster = [bytes.fromhex(public) for public in case["roster"]]
    t0 = digests.setup_digest(
        config, roster, unhex("aggregator"), unhex("run"), case["setup"]
    )
    t1 = digests.keys_digest(t0, unhex("keys_body"))
    commitment = commit_to_key(t1, unhex("secret_key"))
    assert commitment == unhex("commitment")
    t2 = digests.members_digest(t1, case["members"], case["num_silos"], commitment)
    assert [t.hex() for t in (t0, t1, t2)] == case["digests"]


@pytest.mark.parametrize(
    "case",
    load("bfv", "sizes"),
    ids=lambda c: f"{Kind(c['kind']).name}-{c['num_silos']}",
)
def test_sizes_of_frames(case):
    n = case["num_silos"]
    config = SecAggConfig(num_silos=n, threshold=n, protection="bfv")
    size = max_frame_bytes(
        Kind(case["kind"]),
        config,
        case["num_words"],
        num_ciphertexts=case["num_ciphertexts"],
    )
    assert size == case["max_bytes"]


def test_the_second_computation_gives_the_files():
    for name, cases in all_cases().items():
        assert cases == load("bfv", name)
