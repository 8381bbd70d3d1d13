"""Layers over a value in two halves: their weights are split as the columns are.

``[user | item] @ weights + bias`` is ``item @ lower + (user @ upper + bias)``, and what is in
brackets has one row. Layers that read one value have their users' parts computed by one
product, of which each then takes its columns: six small products cost more than a large one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridge_convert.broadcast.halves import Halves
from bridge_convert.broadcast.rows import FREE, Axis, row_axis
from bridge_convert.broadcast.source import attribute

if TYPE_CHECKING:
    from bridge_convert.broadcast.rewriting import Rewriting

__all__ = ["dense"]

_FLOATS = frozenset({1, 10, 11, 16})
"""ONNX's numbers of float, float16, double and bfloat16."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A Gemm, or a MatMul with the Add of its bias.

    Attributes:
        node: The product.
        output: What comes of it, bias included.
        weights: The constant it multiplies with.
        side: The axis of ``weights`` that goes with the columns of the input.
        bias: Name of what is added; empty if nothing is.
    """

    node: Any
    output: str
    weights: npt.NDArray[Any]
    side: int
    bias: str

    @property
    def width(self) -> int:
        """How many columns come of it."""
        return int(self.weights.shape[1 - self.side])

    def scale(self, name: str) -> float:
        """``alpha`` or ``beta``."""
        return float(attribute(self.node, name, 1.0))


def dense(work: Rewriting, node: Any, given: Halves, axis: int) -> bool:
    """Splits a product with constant weights, if it is one.

    Args:
        work: The graph being rewritten.
        node: A Gemm or a MatMul.
        given: What it multiplies.
        axis: The axis of rows of its output.
    """
    layer = _layer(work, node, given)
    if layer is None:
        return False
    draft, output, name = work.draft, layer.output, node.input[1]
    full_weights = layer.weights.take(given.full_columns, layer.side)
    theirs = draft.constant(full_weights, f"{name}.full")
    work.split.append(node.name or node.output[0])
    work.once += 1
    bias = work.values[layer.bias]
    has_rows = isinstance(bias, Halves) or not (bias.axis == FREE or bias.is_one)
    if has_rows:  # only a Gemm adds such a thing
        full = draft.copy_fresh(node, [given.full, theirs, work.full(layer.bias)], f"{output}.full")
        one = draft.copy_fresh(node, [given.one, _ours(work, layer, given)], f"{output}.one")
        work.settle(output, draft.add("Add", [full, one], f"{output}.both"), axis)
        return True
    one = _shared(work, node.input[0], given, layer) or _alone(work, layer, given)
    if given.rank == 2:
        kept = {key: attribute(node, key) for key in ("alpha", "transB")}
        stated = {key: value for key, value in kept.items() if value is not None}
        found = draft.add("Gemm", [given.full, theirs, one], f"{output}.full", **stated)
    else:
        full = draft.add("MatMul", [given.full, theirs], f"{output}.full")
        found = draft.add("Add", [full, one], f"{output}.both")
    work.settle(output, found, axis)
    return True


def _layer(work: Rewriting, node: Any, given: Halves) -> _Layer | None:
    source = work.source
    weights = source.constant(node.input[1])
    if weights is None or weights.ndim != 2 or given.along != given.rank - 1:
        return None
    if source.element(node.input[1]) not in _FLOATS:
        return None
    output = node.output[0]
    if node.op_type == "Gemm":
        side = 1 if attribute(node, "transB", 0) else 0
        return _Layer(node, output, weights, side, node.input[2] if len(node.input) > 2 else "")
    added = _added(work, output)
    if added is None:
        return _Layer(node, output, weights, 0, "")
    return _Layer(node, added[0].output[0], weights, 0, added[1])


def _added(work: Rewriting, name: str) -> tuple[Any, str] | None:
    """The node that adds a constant to each row of a value which nobody else reads."""
    source = work.source
    if source.uses[name] != 1 or name in source.outputs:
        return None
    (node,) = source.readers(name)
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    other = next((one for one in node.input if one != name), name)
    bias, shape = source.constant(other), source.shape(name)
    if bias is None or shape is None or bias.ndim > len(shape):
        return None
    is_row = all(size == 1 for size in bias.shape[:-1])
    return (node, other) if is_row and bias.shape[-1:] in ((), (1,), shape[-1:]) else None


def _ours(work: Rewriting, layer: _Layer, given: Halves) -> str:
    weights = layer.weights.take(given.one_columns, layer.side)
    return work.draft.constant(weights, f"{layer.node.input[1]}.one")


def _alone(work: Rewriting, layer: _Layer, given: Halves) -> str:
    """The user's part of one layer, bias included."""
    draft, name = work.draft, f"{layer.output}.one"
    bias = work.values[layer.bias]
    assert not isinstance(bias, Halves)
    inputs = [given.one, _ours(work, layer, given)]
    if layer.node.op_type == "Gemm":
        return draft.copy_fresh(layer.node, [*inputs, bias.name], name)
    found = draft.add("MatMul", inputs, name)
    return draft.add("Add", [found, bias.name], name) if bias.name else found


def _shared(work: Rewriting, name: str, given: Halves, layer: _Layer) -> str | None:
    """The user's part of a layer, computed together with that of others.

    Returns:
        Its name; ``None`` where there are no others, or it is of another kind.
    """
    if name not in work.shared:
        work.shared[name] = _product(work, name, given)
    return work.shared[name].get(layer.output)


def _product(work: Rewriting, name: str, given: Halves) -> dict[str, str]:
    """The users' parts of all plain layers over one value, by the outputs of these."""
    layers = []
    for node in work.source.readers(name):
        if node.op_type not in ("Gemm", "MatMul") or node.input[0] != name or given.rank != 2:
            continue
        axes: list[Axis] = [0, *[FREE] * (len(node.input) - 1)]
        layer = _layer(work, node, given)
        if layer is None or row_axis(work.source, node, axes) != 0:
            continue
        row = _row(work, layer)
        if row is not None and layer.scale("alpha") == layer.scale("beta") == 1:
            layers.append((layer, row))
    layers = [one for one in layers if one[0].weights.dtype == layers[0][0].weights.dtype]
    if len(layers) < 2:
        return {}
    draft = work.draft
    parts = []
    for layer, _ in layers:
        own = layer.weights.take(given.one_columns, layer.side)
        parts.append(own.T if layer.side else own)
    weights = draft.constant(np.concatenate(parts, 1), f"{name}.weights")
    bias = draft.constant(np.concatenate([row for _, row in layers]), f"{name}.bias")
    whole = draft.add("Gemm", [given.one, weights, bias], f"{name}.one.layers")
    sizes = draft.constant(np.array([layer.width for layer, _ in layers]), f"{name}.widths")
    outputs = [f"{layer.output}.one" for layer, _ in layers]
    return dict(
        zip(
            (layer.output for layer, _ in layers),
            draft.divide(whole, sizes, outputs),
            strict=True,
        )
    )


def _row(work: Rewriting, layer: _Layer) -> npt.NDArray[Any] | None:
    """What a layer adds to each row, if that is constant."""
    if not layer.bias:
        return np.zeros(layer.width, layer.weights.dtype)
    stated = work.source.constant(layer.bias)
    if stated is None or stated.size not in (1, layer.width):
        return None
    if stated.shape[-1:] not in ((), (1,), (layer.width,)):
        return None
    return np.broadcast_to(stated.reshape(-1), (layer.width,))
