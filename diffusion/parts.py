"""Encoder, bottleneck and decoder: every parameter in exactly one part.

A network declares its parts by structure, as the names of its direct children;
nothing is guessed from sub-strings. The selections are those of FedDiffuse: which
parts a silo sends and receives.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from diffusion.errors import PartsIncomplete


class Part(Enum):
    """A part of a UNet.

    The first convolution and the embeddings of time and class belong to the encoder,
    the final block and convolution to the decoder (FedDiffuse's own counting, in which
    there are no classes).
    """

    ENCODER = "encoder"
    BOTTLENECK = "bottleneck"
    DECODER = "decoder"


#: The parts that are federated, by the selection's name. Source: de Goede, Cox &
#: Decouchant, 2024, section 3: FULL, USPLIT, ULATDEC, UDEC.
SELECTIONS: Mapping[str, frozenset[Part]] = MappingProxyType(
    {
        "full": frozenset(Part),
        "usplit": frozenset(Part),
        "ulatdec": frozenset({Part.BOTTLENECK, Part.DECODER}),
        "udec": frozenset({Part.DECODER}),
    }
)


def shared_parts(selection: str, named: Iterable[str] = ()) -> frozenset[Part]:
    """Return the parts that are federated.

    Args:
        selection: one of ``SELECTIONS``, or "parts" for those that are named.
        named: names of parts, with "parts" only.
    """
    if selection == "parts":
        return frozenset(Part(name) for name in named)
    return SELECTIONS[selection]


class DenoisingNetwork(nn.Module):
    """A network that predicts the noise in an image; it knows its own parts.

    ``forward(x_t, t, labels=None)`` takes noised images ``[n, c, h, w]`` and timesteps
    ``[n]`` and returns the predicted noise ``[n, c, h, w]``. Labels, int64 ``[n]``, are
    for a network of ``num_classes`` > 0 alone, where None means no class
    (``diffusion/class_embedding.py``). Examples of a batch never influence each other:
    no batch normalisation, no buffers with data.
    """

    #: The direct children of which each part consists.
    parts: ClassVar[Mapping[Part, tuple[str, ...]]]

    #: How many classes the network knows; 0: it takes no labels.
    num_classes: int = 0

    def zero_initialised(self) -> Iterator[nn.Module]:
        """Yield the layers that start at zero; none unless a network says so."""
        yield from ()


def part_of(model: nn.Module) -> dict[str, Part]:
    """Return the part of every parameter, by the parameter's name.

    Guarantees:
        The keys are exactly the names of ``model.named_parameters()``, in their
        order; each is in one part.

    Raises:
        PartsIncomplete: the model declares no parts, or its declaration names a
            child twice, names one that does not exist, or leaves a parameter out.
    """
    owners = _owners(model)
    result = {}
    for name, _ in model.named_parameters():
        child = name.partition(".")[0]
        if child not in owners:
            raise PartsIncomplete(f"parameter {name} belongs to no part")
        result[name] = owners[child]
    return result


def _owners(model: nn.Module) -> dict[str, Part]:
    """Return the part of each direct child, checked for doubles and ghosts."""
    declared = getattr(model, "parts", None)
    if not isinstance(declared, Mapping):
        raise PartsIncomplete(f"{type(model).__name__} declares no parts")
    children = {name for name, _ in model.named_children()}
    owners: dict[str, Part] = {}
    for part, names in declared.items():
        for name in names:
            if name in owners:
                raise PartsIncomplete(f"child {name} is declared in two parts")
            if name not in children:
                raise PartsIncomplete(f"child {name} is declared but does not exist")
            owners[name] = part
    return owners
