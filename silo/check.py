"""What a silo's operator reads before approving a plan."""

import math
from dataclasses import dataclass

from diffusion.config import UNetConfig
from protocol.auxiliary import content_bytes
from protocol.broadcast import down_bytes
from protocol.classes import class_sentences
from protocol.mechanism import not_covered, run_epsilon, steps_of_run
from protocol.noise_claim import plan_sentences, upward
from protocol.plan import PlanDraft, RunPlan
from protocol.reference import reference_sentences
from protocol.stretches import largest_share
from protocol.traffic_words import traffic_lines
from protocol.update_settings import UpdateConfig
from silo.canary_plan import canary_sentences
from silo.check_protection import (
    besides,
    besides_down,
    protection_sentences,
    sums_sentence,
    upload_bytes,
)
from silo.config import CanaryConfig
from silo.policy import Policy, refusals


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """What would leave the silo in a run, in values and bytes."""

    num_values: int
    num_parameters: int
    first_round_bytes: int
    later_round_bytes: int
    total_bytes: int


def count_parameters(
    model: UNetConfig, update: UpdateConfig
) -> tuple[tuple[int, ...], int]:
    """Return how many parameters each stretch federates, and how many the model has."""
    from diffusion.model import make_model
    from diffusion.parameters import selected_layout

    network = make_model(model, 0)
    selected = selected_layout(network, update.selection, update.parts)
    return (
        tuple(stretch.size for stretch in selected.stretches),
        selected_layout(network, "full").size,
    )


def count_trained(plan: PlanDraft) -> int:
    """Return how many parameters a silo trains."""
    stretches, everything = count_parameters(plan.model, plan.update)
    return sum(stretches) if plan.training.local_parts == "frozen" else everything


def what_would_leave(plan: RunPlan) -> Leaving:
    """Return what one silo would send: the vectors of all rounds, exactly.

    Where parts are dealt it is what a silo with the largest share in each round sends.
    """
    stretches, everything = count_parameters(plan.model, plan.update)
    sizes = largest_share(plan, stretches)
    first, later = (upload_bytes(plan, number, sizes) for number in (1, 2))
    return Leaving(
        num_values=sum(sizes),
        num_parameters=everything,
        first_round_bytes=first,
        later_round_bytes=later,
        total_bytes=first + later * (plan.num_rounds - 1),
    )


def bytes_lines(plan: RunPlan, *, per_round: bool = False) -> list[str]:
    """Return what the run moves, byte by byte, for the operator (``protocol.traffic``).

    Args:
        per_round: whether each round has a line of its own.
    """
    from diffusion.model import make_model
    from diffusion.parameters import part_lengths, selected_layout

    network, update = make_model(plan.model, 0), plan.update
    layout = selected_layout(network, update.selection, update.parts)
    segments = part_lengths(network, layout)
    return list(traffic_lines(plan, segments, per_round=per_round))


def explain(plan: RunPlan, policy: Policy) -> list[str]:
    """Return, in sentences, what a plan asks of a silo and what the policy says."""
    leaving, update = what_would_leave(plan), plan.update
    lines = [
        f"Run {plan.name}, plan {plan.digest.hex()}.",
        f"{len(plan.silos)} silos train one model of {leaving.num_parameters:,} "
        f"parameters in {plan.num_rounds} rounds: "
        f"{', '.join(silo.name for silo in plan.silos)}.",
        f"What leaves: in each round the change of {_at_most(update)}"
        f"{leaving.num_values:,} parameters ({_selection(update)}), {_form(update)}: "
        f"{leaving.first_round_bytes:,} bytes "
        f"in the first round, {leaving.later_round_bytes:,} in each later one, "
        f"{leaving.total_bytes:,} in all, and {besides(plan)}.",
        *_feedback_sentences(plan),
        _down_sentence(plan),
        *_dealing_sentences(plan),
        *_proximal_sentences(plan),
        *_auxiliary_sentences(plan, policy, leaving.num_parameters),
        _weights_sentence(update),
        *protection_sentences(plan),
        *_privacy_sentences(plan, policy),
        *reference_sentences(plan),
        *_measurement_sentences(plan),
        *class_sentences(plan),
        sums_sentence(plan),
    ]
    reasons = refusals(policy, plan)
    if reasons:
        lines += [f"REFUSED by this silo's policy: {reason}." for reason in reasons]
    else:
        lines.append("This silo's policy permits the plan.")
    return lines


