"""Flower's SecAgg+ and ours on one vector, and what its weaknesses come to.

- Masking: ``pseudo_rand_gen``, ``generate_shared_key``, ``parameters_addition``,
  ``parameters_subtraction`` and ``parameters_mod`` of flwr in the order in which
  ``_collect_masked_vectors`` of its client calls them, against
  ``crypto.secagg.masks.mask``.
- Quantising and masking: before it ``parameters_multiply``, ``quantize`` and
  ``factor_combine``, against rounding and packing.
- Update to message: that client function itself, which also opens the shares and
  encodes the arrays, against rounding, packing and ``SiloSide.mask``, which also checks
  the cohort's signatures, hashes the vector twice and signs.

Both sides mask among the same silos; flwr's graph is complete then, which is what its
``num_shares = 1.0`` means. The vector is cut into a hundred arrays, as a model's is.
"""

import os
import secrets
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.client.mod.secure_aggregation.secaggplus_mod import _collect_masked_vectors
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    generate_shared_key,
)
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
)

from benchmarks.secagg_federation import Federation
from benchmarks.secagg_flower_attacks import demonstrations
from benchmarks.secagg_flower_clients import (
    CLIPPING_RANGE,
    MAX_WEIGHT,
    TARGET_RANGE,
    FlowerClients,
)
from benchmarks.secagg_process import Rows, Sizes, answer, clock, interleaved, ratio
from benchmarks.secagg_speed import (
    FIELD_BITS,
    NUM_TENSORS,
    SLOT_DIGEST,
    VALUE_BITS,
    Words,
    quantise_and_pack,
)
from crypto import prg
from crypto.keys import AgreementKey
from crypto.ring import words_needed
from crypto.secagg.masks import SlotSecrets, mask
from crypto.secagg.parts import whole
from crypto.secagg.upload import Upload
from privacy.grids import Grid, even_range

SILO = 1
"""The silo whose work is measured; flwr's node ids begin with 1."""
NUM_EXAMPLES = 500

Arrays = list[npt.NDArray[Any]]


