"""What an image shows, added to the time embedding: class-conditional networks.

One row more than there are classes: the last is learnt for *no class*, from examples
whose label was dropped, and is what classifier-free guidance leads away from.

Source: Ho & Salimans, 2022 (arXiv 2207.12598), section 3.2; the sum with the time
embedding: Dhariwal & Nichol, 2021, section 3.1.
"""

import torch
from torch import Tensor, nn

NO_CLASS = -1
"""The label of an example whose class is not told to the network."""


class ClassEmbedding(nn.Module):
    """An embedding of labels, added to that of the timesteps.

    Args:
        num_classes: 0 for a network that knows no classes: no parameters, and the time
            embedding is passed on as it is.
        width: of the time embedding.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.rows: nn.Embedding | None = None
        if num_classes:
            self.rows = nn.Embedding(num_classes + 1, width)

    def forward(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        """Return the time embedding ``[n, width]`` with the labels' own added.

        Args:
            labels: int64 ``[n]``, 0 … num_classes - 1 or :data:`NO_CLASS`; None stands
                for no class throughout.

        Raises:
            ValueError: there are labels, and the network knows no classes.
            IndexError: a label is ``num_classes + 1`` or more (on a CPU).
        """
        if self.rows is None:
            if labels is not None:
                raise ValueError("labels were given to a network without classes")
            return embedding
        if labels is None:
            labels = torch.full((len(embedding),), NO_CLASS, device=embedding.device)
        indices = torch.where(labels < 0, self.num_classes, labels)
        result: Tensor = embedding + self.rows(indices)
        return result


def drop_labels(labels: Tensor, is_dropped: Tensor) -> Tensor:
    """Return labels with :data:`NO_CLASS` where they are dropped; same shape."""
    return labels.masked_fill(is_dropped, NO_CLASS)


def balanced_labels(num_classes: int, count: int) -> Tensor:
    """Return the classes of images 0 … count - 1: image i has class i mod num_classes.

    int64 ``[count]``; no two classes differ by more than one in number.
    """
    return torch.arange(count) % num_classes
