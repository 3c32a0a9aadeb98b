"""One private step at a round's global parameters: the sum of clipped gradients.

Nothing is trained here and nothing is kept: the optimizer is the aggregator's. The sum
is exact, in whole multiples of a small step, so that a unit that is taken away changes
it by its own contribution and by no rounding of the others'.

Source: docs/noise-inside-the-sum.md, sections 2, 3 and 10.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffusion.parameters import ParameterLayout
from diffusion.parts import DenoisingNetwork
from diffusion.schedule import Schedule
from privacy.clipping import Vector, clip
from privacy.errors import NotFinite
from protocol.noise_plan import gradient_step
from protocol.plan import PlanDraft
from silo.data import ImageSet
from silo.dpsgd import check_independence, validate
from silo.per_example import LoopEngine, Objective
from silo.private_training import Drawing, multiplicity_of
from silo.randomness import PrivateRandom
from silo.training import Meter, Progress
from silo.units import PrivacyUnits


def gradient_sum(
    model: DenoisingNetwork,
    images: ImageSet,
    units: PrivacyUnits,
    schedule: Schedule,
    plan: PlanDraft,
    layout: ParameterLayout,
    *,
    round_number: int,
    device: torch.device,
    random: PrivateRandom,
    observe: Callable[[Progress], None],
) -> Vector:
    """Return minus the sum of a Poisson sample's clipped gradients, float32 ``[d]``.

    Guarantees:
        Every unit is drawn independently with the plan's sample rate, and adds its
        gradient, the mean over its draws, clipped in exact arithmetic to
        ``privacy.clipping_norm`` and rounded to whole multiples of
        :func:`~protocol.noise_plan.gradient_step`. Each is computed by itself, so that
        no rounding of it depends on who else was drawn. A gradient with NaN or infinity
        adds nothing. The sum is exact up to its conversion to float32. The model is
        left as it was.

    Args:
        model: holds the round's global parameters, on ``device``; what is trainable
            are the parameters of the layout.

    Raises:
        NotPrivate: the model mixes examples.
        ValueError: other parameters are trainable than those of the layout.
    """
    names = tuple(n for n, p in model.named_parameters() if p.requires_grad)
    if names != layout.names:
        raise ValueError("the trainable parameters are not those that are federated")
    model.train()
    validate(model)
    _, height, width, channels = images.pixels.shape
    check_independence(model, (channels, height, width))
    multiplicity = multiplicity_of(plan, device)
    objective = Objective(model, schedule, plan.training.loss)
    draw = Drawing(images, units, plan, multiplicity, schedule, device, random)
    drawn = random.poisson_sample(len(units), plan.privacy.sample_rate)
    total, losses = np.zeros(layout.size, np.int64), [torch.zeros(())]
    for unit in drawn:
        for made in LoopEngine().gradients(objective, draw(np.array([unit]))):
            add_clipped(total, flat(made.gradients), plan.privacy.clipping_norm)
            losses += [loss.cpu() for loss in made.losses if loss.isfinite()]
    meter = Meter(round_number, 1, observe, may_stop=False)
    meter.count(1, torch.stack(losses).sum() / max(1, len(losses) - 1), len(drawn), 0.0)
    exact = total.astype(np.float64) * -gradient_step(plan.privacy.clipping_norm)
    return exact.astype(np.float32)


def add_clipped(
    total: np.ndarray[tuple[int], np.dtype[np.int64]],
    gradient: Vector,
    clipping_norm: float,
) -> None:
    """Add a gradient to a sum in place, clipped, in whole multiples of the step.

    Guarantees: what is added has an L2 norm of at most C + √d h / 2, and is nothing
    where a value is NaN or infinite. Up to 2^32 units cannot overflow.

    Args:
        gradient: float32 ``[d]``; consumed.
    """
    try:
        clip(gradient, clipping_norm)
    except NotFinite:
        return
    whole = gradient.astype(np.float64)
    whole /= gradient_step(clipping_norm)
    np.rint(whole, out=whole)
    total += whole.astype(np.int64)


def flat(gradients: list[Tensor]) -> Vector:
    """Return one unit's gradients ``[1, *shape]`` as a new vector, float32 ``[d]``."""
    joined = torch.cat([gradient.reshape(-1) for gradient in gradients])
    vector: Vector = joined.to("cpu", torch.float32).numpy()
    return vector
