"""Names for what a torch model returns: tensors in any nesting of tuples, lists and dicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.dtypes import DType
from bridge.signature import Dim, Signature, TensorSpec

__all__ = ["ExportedTensor", "named_leaves", "program_signature"]


def named_leaves(value: Any) -> list[tuple[str, Any]]:
    """Every leaf with its name, in the order in which torch flattens.

    A leaf below a dict key or a named tuple's field is called by it (``key``, or
    ``key_0`` for the first member of a list below the key); other leaves are
    ``output_0``, ``output_1``, ... by their position among all leaves. Where two names
    would be equal, both become positions.
    """
    found: list[tuple[str, Any]] = []
    _walk(value, "", found)
    named = [(name or f"output_{index}", leaf) for index, (name, leaf) in enumerate(found)]
    counts = Counter(name for name, _ in named)
    return [
        (name if counts[name] == 1 else f"output_{index}", leaf)
        for index, (name, leaf) in enumerate(named)
    ]


def _walk(value: Any, path: str, found: list[tuple[str, Any]]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _walk(item, f"{path}_{key}" if path else str(key), found)
    elif isinstance(value, (tuple, list)):
        fields = getattr(value, "_fields", None)
        for index, item in enumerate(value):
            if fields is not None:
                _walk(item, f"{path}_{fields[index]}" if path else fields[index], found)
            else:
                _walk(item, f"{path}_{index}" if path else "", found)
    else:
        found.append((path, value))


@dataclass(frozen=True, slots=True)
class ExportedTensor:
    """An input or output of an ExportedProgram.

    Attributes:
        name: What users call it.
        dtype: Its element type.
        dims: Sizes; a ``str`` is torch's own expression for a size that varies.
    """

    name: str
    dtype: DType | None
    dims: Sequence[int | str] | None


def program_signature(
    inputs: Iterable[ExportedTensor], outputs: Iterable[ExportedTensor]
) -> Signature:
    """The signature of an ExportedProgram, with dims that people can read.

    Torch calls varying sizes ``s77`` and the like; the names given to ``Dim`` are not
    saved. A size that appears once stays free. Sizes that appear several times must
    agree, so they get names: ``batch`` for the first one that only ever counts rows (dim
    0), ``dim_1``, ``dim_2``, ... for the others in order. Computed sizes (``2*s77``) stay
    free; torch checks them itself.
    """
    given = (tuple(inputs), tuple(outputs))
    places: dict[str, list[int]] = {}
    for tensor in given[0] + given[1]:
        for axis, size in enumerate(tensor.dims or ()):
            if isinstance(size, str) and size.isidentifier():
                places.setdefault(size, []).append(axis)
    names: dict[str, Dim] = {}
    for symbol, axes in places.items():
        if len(axes) == 1:
            names[symbol] = None
        elif not any(axes) and "batch" not in names.values():
            names[symbol] = "batch"
        else:
            taken = sum(1 for name in names.values() if name not in (None, "batch"))
            names[symbol] = f"dim_{taken + 1}"

    def spec(tensor: ExportedTensor) -> TensorSpec:
        dims = tensor.dims
        return TensorSpec(
            tensor.name,
            tensor.dtype,
            None
            if dims is None
            else tuple(size if isinstance(size, int) else names.get(size) for size in dims),
        )

    return Signature(
        tuple(spec(tensor) for tensor in given[0]), tuple(spec(tensor) for tensor in given[1])
    )
