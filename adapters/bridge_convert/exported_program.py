"""ExportedPrograms to ONNX, OpenVINO IR and AOTInductor packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import ConversionError, UnsupportedModel
from bridge.logs import logger
from bridge_convert import onnx_file, openvino_ir
from bridge_convert.saved_model import OnnxOptions
from bridge_convert.signature import available, signature_of
from bridge_convert.tracing import NEWEST_OPSET, examples, export_onnx, quiet, traced

__all__ = ["ExportedProgramToAotInductor", "ExportedProgramToIr", "ExportedProgramToOnnx"]

_log = logger("exported_program-to-onnx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExporterOptions(OnnxOptions):
    """Options of the adapter from ExportedProgram to ONNX."""

    exporter: str = bridge.option(
        "auto",
        help="Exporter of torch: dynamo, or the older one, which traces; auto tries both in turn.",
        choices=("auto", "dynamo", "traced"),
        when="A model comes out wrong or slow with the other.",
    )


class ExportedProgramToOnnx(bridge.Adapter):
    """Names of inputs are kept, those of outputs as the bridge names them; dims are as well."""

    name = "exported_program-to-onnx"
    sources = frozenset({"exported_program"})
    target = "onnx"
    options_type = ExporterOptions
    distributions = ("torch", "onnxscript", "onnx")

    def probe(self) -> bridge.Availability:
        found = bridge.find_runtime("torch", ("torch",), "torch")
        return found if not found.installed else available(("onnxscript", "onnxscript"))

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: ExporterOptions
    ) -> Mapping[str, Any]:
        signature = signature_of(model)[1]
        with quiet():
            program = _program(model)
            used = options.exporter
            if used != "traced":
                try:
                    _dynamo(program, signature, target, options.opset)
                    used = "dynamo"
                except Exception as error:
                    if used == "dynamo" or options.opset > NEWEST_OPSET:
                        raise
                    _log.warning("torch.onnx (dynamo) failed, so the program is traced: %s", error)
                    used = "traced"
                    for item in target.parent.iterdir():  # half of a file, maybe
                        item.unlink()
            if used == "traced":
                tensors = examples(signature)
                frozen, outputs = traced(_flat(program), tensors)
                export_onnx(frozen, outputs, tensors, signature, target, options.opset)
            nodes = onnx_file.finish_onnx(target, signature)
        return {"exporter": used, "opset": options.opset, "nodes": nodes}


class ExportedProgramToIr(openvino_ir.ToIr):
    """Names and dims are those of the program."""

    name = "exported_program-to-openvino_ir"
    sources = frozenset({"exported_program"})
    distributions = ("openvino", "torch")

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        signature = signature_of(model)[1]
        with quiet():
            network = openvino_ir.converted(_program(model))
            return openvino_ir.save_in_order(network, signature, target)


class ExportedProgramToAotInductor(bridge.Adapter):
    """Native code for this very CPU; states no signature, so that loading needs one."""

    name = "exported_program-to-aot_inductor"
    sources = frozenset({"exported_program"})
    target = "aot_inductor"
    distributions = ("torch",)
    needs_trust = True  # texts of the program get into source code, which is then compiled
    makes_code = True
    timeout_s = 1200.0

    def probe(self) -> bridge.Availability:
        return bridge.find_runtime("torch", ("torch",), "torch")

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        with quiet():
            import torch
            import torch._inductor

            # It insists on this suffix.
            written = target.with_name(f"{target.stem}.pt2")
            torch._inductor.aoti_compile_and_package(_program(model), package_path=str(written))
            if written != target:
                written.rename(target)
        return {"size_bytes": target.stat().st_size}


def _program(model: bridge.ModelRef) -> Any:
    """The program.

    Raises:
        UnsupportedModel: It changes its inputs or buffers, which converters drop in silence.
    """
    import torch

    program: Any = model.live if model.live is not None else torch.export.load(str(model.file))
    schemas = (getattr(node.target, "_schema", None) for node in program.graph.nodes)
    seen = program
    if any(schema is not None and schema.is_mutable for schema in schemas):
        seen = program.run_decompositions()  # tells what of it is seen outside
    graph = seen.graph_signature
    if graph.buffers_to_mutate or graph.user_inputs_to_mutate:
        raise UnsupportedModel(
            "the program changes its inputs or buffers, which a converted model would not.",
            fix="Export it with its state as inputs and outputs.",
            model=model.name,
        )
    return program


def _dynamo(program: Any, signature: bridge.Signature, target: Path, opset: int) -> None:
    import torch

    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=list(signature.input_names),
        output_names=list(signature.output_names),
        verbose=False,
    )
    assert made is not None
    written = made.model.opset_imports[""]
    if written != opset:  # it only warns where it cannot go down
        raise ConversionError(
            f"torch.onnx (dynamo) wrote opset {written}; wanted {opset}.",
            fix=f"Take opset={written}, or exporter=traced.",
            wanted=opset,
            got=written,
        )
    tensors = [one.const_value for one in made.model.graph.initializers.values()]
    weights = sum(int(one.nbytes) for one in tensors if one is not None)
    made.save(str(target), external_data=weights > onnx_file.LARGEST_BYTES)


def _flat(program: Any) -> Any:
    """The program as a module that takes its tensors in order."""
    import torch
    from torch.utils import _pytree as pytree

    module = program.module()
    spec = program.call_spec.in_spec

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *given: Any) -> Any:
            args, keywords = pytree.tree_unflatten(list(given), spec)
            return self.inner(*args, **keywords)

    return Flat()