def canary_lines(plan: RunPlan, config: CanaryConfig) -> list[str]:
    """Return what the canaries that this silo plants cost, if it plants any."""
    if config == CanaryConfig():
        return []
    return list(canary_sentences(plan, config, count_trained(plan)))


def _at_most(update: UpdateConfig) -> str:
    """Say whether a number is exact, or that of a silo with the larger share."""
    return "at most " if update.is_dealt else ""


def _selection(update: UpdateConfig) -> str:
    """Name the parts that are federated."""
    if update.selection == "parts":
        return f"selection parts: {', '.join(update.parts)}"
    return f"selection {update.selection}"


def _dealing_sentences(plan: RunPlan) -> list[str]:
    """Say who returns which part, where that is dealt anew in each round."""
    if not plan.update.is_dealt:
        return []
    trained = "everything" if plan.training.train_unassigned else "these parts only"
    return [
        "Each round deals to every silo encoder or decoder, and to about half of them "
        "the bottleneck as well, by a rule that every party computes from the keys of "
        f"the setup; this silo trains {trained}."
    ]


def _privacy_sentences(plan: RunPlan, policy: Policy) -> list[str]:
    """Say what the run may reveal about an image or a patient, at most."""
    privacy = plan.privacy
    if not privacy.is_private:
        return [
            "Privacy cost: no differential privacy, epsilon is unbounded. The sum and "
            "the trained model are public to the run, and nothing limits what they may "
            "reveal about an image.",
            _known_draws_sentence(plan),
        ]
    if privacy.is_in_sum:
        return [
            *plan_sentences(plan),
            *([_known_draws_sentence(plan)] if privacy.mechanism == "silo" else []),
            "Not covered by epsilon: " + "; ".join(not_covered(plan)) + ".",
            *_own_limit(policy),
        ]
    spare = privacy.spare_steps
    steps = steps_of_run(plan) - spare
    lines = [
        f"Privacy cost: epsilon {upward(run_epsilon(plan, privacy.delta))} at delta "
        f"{privacy.delta:g}, per {_unit(plan)}, against everyone outside this silo; "
        "neighbouring data sets differ by adding or removing one.",
        f"Mechanism: DP-SGD, {steps:,} steps"
        + (f" and {spare:,} spare ones" if spare else "")
        + f", sample rate {privacy.sample_rate:g}, clipping norm "
        f"{privacy.clipping_norm:g}, noise multiplier {privacy.noise_multiplier:g}.",
        "Not covered by epsilon: " + "; ".join(not_covered(plan)) + ".",
    ]
    return lines + _own_limit(policy)


def _known_draws_sentence(plan: RunPlan) -> str:
    """Say that training without DP-SGD has no secret draws, and what that helps."""
    shield, verb = "the masks", "stand"
    if plan.protection.is_encrypted:
        shield, verb = "the encryption", "stands"
    hidden = (
        f"Only {shield} {verb} before that, and a sum of few examples is as readable"
    )
    if not plan.protection.is_hidden:
        hidden = "Nothing stands before that here: updates leave in the clear"
    if plan.privacy.is_private:
        hidden = f"{shield.capitalize()} and the noise in the sum stand before that"
    return (
        "Order of the images, timesteps and training noise are NO secret: they follow "
        "from the plan's seed and this silo's number of images. Whoever has this "
        "silo's update by itself can draw them again, which makes it easier to rebuild "
        f"images from it (gradient inversion). {hidden}; `cloister rehearse` shows how "
        "much."
    )


def _measurement_sentences(plan: RunPlan) -> list[str]:
    """Say what the measurement in the silos lets leave, where the plan asks for it."""
    if not plan.evaluation.in_silos:
        return []
    leaves = "leave in a secure sum: the aggregator learns their mean and spread"
    known = (
        " If all but two of the silos in it tell theirs, the last two distances are "
        "known, though not whose is whose."
    )
    if not plan.protection.is_hidden:
        leaves, known = "leave in the clear", ""
    covered = "Epsilon does not cover them: there is no differential privacy."
    if plan.privacy.is_private:
        covered = (
            "They cost no further epsilon: they follow from parameters that it covers, "
            "and from reference statistics that all are sent."
        )
    return [
        "Measured in the silos: after the last round this silo samples its own "
        f"finished model {plan.evaluation.num_samples:,} times; the Fréchet distance "
        f"and its square, 16 bytes, {leaves}.{known} {covered}"
    ]


