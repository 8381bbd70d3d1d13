"""The models of the zoo by name and size, and the ranker by its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

from bridge.errors import OptionError, nearest
from bridge_zoo import ranking
from bridge_zoo.model import DenseFeature, IdFeature, Model

__all__ = [
    "BATCH",
    "MODELS",
    "SIZES",
    "Description",
    "IdFeature",
    "Ranker",
    "describe",
    "model_of",
]

MODELS = ("ranker", *ranking.MODELS)
"""Names of the models that can be built."""

SIZES = ("small", "real")
"""``small`` builds in seconds and is for tests; ``real`` has 50 MB of tables or more."""

BATCH = "batch"
"""Name of the one dynamic dim, where a format can keep names."""


@dataclass(frozen=True, slots=True)
class Ranker:
    """A multi-task ranker: shared experts, and a gate and a tower for each task.

    Ids are looked up, the rows joined with the dense features and given to every
    expert (ReLU layers). Each task weighs the experts by the softmax of one linear
    layer over the same joined features, sends the weighted sum through its tower
    (ReLU layers) and a linear head of one unit, and answers with its sigmoid: the
    multi-gate mixture of experts.

    Inputs, in order: one int64 ``(batch,)`` for each id feature, then ``dense``,
    float32 ``(batch, dense_width)``. Outputs: one float32 ``(batch,)`` for each task,
    in ``[0, 1]``. Names, order and shapes are the same in every format.

    Attributes:
        name: Name of the model in the zoo.
        size: One of ``SIZES``.
        id_features: The categorical features, in the order they are joined.
        embedding_width: Values in one row of every table.
        dense_width: Number of dense features.
        expert_count: Number of experts.
        expert_widths: Units of each layer of an expert.
        tower_widths: Units of each layer of a tower, without its head.
        tasks: Names of the outputs.
    """

    name: str
    size: str
    id_features: tuple[IdFeature, ...]
    embedding_width: int
    dense_width: int
    expert_count: int
    expert_widths: tuple[int, ...]
    tower_widths: tuple[int, ...]
    tasks: tuple[str, ...]

    @property
    def joined_width(self) -> int:
        """Width of the joined features that experts and gates see."""
        return len(self.id_features) * self.embedding_width + self.dense_width

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all inputs, in signature order."""
        return (*(feature.name for feature in self.id_features), "dense")

    @property
    def model(self) -> Model:
        """The same as a graph of layers."""
        drawing = ranking.Drawing(self.id_features, (DenseFeature("dense", self.dense_width),))
        heads = ranking.gated_experts(
            drawing,
            drawing.joined(self.embedding_width),
            experts=(self.expert_count, self.expert_widths),
            tower_widths=self.tower_widths,
            tasks=self.tasks,
        )
        return drawing.model(self.name, self.size, heads)


Description = Model | Ranker
"""What ``describe`` returns and everything else takes."""


def model_of(description: Description) -> Model:
    """The graph of layers of a description."""
    return description if isinstance(description, Model) else description.model


@overload
def describe(model: Literal["ranker"], size: str = "small") -> Ranker: ...
@overload
def describe(model: str, size: str = "small") -> Description: ...


def describe(model: str, size: str = "small") -> Description:
    """The description of a model of the zoo.

    The vocabularies grow evenly on a log scale, from 16 ids to the largest, as in the
    published click logs, where a few features hold nearly all ids.

    Args:
        model: One of ``MODELS``.
        size: One of ``SIZES``.

    Returns:
        A ``Ranker`` for ``"ranker"``, else a ``Model``.

    Raises:
        OptionError: No such model or size.
    """
    if model not in MODELS:
        raise OptionError(f"the zoo has no model '{model}'.", fix=nearest(model, MODELS))
    if size not in SIZES:
        raise OptionError(f"model '{model}' has no size '{size}'.", fix=nearest(size, SIZES))
    if model != "ranker":
        return ranking.MODELS[model](size)
    real = size == "real"
    return Ranker(
        name=model,
        size=size,
        # 177 000 gives 833 316 rows in all: 53.3 MB of tables beside 8 MB of layers.
        id_features=tuple(
            IdFeature(f"id_{index:02d}", vocabulary, "user" if index < 20 else "item")
            for index, vocabulary in enumerate(ranking.vocabularies(40, 177_000 if real else 300))
        ),
        embedding_width=16,
        dense_width=13,
        expert_count=4,
        expert_widths=(512, 256) if real else (32, 16),
        tower_widths=(128, 64) if real else (16, 8),
        tasks=("click", "like", "share"),
    )
