import math
import tomllib
from dataclasses import replace

import pytest

from protocol.encoding import from_table
from protocol.mechanism import run_epsilon
from protocol.noise_claim import upward
from protocol.privacy_settings import PrivacyConfig
from protocol.update_settings import ProtectionConfig
from silo.config import SiloFolder
from silo.errors import ConfigRejected, PolicyViolation
from silo.policy import (
    DEFAULT_POLICY,
    Policy,
    check_approved,
    check_plan,
    load_policy,
    refusals,
)
from tests.silo.conftest import tiny_plan

DP_SGD = PrivacyConfig(
    mechanism="dp-sgd", noise_multiplier=1.0, delta=1e-5, sample_rate=0.1
)


@pytest.fixture(scope="module")
def plan():
    return tiny_plan()


class TestDefault:
    def test_text_is_the_default_policy(self):
        assert from_table(Policy, tomllib.loads(DEFAULT_POLICY)) == Policy()

    def test_text_explains_every_field(self):
        lines = DEFAULT_POLICY.splitlines()
        for name in Policy.__dataclass_fields__:
            (index,) = [
                i for i, line in enumerate(lines) if line.startswith(f"{name} =")
            ]
            assert lines[index - 1].startswith("#")

    def test_permits_a_masked_plan(self, plan):
        assert refusals(Policy(), plan) == []
        check_plan(Policy(), plan)


class TestRefusals:
    @pytest.mark.parametrize(
        ("policy", "reason"),
        [
            (
                {"max_epsilon": 8.0},
                "the plan's epsilon is infinity, this silo permits at most 8",
            ),
            ({"min_cohort": 4}, "min_cohort is 3, this silo demands at least 4"),
            ({"max_rounds": 2}, "num_rounds is 3, this silo permits at most 2"),
            ({"permitted_protections": ("none",)}, 'is "mask", this silo permits none'),
            ({"permitted_protections": ()}, "permits none at all"),
            ({"min_colluding": 2}, "max_colluding is 1, this silo demands at least 2"),
        ],
    )
    def test_one(self, plan, policy, reason):
        (found,) = refusals(Policy(**policy), plan)
        assert reason in found
        with pytest.raises(PolicyViolation, match="this silo's policy refuses"):
            check_plan(Policy(**policy), plan)

    def test_at_the_bounds(self, plan):
        policy = Policy(max_epsilon=math.inf, min_cohort=3, max_rounds=3)
        assert refusals(policy, plan) == []

    def test_updates_in_the_clear_need_permission(self):
        plan = tiny_plan(protection=ProtectionConfig(method="none"))
        (found,) = refusals(Policy(), plan)
        assert 'protection.method is "none", this silo permits mask' in found
        assert refusals(Policy(permitted_protections=("mask", "none")), plan) == []

    def test_encryption_needs_permission_and_enough_honest_silos(self):
        plan = tiny_plan(protection=ProtectionConfig(method="bfv"))
        (found,) = refusals(Policy(), plan)
        assert 'protection.method is "bfv", this silo permits mask' in found
        permitted = ("mask", "bfv")
        assert refusals(Policy(permitted_protections=permitted), plan) == []
        strict = Policy(permitted_protections=permitted, min_cohort=4, min_colluding=2)
        found = refusals(strict, plan)
        assert [reason.split(" is ")[0] for reason in found] == [
            "protection.min_cohort",
            "protection.max_colluding",
        ]

    def test_an_aggregator_that_is_trusted_needs_permission(self):
        plan = tiny_plan(protection=ProtectionConfig(trust="semi-honest"))
        (found,) = refusals(Policy(), plan)
        assert "does not trust the aggregator" in found
        assert refusals(Policy(accept_semi_honest=True), plan) == []

    def test_all_reasons_at_once(self, plan):
        policy = Policy(
            max_epsilon=1.0, min_cohort=9, max_rounds=1, permitted_protections=()
        )
        with pytest.raises(PolicyViolation) as caught:
            check_plan(policy, plan)
        for word in ("epsilon", "min_cohort", "num_rounds", "protection.method"):
            assert word in str(caught.value)

    def test_without_a_mechanism_nothing_is_guaranteed(self, plan):
        (found,) = refusals(Policy(max_epsilon=1e6), plan)
        assert "the plan's epsilon is infinity" in found
        assert refusals(Policy(), plan) == []

    def test_a_run_dearer_than_the_limit_is_refused(self):
        plan = tiny_plan(privacy=DP_SGD)
        price = run_epsilon(plan, 1e-5)
        (found,) = refusals(Policy(max_epsilon=0.99 * price), plan)
        assert f"the plan's epsilon is {upward(price)} at delta 1e-05" in found
        assert refusals(Policy(max_epsilon=1.01 * price), plan) == []

    def test_a_larger_delta_is_refused_and_does_not_make_a_plan_cheaper(self):
        plan = tiny_plan(privacy=replace(DP_SGD, delta=1e-3))
        (found,) = refusals(Policy(), plan)
        assert "privacy.delta is 0.001, this silo permits at most 1e-05" in found


class TestFields:
    @pytest.mark.parametrize(
        ("field", "name"),
        [
            ({"max_epsilon": 0.0}, "max_epsilon"),
            ({"max_epsilon": -1.0}, "max_epsilon"),
            ({"max_epsilon": math.nan}, "max_epsilon"),
            ({"max_delta": 0.0}, "max_delta"),
            ({"max_delta": 1.0}, "max_delta"),
            ({"min_cohort": 1}, "min_cohort"),
            ({"permitted_protections": ("masks",)}, "permitted_protections"),
            ({"permitted_auxiliary_images": ("all",)}, "permitted_auxiliary_images"),
        ],
    )
    def test_out_of_range(self, field, name):
        with pytest.raises(ValueError, match=f"^{name}: "):
            Policy(**field)


class TestFile:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("min_cohort = ", "policy.toml: "),
            ("min_cohorts = 3", "unknown field; did you mean min_cohort?"),
            ("min_cohort = true", "min_cohort: must be a whole number"),
            ("min_cohort = 0", "min_cohort: must be at least 2"),
        ],
    )
    def test_malformed(self, tmp_path, text, words):
        (tmp_path / "policy.toml").write_text(text)
        with pytest.raises(ConfigRejected) as caught:
            load_policy(SiloFolder(tmp_path))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(ConfigRejected, match="silo init"):
            load_policy(SiloFolder(tmp_path))

    def test_not_text(self, tmp_path):
        (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigRejected, match=r"policy\.toml"):
            load_policy(SiloFolder(tmp_path))


class TestApproval:
    def test_of_just_this_plan(self, tmp_path, plan):
        folder = SiloFolder(tmp_path)
        with pytest.raises(PolicyViolation, match=plan.digest.hex()[:16]):
            check_approved(folder, plan)
        folder.approval(plan).parent.mkdir()
        folder.approval(plan).write_text("")
        check_approved(folder, plan)
        with pytest.raises(PolicyViolation, match="is not approved"):
            check_approved(folder, tiny_plan())  # The same draft, another nonce.

    def test_a_folder_is_no_approval(self, tmp_path, plan):
        SiloFolder(tmp_path).approval(plan).mkdir(parents=True)
        with pytest.raises(PolicyViolation):
            check_approved(SiloFolder(tmp_path), plan)
