"""The catalogue of networks that the suite loads, by name.

Every dtype has its own, so that a refusal can be tested as well as an answer. Constants
are drawn from seeds and are part of the network: the oracle and every model use the very
same numbers.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import DType, TensorSpec
from bridge_conformance.network import Network, Node

__all__ = ["ARITHMETIC", "FLOATS", "NETWORKS", "digest"]

FLOATS = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)
"""The real floats that operators compute with; smaller ones are only passed on."""

ARITHMETIC = (
    *(dtype for dtype in DType if dtype.is_integer and dtype.bounds[1] >= 127),
    *FLOATS,
    DType.COMPLEX64,
    DType.COMPLEX128,
)
"""The element types of the networks ``arith_<dtype>``: no operator takes smaller integers."""

_F32 = DType.FLOAT32
_DEEP_WIDTH = 256
_DEEP_LAYERS = 16
_WIDE = 65536


def _tensor(name: str, dtype: DType, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _eighths(name: str, *shape: int, dtype: DType = _F32) -> npt.NDArray[Any]:
    """Multiples of 1/8 from -1 to 1, which every float dtype of 16 bits or more holds."""
    return (_random(name).integers(-8, 9, shape) / 8).astype(dtype.numpy)


def _affine(name: str, rows: int | str) -> Network:
    return Network(
        name,
        (_tensor("x", _F32, rows, 4),),
        (_tensor("y", _F32, rows, 3),),
        (Node("MatMul", ("x", "W"), "product"), Node("Add", ("product", "b"), "y")),
        {"W": _eighths(f"{name} W", 4, 3), "b": _eighths(f"{name} b", 3)},
    )


def _identity(dtype: DType) -> Network:
    return Network(
        f"identity_{dtype}",
        (_tensor("x", dtype, "N", 3),),
        (_tensor("y", dtype, "N", 3),),
        (Node("Identity", ("x",), "y"),),
    )


def _arithmetic(dtype: DType) -> Network:
    return Network(
        f"arith_{dtype}",
        (_tensor("a", dtype, "N", 5), _tensor("b", dtype, "N", 5)),
        (_tensor("y", dtype, "N", 5),),
        (
            Node("Mul", ("a", "b"), "product"),
            Node("Add", ("product", "a"), "sum"),
            Node("Sub", ("sum", "b"), "y"),
        ),
    )


def _logic() -> Network:
    return Network(
        "logic_bool",
        (_tensor("a", DType.BOOL, "N", 5), _tensor("b", DType.BOOL, "N", 5)),
        (_tensor("y", DType.BOOL, "N", 5),),
        (
            Node("And", ("a", "b"), "both"),
            Node("Not", ("a",), "other"),
            Node("Or", ("both", "other"), "y"),
        ),
    )


def _math(dtype: DType) -> Network:
    return Network(
        f"math_{dtype}",
        (_tensor("x", dtype, "N", 8),),
        (
            _tensor("soft", dtype, "N", 8),
            _tensor("tanh", dtype, "N", 8),
            _tensor("exp", dtype, "N", 8),
            _tensor("mean", dtype, "N"),
            _tensor("prod", dtype, "N", 6),
        ),
        (
            Node("Softmax", ("x",), "soft", {"axis": -1}),
            Node("Tanh", ("x",), "tanh"),
            Node("Exp", ("x",), "exp"),
            Node("ReduceMean", ("x",), "mean", {"axis": 1}),
            Node("MatMul", ("x", "W"), "prod"),
        ),
        {"W": _eighths("math W", 8, 6, dtype=dtype)},
    )


def _forty() -> Network:
    names = [f"in_{index:02}" for index in range(40)]
    nodes, constants = [], {}
    total = ""
    for index, name in enumerate(names):
        constants[f"factor_{index:02}"] = np.array(index + 1, np.float32)
        product = f"product_{index:02}"
        nodes.append(Node("Mul", (name, f"factor_{index:02}"), product))
        if total:
            summed = "y" if name == names[-1] else f"sum_{index:02}"
            nodes.append(Node("Add", (total, product), summed))
            product = summed
        total = product
    return Network(
        "forty",
        tuple(_tensor(name, _F32, "N") for name in names),
        (_tensor("y", _F32, "N"),),
        tuple(nodes),
        constants,
    )


def _two() -> Network:
    return Network(
        "two",
        (_tensor("x", _F32, "N", 4),),
        (_tensor("double", _F32, "N", 4), _tensor("negative", _F32, "N", 4)),
        (Node("Add", ("x", "x"), "double"), Node("Neg", ("x",), "negative")),
    )


def _scalar() -> Network:
    return Network(
        "scalar",
        (_tensor("x", _F32),),
        (_tensor("y", _F32),),
        (Node("Mul", ("x", "factor"), "product"), Node("Add", ("product", "one"), "y")),
        {"factor": np.array(2, np.float32), "one": np.array(1, np.float32)},
    )


def _reduce() -> Network:
    return Network(
        "reduce",
        (_tensor("x", _F32, "N", "M"),),
        (_tensor("total", _F32, "N"),),
        (Node("ReduceSum", ("x",), "total", {"axis": 1}),),
    )


def _mixed() -> Network:
    """A small ranker: flagged rows add their embedding, the others subtract it."""
    return Network(
        "mixed",
        (
            _tensor("ids", DType.INT64, "N", 5),
            _tensor("dense", _F32, "N", 3),
            _tensor("flag", DType.BOOL, "N"),
        ),
        (_tensor("score", _F32, "N"), _tensor("picked", DType.INT64, "N")),
        (
            Node("Gather", ("table", "ids"), "embedded"),
            Node("ReduceSum", ("embedded",), "summed", {"axis": 1}),
            Node("MatMul", ("dense", "W"), "projected"),
            Node("Add", ("projected", "summed"), "added"),
            Node("Sub", ("projected", "summed"), "less"),
            Node("ReduceSum", ("added",), "high", {"axis": 1}),
            Node("ReduceSum", ("less",), "low", {"axis": 1}),
            Node("Where", ("flag", "high", "low"), "score"),
            Node("ReduceSum", ("ids",), "total", {"axis": 1}),
            Node("Neg", ("total",), "opposite"),
            Node("Where", ("flag", "total", "opposite"), "picked"),
        ),
        {"table": _eighths("mixed table", 50, 4), "W": _eighths("mixed W", 3, 4)},
    )


def _aliasing() -> Network:
    """Outputs that a runtime may keep in the caller's input or in its own weights."""
    return Network(
        "aliasing",
        (_tensor("x", _F32, "N", 4),),
        (_tensor("same", _F32, "N", 4), _tensor("constant", _F32, 3), _tensor("y", _F32, "N", 4)),
        (
            Node("Identity", ("x",), "same"),
            Node("Identity", ("kept",), "constant"),
            Node("Add", ("x", "one"), "y"),
        ),
        {"kept": np.array([1, 2, 3], np.float32), "one": np.array(1, np.float32)},
    )


