"""The DDPM training loss, one value per example."""

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.config import LossKind, check_loss_kind
from diffusion.schedule import Schedule


def denoising_loss(
    model: nn.Module,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: Schedule,
    kind: LossKind,
    labels: Tensor | None = None,
) -> Tensor:
    """Return how far the predicted noise is from the noise, for each example.

    Guarantees:
        Value i depends on example i, its label, timestep and noise alone, if the model
        keeps examples apart (both of ours do). The mean over a batch is therefore a
        sum of per-example terms, as DP-SGD needs.

    Args:
        model: ``model(x_t, t)`` gives the predicted noise, ``model(x_t, t, labels)``
            where there are labels.
        x_0: clean images ``[n, c, h, w]`` in [-1, 1].
        t: timesteps ``[n]``, 0 … T - 1.
        noise: standard Gaussian, like ``x_0``.
        schedule: the forward process, on the device of ``t``.
        kind: ``mse``, the squared error, or ``huber``, smooth L1 with its corner
            at 1 (FedDiffuse).
        labels: int64 ``[n]``, for a network with classes; None: no class, or none.

    Returns:
        ``[n]``, the mean over an example's pixels and channels.

    Raises:
        ValueError: the kind is unknown.

    Source:
        Ho, Jain & Abbeel, 2020, equation 14 (L_simple).
    """
    check_loss_kind(kind)
    x_t = schedule.q_sample(x_0, t, noise)
    predicted_noise = model(x_t, t) if labels is None else model(x_t, t, labels)
    if kind == "mse":
        errors = F.mse_loss(predicted_noise, noise, reduction="none")
    else:
        errors = F.smooth_l1_loss(predicted_noise, noise, reduction="none", beta=1.0)
    return errors.flatten(start_dim=1).mean(dim=1)
