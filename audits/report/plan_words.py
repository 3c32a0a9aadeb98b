"""The plan in brief, as pairs of words."""

from protocol.plan import RunPlan
from protocol.update_settings import UpdateConfig


def plan_in_brief(plan: RunPlan) -> list[list[str]]:
    """Return what a reader has to know of the plan, as pairs of words."""
    protection, update, training = plan.protection, plan.update, plan.training
    amount = (
        f"{training.local_steps:,} steps"
        if training.local_steps
        else f"{training.local_epochs:,} epochs"
    )
    model = plan.model
    shape = f"{model.channels} × {model.image_size} × {model.image_size}"
    network = f"{model.architecture} UNet for images of {shape}"
    if model.is_central_images:
        network = f"none: {model.dim} central images of {shape}"
    return [
        ["Model", network],
        ["What is federated", f"{_selection(update)} ({_form(update)})"],
        ["Training in a round", f"{amount} of {training.examples_per_step} examples"],
        ["Clipping norm of an update", _clipping(update)],
        ["Weights in the mean", _weights(update)],
        ["Protection", _protection(plan)],
        ["Threshold", f"{protection.threshold_for(len(plan.silos))} silos"],
        ["Smallest cohort", f"{protection.min_cohort} silos"],
        ["Differential privacy", plan.privacy.mechanism],
        ["Rounds", f"{plan.num_rounds:,}"],
        ["Digest of the plan", plan.digest.hex()],
    ]


def _protection(plan: RunPlan) -> str:
    """Say how updates are hidden, from whom."""
    protection = plan.protection
    if protection.method == "none":
        return "none: updates in the clear"
    if protection.is_encrypted:
        maker = protection.key_maker or plan.silos[0].name
        return (
            f"encrypted sums (exact BFV, {protection.trust} aggregator; the key is "
            f"made by {maker}, and any silo that gives it to the aggregator opens "
            "every update)"
        )
    silos = "silo" if protection.max_colluding == 1 else "silos"
    return (
        f"masked sums ({protection.trust} aggregator, up to "
        f"{protection.max_colluding} colluding {silos})"
    )


def _selection(update: UpdateConfig) -> str:
    """Name what is federated."""
    if update.selection == "parts":
        return ", ".join(update.parts)
    return f"{update.selection}, dealt" if update.is_dealt else update.selection


def _form(update: UpdateConfig) -> str:
    """Say in which form values leave a silo."""
    rotated = "rotated, " if update.rotation else ""
    return f"{rotated}{update.value_bits} bits a value, {update.rounding} rounding"


def _clipping(update: UpdateConfig) -> str:
    """Say how long an update may be."""
    if update.clipping == "fixed":
        return f"{update.clipping_norm:g}"
    return (
        f"three times the norm of the mean update before, at most "
        f"{update.clipping_norm:g}"
    )


def _weights(update: UpdateConfig) -> str:
    """Say what each silo counts for, and who knows it."""
    return {
        "equal": "all silos count alike",
        "declared": "as the plan declares",
        "secret": f"each silo's number of examples, at most {update.max_weight:,}; the "
        "aggregator learns their sum in each round, and so exactly a silo's number if "
        "the survivors of two rounds differ by that silo",
    }[update.weights]
