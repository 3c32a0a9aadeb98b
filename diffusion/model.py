"""A configuration turned into a network with reproducible initial parameters."""

import math

import torch
from torch import nn

from diffusion.config import UNetConfig
from diffusion.feddiffuse_unet import FedDiffuseUNet
from diffusion.means import CentralImages, ImageStack
from diffusion.parts import DenoisingNetwork
from diffusion.unet import ResidualUNet


def make_model(
    config: UNetConfig, generator: torch.Generator | int
) -> DenoisingNetwork:
    """Build the network and draw its initial parameters.

    Guarantees:
        The same configuration and seed give bitwise the same parameters. torch's
        global random state is neither read nor changed, so that threads do not
        disturb each other.

    Args:
        config: architecture and sizes.
        generator: a CPU generator, which is advanced, or a seed for a fresh one.

    Returns:
        A float32 network on the CPU, in training mode.

    Source:
        Convolutions and linear layers as PyTorch draws them: uniform within
        ±1/sqrt(fan in) (He et al., 2015, with a = sqrt 5); embeddings of classes
        likewise, standard normal; zero for the last layers of the residual network
        (Ho et al., 2020, appendix B).
    """
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    with torch.device("meta"):  # no memory yet, and no use of the global generator
        model = _build(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        # Embeddings last: the rest is drawn as it is without classes.
        for module in sorted(model.modules(), key=_is_embedding):
            _initialise(module, generator)
        for module in model.zero_initialised():
            for parameter in module.parameters():
                parameter.zero_()
    return model


def _build(config: UNetConfig) -> DenoisingNetwork:
    """Build the network that the configuration names, uninitialised."""
    if config.is_central_images:
        return CentralImages(config.dim, config.channels, config.image_size)
    kind = ResidualUNet if config.architecture == "residual" else FedDiffuseUNet
    return kind(config.dim, config.channels, config.dim_mults, config.num_classes)


def _is_embedding(module: nn.Module) -> bool:
    """Return whether a layer is an embedding of classes."""
    return isinstance(module, nn.Embedding)


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a layer's own parameters, in a fixed order; containers have none."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        fan_in, _ = nn.init._calculate_fan_in_and_fan_out(module.weight)
        bound = 1.0 / math.sqrt(fan_in)
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            module.bias.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, nn.Embedding):
        module.weight.normal_(generator=generator)
    elif isinstance(module, ImageStack):
        module.images.zero_()
    elif isinstance(module, nn.GroupNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()
    elif next(module.parameters(recurse=False), None) is not None:
        raise TypeError(f"no initialisation is known for {type(module).__name__}")
