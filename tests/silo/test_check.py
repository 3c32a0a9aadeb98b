import pytest

from diffusion.model import make_model
from protocol import records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.check import bytes_lines, count_parameters, explain, what_would_leave
from silo.policy import Policy, refusals
from tests.protocol.examples import make_example, with_change
from tests.protocol.test_noise_plan import RECORD, SILO, planned
from tests.protocol.test_reference import DP
from tests.silo.conftest import TINY_MODEL, Federation, tiny_plan


class TestBytes:
    @pytest.mark.parametrize(
        "update",
        [
            {"selection": "full", "value_bits": 6},
            {"selection": "full", "value_bits": 16},
            {"selection": "udec", "value_bits": 6},
            {"selection": "udec", "value_bits": 16},
            {"rotation": True},
            {"rotation": True, "weights": "secret", "max_weight": 2**32},
            {"weights": "secret", "max_weight": 2**32},
        ],
    )
    def test_are_those_really_sent(self, tmp_path, update):
        plan = tiny_plan(update=UpdateConfig(**update))
        federation = Federation(tmp_path, plan).play("reveal")
        federation.next_round().play("reveal", first="ready")
        sent = [r.vector_bytes for r in federation.records(0, records.Traffic)]
        federation.close()
        first, later = [size for size in sent if size]
        leaving = what_would_leave(plan)
        assert (leaving.first_round_bytes, leaving.later_round_bytes) == (first, later)
        assert leaving.total_bytes == first + 2 * later
        assert leaving.num_values == federation.layout.size

    @pytest.mark.parametrize(
        "update",
        [
            {"value_bits": 6},
            {"rotation": True, "weights": "secret", "max_weight": 2**32},
        ],
    )
    def test_are_those_really_sent_encrypted(self, tmp_path, workers, update):
        protection = ProtectionConfig(method="bfv", slots_per_setup=2)
        plan = tiny_plan(update=UpdateConfig(**update), protection=protection)
        federation = Federation(tmp_path, plan, workers).play("decrypt")
        federation.next_round().play("encrypted", first="ready")
        sent = [r.vector_bytes for r in federation.records(0, records.Traffic)]
        federation.close()
        first, later = [size for size in sent if size]
        leaving = what_would_leave(plan)
        assert (leaving.first_round_bytes, leaving.later_round_bytes) == (first, later)

    def test_parameters_are_counted(self):
        selected, everything = count_parameters(
            TINY_MODEL, UpdateConfig(selection="udec")
        )
        model = make_model(TINY_MODEL, 0)
        assert everything == sum(p.numel() for p in model.parameters())
        assert 0 < sum(selected) < everything
        assert count_parameters(TINY_MODEL, UpdateConfig()) == (
            (everything,),
            everything,
        )
        dealt, _ = count_parameters(TINY_MODEL, UpdateConfig(selection="usplit"))
        assert (len(dealt), dealt[2:], sum(dealt)) == (3, selected, everything)

    def test_one_round(self):
        leaving = what_would_leave(tiny_plan(num_rounds=1))
        assert leaving.total_bytes == leaving.first_round_bytes


def test_every_byte_of_a_run_is_told():
    lines = bytes_lines(tiny_plan())
    assert len(lines) == 3
    assert lines[1].startswith("  each silo: ")
    assert lines[2].startswith("  all 3 silos: ")
    rounds = bytes_lines(tiny_plan(), per_round=True)
    assert [line.split(":")[0] for line in rounds[3:7]] == [
        "  each silo, outside rounds",
        "  each silo, round 1",
        "  each silo, round 2",
        "  each silo, round 3",
    ]


