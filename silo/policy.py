"""What this silo refuses, whatever anybody asks. The silo decides.

The policy is checked against the plan when it is read and whenever a session begins.
During a run secure aggregation holds cohorts and survivors to the plan's numbers, which
the policy has accepted.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.mechanism import run_epsilon
from protocol.noise_claim import upward
from protocol.plan import RunPlan
from silo.config import SiloFolder, load_toml
from silo.errors import PolicyViolation

if TYPE_CHECKING:
    from privacy.accounting import Budget

DEFAULT_POLICY = """\
# What this silo refuses. Its operator decides; no plan and no message overrules it.

# The largest epsilon (differential privacy) that may ever be spent on this silo's data,
# over all runs that share an image or a patient. "inf" also permits runs without
# differential privacy: then nothing limits what the trained model itself may reveal.
max_epsilon = inf

# The delta that max_epsilon is meant at, and the largest that a plan may name. Choose
# it well below 1 / (number of images, or of patients).
max_delta = 1e-5

# The smallest number of silos whose updates are summed, this one included.
min_cohort = 3

# How updates may be protected: "mask" is secure aggregation by masks. Add "bfv" for
# secure aggregation by encryption only if you trust the operators of ALL silos of a
# plan: every silo then holds the key that opens every silo's upload, and any one that
# gives it to the aggregator opens every update of this silo in the run. Add "none" only
# to let updates leave in the clear, for comparisons on data that is not secret.
permitted_protections = ["mask"]

# How many silos may collude with the aggregator without learning a single update; a
# plan must withstand at least so many. With "bfv" they may lie and hold back whatever
# they want, but give away no key.
min_colluding = 1

# Whether a plan may trust the aggregator to follow the protocol ("semi-honest").
accept_semi_honest = false

# Which auxiliary images the aggregator may train on after the mean, by their label:
# "public", "aggregate", "silo-samples" or "silo-models". The last two let a model of
# this silo's images alone leave, or its samples; where max_epsilon is a number, and the
# plan's DP-SGD has trained that model, they are permitted without being named.
permitted_auxiliary_images = ["public", "aggregate"]

# Whether a plan may let this silo measure its finished model, and sum up the Fréchet
# distance (and its square) with those of the other silos: the aggregator learns mean
# and spread. The distance itself stays here.
permit_measurement = true

# Whether a plan may sum up EXACT statistics of this silo's images with those of the
# other silos, to measure samples against: the aggregator then knows mean and covariance
# of all silos' features, for which max_epsilon does not hold, and who knows an image
# can test whether it is likely to be among them. With noise that epsilon counts
# (evaluation.reference_noise_multiplier) they are permitted in any case.
permit_reference = false

# The longest run, in rounds.
max_rounds = 10000
"""

AUXILIARY_LABELS = ("public", "aggregate", "silo-samples", "silo-models")
PROTECTIONS = ("mask", "bfv", "none")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The content of ``policy.toml``; :data:`DEFAULT_POLICY` explains each field."""

    max_epsilon: float = math.inf
    max_delta: float = 1e-5
    min_cohort: int = 3
    permitted_protections: tuple[str, ...] = ("mask",)
    min_colluding: int = 1
    accept_semi_honest: bool = False
    permitted_auxiliary_images: tuple[str, ...] = ("public", "aggregate")
    permit_measurement: bool = True
    permit_reference: bool = False
    max_rounds: int = 10_000

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.max_epsilon > 0:
            raise ValueError("max_epsilon: must be positive")
        if not 0 < self.max_delta < 1:
            raise ValueError("max_delta: must be in (0, 1)")
        if self.min_cohort < 2:
            raise ValueError("min_cohort: must be at least 2")
        if self.min_colluding < 0:
            raise ValueError("min_colluding: must not be negative")
        for name in self.permitted_protections:
            if name not in PROTECTIONS:
                raise ValueError(f"permitted_protections: {name!r} is not known")
        for name in self.permitted_auxiliary_images:
            if name not in AUXILIARY_LABELS:
                raise ValueError(f"permitted_auxiliary_images: {name!r} is not known")


def load_policy(folder: SiloFolder) -> Policy:
    """Return the policy of a silo.

    Raises:
        ConfigRejected: missing or malformed.
    """
    return load_toml(Policy, folder.policy)


