"""ONNX to smaller ONNX, by onnxslim: folded constants, fused and removed nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import ConversionError
from bridge_convert.signature import available, name_onnx, signature_of

__all__ = ["OnnxSlim"]


class OnnxSlim(bridge.Adapter):
    """Makes the same model with fewer nodes; worth it for runtimes that optimise little."""

    name = "onnx-slim"
    sources = frozenset({"onnx"})
    target = "onnx"
    distributions = ("onnxslim", "onnx")

    def probe(self) -> bridge.Availability:
        return available(("onnxslim", "onnxslim"))

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        import onnx
        import onnxslim

        proto = onnx.load(str(model.file))
        before = len(proto.graph.node)
        slimmed = onnxslim.slim(proto)
        if slimmed is None:
            raise ConversionError("onnxslim made no model.", fix="Use the model as it is.")
        name_onnx(slimmed, signature_of(model)[1])
        onnx.save_model(slimmed, str(target))
        return {"nodes": len(slimmed.graph.node), "nodes_before": before}
