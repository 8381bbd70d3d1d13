"""The ranking models, each a short function that draws its layers.

Widths are those of the model zoo of DeepRec (``modelzoo/<model>/train.py``) unless the
function says otherwise; what is not published is said to be chosen. The features are the
same for all but one: 42 id features in the real size, half of them of the user and half
of the item, three lists on each side, and 13 numbers as in the Criteo log. Batch
normalisation is left out: in inference it is a scale and a shift per unit, which the
weights of the dense layer beside it can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bridge_zoo.layers import (
    Activate,
    Bag,
    Concat,
    Dense,
    Dots,
    Embed,
    Layer,
    Mix,
    Normalise,
    PairSum,
    Pooling,
    Product,
    RowSum,
)
from bridge_zoo.model import DenseFeature, IdFeature, Model, Side

__all__ = ["MODELS", "Drawing", "Heads", "gated_experts", "vocabularies"]

Heads = list[tuple[str, str]]
"""Name of each output with the value that it is."""

_DENSE = (DenseFeature("user_dense", 8, "user"), DenseFeature("item_dense", 5, "item"))
_WIDTH = 16  # of table rows in every model of the source but WDL
# Lists among the features of one side, by position: how long they are.
_LISTS: Mapping[tuple[str, str], Mapping[int, int]] = {
    ("small", "user"): {3: 6},
    ("small", "item"): {3: 4},
    ("real", "user"): {6: 10, 13: 20, 20: 50},
    ("real", "item"): {6: 5, 13: 5, 20: 10},
}


class Drawing:
    """A model while it is drawn; each method adds layers and returns the value's name.

    Args:
        id_features: As in ``Model``.
        dense_features: As in ``Model``.
    """

    def __init__(
        self, id_features: tuple[IdFeature, ...], dense_features: tuple[DenseFeature, ...]
    ) -> None:
        self.id_features = id_features
        self.dense_features = dense_features
        self._layers: list[Layer] = []

    def add(self, layer: Layer) -> str:
        """Any layer."""
        self._layers.append(layer)
        return layer.name

    def lookup(
        self, feature: IdFeature, width: int, table: str = "tables", pooling: Pooling | None = None
    ) -> str:
        """The row of one id, or the pooled rows of a list: mean and sum take turns."""
        name, inputs = f"{table}.{feature.name}", (feature.name,)
        if not feature.length:
            return self.add(Embed(name, inputs, width))
        lists = [one for one in self.id_features if one.length]
        turn: Pooling = "sum" if lists.index(feature) % 2 else "mean"
        return self.add(Bag(name, inputs, width, pooling or turn))

    def lookups(self, width: int) -> list[str]:
        """The rows of all id features."""
        return [self.lookup(feature, width) for feature in self.id_features]

    def joined(self, width: int | Callable[[IdFeature], int], side: Side | None = None) -> str:
        """Rows and numbers side by side: those of the user first, or those of one side."""
        parts: list[str] = []
        sides: tuple[Side, ...] = ("user", "item") if side is None else (side,)
        for one in sides:
            parts += (
                self.lookup(feature, width(feature) if callable(width) else width)
                for feature in self.id_features
                if feature.side == one
            )
            parts += (feature.name for feature in self.dense_features if feature.side == one)
        return self.add(Concat(f"{side}.joined" if side else "joined", tuple(parts)))

    def dense(self, value: str, name: str, units: int) -> str:
        """A linear layer."""
        return self.add(Dense(name, (value,), units))

    def relu_layers(self, value: str, name: str, widths: Iterable[int]) -> str:
        """Linear layers with a ReLU after each."""
        for index, units in enumerate(widths):
            linear = self.dense(value, f"{name}.{index}", units)
            value = self.add(Activate(f"{linear}.relu", (linear,), "relu"))
        return value

    def gate(self, value: str, name: str, units: int) -> str:
        """A linear layer and its softmax."""
        linear = self.dense(value, name, units)
        return self.add(Activate(f"{name}.softmax", (linear,), "softmax"))

    def score(self, logit: str) -> str:
        """The sigmoid of a logit."""
        return self.add(Activate(f"{logit}.sigmoid", (logit,), "sigmoid"))

    def head(self, value: str, task: str) -> tuple[str, str]:
        """The output of a task: a linear layer of one unit and its sigmoid."""
        return task, self.score(self.dense(value, f"heads.{task}", 1))

    def total(self, name: str, *values: str) -> str:
        """The sum of all columns of the values, of width 1."""
        joined = self.add(Concat(f"{name}.parts", values)) if len(values) > 1 else values[0]
        return self.add(RowSum(name, (joined,)))

    def model(self, name: str, size: str, heads: Heads, table_scale: float = 1.0) -> Model:
        """What was drawn."""
        return Model(
            name,
            size,
            self.id_features,
            self.dense_features,
            tuple(self._layers),
            tuple(heads),
            table_scale,
        )


def vocabularies(count: int, largest: int, smallest: int = 16) -> list[int]:
    """So many sizes of vocabularies, growing evenly on a log scale."""
    ratio = (largest / smallest) ** (1 / (count - 1))
    return [round(smallest * ratio**index) for index in range(count)]


def _features(size: str, largest: int = 170_000) -> tuple[IdFeature, ...]:
    """The id features of both sides: 170 000 gives 841 000 rows, 53.8 MB at width 16."""
    sizes = vocabularies(42, largest) if size == "real" else vocabularies(12, 300)
    sides: tuple[Side, Side] = ("user", "item")
    # Small and large vocabularies alternate between the sides.
    return tuple(
        feature
        for index, side in enumerate(sides)
        for feature in _side(side, sizes[index::2], _LISTS[size, side])
    )


def _side(side: Side, sizes: Sequence[int], lists: Mapping[int, int]) -> Iterable[IdFeature]:
    for index, vocabulary in enumerate(sizes):
        length = lists.get(index, 0)
        name = f"{side}_list_{index:02d}" if length else f"{side}_{index:02d}"
        yield IdFeature(name, vocabulary, side, length)


def _drawing(size: str, largest: int = 170_000) -> Drawing:
    return Drawing(_features(size, largest), _DENSE)


def _widths(size: str, *widths: int) -> tuple[int, ...]:
    """The published widths, or an eighth of them in the small size."""
    return widths if size == "real" else tuple(max(4, width // 8) for width in widths)


def gated_experts(
    drawing: Drawing,
    joined: str,
    *,
    experts: tuple[int, tuple[int, ...]],
    tower_widths: tuple[int, ...],
    tasks: Iterable[str],
) -> Heads:
    """Shared experts, of which each task mixes its own: the multi-gate mixture.

    Args:
        drawing: What to draw into.
        joined: The value that experts and gates see.
        experts: How many, and the widths of each.
        tower_widths: Widths of each task's tower.
        tasks: Names of the outputs.
    """
    count, widths = experts
    made = [drawing.relu_layers(joined, f"experts.{index}", widths) for index in range(count)]
    heads = []
    for task in tasks:
        gate = drawing.gate(joined, f"gates.{task}", count)
        mixed = drawing.add(Mix(f"gates.{task}.mixed", (gate, *made)))
        hidden = drawing.relu_layers(mixed, f"towers.{task}", tower_widths)
        heads.append(drawing.head(hidden, task))
    return heads


def _linear(drawing: Drawing) -> str:
    """A weight for each id, all summed, and one for each number: the wide part."""
    weights = [
        drawing.lookup(one, 1, "linear", pooling="sum" if one.length else None)
        for one in drawing.id_features
    ]
    numbers = drawing.add(Concat("numbers", tuple(one.name for one in drawing.dense_features)))
    return drawing.total("linear", *weights, drawing.dense(numbers, "linear.numbers", 1))


def fm(size: str) -> Model:
    """Factorisation machine: a weight for each id, and the products of all pairs of rows.

    Rows of 16 values, as DeepFM's; there is no published FM in the source.
    """
    drawing = _drawing(size)
    linear = _linear(drawing)
    pairs = drawing.add(PairSum("pairs", tuple(drawing.lookups(_WIDTH))))
    logit = drawing.total("logit", linear, pairs)
    scale = 0.02 if size == "real" else 0.08
    return drawing.model("fm", size, [("click", drawing.score(logit))], table_scale=scale)


def deepfm(size: str) -> Model:
    """DeepFM: deep part, second order kept as 16 values and a plain sum, joined by a last part.

    1024-256-32 over the joined features, 128-64 over the three parts.
    Source: ``modelzoo/deepfm/train.py``, whose linear part is the sum of all inputs.
    """
    drawing = _drawing(size)
    joined = drawing.joined(_WIDTH)
    rows = tuple(f"tables.{feature.name}" for feature in drawing.id_features)
    deep = drawing.relu_layers(joined, "deep", _widths(size, 1024, 256, 32))
    pairs = drawing.add(PairSum("pairs", rows))
    parts = drawing.add(Concat("parts", (deep, pairs, drawing.total("sum", joined))))
    last = drawing.relu_layers(parts, "last", _widths(size, 128, 64))
    return drawing.model("deepfm", size, [drawing.head(last, "click")], table_scale=0.25)


def wdl(size: str) -> Model:
    """Wide and deep: a weight for each id beside 1024-512-256, the two logits added.

    Rows of 64 values, of 128 for the eight largest vocabularies.
    Source: ``modelzoo/wide_and_deep/train.py``.
    """
    drawing = _drawing(size, largest=19_000)
    large = sorted(drawing.id_features, key=lambda one: -one.vocabulary)[:8]
    wide, narrow = (128, 64) if size == "real" else (16, 8)
    joined = drawing.joined(lambda one: wide if one in large else narrow)
    deep = drawing.relu_layers(joined, "deep", _widths(size, 1024, 512, 256))
    logit = drawing.total("logit", drawing.dense(deep, "heads.click", 1), _linear(drawing))
    return drawing.model("wdl", size, [("click", drawing.score(logit))], table_scale=0.3)


def dlrm(size: str) -> Model:
    """DLRM: numbers through 512-256-64-16, then the dot products of all pairs of rows.

    The products and the numbers go through 512-256. Source: ``modelzoo/dlrm/train.py``,
    in whose code both top layers read the same input; here one follows the other.
    """
    drawing = _drawing(size)
    numbers = drawing.add(Concat("numbers", tuple(one.name for one in drawing.dense_features)))
    bottom = drawing.relu_layers(numbers, "bottom", (*_widths(size, 512, 256, 64), _WIDTH))
    dots = drawing.add(Dots("dots", (bottom, *drawing.lookups(_WIDTH))))
    joined = drawing.add(Concat("joined", (bottom, dots)))
    top = drawing.relu_layers(joined, "top", _widths(size, 512, 256))
    return drawing.model("dlrm", size, [drawing.head(top, "click")], table_scale=0.5)


def dual_tower(size: str) -> Model:
    """DSSM: a tower for each side, 256-128-64 and 32, and the cosine of the two.

    The logit is the cosine times a weight plus a bias. Source: ``modelzoo/dssm/train.py``,
    which trains that weight as an absolute value.
    """
    drawing = _drawing(size)
    vectors = []
    sides: tuple[Side, Side] = ("user", "item")
    for side in sides:
        hidden = drawing.relu_layers(
            drawing.joined(_WIDTH, side), f"towers.{side}", _widths(size, 256, 128, 64)
        )
        vector = drawing.dense(hidden, f"vectors.{side}", 32 if size == "real" else 16)
        vectors.append(drawing.add(Normalise(f"{vector}.normal", (vector,))))
    cosine = drawing.total("cosine", drawing.add(Product("products", tuple(vectors))))
    return drawing.model("dual_tower", size, [drawing.head(cosine, "click")])


def cold_dnn(size: str) -> Model:
    """A coarse ranker for thousands of items: 128-64 over two vectors and a few numbers.

    The item's vector of 64 values comes from a table, computed beforehand; the user's
    is one dense layer over 41 id features. No such model is published: this is a
    stand-in, its widths chosen after TorchEasyRec's light ranker (rocket launching).
    """
    real = size == "real"
    users = _side(
        "user", vocabularies(41 if real else 11, 20_000 if real else 300), _LISTS[size, "user"]
    )
    drawing = Drawing((*users, IdFeature("item_id", 195_000 if real else 300)), _DENSE)
    vector = 64 if real else 16
    user = drawing.dense(drawing.joined(_WIDTH, "user"), "vectors.user", vector)
    item = drawing.lookup(drawing.id_features[-1], vector)
    numbers = tuple(feature.name for feature in drawing.dense_features)
    joined = drawing.add(Concat("joined", (user, numbers[0], item, numbers[1])))
    hidden = drawing.relu_layers(joined, "deep", _widths(size, 128, 64))
    return drawing.model("cold_dnn", size, [drawing.head(hidden, "click")])


def esmm(size: str) -> Model:
    """ESMM: click, and buying as the product of click and of buying after a click.

    256-128-96-64 for each side, 128-96-64-32 for the lists, two heads 256-128-96-64.
    Source: ``modelzoo/esmm/train.py``, which gives the product only.
    """
    drawing = _drawing(size)
    parts = []
    for group in ("user", "item", "lists"):
        chosen = [
            one.name
            for one in drawing.id_features
            if (group == "lists" if one.length else group == one.side)
        ]
        features = {one.name: one for one in drawing.id_features}
        rows = [drawing.lookup(features[name], _WIDTH) for name in chosen]
        rows += [one.name for one in drawing.dense_features if one.side == group]
        joined = drawing.add(Concat(f"{group}.joined", tuple(rows)))
        widths = (128, 96, 64, 32) if group == "lists" else (256, 128, 96, 64)
        parts.append(drawing.relu_layers(joined, f"parts.{group}", _widths(size, *widths)))
    whole = drawing.add(Concat("joined", tuple(parts)))
    scores = []
    for task in ("click", "conversion"):
        hidden = drawing.relu_layers(whole, f"towers.{task}", _widths(size, 256, 128, 96, 64))
        scores.append(drawing.head(hidden, task)[1])
    buy = drawing.add(Product("buy_score", tuple(scores)))
    return drawing.model("esmm", size, [("click", scores[0]), ("buy", buy)])


def simple_multitask(size: str) -> Model:
    """Two networks of 256-196-128-64 that share their tables and nothing else.

    Source: ``modelzoo/simple_multitask/train.py``.
    """
    drawing = _drawing(size)
    joined = drawing.joined(_WIDTH)
    heads = []
    for task in ("click", "buy"):
        hidden = drawing.relu_layers(joined, f"towers.{task}", _widths(size, 256, 196, 128, 64))
        heads.append(drawing.head(hidden, task))
    return drawing.model("simple_multitask", size, heads)


def mmoe(size: str) -> Model:
    """MMoE: four experts of 256-192-128-64, and for both tasks a gate and a tower alike.

    Source: ``modelzoo/mmoe/train.py``.
    """
    drawing = _drawing(size)
    widths = _widths(size, 256, 192, 128, 64)
    heads = gated_experts(
        drawing,
        drawing.joined(_WIDTH),
        experts=(4, widths),
        tower_widths=widths,
        tasks=("click", "buy"),
    )
    return drawing.model("mmoe", size, heads)


def ple(size: str) -> Model:
    """PLE: three levels of two experts for each task and one shared, all 256-128-64.

    Gates are 256-128-64 and a softmax; towers 256-128-64. Source: ``modelzoo/ple/train.py``,
    where only the shared gate has its softmax; here all have it, as in the paper.
    """
    drawing = _drawing(size)
    tasks, widths = ("click", "buy"), _widths(size, 256, 128, 64)
    values = dict.fromkeys((*tasks, "shared"), drawing.joined(_WIDTH))
    for level in range(3):
        made = {
            owner: [
                drawing.relu_layers(value, f"experts.{level}.{owner}.{index}", widths)
                for index in range(1 if owner == "shared" else 2)
            ]
            for owner, value in values.items()
        }
        # The shared gate sees all experts; after the last level nobody would read it.
        for owner in tasks if level == 2 else (*tasks, "shared"):
            owners = (*tasks, "shared") if owner == "shared" else (owner, "shared")
            experts = [expert for one in owners for expert in made[one]]
            hidden = drawing.relu_layers(values[owner], f"gating.{level}.{owner}", widths)
            gate = drawing.gate(hidden, f"gates.{level}.{owner}", len(experts))
            mixed = Mix(f"gates.{level}.{owner}.mixed", (gate, *experts))
            values = {**values, owner: drawing.add(mixed)}
    heads = [
        drawing.head(drawing.relu_layers(values[task], f"towers.{task}", widths), task)
        for task in tasks
    ]
    return drawing.model("ple", size, heads)


MODELS: Mapping[str, Callable[[str], Model]] = {
    one.__name__: one
    for one in (
        fm,
        deepfm,
        wdl,
        dlrm,
        dual_tower,
        cold_dnn,
        esmm,
        simple_multitask,
        mmoe,
        ple,
    )
}
"""Each model's function by the model's name."""
