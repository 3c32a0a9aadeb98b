"""Parameters by name, as one flat vector, as a digest and as a file.

A layout fixes names, shapes and offsets; ``flatten`` and ``unflatten`` are inverse
to each other under it. All vectors are float32 ``[d]``.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from diffusion.errors import CorruptFile, PartsIncomplete, ShapeMismatch
from diffusion.files import save_atomically
from diffusion.parts import Part, part_of, shared_parts

Vector = npt.NDArray[np.float32]

LAYOUT_LABEL = b"cloister/parameter-layout/1"
PARAMETERS_LABEL = b"cloister/parameters/1"


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and offsets of a flat vector of parameters.

    Args:
        names: the parameters, in the vector's order.
        shapes: one shape per name.
        counts: how many parameters each stretch of the vector has, in their order; one
            stretch with all of them by default.

    Raises:
        ValueError: a name occurs twice, names and shapes differ in number, or the
            stretches hold another number.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise ValueError(f"{len(self.names)} names but {len(self.shapes)} shapes")
        if self.counts and sum(self.counts) != len(self.names):
            raise ValueError(f"{len(self.names)} names in stretches of {self.counts}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a parameter name occurs twice in the layout")

    @property
    def segments(self) -> tuple[int, ...]:
        """Return the number of coordinates of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Return the first coordinate of each parameter."""
        return (0, *itertools.accumulate(self.segments))[: len(self.names)]

    @property
    def size(self) -> int:
        """Return d, the length of the vector."""
        return sum(self.segments)

    @property
    def stretches(self) -> tuple["ParameterLayout", ...]:
        """Return the layouts of the vector's stretches, which follow each other."""
        stops = tuple(itertools.accumulate(self.counts)) or (len(self.names),)
        places = itertools.starmap(slice, itertools.pairwise((0, *stops)))
        return tuple(
            ParameterLayout(self.names[place], self.shapes[place]) for place in places
        )

    def digest(self) -> bytes:
        """Return the SHA-256 digest of names and shapes: 32 bytes."""
        digest = hashlib.sha256(_header(LAYOUT_LABEL, self))
        return digest.digest()

    def slices(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Yield name, shape and range in the vector of each parameter."""
        rows = zip(self.names, self.shapes, self.offsets, self.segments, strict=True)
        for name, shape, offset, length in rows:
            yield name, shape, slice(offset, offset + length)


def make_layout(model: nn.Module, parts: Iterable[Part]) -> ParameterLayout:
    """Return the layout of the parameters that belong to some parts.

    Args:
        model: a network that declares its parts.
        parts: for example one of ``SELECTIONS``.

    Returns:
        The parameters in the order of ``model.named_parameters()``.

    Raises:
        PartsIncomplete: the model's parts are not disjoint and exhaustive.
    """
    chosen = frozenset(parts)
    owners = part_of(model)
    rows = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    rows = [row for row in rows if owners[row[0]] in chosen]
    return ParameterLayout(tuple(n for n, _ in rows), tuple(s for _, s in rows))


def part_lengths(
    model: nn.Module, layout: ParameterLayout
) -> tuple[tuple[str, int], ...]:
    """Return the part and the number of coordinates of each parameter of a layout.

    Raises:
        PartsIncomplete: the model's parts are not disjoint and exhaustive.
    """
    owners = part_of(model)
    rows = zip(layout.names, layout.segments, strict=True)
    return tuple((owners[name].value, length) for name, length in rows)


def selected_layout(
    model: nn.Module, selection: str, named: Sequence[str] = ()
) -> ParameterLayout:
    """Return the layout of what a selection federates.

    With "usplit" encoder, bottleneck and decoder are a stretch each, because different
    silos return them; every other selection is one stretch.

    Args:
        selection, named: as ``diffusion.parts.shared_parts``.

    Raises:
        PartsIncomplete: the parts are not disjoint and exhaustive, or with "usplit" do
            not follow each other in the model, or one of them is empty.
    """
    layout = make_layout(model, shared_parts(selection, named))
    if selection != "usplit":
        return layout
    owners = part_of(model)
    runs = [
        (p, len([*g])) for p, g in itertools.groupby(owners[n] for n in layout.names)
    ]
    if [part for part, _ in runs] != list(Part):
        raise PartsIncomplete(
            "the parameters of the model are not in the order of its parts"
        )
    return replace(layout, counts=tuple(count for _, count in runs))


def flatten(
    parameters: Mapping[str, Tensor],
    layout: ParameterLayout,
    out: Vector | None = None,
) -> Vector:
    """Return the layout's parameters as one vector.

    Args:
        parameters: at least the layout's names; others are ignored.
        layout: names, shapes and order.
        out: where to write, float32 ``[d]``; a new array if none.

    Returns:
        float32 ``[d]``. NaN and infinity are copied, not judged.

    Raises:
        ShapeMismatch: a parameter is missing, has another shape or is not float32;
            or ``out`` does not fit.
    """
    vector = np.empty(layout.size, dtype=np.float32) if out is None else out
    _check_vector(vector, layout)
    for name, shape, where in layout.slices():
        tensor = _matching(parameters, name, shape)
        vector[where] = tensor.numpy().reshape(-1)
    return vector


def unflatten(vector: Vector, layout: ParameterLayout) -> dict[str, Tensor]:
    """Return the parameters that a vector holds; the inverse of ``flatten``.

    Returns:
        float32 tensors by name, on the CPU, independent of the vector's memory.

    Raises:
        ShapeMismatch: the vector is not float32 ``[d]``.
    """
    _check_vector(vector, layout)
    return {
        name: torch.from_numpy(vector[where].copy()).reshape(shape)
        for name, shape, where in layout.slices()
    }


def difference(
    local: Mapping[str, Tensor],
    global_: Mapping[str, Tensor],
    layout: ParameterLayout,
    out: Vector | None = None,
) -> Vector:
    """Return the update: local minus global parameters, float32 ``[d]``.

    Args:
        out: where to write, float32 ``[d]``; a new array if none.

    Raises:
        ShapeMismatch: as ``flatten``.
    """
    update = flatten(local, layout, out)
    for name, shape, where in layout.slices():
        update[where] -= _matching(global_, name, shape).numpy().reshape(-1)
    return update


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's parameters by name, detached."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def load_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copy parameters into a model, in place; those not named stay as they are.

    Guarantees:
        Nothing is copied unless everything fits.

    Raises:
        ShapeMismatch: the model has no parameter of that name or shape.
    """
    own = dict(model.named_parameters())
    for name, value in parameters.items():
        if name not in own:
            raise ShapeMismatch(f"the model has no parameter {name}")
        _check_shape(name, tuple(value.shape), tuple(own[name].shape))
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)


