"""New weights for an engine that is there: what may be exchanged, and the exchange.

TensorRT finds the weights of an ONNX model again by the names of its initialisers. Only
floating-point ones are exchanged: integers decide shapes and places, which are built in.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from bridge import ModelRef
from bridge.logs import logger
from bridge.wire import Span, opened
from bridge_tensorrt.engine import Engine
from bridge_tensorrt.messages import listener, mark, since

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["graph_digest", "refit"]

_log = logger("tensorrt")

# Field numbers of onnx/onnx.proto (onnx 1.23).
_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _NAME, _LOCATION = 2, 8, 14
_VALUES = {4, 5, 9, 10}  # float_data, int32_data (16 bits and less), raw_data, double_data
_FLOATS = {1, 10, 11, 16}  # FLOAT, FLOAT16, DOUBLE, BFLOAT16


def graph_digest(model: ModelRef) -> str | None:
    """SHA-256 of an ONNX model without the values of its floating-point initialisers.

    Everything else counts, names and sizes of those initialisers too. ``None`` where
    another initialiser lies in a file of its own, which is not read here.
    """
    digest = hashlib.sha256()
    with opened(model.data if model.data is not None else model.file) as whole:
        skipped: list[tuple[int, int]] = []
        for tensor in _initializers(whole):
            found = _values(tensor)
            if found is None:
                return None
            skipped += found
        start = 0
        with whole.view() as data:
            for left, right in [*sorted(skipped), (len(whole), len(whole))]:
                digest.update(data[start:left])
                digest.update(b"%d." % (right - left))
                start = right
    return digest.hexdigest()


def refit(engine: Engine, model: ModelRef) -> bool:
    """Gives an engine the weights of a model with the same graph.

    Returns:
        Whether it has all of them; if not, the engine must not be used any more.
    """
    trt = engine.trt
    start = mark()
    log = listener(trt)
    refitter: rtx.Refitter = trt.Refitter(engine.native, log)
    known = set(refitter.get_all_weights())
    kept = sorted(_float_names(model) - known)
    if kept:
        # Values that the builder has worked into others, which would stay the old ones.
        _log.info("weights of %s that cannot be replaced: %s", model.name, ", ".join(kept))
        return False
    parser: rtx.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, log)
    if model.data is not None:
        is_read = parser.refit_from_bytes(model.data)
    else:
        is_read = parser.refit_from_file(str(model.file))
    if is_read and not refitter.get_missing_weights() and refitter.refit_cuda_engine():
        return True
    _log.info("%s cannot be refitted: %s", model.name, "; ".join(since(start)) or "no reason given")
    return False


def _float_names(model: ModelRef) -> set[str]:
    with opened(model.data if model.data is not None else model.file) as whole:
        return {
            name
            for tensor in _initializers(whole)
            if not _FLOATS.isdisjoint(tensor.ints(_DATA_TYPE))
            for name in tensor.texts(_NAME)
        }


def _initializers(whole: Span) -> list[Span]:
    return [tensor for graph in whole.spans(_GRAPH) for tensor in graph.spans(_INITIALIZER)]


def _values(tensor: Span) -> list[tuple[int, int]] | None:
    """Where the values of a tensor lie that may be exchanged; ``None`` if they must be known."""
    if not _FLOATS.isdisjoint(tensor.ints(_DATA_TYPE)):
        return [
            _place(value)
            for number, _, value in tensor.fields()
            if number in _VALUES and isinstance(value, Span)
        ]
    return None if 1 in tensor.ints(_LOCATION) else []


def _place(span: Span) -> tuple[int, int]:
    return span.start, span.end
