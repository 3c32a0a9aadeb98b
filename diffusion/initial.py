"""Where a run begins: parameters drawn from its seed, or those of a file."""

import hashlib
from pathlib import Path

from diffusion.config import UNetConfig
from diffusion.errors import ShapeMismatch, WeightsUnavailable
from diffusion.model import make_model
from diffusion.parameters import load_parameters, load_safetensors
from diffusion.parts import DenoisingNetwork


def first_model(
    config: UNetConfig, seed: int, sha256: str, path: Path | None
) -> DenoisingNetwork:
    """Return the network that a run begins with, on the CPU.

    Args:
        sha256: the digest of the file that holds all its parameters, hexadecimal;
            empty: they are drawn from the seed, and no file is read.
        path: the file, where one is needed.

    Raises:
        WeightsUnavailable: the file is missing, or has another digest.
        CorruptFile: it is no safetensors file.
        ShapeMismatch: it does not hold just the parameters of this network.
    """
    model = make_model(config, seed)
    if not sha256:
        return model
    if path is None or not path.is_file():
        raise WeightsUnavailable(
            f"the plan begins with the parameters of a file of SHA-256 {sha256}; put "
            f"it at {path or 'initial.safetensors in this folder'}"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise WeightsUnavailable(
            f"{path}: has SHA-256 {found}, the plan begins with {sha256}"
        )
    parameters, _ = load_safetensors(path)
    missing = {name for name, _ in model.named_parameters()} - set(parameters)
    if missing:
        raise ShapeMismatch(
            f"{path}: lacks {len(missing)} parameters of the plan's model"
        )
    load_parameters(model, parameters)
    return model
