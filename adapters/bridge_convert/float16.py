"""ONNX to ONNX in float16, by the tool that onnxruntime brings along for that.

Inputs and outputs stay what they are: casts are put behind and before them. There is no
counterpart for bfloat16: see "Reduced precision" in docs/conversion.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bridge
from bridge.errors import OptionError, UnsupportedModel, nearest
from bridge_convert.reduced import loaded, quiet, reducer, written

__all__ = ["OnnxToFloat16", "OnnxToFloat16Options"]


@dataclass(frozen=True, kw_only=True)
class OnnxToFloat16Options(bridge.Options):
    """Options of the adapter."""

    keep: tuple[str, ...] = bridge.option(
        (), help="Operators that stay in float32, besides those that have no float16."
    )


class OnnxToFloat16(bridge.Adapter):
    """Weights of half the size; faster where the hardware computes in float16.

    CPUs mostly do not: onnxruntime puts casts around each operator there, and OpenVINO
    computes in float32 again.
    """

    name = "onnx-float16"
    sources = frozenset({"onnx"})
    target = "onnx"
    options_type = OnnxToFloat16Options
    distributions = ("onnxruntime", "onnx")
    precision = "float16"
    pays_on = frozenset({"cuda", "gpu", "npu"})

    def probe(self) -> bridge.Availability:
        return reducer()

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: OnnxToFloat16Options
    ) -> Mapping[str, Any]:
        proto = loaded(model)
        _require_operators(proto, options.keep)
        clipped = _too_large(proto)
        with quiet():
            from onnxruntime.transformers import float16

            made = float16.convert_float_to_float16(
                proto,
                keep_io_types=True,
                op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *options.keep],
            )
        facts = written(model, made, target)
        if "float16" not in facts["tensors"]:
            raise UnsupportedModel(
                f"model {model.name} has no float32 weights that could be float16.",
                fix="Use it as it is.",
                model=model.name,
            )
        return {**facts, "clipped": clipped}


def _require_operators(proto: Any, names: Sequence[str]) -> None:
    known = {node.op_type for node in proto.graph.node}
    for name in names:
        if name not in known:
            raise OptionError(
                f"the model has no operator '{name}' that could stay in float32.",
                fix=nearest(name, known),
                option="keep",
                value=name,
            )


def _too_large(proto: Any) -> int:
    """Number of weights that float16 cannot hold, which become its largest number."""
    import onnx

    limit = np.finfo(np.float16).max
    count = 0
    for one in proto.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT:
            values = np.abs(onnx.numpy_helper.to_array(one))
            count += int(((values > limit) & np.isfinite(values)).sum())
    return count
