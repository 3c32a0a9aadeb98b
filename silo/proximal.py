"""The proximal term: local parameters are drawn to the round's global ones.

    L(theta) + mu / 2 * |theta - theta_t|^2

theta_t are the round's starting parameters. The term covers the parts that are shared
and no others: a part that stays local has no global counterpart to stay near, and where
it began the round is only where the round before it ended.

Its gradient, mu (theta - theta_t), is added to the gradient of the loss. In private
training it is added after clip and noise: it depends on released parameters alone, so
that it costs nothing and must not take up the clipping norm.

Source: Li et al., 2020 (FedProx, arXiv 1812.06127), equation 2; FedDM-prox (Vora et
al., 2024, arXiv 2407.14730).
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ProximalTerm:
    """mu, and pairs of a trained parameter and its value at the start of the round."""

    mu: float
    pairs: tuple[tuple[nn.Parameter, Tensor], ...] = field(repr=False)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add mu (theta - theta_t) to the ``grad`` of every parameter of the term.

        A parameter without a ``grad`` is left alone: the optimizer does not move it.
        """
        for parameter, start in self.pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.mu)


def proximal_term(
    model: nn.Module, names: Collection[str], mu: float
) -> ProximalTerm | None:
    """Return the term around a model's present parameters; None if mu is 0.

    Args:
        model: holds the round's starting parameters, on the device of the training.
        names: of the parameters that are shared; those that are frozen are left out.
    """
    if mu == 0.0:
        return None
    pairs = tuple(
        (parameter, parameter.detach().clone())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name in names
    )
    return ProximalTerm(mu, pairs)
