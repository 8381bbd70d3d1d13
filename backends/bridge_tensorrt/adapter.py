"""The adapter that turns ONNX models into serialized engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge import Adapter, Availability, ErrorRule, ModelRef
from bridge_tensorrt import module
from bridge_tensorrt.options import EngineOptions

__all__ = ["OnnxToEngine"]


class OnnxToEngine(Adapter):
    """Parses ONNX, builds an engine, saves it; tensorrt_rtx does so without a GPU."""

    name = "onnx-to-engine"
    sources = frozenset({"onnx"})
    target = "engine"
    options_type = EngineOptions

    def probe(self) -> Availability:
        found = [module.find(name) for name in module.MODULES]
        return next((one for one in found if one.installed), found[-1])

    def error_rules(self) -> tuple[ErrorRule, ...]:
        from bridge_tensorrt.failures import conversion_rules

        return conversion_rules()

    def _convert(self, model: ModelRef, target: Path, options: EngineOptions) -> Mapping[str, Any]:
        from bridge_tensorrt.building import build

        trt = module.load(module.choose(options.module))
        built = build(trt, model, options)
        target.write_bytes(built.data)
        return built.facts