def refusals(policy: Policy, plan: RunPlan) -> list[str]:
    """Return why this silo would refuse a plan; nothing when it would not."""
    reasons = []
    protection = plan.protection
    if protection.method not in policy.permitted_protections:
        reasons.append(
            f'protection.method is "{protection.method}", this silo permits '
            f"{', '.join(policy.permitted_protections) or 'none at all'} "
            "(permitted_protections in policy.toml)"
        )
    if protection.min_cohort < policy.min_cohort:
        reasons.append(
            f"protection.min_cohort is {protection.min_cohort}, this silo demands "
            f"at least {policy.min_cohort}"
        )
    if protection.is_hidden:
        reasons += _weak_sums(policy, plan)
    reasons += _auxiliary(policy, plan)
    reasons += _too_dear(policy, plan)
    if plan.evaluation.in_silos and not policy.permit_measurement:
        reasons.append(
            "evaluation.in_silos is set, this silo permits no measurement of its model"
        )
    is_exact = plan.evaluation.is_pooled and not plan.evaluation.is_noised
    if is_exact and not policy.permit_reference:
        reasons.append(
            'evaluation.reference is "federation" without noise, this silo lets no '
            "exact statistics of its images leave, even in a sum (permit_reference)"
        )
    if plan.num_rounds > policy.max_rounds:
        reasons.append(
            f"num_rounds is {plan.num_rounds}, this silo permits at most "
            f"{policy.max_rounds}"
        )
    return reasons


def _auxiliary(policy: Policy, plan: RunPlan) -> list[str]:
    """Return why what auxiliary images would come from is not permitted.

    What DP-SGD has trained may leave where the policy limits epsilon, which speaks of
    it, too. Without a limit any noise would do, however little it hides.
    """
    config = plan.calibration
    if not config.is_on or config.images in policy.permitted_auxiliary_images:
        return []
    is_limited = math.isfinite(policy.max_epsilon)
    if config.asks_silos and plan.privacy.mechanism == "dp-sgd" and is_limited:
        return []
    return [
        f'calibration.images is "{config.images}", this silo permits '
        f"{', '.join(policy.permitted_auxiliary_images) or 'none at all'}"
        + (" without dp-sgd and a max_epsilon" if config.asks_silos else "")
    ]


def _too_dear(policy: Policy, plan: RunPlan) -> list[str]:
    """Return why a plan would spend more than this silo permits, even by itself."""
    delta = plan.privacy.delta
    if plan.privacy.is_private and delta > policy.max_delta:
        return [
            f"privacy.delta is {delta:g}, this silo permits at most "
            f"{policy.max_delta:g}"
        ]
    if plan.privacy.is_in_sum and math.isinf(run_epsilon(plan, delta)):
        return ["the plan's noise is too little for any epsilon at its delta"]
    if math.isinf(policy.max_epsilon):
        return []
    epsilon = run_epsilon(plan, policy.max_delta)
    if epsilon <= policy.max_epsilon:
        return []
    at = f" at delta {policy.max_delta:g}" if plan.privacy.is_private else ""
    return [
        f"the plan's epsilon is {upward(epsilon)}{at}, this silo permits at most "
        f"{policy.max_epsilon:g}"
    ]


def account_limit(policy: Policy) -> "Budget | None":
    """Return what may ever be spent on one privacy unit; None for no limit."""
    from privacy.accounting import Budget

    if math.isinf(policy.max_epsilon):
        return None
    return Budget(policy.max_epsilon, policy.max_delta)


def _weak_sums(policy: Policy, plan: RunPlan) -> list[str]:
    """Return why secure aggregation is weaker than this silo demands."""
    reasons, protection = [], plan.protection
    if protection.trust == "semi-honest" and not policy.accept_semi_honest:
        reasons.append(
            'protection.trust is "semi-honest", this silo does not trust the '
            "aggregator to follow the protocol"
        )
    if protection.max_colluding < policy.min_colluding:
        reasons.append(
            f"protection.max_colluding is {protection.max_colluding}, this silo "
            f"demands at least {policy.min_colluding}"
        )
    return reasons


def check_plan(policy: Policy, plan: RunPlan) -> None:
    """Raise :class:`PolicyViolation` with every reason to refuse a plan."""
    if reasons := refusals(policy, plan):
        raise PolicyViolation("this silo's policy refuses: " + "; ".join(reasons))


def check_approved(folder: SiloFolder, plan: RunPlan) -> None:
    """Raise :class:`PolicyViolation` unless the operator approved just this plan."""
    if not folder.approval(plan).is_file():
        raise PolicyViolation(
            f"plan {plan.digest.hex()[:16]} is not approved; read it with "
            "`silo check-plan PLAN`, then approve it with --approve"
        )
