"""Plans that encrypt: what they may say, how many silos, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.bfv.digits import Digits, words_in
from crypto.bfv.parameters import SLOT_BITS
from crypto.keys import IdentityKey
from crypto.secagg.parts import whole
from protocol.encoding import from_table
from protocol.errors import EncodingError
from protocol.packing import layouts
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.update_settings import MAX_VALUE_BITS, ProtectionConfig, UpdateConfig
from tests.protocol.examples import draft_table, make_example
from tests.protocol.test_noise_plan import RECORD
from tests.protocol.test_reference import POOLED

BFV = {"protection.method": "bfv"}
SECRET = {"update.weights": "secret", "update.max_weight": 1 << 32}


def refusal(changes, *, num_silos=3):
    with pytest.raises(EncodingError) as caught:
        make_example(changes, num_silos=num_silos)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"protection.method": "ckks"},
            "protection.method: 'ckks' is not offered: it decrypts approximately",
        ),
        (
            BFV | {"protection.trust": "semi-honest"},
            'protection.trust: must be "malicious" with method "bfv"',
        ),
        (
            BFV | {"protection.key_maker": "delft"},
            "protection.key_maker: 'delft' is no silo",
        ),
        ({"protection.key_maker": "silo-1"}, 'key_maker: belongs to method "bfv"'),
        (BFV | {"update.form": "float32"}, 'update.form: "float32" needs protection'),
        (RECORD | BFV, "one silo that gives the aggregator the shared key opens each"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(changes, words):
    assert words in refusal(changes)


def test_the_reason_against_ckks_leads_to_bfv_and_to_the_page():
    """A draft is refused as a plan is, and only for this one value."""
    with pytest.raises(EncodingError, match="secret key follows; use") as caught:
        from_table(PlanDraft, draft_table({"protection.method": "ckks"}))
    assert "docs/homomorphic-encryption.md" in str(caught.value)
    assert "must be one of 'mask', 'bfv', 'none'" in refusal(
        {"protection.method": "CKKS"}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"protection.key_maker": "silo-2"},
        SECRET,
        POOLED,
        {"update.error_feedback": True},
        {"update.selection": "usplit"},
        {"evaluation.in_silos": True},
    ],
)
def test_what_works_is_taken(changes):
    plan = make_example(BFV | changes, num_silos=6)
    assert plan.protection.is_encrypted and not plan.skips_confirm
    config = plan.secagg_config()
    assert config.protection == "bfv"
    assert config.key_maker == (2 if "protection.key_maker" in changes else 0)


def test_so_many_silos_that_noise_could_be_too_much_are_refused():
    protection = ProtectionConfig(method="bfv")
    protection.check_silos(145)
    with pytest.raises(ValueError, match=r'^method: "bfv" sums 145 silos at most'):
        protection.check_silos(146)
    ProtectionConfig().check_silos(146)


@given(
    st.integers(2, 145),
    st.integers(2, MAX_VALUE_BITS),
    st.integers(1, 9),
    st.booleans(),
)
def test_every_sum_fits_into_a_slot(num_silos, value_bits, number, rotation):
    """No plan that is taken asks for more than a slot has: nothing to refuse."""
    update = UpdateConfig(value_bits=value_bits, rotation=rotation)
    bits = update.value_bits_in(number, num_silos)
    largest = num_silos * ((1 << bits) - 1)
    digits = Digits(9, update.field_bits(number, num_silos), largest.bit_length())
    assert digits.sum_bits <= SLOT_BITS
    assert Digits.of_whole_words(9, num_silos).sum_bits <= SLOT_BITS


def test_a_secret_weight_is_a_whole_word():
    plan: RunPlan = make_example(BFV | SECRET, num_silos=5)
    num_words = plan.num_words(2, 1_000)
    (layout,) = layouts(plan, 2, whole(num_words, range(5)))
    fields, weight = layout
    assert (weight.num_words, weight.digit_bits, weight.sum_bits) == (1, 32, 35)
    assert fields.sum_bits == (5 * (2**16 - 1)).bit_length() == 19
    assert words_in(layout) == num_words


@pytest.mark.parametrize(
    ("method", "asked", "found"),
    [("bfv", "", "b-1"), ("bfv", "b-2", "b-2"), ("mask", "", "")],
)
def test_a_finished_plan_names_the_maker_of_the_key(method, asked, found):
    draft = from_table(
        PlanDraft,
        draft_table({"protection.method": method, "protection.key_maker": asked}),
    )
    keys = [IdentityKey.generate().public for _ in range(4)]
    silos = [
        SiloParty(name=f"b-{place}", identity_key=key.hex())
        for place, key in enumerate(keys[1:], 1)
    ]
    assert make_plan(draft, keys[0], silos).protection.key_maker == found
