"""A trained model in one safetensors file: parameters, and how to sample from them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.class_embedding import balanced_labels
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.errors import CorruptFile, DeviceUnavailable, UnknownClass
from diffusion.model import make_model
from diffusion.parameters import load_parameters, load_safetensors, save_safetensors
from diffusion.sampling import sample
from diffusion.schedule import make_schedule

SAMPLING_BLOCK = 100


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Parameters by name, with the configuration that gives them meaning.

    ``notes`` are further lines of text, such as the digest of a plan.
    """

    model: UNetConfig
    schedule: ScheduleConfig
    sampler: SamplerConfig
    parameters: Mapping[str, Tensor]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def blocks(
        self,
        *,
        seed: int,
        count: int,
        device: torch.device,
        block_size: int = SAMPLING_BLOCK,
        labels: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """Draw images 0 … count - 1 of a seed, in blocks ``[k, c, h, w]``.

        Args:
            labels: the class of each image, for a model with classes; None: image i
                has class i mod num_classes, so that all classes are equally frequent.

        Raises:
            UnknownClass: a label is no class of the model.
            CorruptFile: a parameter of the model is missing.
            ShapeMismatch: one is not the model's.
        """
        chosen = self._labels(count, labels)
        network = make_model(self.model, 0)
        if missing := {n for n, _ in network.named_parameters()} - set(self.parameters):
            raise CorruptFile(f"{len(missing)} parameters of the model are missing")
        load_parameters(network, self.parameters)
        network.to(device)
        size = self.model.image_size
        return sample(
            network,
            make_schedule(self.schedule).to(device),
            self.sampler,
            seed=seed,
            first_index=0,
            count=count,
            image_shape=(self.model.channels, size, size),
            device=device,
            block_size=block_size,
            labels=chosen,
        )

    def images(
        self,
        *,
        seed: int,
        count: int,
        device: torch.device,
        labels: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw images 0 … count - 1 of a seed, all at once; see :meth:`blocks`."""
        blocks = self.blocks(seed=seed, count=count, device=device, labels=labels)
        return torch.cat(list(blocks))

    def _labels(self, count: int, labels: Sequence[int] | None) -> Tensor | None:
        """Return the labels of ``count`` images, checked; None without classes."""
        num_classes = self.model.num_classes
        if labels is None:
            return balanced_labels(num_classes, count) if num_classes else None
        if not num_classes:
            raise UnknownClass("this model knows no classes; leave the class out")
        for label in labels:
            if not 0 <= label < num_classes:
                raise UnknownClass(
                    f"class {label}: this model has 0 … {num_classes - 1}"
                )
        return torch.tensor(labels, dtype=torch.int64)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OSError: the file system refuses.
    """
    texts = {
        name: json.dumps(dataclasses.asdict(getattr(checkpoint, name)))
        for name in ("model", "schedule", "sampler")
    }
    notes = {f"note.{name}": text for name, text in checkpoint.notes.items()}
    save_safetensors(path, checkpoint.parameters, texts | notes)


def load_checkpoint(path: Path) -> Checkpoint:
    """Return what :func:`save_checkpoint` wrote.

    Raises:
        CorruptFile: cut off, damaged, or not a checkpoint of ours.
    """
    parameters, texts = load_safetensors(path)
    try:
        model = _table(texts, "model")
        model["dim_mults"] = tuple(model["dim_mults"])
        return Checkpoint(
            model=UNetConfig(**model),
            schedule=ScheduleConfig(**_table(texts, "schedule")),
            sampler=SamplerConfig(**_table(texts, "sampler")),
            parameters=parameters,
            notes={
                name.removeprefix("note."): text
                for name, text in texts.items()
                if name.startswith("note.")
            },
        )
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"{path}: is not a checkpoint of a diffusion model") from None


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, else the CPU.

    Raises:
        DeviceUnavailable: ``cuda`` on a machine without it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("device cuda: no usable GPU here; use cpu or auto")
    return torch.device(name)


def _table(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return one configuration as a table."""
    table = json.loads(texts[name])
    if not isinstance(table, dict):
        raise TypeError(name)
    return table
