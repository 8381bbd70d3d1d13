"""The kinds of layers that models are made of: data, which every renderer reads.

A layer takes values by name (inputs of the model, or layers before it) and makes one
value of its own name, float32 of shape ``(batch, width)``. There are no other kinds,
so a runtime that can do these eleven can do every model of the zoo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "PAD_ID",
    "Activate",
    "Bag",
    "Concat",
    "Dense",
    "Dots",
    "Embed",
    "Function",
    "Layer",
    "Mix",
    "Normalise",
    "PairSum",
    "Pooling",
    "Product",
    "RowSum",
    "pairs",
]

Pooling = Literal["sum", "mean"]
Function = Literal["relu", "sigmoid", "softmax"]

PAD_ID = 0
"""The id that fills up lists of ids; it stands for nothing, and no bag counts it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What every kind has.

    Attributes:
        name: Name of the value, and of the layer's weights.
        inputs: Names of the values that it takes.
    """

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Embed(Layer):
    """The row of a table for one id; the table is the weight of the layer's name.

    Attributes:
        width: Values in a row.
    """

    width: int


@dataclass(frozen=True, slots=True)
class Bag(Layer):
    """The sum or the mean of the rows for a list of ids, without those that are ``PAD_ID``.

    A list that is all padding gives zeros either way.

    Attributes:
        width: Values in a row.
        pooling: How rows become one.
    """

    width: int
    pooling: Pooling


@dataclass(frozen=True, slots=True)
class Concat(Layer):
    """The values side by side."""


@dataclass(frozen=True, slots=True)
class Dense(Layer):
    """``value @ kernel + bias``: weights ``<name>.kernel`` and ``<name>.bias``.

    Attributes:
        units: Width of the result.
    """

    units: int


@dataclass(frozen=True, slots=True)
class Activate(Layer):
    """A function of the value, element by element; softmax goes over a row.

    Attributes:
        function: Which one.
    """

    function: Function


@dataclass(frozen=True, slots=True)
class Product(Layer):
    """The elementwise product of two values of equal width."""


@dataclass(frozen=True, slots=True)
class RowSum(Layer):
    """The sum of each row, of width 1."""


@dataclass(frozen=True, slots=True)
class Mix(Layer):
    """A weighted sum: the first value holds a weight for each of the others."""


@dataclass(frozen=True, slots=True)
class Dots(Layer):
    """The dot product of each pair of values of equal width, in the order of ``pairs``."""


@dataclass(frozen=True, slots=True)
class PairSum(Layer):
    """The sum, over all pairs of values, of their elementwise product.

    That is the second order of a factorisation machine before its row is summed,
    computed as ``((sum of values) ** 2 - sum of values ** 2) / 2``.
    """


@dataclass(frozen=True, slots=True)
class Normalise(Layer):
    """The value divided by its Euclidean length, or by 1e-6 where that is less."""


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs of ``count`` things, the smaller index first, in lexical order."""
    return [(one, two) for one in range(count) for two in range(one + 1, count)]