class TestExplain:
    def test_says_what_leaves(self):
        plan = tiny_plan()
        text, leaving = "\n".join(explain(plan, Policy())), what_would_leave(plan)
        for words in (
            plan.digest.hex(),
            "silo-1, silo-2, silo-3",
            f"{leaving.first_round_bytes:,} bytes in the first round",
            f"{leaving.later_round_bytes:,} in each later one",
            f"{leaving.total_bytes:,} in all",
            "clipped to norm 5",
            "epsilon is unbounded",
            "secure aggregation; no silo may be lost",
            "Sums hold at least 3 silos.",
            "This silo's policy permits the plan.",
        ):
            assert words in text
        assert "REFUSED" not in text

    @pytest.mark.parametrize(
        ("update", "words"),
        [
            ({}, "clipped to norm 5 and quantised to 16 bits"),
            ({}, "Weights: all silos count alike."),
            ({"rotation": True}, "clipped to norm 5, rotated and quantised"),
            ({"clipping": "previous-mean"}, "three times the norm of the mean update"),
            ({}, "What comes: nothing before the first round, whose model this silo"),
            ({}, "then the global parameters in float32"),
            ({"broadcast_bits": 8}, "as a difference of 8 bits a value"),
            ({"error_feedback": True}, "Error feedback: what quantisation takes"),
            ({"weights": "declared"}, "Weights: the numbers that the plan declares"),
            (
                {"weights": "secret", "max_weight": 2000},
                "Weights: each silo's number of examples, at most 2,000; the "
                "aggregator learns their sum in each round, and so exactly this silo's "
                "number if the silos of two rounds differ by this one.",
            ),
        ],
    )
    def test_says_in_which_form(self, update, words):
        plan = tiny_plan(update=UpdateConfig(**update))
        assert words in "\n".join(explain(plan, Policy()))

    def test_says_that_secret_weights_do_not_stay_secret_where_parts_are_dealt(self):
        update = UpdateConfig(selection="usplit", weights="secret", max_weight=2000)
        text = "\n".join(explain(tiny_plan(6, update=update), Policy()))
        assert "exactly this silo's number after a few rounds" in text
        assert "nobody can steer" not in text

    def test_says_what_is_refused(self):
        lines = explain(tiny_plan(), Policy(max_epsilon=1.0, max_rounds=1))
        refused = [line for line in lines if line.startswith("REFUSED")]
        assert len(refused) == 2
        assert "epsilon" in refused[0]
        assert "num_rounds" in refused[1]
        assert "This silo's policy permits the plan." not in lines

    def test_says_that_nothing_is_protected(self):
        plan = tiny_plan(protection=ProtectionConfig(method="none"))
        lines = explain(plan, Policy())
        assert any(line.startswith("Protection: NONE") for line in lines)
        assert any('is "none"' in line for line in lines)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (tiny_plan(), "Only the masks stand before that"),
        (
            tiny_plan(protection=ProtectionConfig(method="none")),
            "updates leave in the clear",
        ),
        (planned(SILO), "The masks and the noise in the sum stand before that"),
        (planned(RECORD), ""),
        (make_example(DP), ""),
    ],
    ids=["none", "plain", "silo", "record-distributed", "dp-sgd"],
)
def test_says_where_draws_are_no_secret(plan, words):
    """They follow from the plan's seed unless the mechanism draws them in secret."""
    text = "\n".join(explain(plan, Policy(max_delta=1e-2)))
    assert ("training noise are NO secret" in text) == bool(words)
    assert words in text


@pytest.mark.parametrize("changes", [SILO, RECORD], ids=["silo", "record-distributed"])
def test_noise_in_the_sum_is_explained_with_what_it_rests_on(changes):
    text = "\n".join(explain(planned(changes), Policy(max_delta=1e-3)))
    assert "Privacy cost: differential privacy, epsilon 7.99" in text
    assert "at least 3 of those in every sum are honest" in text
    assert "if secure aggregation fails" in text
    assert "Not covered by epsilon: " in text
    assert ("WARNING: the noise is" in text) == (changes is SILO)
    assert "This silo's policy permits the plan." in text
    text = "\n".join(explain(planned(changes), Policy(max_delta=1e-3, max_epsilon=1.0)))
    assert "REFUSED by this silo's policy: the plan's epsilon is" in text


def test_noise_too_little_for_any_claim_is_refused():
    plan = planned(RECORD | {"privacy.epsilon": None, "privacy.share_variance": 10**9})
    useless = with_change(plan, "privacy.share_variance", 1)
    assert refusals(Policy(), plan) == []
    assert refusals(Policy(), useless) == [
        "the plan's noise is too little for any epsilon at its delta"
    ]


@pytest.fixture(scope="module")
def encrypted_text():
    protection = ProtectionConfig(
        method="bfv", key_maker="silo-4", max_colluding=2, min_cohort=4, threshold=4
    )
    plan = tiny_plan(5, protection=protection)
    return "\n".join(explain(plan, Policy()))


class TestEncryption:
    """What an operator must know before all silos share one key."""

    @pytest.mark.parametrize(
        "words",
        [
            "secure aggregation by ENCRYPTION (BFV); up to 1 silo may be lost",
            "a key that all 5 silos hold: any one of them that gives it to the "
            "aggregator opens every update of the run",
            "masks would withstand 2 such silos.",
            "Silo silo-4 makes the key",
            "the key sealed to each other silo, 30,748 bytes each",
            "where it is asked to decrypt, the sum over all",
            "Only the encryption stands before that",
            "REFUSED by this silo's policy: protection.method",
        ],
    )
    def test_is_said(self, encrypted_text, words):
        assert words in encrypted_text

    def test_nothing_of_masks_is_promised(self, encrypted_text):
        assert "colludes with at most" not in encrypted_text
        assert "shares and signatures" not in encrypted_text