def _deep() -> Network:
    """About 2 million floating-point operations a row, hardly any memory."""
    nodes, constants = [], {}
    value = "x"
    for layer in range(_DEEP_LAYERS):
        weights = _random(f"deep {layer}").standard_normal((_DEEP_WIDTH, _DEEP_WIDTH))
        # By the square root of the width, so that tanh neither saturates nor loses the signal.
        constants[f"W{layer}"] = (weights / _DEEP_WIDTH**0.5).astype(np.float32)
        nodes.append(Node("MatMul", (value, f"W{layer}"), f"product_{layer}"))
        value = "y" if layer == _DEEP_LAYERS - 1 else f"tanh_{layer}"
        nodes.append(Node("Tanh", (f"product_{layer}",), value))
    return Network(
        "deep",
        (_tensor("x", _F32, "N", _DEEP_WIDTH),),
        (_tensor("y", _F32, "N", _DEEP_WIDTH),),
        tuple(nodes),
        constants,
    )


def _strings() -> Network:
    return Network(
        "strings",
        (_tensor("x", DType.STRING, "N"),),
        (_tensor("y", DType.STRING, "N"),),
        (Node("Identity", ("x",), "y"),),
    )


def _reshape() -> Network:
    """Fails at run time unless its input has six elements."""
    return Network(
        "reshape",
        (_tensor("x", _F32, "N", "M"),),
        (_tensor("y", _F32, 2, 3),),
        (Node("Reshape", ("x",), "y", {"shape": (2, 3)}),),
    )


def _lookup() -> Network:
    """Ought to fail at run time for ids from 10 up."""
    return Network(
        "lookup",
        (_tensor("ids", DType.INT64, "N"),),
        (_tensor("row", _F32, "N", 4),),
        (Node("Gather", ("table", "ids"), "row"),),
        {"table": _eighths("lookup table", 10, 4)},
    )


def _wide() -> Network:
    return Network(
        "wide",
        (_tensor("x", _F32, "N", _WIDE),),
        (_tensor("total", _F32, "N"),),
        (Node("ReduceSum", ("x",), "total", {"axis": 1}),),
    )


def _large() -> Network:
    return Network(
        "large",
        (_tensor("x", _F32, "N", _WIDE),),
        (_tensor("y", _F32, "N", _WIDE),),
        (Node("Add", ("x", "one"), "y"),),
        {"one": np.array(1, np.float32)},
    )


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _affine("affine", "N"),
        _affine("fixed", 2),
        *(_identity(dtype) for dtype in DType),
        *(_arithmetic(dtype) for dtype in ARITHMETIC),
        _logic(),
        *(_math(dtype) for dtype in FLOATS),
        _forty(),
        _two(),
        _scalar(),
        _reduce(),
        _mixed(),
        _aliasing(),
        _deep(),
        _strings(),
        _reshape(),
        _lookup(),
        _wide(),
        _large(),
    )
}
"""Every network by its name."""


def digest() -> str:
    """SHA-256 over the whole catalogue, for caches of what was written from it."""
    text = "".join(network.digest for network in NETWORKS.values())
    return hashlib.sha256(text.encode()).hexdigest()
