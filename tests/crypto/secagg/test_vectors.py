"""One slot from its parameters to a masked vector, against known answers."""

import numpy as np
import pytest

from crypto.keys import AgreementKey
from crypto.secagg import digests
from crypto.secagg.config import SecAggConfig
from crypto.secagg.masks import SlotSecrets, mask
from crypto.secagg.parts import Part, within
from tests.crypto.secagg.make_vectors import slot_cases
from tests.crypto.vectors import load


@pytest.mark.parametrize("case", load("secagg", "generate"))
def test_a_slot_from_its_parameters_to_a_masked_vector(case):
    def unhex(name):
        return bytes.fromhex(case[name])

    config = SecAggConfig(
        num_silos=case["num_silos"],
        threshold=case["threshold"],
        min_cohort=case["min_cohort"],
        max_colluding=case["max_colluding"],
        slots_per_setup=case["slots_per_setup"],
        trust=case["trust"],
    )
    roster = [bytes.fromhex(public) for public in case["roster"]]
    t0 = digests.setup_digest(
        config, roster, unhex("aggregator"), unhex("run"), case["setup"]
    )
    t1 = digests.keys_digest(t0, unhex("keys_body"))
    t2 = digests.members_digest(t1, case["members"], case["num_silos"])
    parts = tuple(
        Part(part["num_words"], tuple(part["contributors"])) for part in case["parts"]
    )
    t3 = digests.slot_digest(
        t2,
        case["slot"],
        case["round_number"],
        unhex("model_digest"),
        case["cohort"],
        parts,
        case["num_silos"],
    )
    assert [t.hex() for t in (t0, t1, t2, t3)] == case["digests"]
    silo, seed = case["silo"], unhex("mask_seed")
    commitment = digests.commit_to_seed(t0, silo, case["slot"], seed)
    assert commitment.hex() == case["commitment"]
    own = SlotSecrets(seed, AgreementKey.from_bytes(unhex("agreement_key")))
    publics = {i: bytes.fromhex(public) for i, public in enumerate(case["publics"])}
    words = np.array(list(map(int, case["words"])), np.uint64)
    mask(words, own, silo, publics, t3, within(parts, case["cohort"]))
    assert list(map(str, words.tolist())) == case["masked"]


def test_the_second_computation_gives_the_files():
    assert slot_cases() == load("secagg", "generate")