def _auxiliary_sentences(
    plan: RunPlan, policy: Policy, num_parameters: int
) -> list[str]:
    """Say what the aggregator trains on after the mean, and what it gets for that."""
    config = plan.calibration
    if not config.is_on:
        return []
    when = "every round"
    if config.when == "slow-learning":
        when = "one round, when learning has become slow"
    lines = [
        f"After {when} the aggregator trains {config.steps:,} steps on auxiliary "
        f'images, label "{config.images}": {_images_words(plan)}.'
    ]
    if not config.asks_silos:
        return lines
    everyone = range(len(plan.silos))
    most = max(content_bytes(plan, silo, num_parameters) for silo in everyone)
    what = "that model" if config.images == "silo-models" else "samples of that model"
    mechanism = "WITHOUT differential privacy"
    if plan.privacy.is_private:
        mechanism = "with the plan's DP-SGD, which epsilon counts"
    return [
        *lines,
        f"What else leaves, IN THE CLEAR: before round 1 this silo trains a model on "
        f"its own images alone, {config.local_steps:,} steps {mechanism}, and sends "
        f"{what} to the aggregator, up to {most:,} bytes; no sum hides it.",
    ]


def _images_words(plan: RunPlan) -> str:
    """Say where auxiliary images come from."""
    config = plan.calibration
    return {
        "public": f"a public data set that it has ({config.name})",
        "aggregate": f"{config.num_images:,} samples of the global model after round "
        f"{config.source_round}, which reveal nothing new",
        "silo-samples": "samples of each silo's own model",
        "silo-models": f"{config.num_images:,} samples that it draws of each silo's "
        "own model",
    }[config.images]


def _own_limit(policy: Policy) -> list[str]:
    """Say what may ever be spent, if that is limited."""
    if math.isinf(policy.max_epsilon):
        return []
    return [
        f"This silo's own limit: epsilon {policy.max_epsilon:g} at delta "
        f"{policy.max_delta:g}, over all runs on the same data."
    ]


def _unit(plan: RunPlan) -> str:
    """Say what is protected."""
    if plan.privacy.unit == "example":
        return "image"
    most = plan.privacy.max_images_per_patient
    return f"patient (at most {most} images of one in a step)"


def _form(update: UpdateConfig) -> str:
    """Say how an update is clipped, rotated and quantised."""
    clipped = f"clipped to norm {update.clipping_norm:g}"
    if update.clipping == "previous-mean":
        clipped += " or three times the norm of the mean update before, if that is less"
    rotated = ", rotated" if update.rotation else ""
    if update.form == "float32":
        return f"{clipped}, in float32 without quantisation"
    return f"{clipped}{rotated} and quantised to {update.value_bits} bits"


def _proximal_sentences(plan: RunPlan) -> list[str]:
    """Say what is added to the loss, if anything is."""
    if not plan.training.proximal_mu:
        return []
    return [
        f"Training: a proximal term (mu {plan.training.proximal_mu:g}) keeps what is "
        "federated near the global parameters of the round."
    ]


def _feedback_sentences(plan: RunPlan) -> list[str]:
    """Say what of an update waits in the silo for a later round, if anything does."""
    if not plan.update.error_feedback:
        return []
    return [
        "Error feedback: what quantisation takes from an update stays on this silo's "
        "disk and is added to its next one, before the clip."
    ]


def _down_sentence(plan: RunPlan) -> str:
    """Say in which form the global model comes."""
    from diffusion.model import make_model
    from diffusion.parameters import selected_layout

    network, update = make_model(plan.model, 0), plan.update
    segments = selected_layout(network, update.selection, update.parts).segments
    later, end = (down_bytes(plan, segments, number) for number in (2, 0))
    bits = plan.update.broadcast_bits
    form = f"as a difference of {bits} bits a value" if bits else "in float32"
    return (
        "What comes: nothing before the first round, whose model this silo makes by "
        f"itself; then the global parameters {form}, {later:,} bytes before each round "
        f"and {end:,} at the end, and {besides_down(plan)}."
    )


def _weights_sentence(update: UpdateConfig) -> str:
    """Say what a silo counts for in the mean, and who knows it."""
    return {
        "equal": "Weights: all silos count alike.",
        "declared": "Weights: the numbers that the plan declares, for all to read.",
        "secret": f"Weights: each silo's number of examples, at most "
        f"{update.max_weight:,}; the aggregator learns their sum in each "
        + (
            "group of each round, and so exactly this silo's number after a few rounds."
            if update.is_dealt
            else "round, and so exactly this silo's number if the silos of two rounds "
            "differ by this one."
        ),
    }[update.weights]