class Theirs:
    """One client of flwr among others, and the update that it masks."""

    def __init__(self, num_clients: int, tensors: Arrays) -> None:
        self._clients = FlowerClients(num_clients, 2 * num_clients // 3 + 1)
        self._state = self._clients.states[SILO]
        self._tensors, self._parameters = tensors, ndarrays_to_parameters(tensors)
        self._quantised = self._quantise()

    def _quantise(self) -> Arrays:
        """Weigh and round as ``_collect_masked_vectors`` does, with the same calls."""
        q_ratio = round(NUM_EXAMPLES / MAX_WEIGHT * TARGET_RANGE)
        weighted = parameters_multiply(self._tensors, q_ratio / TARGET_RANGE)
        quantised = quantize(weighted, CLIPPING_RANGE, TARGET_RANGE)
        return factor_combine(q_ratio, quantised)

    def _mask(self, quantised: Arrays) -> Arrays:
        """Mask integers as ``_collect_masked_vectors`` does, with the same calls."""
        state = self._state
        shapes = [array.shape for array in quantised]
        own = pseudo_rand_gen(state.rd_seed, state.mod_range, shapes)
        masked = parameters_addition(quantised, own)
        for node in self._clients.sealed[SILO]:
            shared_key = generate_shared_key(
                bytes_to_private_key(state.sk1),
                bytes_to_public_key(state.public_keys_dict[node][0]),
            )
            pairwise = pseudo_rand_gen(shared_key, state.mod_range, shapes)
            if state.nid > node:
                masked = parameters_addition(masked, pairwise)
            else:
                masked = parameters_subtraction(masked, pairwise)
        return parameters_mod(masked, state.mod_range)

    def mask(self) -> None:
        """Mask what was quantised before."""
        self._mask(self._quantised)

    def quantise_and_mask(self) -> None:
        """Quantise the update and mask it."""
        self._mask(self._quantise())

    def make_message(self) -> None:
        """Do all that a client does after training."""
        request = self._clients.request(SILO)
        _collect_masked_vectors(self._state, request, NUM_EXAMPLES, self._parameters)


class Ours:
    """One silo among others, and the update that it masks."""

    def __init__(self, num_silos: int, tensors: Arrays) -> None:
        self._update = np.concatenate(tensors)
        lengths = tuple(tensor.size for tensor in tensors)
        norm = float(np.sqrt(self._update @ self._update))
        ranges = np.full(len(lengths), even_range(norm, self._update.size), np.float32)
        self._grid = Grid(VALUE_BITS, ranges, lengths)
        # A slot masks one vector, and the same again: hence one dither for all runs.
        self._dither_seed = os.urandom(prg.MASK_SEED_BYTES)
        self._packed = self._quantise()
        self._parts = whole(self._packed.size, range(num_silos))
        keys = [AgreementKey.generate() for _ in range(num_silos)]
        self._publics = {index: key.public for index, key in enumerate(keys)}
        seed = secrets.token_bytes(prg.MASK_SEED_BYTES)
        self._own = SlotSecrets(seed, keys[SILO])
        self._federation = Federation(num_silos)
        self._federation.set_up()
        num_words = words_needed(self._update.size, FIELD_BITS)
        self._active = self._federation.activate(num_words)

    def _quantise(self) -> Words:
        """Round and pack."""
        return quantise_and_pack(self._update, self._grid, self._dither_seed)

    def _mask(self, words: Words) -> None:
        """Mask packed words, in place."""
        mask(words, self._own, SILO, self._publics, SLOT_DIGEST, self._parts)

    def mask(self) -> None:
        """Mask what was packed before."""
        self._mask(self._packed)

    def quantise_and_mask(self) -> None:
        """Quantise the update, pack and mask it."""
        self._mask(self._quantise())

    def make_message(self) -> None:
        """Do all that a silo does after training, but for the disk."""
        upload = Upload.of(self._quantise())
        self._federation.silos[SILO].mask(self._active, upload)


def compare(
    sizes: Sizes,
    what: str,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    target: str,
) -> Rows:
    """Return both times, taken in turn, and how they compare."""
    our_seconds, their_seconds = interleaved(sizes, (_timed(ours), _timed(theirs)))
    name = (
        f"flwr 1.41, n = {sizes.flower_silos}, {sizes.flower_values:,} values, {what}"
    )
    return [
        (f"{name}: ours", median(our_seconds), "s", ""),
        (f"{name}: flwr's", median(their_seconds), "s", ""),
        (f"{name}: flwr's / ours", ratio(their_seconds, our_seconds), "ratio", target),
    ]


def _timed(step: Callable[[], None]) -> Callable[[], float]:
    """Return a step that returns its own seconds."""

    def timed() -> float:
        began = clock()
        step()
        return clock() - began

    return timed


def measure(sizes: Sizes) -> Rows:
    """Compare the times, then show what can be shown of the weaknesses."""
    generator = np.random.default_rng(0)
    update = generator.standard_normal(sizes.flower_values, np.float32)
    tensors = np.array_split(update, NUM_TENSORS)
    ours = Ours(sizes.flower_silos, tensors)
    theirs = Theirs(sizes.flower_silos, tensors)
    rows = compare(sizes, "masking", ours.mask, theirs.mask, ">= 10")
    rows += compare(
        sizes,
        "quantising and masking",
        ours.quantise_and_mask,
        theirs.quantise_and_mask,
        ">= 10",
    )
    rows += compare(
        sizes, "update to message", ours.make_message, theirs.make_message, ""
    )
    return rows + demonstrations()


def main() -> None:
    """Answer ``benchmarks.secagg``."""
    answer(measure)


if __name__ == "__main__":
    main()