def parameters_digest(
    parameters: Mapping[str, Tensor], layout: ParameterLayout
) -> bytes:
    """Return the SHA-256 digest of names, shapes and values: 32 bytes.

    The values are digested as little-endian float32, so equal digests mean bitwise
    equal parameters on every machine.

    Raises:
        ShapeMismatch: as ``flatten``.
    """
    digest = hashlib.sha256(_header(PARAMETERS_LABEL, layout))
    for name, shape, _ in layout.slices():
        tensor = _matching(parameters, name, shape)
        digest.update(np.ascontiguousarray(tensor.numpy(), dtype="<f4").tobytes())
    return digest.digest()


def save_safetensors(
    path: Path, parameters: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Save parameters and text about them, whole or not at all.

    There may be no parameters, or no text: both are loaded as empty.

    Raises:
        OSError: the folder is missing or not writable.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
    # safetensors 0.8.0 writes a broken header for no tensors with empty metadata.
    content = safetensors.torch.save(tensors, metadata=dict(metadata) or None)
    save_atomically(path, content)


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load what ``save_safetensors`` saved: parameters and metadata.

    Returns:
        Tensors on the CPU, independent of the file, and the metadata.

    Raises:
        CorruptFile: the file is cut off or damaged in its structure. (A changed
            value is found by ``parameters_digest`` only.)
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} does not exist")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise CorruptFile(
            f"{path.name} is cut off or no safetensors file: {error}"
        ) from error


def _header(label: bytes, layout: ParameterLayout) -> bytes:
    """Encode a layout canonically; every field is preceded by its length."""
    rows = [len(label).to_bytes(4, "little"), label]
    rows.append(len(layout.names).to_bytes(4, "little"))
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        encoded = name.encode()
        rows += [len(encoded).to_bytes(4, "little"), encoded]
        rows.append(len(shape).to_bytes(4, "little"))
        rows += [length.to_bytes(8, "little") for length in shape]
    return b"".join(rows)


def _matching(
    parameters: Mapping[str, Tensor], name: str, shape: tuple[int, ...]
) -> Tensor:
    """Return one parameter, detached on the CPU, checked against its layout."""
    if name not in parameters:
        raise ShapeMismatch(f"parameter {name} is missing")
    tensor = parameters[name].detach().cpu()
    _check_shape(name, tuple(tensor.shape), shape)
    if tensor.dtype != torch.float32:
        raise ShapeMismatch(f"parameter {name} is {tensor.dtype}, not float32")
    return tensor


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise unless a parameter has the expected shape."""
    if shape != expected:
        raise ShapeMismatch(f"parameter {name} has shape {shape}, not {expected}")


def _check_vector(vector: Vector, layout: ParameterLayout) -> None:
    """Raise unless a vector is float32 [d]."""
    if vector.shape != (layout.size,) or vector.dtype != np.float32:
        raise ShapeMismatch(
            f"the vector is {vector.dtype} {vector.shape}, not float32 ({layout.size},)"
        )
