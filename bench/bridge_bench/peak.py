"""What the processors can do at most: matrix products by the runtimes that are installed.

For each precision the fastest of the runtimes that take ONNX, on a large product and on
the layers of a model at a size of batch. The product is followed by the largest value of
each row, which every runtime has to compute and which is small to hand over. A rate is
operations in a second, a multiplication and an addition being two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from bridge.backend import Backend
from bridge.check import Arrays
from bridge.device import CPU
from bridge.errors import BridgeError, MeasureError
from bridge.loading import backends, load, open_model
from bridge.search import Pruned
from bridge.slice import timed
from bridge_bench.process import SERVE, Process, serve
from bridge_bench.stats import percentile
from bridge_bench.subject import cpu_backends
from bridge_zoo.description import Description
from bridge_zoo.weights import weight_shapes

__all__ = ["LARGE", "PRECISIONS", "Peak", "Product", "ideal_s", "operations", "peaks", "products"]

PRECISIONS = ("float32", "bfloat16", "int8")
"""Precisions of products, from the most exact."""
_SMALL_SHARE = 0.03  # of a model's operations, below which a layer is not timed itself
_LOAD_S = 120.0
_MODULE = "bridge_bench.peak"


class Product(NamedTuple):
    """``(rows, inner)`` times ``(inner, columns)``."""

    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns


LARGE = (Product(1536, 1536, 1536), Product(512, 2048, 512))
"""Products on which the peak is measured: the better one counts."""


@dataclass(frozen=True)
class Peak:
    """The best rate at a product.

    Attributes:
        product: The product.
        precision: One of ``PRECISIONS``.
        per_s: Operations in a second.
        backend: By whom.
    """

    product: Product
    precision: str
    per_s: float
    backend: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "product": list(self.product)}


def products(description: Description, rows: int) -> dict[Product, int]:
    """The matrix products of a model that matter, with how often each is computed."""
    found: dict[Product, int] = {}
    for name, shape in weight_shapes(description).items():
        if name.endswith(".kernel"):
            product = Product(rows, shape[0], shape[1])
            found[product] = found.get(product, 0) + 1
    whole = operations(description, rows)
    return {
        one: count for one, count in found.items() if count * one.operations >= _SMALL_SHARE * whole
    }


def operations(description: Description, rows: int) -> int:
    """Operations of a model's dense layers; all else is little beside them."""
    shapes = weight_shapes(description).items()
    kernels = [shape for name, shape in shapes if name.endswith(".kernel")]
    return sum(2 * rows * inner * columns for inner, columns in kernels)


def ideal_s(description: Description, rows: int, found: Sequence[Peak], precision: str) -> float:
    """Time of the model's products if each ran at the best rate of its own shape.

    Layers that were not timed count as if they were as fast as the others together.

    Raises:
        KeyError: A product of the model is not among the peaks.
    """
    per_s = {one.product: one.per_s for one in found if one.precision == precision}
    parts = products(description, rows)
    seconds = sum(count * one.operations / per_s[one] for one, count in parts.items())
    timed_share = sum(count * one.operations for one, count in parts.items())
    return seconds * operations(description, rows) / timed_share


def peaks(
    wanted: Sequence[Product],
    *,
    seconds: float = 0.4,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Peak]:
    """The best rate of each product in each precision that some runtime has.

    Args:
        wanted: The products.
        seconds: For timing one product on one runtime.
        tell: Called with one line of text now and then.
    """
    best: dict[tuple[Product, str], Peak] = {}
    for backend in cpu_backends():
        if "onnx" not in backend.capabilities(CPU).formats:
            continue
        tell(f"matrix products by {backend.name}")
        with Process(_MODULE) as process:
            for product in wanted:
                request = {"backend": backend.name, "product": list(product), "seconds": seconds}
                for precision, per_s in process.ask(request, timeout_s=_LOAD_S).items():
                    one = Peak(product, precision, per_s, backend.name)
                    if (known := best.get((product, precision))) is None or known.per_s < per_s:
                        best[product, precision] = one
    return list(best.values())


def _model(product: Product, *, is_int8: bool) -> tuple[bytes, Arrays]:
    """A product with a fixed matrix and the largest value of each row, and what goes in."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shape = (product.rows, product.inner)
    if is_int8:
        matrix = generator.integers(-100, 100, (product.inner, product.columns), np.int8)
        inputs: Arrays = {"x": generator.integers(0, 200, shape, np.uint8)}
        kinds = (TensorProto.UINT8, TensorProto.INT32)
    else:
        matrix = generator.standard_normal((product.inner, product.columns), np.float32)
        inputs = {"x": generator.standard_normal(shape, np.float32)}
        kinds = (TensorProto.FLOAT, TensorProto.FLOAT)
    kind = "MatMulInteger" if is_int8 else "MatMul"
    nodes = [
        helper.make_node(kind, ["x", "w"], ["y"]),
        helper.make_node("ReduceMax", ["y", "axes"], ["z"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kinds[0], list(shape))],
        [helper.make_tensor_value_info("z", kinds[1], [product.rows])],
        [
            numpy_helper.from_array(matrix, "w"),
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made.SerializeToString(), inputs


def _measured(request: Mapping[str, Any]) -> dict[str, float]:
    """Rates by precision of one product on one runtime."""
    product = Product(*request["product"])
    backend = backends()[request["backend"]]
    found: dict[str, float] = {}
    for is_int8 in (False, True):
        data, inputs = _model(product, is_int8=is_int8)
        for options in [None] if is_int8 else _ways(backend, data):
            try:
                predictor = load(data, backend=backend.name, options=options)
            except BridgeError:
                continue  # it has no such product: others may
            with predictor:
                said = "int8" if is_int8 else predictor.info.precision
                if said in PRECISIONS:
                    per_s = product.operations / _fastest_s(
                        predictor.predict, inputs, request["seconds"]
                    )
                    found[said] = max(per_s, found.get(said, 0.0))
    return found


def _ways(backend: Backend, data: bytes) -> list[dict[str, Any] | None]:
    """Options that compute in another precision than the default's, and the default."""
    space = backend.search_space(open_model(data), CPU)
    half = [one for one in space if not isinstance(one, Pruned) and one.tier == "half"]
    return [None, *(one.to_dict() for one in half[:1])]


def _fastest_s(call: Callable[[Arrays], Arrays], inputs: Arrays, seconds: float) -> float:
    """The 10th percentile: what the machine does while nobody disturbs it."""
    found: list[float] = []
    ends = monotonic() + seconds
    while monotonic() < ends or len(found) < 5:
        found += (timed(call, [inputs], 3)[0].ns / 1e9).tolist()
    return percentile(found[2:], 0.1)


def _serve() -> int:
    def answer(request: dict[str, Any]) -> Mapping[str, Any]:
        return _measured(request)

    return serve(answer)


if __name__ == "__main__":
    if sys.argv[1:] != [SERVE]:
        raise MeasureError("this is a part of python -m bridge_bench.headline.")
    sys.exit(_serve())
