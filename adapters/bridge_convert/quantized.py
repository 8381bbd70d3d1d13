"""ONNX to ONNX with 8-bit integers, by onnxruntime's quantiser.

Three adapters: matrix products whose activations are quantised at each call, the same with
ranges that were calibrated before, and tables of embeddings. Inputs and outputs keep names
and dtypes, ids among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bridge
from bridge.check import Arrays
from bridge.errors import OptionError, UnsupportedModel, nearest
from bridge_convert.reduced import loaded, quantised, quiet, reducer, written
from bridge_convert.signature import signature_of

__all__ = [
    "OnnxInt8Dynamic",
    "OnnxInt8Embeddings",
    "OnnxInt8Static",
    "QuantizerOptions",
    "StaticOptions",
]

CALIBRATION_ROWS = 128
"""Rows of one calibrating call: more of them would only take more memory."""

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
_STATIC = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class QuantizerOptions(bridge.Options):
    """Options of both adapters for matrix products."""

    per_channel: bool = bridge.option(
        default=False, help="A scale for each output of a layer instead of one for all."
    )
    reduce_range: bool = bridge.option(
        default=False,
        help="Weights of 7 bits: for x86 CPUs without VNNI, whose 8-bit sums may saturate.",
    )
    exclude: tuple[str, ...] = bridge.option(
        (), help="Names of nodes that stay in float32, such as the last layer's."
    )


@dataclass(frozen=True, kw_only=True)
class StaticOptions(QuantizerOptions):
    """Options of the calibrated adapter."""

    method: str = bridge.option(
        "minmax", help="How ranges are found from the samples.", choices=tuple(_METHODS)
    )


class OnnxInt8Dynamic(bridge.Adapter):
    """Matrix products with constant weights in 8 bits, activations by their range in each call.

    ``Gemm`` counts as one. Needs no samples, and pays on CPUs.
    """

    name = "onnx-int8-dynamic"
    sources = frozenset({"onnx"})
    target = "onnx"
    options_type = QuantizerOptions
    distributions = ("onnxruntime", "onnx")
    precision = "int8"
    pays_on = frozenset({"cpu"})

    def probe(self) -> bridge.Availability:
        return reducer()

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: QuantizerOptions
    ) -> Mapping[str, Any]:
        proto = loaded(model)
        _require_nodes(proto, options.exclude)
        made = _dynamic(
            proto,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
            nodes_to_exclude=list(options.exclude),
        )
        count = _counted(made)["MatMulInteger"]
        if not count:
            raise _nothing(model, "no MatMul or Gemm with constant float32 weights")
        return {"matrices": count, **written(model, made, target)}


class OnnxInt8Embeddings(bridge.Adapter):
    """Tables that ``Gather`` reads in 8 bits, a quarter of the size; rows are scaled when read.

    Every table has one scale, so that one large value makes all others coarse.
    """

    name = "onnx-int8-embeddings"
    sources = frozenset({"onnx"})
    target = "onnx"
    distributions = ("onnxruntime", "onnx")
    precision = "int8"
    pays_on = frozenset({"cpu"})

    def probe(self) -> bridge.Availability:
        return reducer()

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        proto = loaded(model)
        before = _counted(proto)["DequantizeLinear"]
        made = _dynamic(proto, target, op_types_to_quantize=["Gather"])
        count = _counted(made)["DequantizeLinear"] - before
        if not count:
            raise _nothing(model, "no Gather from a constant float32 table")
        return {"tables": count, **written(model, made, target)}


class OnnxInt8Static(bridge.CalibratedAdapter):
    """Layers in 8 bits with activations by ranges that samples showed (QDQ)."""

    name = "onnx-int8-static"
    sources = frozenset({"onnx"})
    target = "onnx"
    options_type = StaticOptions
    distributions = ("onnxruntime", "onnx")
    precision = "int8"

    def probe(self) -> bridge.Availability:
        return reducer()

    def _calibrate(
        self, model: bridge.ModelRef, target: Path, options: StaticOptions, samples: Arrays
    ) -> Mapping[str, Any]:
        proto = loaded(model)
        _require_nodes(proto, options.exclude)
        before = _counted(proto)["QuantizeLinear"]
        if not any(_counted(proto)[kind] for kind in _STATIC):
            raise _nothing(model, f"none of {', '.join(_STATIC)}")
        pieces = list(_pieces(samples, signature_of(model)[1]))
        with quiet():
            from onnxruntime import quantization

            class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
                def __init__(self) -> None:
                    self.left = iter(pieces)

                def get_next(self) -> Arrays | None:
                    return next(self.left, None)

            made = quantised(
                quantization.quantize_static,
                proto,
                target.parent,
                calibration_data_reader=Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_STATIC),
                per_channel=options.per_channel,
                reduce_range=options.reduce_range,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=list(options.exclude),
                calibrate_method=getattr(quantization.CalibrationMethod, _METHODS[options.method]),
            )
        if _counted(made)["QuantizeLinear"] == before:
            raise _nothing(model, f"no {', '.join(_STATIC)} in float32")
        rows = max((len(one) for piece in pieces for one in piece.values() if one.ndim), default=1)
        return {"calls": len(pieces), "most_rows": rows, **written(model, made, target)}


def _dynamic(proto: Any, target: Path, **how: Any) -> Any:
    with quiet():
        from onnxruntime import quantization

        return quantised(
            quantization.quantize_dynamic,
            proto,
            target.parent,
            weight_type=quantization.QuantType.QInt8,
            **how,
        )


def _counted(proto: Any) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def _pieces(samples: Arrays, signature: bridge.Signature) -> Iterator[Arrays]:
    """The samples in calls of some rows; inputs that have no rows go whole into each."""
    axes = {name: axis for name, axis in signature.batch_axes().items() if name in samples}
    rows = max((samples[name].shape[axis] for name, axis in axes.items()), default=1)
    for start in range(0, rows, CALIBRATION_ROWS):
        here = slice(start, start + CALIBRATION_ROWS)
        yield {
            name: array[(*(slice(None),) * axes[name], here)] if name in axes else array
            for name, array in samples.items()
        }


def _require_nodes(proto: Any, names: Sequence[str]) -> None:
    known = {node.name for node in proto.graph.node if node.name}
    for name in names:
        if name not in known:
            raise OptionError(
                f"there is no node '{name}' to exclude.",
                fix=nearest(name, known),
                option="exclude",
                value=name,
            )


def _nothing(model: bridge.ModelRef, lacks: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"model {model.name} has nothing to quantise: {lacks}.",
        fix="Use it as it is, or with a precision option of a backend.",
        model=model.name,
    )
