"""Sizes that varying dims may have: OpenVINO compiles for these, and others are refused."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bridge import Signature, TensorSpec
from bridge.errors import OptionError, ShapeMismatch, nearest
from bridge_openvino.ports import Ports
from bridge_openvino.runtime import openvino

__all__ = [
    "UNBOUNDED",
    "Limit",
    "Limits",
    "Range",
    "check_size",
    "fixed",
    "joined",
    "limits_of",
    "parsed",
    "reshape",
]

_BOUND = re.compile(r"(?P<low>\d+)(?::(?P<high>\d+))?")
_ROWS = "rows"

UNBOUNDED = sys.maxsize
"""The largest size of a dim that has none."""


class Range(NamedTuple):
    """The smallest and the largest size of a dim."""

    low: int
    high: int


class Limit(NamedTuple):
    """A range of one axis of an input; its dim is empty where the model itself sets it."""

    axis: int
    dim: str
    range: Range


Limits = dict[str, tuple[Limit, ...]]
"""Limits of each input, by its name."""


def parsed(texts: Iterable[str]) -> dict[str, Range]:
    """Ranges by the name of the dim.

    Raises:
        OptionError: A text is not of the form ``dim=low:high`` or ``dim=size``, or two are
            of one dim.
    """
    found: dict[str, Range] = {}
    for text in texts:
        dim, _, sizes = text.partition("=")
        match = _BOUND.fullmatch(sizes.strip())
        dim = dim.strip()
        low, high = (0, 0) if match is None else (int(match["low"]), int(match[2] or match["low"]))
        if not dim or dim in found or low > high or high < 1:
            raise OptionError(
                f"bounds has '{text}'; wanted one range of each dim, such as rows=1:512.",
                fix="Write dim=low:high with low up to high, or dim=size for one size.",
                option="bounds",
                value=text,
                rule="bounds",
            )
        found[dim] = Range(low, high)
    return found


def limits_of(ports: Ports, bounds: Mapping[str, Range]) -> Limits:
    """Limits of each input, by its name.

    Raises:
        OptionError: No input has such a dim that varies.
    """
    found: dict[str, list[Limit]] = {}
    first = ports.signature.batch_axes()
    names = {
        item
        for spec in ports.signature.inputs
        for item in spec.shape or ()
        if isinstance(item, str)
    }
    for dim, sizes in bounds.items():
        stands_for_rows = dim == _ROWS and _ROWS not in names
        is_there = False
        for spec in ports.signature.inputs:
            is_read = spec.name in ports.inputs
            for axis, item in enumerate(spec.shape or ()):
                if item == dim or (stands_for_rows and first.get(spec.name) == axis):
                    if is_read:
                        found.setdefault(spec.name, []).append(Limit(axis, dim, sizes))
                    is_there = True
        if not is_there:
            raise OptionError(
                f"bounds names the dim '{dim}', which no input has: {ports.signature}.",
                fix=nearest(dim, {*names, *((_ROWS,) if first else ())}),
                option="bounds",
                value=dim,
            )
    return {name: tuple(limits) for name, limits in found.items()}


def joined(first: Limits, second: Limits) -> Limits:
    """The limits of both."""
    return {name: (*first.get(name, ()), *second.get(name, ())) for name in (*first, *second)}


def reshape(network: Any, ports: Ports, limits: Limits) -> None:
    """Tells an ``openvino.Model`` the sizes that its inputs may have.

    Raises:
        RuntimeError: The model does not allow such sizes.
    """
    ov = openvino()
    shapes = {}
    for name, bound in limits.items():
        index = ports.inputs[name].index
        shape = network.inputs[index].partial_shape
        for axis, _, sizes in bound:
            shape[axis] = ov.Dimension(sizes.low, sizes.high)
        shapes[index] = shape
    if shapes:
        network.reshape(shapes)


def fixed(ports: Ports, limits: Limits) -> Ports:
    """The ports with the size itself in place of each dim that has only one left."""
    sizes: dict[str, int] = {}
    inputs = []
    for spec in ports.signature.inputs:
        shape = list(spec.shape or ())
        for axis, _, (low, high) in limits.get(spec.name, ()):
            if low == high:
                if isinstance(name := shape[axis], str):
                    sizes[name] = low
                shape[axis] = low
        inputs.append(spec if spec.shape is None else dataclasses.replace(spec, shape=tuple(shape)))
    signature = Signature(
        tuple(_sized(spec, sizes) for spec in inputs),
        tuple(_sized(spec, sizes) for spec in ports.signature.outputs),
    )
    return dataclasses.replace(ports, signature=signature)


def _sized(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    if spec.shape is None:
        return spec
    shape = tuple(sizes.get(item, item) if isinstance(item, str) else item for item in spec.shape)
    return dataclasses.replace(spec, shape=shape)


def check_size(name: str, shape: tuple[int, ...], limits: Iterable[Limit]) -> None:
    """Raises ``ShapeMismatch`` for a size that the model was not compiled for."""
    for axis, dim, (low, high) in limits:
        if not low <= shape[axis] <= high:
            where = f"axis {axis}, which is '{dim}'" if dim else f"axis {axis}"
            wanted = f"{low} or more" if high == UNBOUNDED else f"{low} to {high}"
            raise ShapeMismatch(
                f"input '{name}' has size {shape[axis]} in {where}; the model takes {wanted}.",
                fix="Split or pad the call, or load the model with other bounds.",
                input=name,
                axis=axis,
                wanted=[low, high],
                got=shape,
            )
