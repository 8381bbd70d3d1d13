"""TorchScript to ONNX, by torch's older exporter, and to OpenVINO IR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import OptionError, UnsupportedModel, nearest
from bridge.formats.torch.script import Argument, script_signature
from bridge_convert import openvino_ir
from bridge_convert.onnx_file import finish_onnx
from bridge_convert.saved_model import OnnxOptions
from bridge_convert.signature import available
from bridge_convert.tracing import examples, export_onnx, quiet, traced

__all__ = ["TorchscriptToIr", "TorchscriptToOnnx"]


class _FromTorchscript(bridge.Adapter):
    """TorchScript states neither dtypes nor shapes: the caller has to."""

    sources = frozenset({"torchscript"})

    def refuse(self, model: bridge.ModelRef) -> bridge.Refusal | None:
        refusal = super().refuse(model)
        if refusal is not None:
            return refusal
        stated = model.declared
        if stated is None or any(one.dtype is None or one.shape is None for one in stated.required):
            return bridge.Refusal(
                "TorchScript states no dtypes and no shapes, which a converted model has to state.",
                "Pass signature=bridge.Signature(...), or --signature FILE.json.",
            )
        return None


class TorchscriptToOnnx(_FromTorchscript):
    """Dims that the stated signature leaves open stay open."""

    name = "torchscript-to-onnx"
    target = "onnx"
    options_type = OnnxOptions
    distributions = ("torch", "onnx")

    def probe(self) -> bridge.Availability:
        found = bridge.find_runtime("torch", ("torch",), "torch")
        return found if not found.installed else available(("onnx", "onnx"))

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: OnnxOptions
    ) -> Mapping[str, Any]:
        with quiet():
            assert model.declared is not None
            module = _loaded(model)
            signature = _in_order(module, model.declared)
            tensors = examples(signature)
            frozen, outputs = traced(module, tensors)
            named = _with_outputs(signature, outputs)
            export_onnx(frozen, named.output_names, tensors, named, target, options.opset)
            nodes = finish_onnx(target, named)
        return {"opset": options.opset, "nodes": nodes}


class TorchscriptToIr(_FromTorchscript, openvino_ir.ToIr):
    """Dims that the stated signature leaves open stay open."""

    name = "torchscript-to-openvino_ir"
    distributions = ("openvino", "torch")

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        with quiet():
            assert model.declared is not None
            module = _loaded(model)
            signature = _in_order(module, model.declared)
            tensors = examples(signature)
            frozen, outputs = traced(module, tensors)
            network = openvino_ir.converted(frozen, example_input=tensors)
            return openvino_ir.save_in_order(network, _with_outputs(signature, outputs), target)


def _in_order(module: Any, stated: bridge.Signature) -> bridge.Signature:
    """The stated signature, its inputs in the order of the arguments, as they are traced.

    Raises:
        OptionError: It names an input that the module does not have.
        UnsupportedModel: It leaves out an argument before one that it names.
    """
    arguments = [
        Argument(one.name, one.type.annotation_str, one.has_default_value())
        for one in module._c._get_method("forward").schema.arguments[1:]
    ]
    index = {one.name: place for place, one in enumerate(arguments)}
    places = {
        one.name: index[one.native_name or one.name]
        for one in script_signature(arguments, ()).inputs
    }
    for spec in stated.inputs:
        if spec.name not in places:
            raise OptionError(
                f"signature= names an input '{spec.name}' that the model does not have.",
                fix=nearest(spec.name, places),
                option="signature",
            )
    inputs = sorted(stated.inputs, key=lambda one: places[one.name])
    for place, spec in enumerate(inputs):
        if places[spec.name] != place:
            raise UnsupportedModel(
                f"signature= leaves out '{arguments[place].name}', an argument before "
                f"'{spec.name}'.",
                fix="State all inputs up to the last one, or export a module that takes no others.",
                input=arguments[place].name,
            )
    return bridge.Signature(tuple(inputs), stated.outputs)


def _with_outputs(signature: bridge.Signature, outputs: tuple[str, ...]) -> bridge.Signature:
    """The signature with these outputs, in this order; what it says of others is lost."""
    known = {spec.name: spec for spec in signature.outputs}
    if len(known) == len(outputs) and not set(known) & set(outputs):
        known = dict(zip(outputs, known.values(), strict=True))  # the caller's names, in order
    found = tuple(known.get(name) or bridge.TensorSpec(name, None, None) for name in outputs)
    return bridge.Signature(signature.inputs, found)


def _loaded(model: bridge.ModelRef) -> Any:
    import torch

    return torch.jit.load(  # type: ignore[no-untyped-call]
        str(model.file), map_location="cpu"
    ).eval()
