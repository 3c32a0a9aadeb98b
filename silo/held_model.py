"""The global model that a silo holds between the rounds of a quantised down-link.

It begins as the first model of the plan and moves by the differences that the
aggregator broadcasts (``protocol.broadcast``). What came is on disk, whole, before the
silo says that it holds it. Where the file is missing or damaged the silo holds the
first model again, and says so: it is sent what it lacks.
"""

import logging
from pathlib import Path

import torch

from diffusion.errors import DiffusionError
from diffusion.parameters import (
    ParameterLayout,
    Vector,
    load_safetensors,
    parameters_digest,
    save_safetensors,
    unflatten,
)
from protocol.bodies import floats_from_bytes
from protocol.broadcast import Broadcast, moved
from silo.errors import PolicyViolation

logger = logging.getLogger(__name__)

HELD_FILE = "held.safetensors"
_TENSOR, _NOTE = "shared", "parameters"


class HeldModel:
    """The shared parameters that one silo holds in one run.

    Args:
        folder: the run's folder.
        first: the shared parameters that the plan begins with, float32 ``[d]``.
        bits: ``update.broadcast_bits``; 0 if the model never moves here.
    """

    def __init__(
        self, folder: Path, layout: ParameterLayout, first: Vector, bits: int
    ) -> None:
        self._path, self._layout = folder / HELD_FILE, layout
        self._first, self._bits = first, bits

    def vector(self) -> Vector:
        """Return the shared parameters, float32 ``[d]``; do not change them."""
        return self._load()[0]

    def digest(self) -> str:
        """Return their digest, hexadecimal: that of ``parameters_digest``."""
        return self._load()[1]

    def digest_of(self, vector: Vector) -> str:
        """Return the digest of some shared parameters, hexadecimal."""
        return parameters_digest(unflatten(vector, self._layout), self._layout).hex()

    def take(self, message: Broadcast) -> str:
        """Return the digest of the model that is held after a broadcast.

        It is the one that the message names where it could be reached from here;
        otherwise the one that was held before, and nothing has changed.

        Guarantees: a new model has the digest that the message names, and is on disk.

        Raises:
            PolicyViolation: what came leads to another model than it says; the former
                one stays.
            EnvelopeRejected: of another length, NaN or infinity; likewise.
        """
        vector, held = self._load()
        if held == message.model:
            return held
        if len(message.parameters):
            vector = floats_from_bytes(message.parameters, self._layout.size).copy()
        elif held in message.models:
            vector = self._follow(message, vector, message.models.index(held))
        else:
            return held
        if self.digest_of(vector) != message.model:
            raise PolicyViolation("a broadcast leads to another model than it names")
        self._save(vector, message.model)
        return message.model

    def _follow(self, message: Broadcast, vector: Vector, held: int) -> Vector:
        """Return the model after the differences that begin with the one held."""
        for each in message.differences()[held:]:
            segments = self._layout.segments
            vector = moved(vector, each.ranges, each.levels, segments, self._bits)
        return vector

    def _load(self) -> tuple[Vector, str]:
        """Return the parameters on disk and their digest, or else the first ones."""
        try:
            tensors, notes = load_safetensors(self._path)
            vector = tensors[_TENSOR].numpy()
            if self.digest_of(vector) == notes.get(_NOTE):
                return vector, notes[_NOTE]
            logger.warning("%s is damaged; the aggregator is asked again", HELD_FILE)
        except FileNotFoundError:
            pass
        except (OSError, KeyError, DiffusionError) as error:
            logger.warning("%s is not used: %s", HELD_FILE, error)
        return self._first, self.digest_of(self._first)

    def _save(self, vector: Vector, digest: str) -> None:
        """Write the parameters, whole or not at all."""
        save_safetensors(
            self._path, {_TENSOR: torch.from_numpy(vector)}, {_NOTE: digest}
        )
