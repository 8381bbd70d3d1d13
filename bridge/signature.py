"""Names, dtypes and shapes of what goes in and comes out.

A dim is an ``int`` (fixed), a ``str`` (named: equal names must agree across the
tensors of one call) or ``None`` (free).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType

__all__ = ["Dim", "Signature", "TensorSpec", "dim"]

Dim = int | str | None

_INVENTED = re.compile(r"|\?|-?\d+|None|unk__\d+")


def dim(value: object) -> Dim:
    """A dim from what a runtime or exporter says; invented names become ``None``.

    Exporters write '', '?', '-1', 'None' and 'unk__123' for dims nobody named; such
    names must not tie tensors together. Negative numbers are free dims.
    """
    if isinstance(value, (int, np.integer)):
        return int(value) if value >= 0 else None
    if value is None or _INVENTED.fullmatch(str(value)):
        return None
    return str(value)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: What users call it.
        dtype: Element type; ``None`` where the format does not say (TorchScript).
        shape: Dims; ``None`` where even the rank is unknown.
        native_name: The runtime's own name for it, used to match outputs across formats.
        has_default: The model holds a value for this input, so it may be left out.
    """

    name: str
    dtype: DType | None
    shape: tuple[Dim, ...] | None
    native_name: str | None = field(default=None, compare=False)
    has_default: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype or 'any dtype'} {self.shape_text}"

    @property
    def shape_text(self) -> str:
        """The shape as a reader writes it, such as ``(N, 3, ?)``."""
        if self.shape is None:
            return "any shape"
        dims = ["?" if item is None else str(item) for item in self.shape]
        return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it."""
        return {
            "name": self.name,
            "dtype": None if self.dtype is None else self.dtype.value,
            "shape": None if self.shape is None else list(self.shape),
            "native_name": self.native_name,
            "has_default": self.has_default,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Reads the JSON form; unknown dtypes raise ``ValueError``."""
        shape = data.get("shape")
        return cls(
            name=str(data["name"]),
            dtype=None if data.get("dtype") is None else DType(data["dtype"]),
            shape=None if shape is None else tuple(dim(item) for item in shape),
            native_name=data.get("native_name"),
            has_default=bool(data.get("has_default", False)),
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, in order, with unique names."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            names = Counter(spec.name for spec in specs)
            repeated = sorted(name for name, count in names.items() if count > 1)
            if repeated:
                raise ValueError(f"{kind} names must be unique; repeated: {', '.join(repeated)}.")

    def __str__(self) -> str:
        def side(specs: Iterable[TensorSpec]) -> str:
            return ", ".join(str(spec) for spec in specs)

        return f"({side(self.inputs)}) -> ({side(self.outputs)})"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all inputs, in order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs, in order."""
        return tuple(spec.name for spec in self.outputs)

    @property
    def required(self) -> tuple[TensorSpec, ...]:
        """The inputs that every call must give."""
        return tuple(spec for spec in self.inputs if not spec.has_default)

    def batch_axes(self, batch_dim: str | None = None) -> dict[str, int]:
        """For each input that has rows, the axis that counts them.

        Args:
            batch_dim: Name of the batch dim, for models that keep it elsewhere than at
                axis 0 (silero-vad's state has it at axis 1). ``None`` means the dynamic
                dim 0 of every input that has one.
        """
        axes: dict[str, int] = {}
        for spec in self.inputs:
            if spec.shape is None:
                continue
            if batch_dim is not None:
                if batch_dim in spec.shape:
                    axes[spec.name] = spec.shape.index(batch_dim)
            elif spec.shape and not isinstance(spec.shape[0], int):
                axes[spec.name] = 0
        return axes

    def concrete_shapes(
        self, rows: int = 1, *, batch_dim: str | None = None, dims: Mapping[str, int] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """A shape of plain integers for every required input.

        Args:
            rows: Size of the batch dim.
            batch_dim: As for ``batch_axes``.
            dims: Sizes of other named dims; those not given, and free dims, become 1.

        Raises:
            ValueError: An input has no known shape.
        """
        sizes = dict(dims or {})
        axes = self.batch_axes(batch_dim)
        for name, axis in axes.items():
            label = self.input(name).shape[axis]  # type: ignore[index]
            if isinstance(label, str):
                sizes.setdefault(label, rows)
        shapes = {}
        for spec in self.required:
            if spec.shape is None:
                raise ValueError(f"input '{spec.name}' has no known shape.")
            shape = []
            for axis, item in enumerate(spec.shape):
                if isinstance(item, int):
                    shape.append(item)
                elif isinstance(item, str) and item in sizes:
                    shape.append(sizes[item])
                else:
                    shape.append(rows if axes.get(spec.name) == axis else 1)
            shapes[spec.name] = tuple(shape)
        return shapes

    def zeros(
        self, rows: int = 1, *, batch_dim: str | None = None, dims: Mapping[str, int] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of zeros (empty strings) that fit this signature; for warm-up.

        Raises:
            ValueError: An input has no known shape or dtype.
        """
        arrays = {}
        for name, shape in self.concrete_shapes(rows, batch_dim=batch_dim, dims=dims).items():
            dtype = self.input(name).dtype
            if dtype is None:
                raise ValueError(f"input '{name}' has no known dtype.")
            if dtype is DType.STRING:
                arrays[name] = np.full(shape, "", object)
            else:
                arrays[name] = np.zeros(shape, dtype.numpy)
        return arrays

    def input(self, name: str) -> TensorSpec:
        """The input of that name; ``KeyError`` if there is none."""
        return _by_name(self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """The output of that name; ``KeyError`` if there is none."""
        return _by_name(self.outputs, name)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """Reads the JSON form."""
        return cls(
            inputs=tuple(_specs(data["inputs"])),
            outputs=tuple(_specs(data["outputs"])),
        )


def _specs(items: Iterable[Mapping[str, Any]]) -> Iterator[TensorSpec]:
    return (TensorSpec.from_dict(item) for item in items)


def _by_name(specs: Iterable[TensorSpec], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise KeyError(name)
