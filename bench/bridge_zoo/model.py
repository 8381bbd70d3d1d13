"""A model of the zoo as data: its features, its layers and which values are scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bridge_zoo.layers import (
    Bag,
    Concat,
    Dense,
    Dots,
    Embed,
    Layer,
    Mix,
    RowSum,
    pairs,
)

__all__ = ["DenseFeature", "IdFeature", "Model", "Side"]

Side = Literal["user", "item"]


@dataclass(frozen=True, slots=True)
class IdFeature:
    """One categorical feature: one id per row, or a padded list of ids.

    Attributes:
        name: Name of the input, int64 ``(batch,)``, or ``(batch, length)`` for a list.
        vocabulary: Rows of its table; legal ids are ``0`` to ``vocabulary - 1``.
        side: Whether all candidates of a request share it (``"user"``) or not.
        length: Ids in a list, filled up with ``PAD_ID``; 0 where there is no list.
    """

    name: str
    vocabulary: int
    side: Side = "item"
    length: int = 0


@dataclass(frozen=True, slots=True)
class DenseFeature:
    """Some numbers for each row.

    Attributes:
        name: Name of the input, float32 ``(batch, width)``.
        width: How many numbers.
        side: As for ``IdFeature``.
    """

    name: str
    width: int
    side: Side = "item"


@dataclass(frozen=True, slots=True)
class Model:
    """A model: what goes in, the layers in an order in which they can run, what comes out.

    Inputs, in order: the id features, then the dense features. Outputs: one float32
    ``(batch,)`` for each task, in ``[0, 1]``. Names, order and shapes are the same in
    every format.

    Attributes:
        name: Name of the model in the zoo.
        size: One of ``SIZES``.
        id_features: The categorical features.
        dense_features: The numeric features.
        layers: The layers.
        outputs: Name of each output and the value, of width 1, that it is.
        table_scale: Deviation of the values in seeded tables, such that seeded scores
            spread over much of ``[0, 1]``.

    Raises:
        ValueError: A name is taken twice or not there, or widths do not fit.
    """

    name: str
    size: str
    id_features: tuple[IdFeature, ...]
    dense_features: tuple[DenseFeature, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[tuple[str, str], ...]
    table_scale: float = 1.0

    def __post_init__(self) -> None:
        widths = self.widths()
        for task, value in self.outputs:
            if widths.get(value) != 1:
                raise ValueError(f"output '{task}' is '{value}', which is no value of width 1")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(task for task, _ in self.outputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all inputs, in signature order."""
        ids = (one.name for one in self.id_features)
        return (*ids, *(one.name for one in self.dense_features))

    def tables(self) -> dict[str, tuple[IdFeature, int]]:
        """Feature and width of each table, by name."""
        features = {one.name: one for one in self.id_features}
        return {
            layer.name: (features[layer.inputs[0]], layer.width)
            for layer in self.layers
            if isinstance(layer, Embed | Bag)
        }

    def widths(self) -> dict[str, int]:
        """Width of every dense feature and of the value of every layer, by name."""
        widths = {one.name: one.width for one in self.dense_features}
        ids = {one.name: one for one in self.id_features}
        for layer in self.layers:
            if layer.name in widths or layer.name in ids:
                raise ValueError(f"there are two values of the name '{layer.name}'")
            if isinstance(layer, Embed | Bag):
                feature = ids[layer.inputs[0]]
                if isinstance(layer, Bag) != bool(feature.length):
                    raise ValueError(f"'{layer.name}' does not fit its feature '{feature.name}'")
                widths[layer.name] = layer.width
                continue
            missing = [name for name in layer.inputs if name not in widths]
            if missing:
                raise ValueError(f"'{layer.name}' takes '{missing[0]}', which nobody made before")
            widths[layer.name] = _width(layer, [widths[name] for name in layer.inputs])
        return widths


def _width(layer: Layer, widths: list[int]) -> int:
    match layer:
        case Concat():
            return sum(widths)
        case Dense():
            return layer.units
        case RowSum():
            return 1
        case Mix():
            if widths[0] != len(widths) - 1:
                raise ValueError(f"'{layer.name}' has {widths[0]} weights for {len(widths) - 1}")
            return _equal(layer, widths[1:])
        case Dots():
            _equal(layer, widths)
            return len(pairs(len(widths)))
        case _:
            return _equal(layer, widths)


def _equal(layer: Layer, widths: Iterable[int]) -> int:
    """The one width that all have."""
    found = set(widths)
    if len(found) != 1:
        raise ValueError(f"'{layer.name}' takes values of widths {sorted(found)}; wanted one")
    return found.pop()
