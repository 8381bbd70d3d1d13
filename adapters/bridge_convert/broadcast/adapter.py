"""ONNX to ONNX that takes some of its inputs once for all rows."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import ConversionError, OptionError, UnsupportedModel, nearest
from bridge_convert.broadcast.rewriting import Rewriting
from bridge_convert.broadcast.source import ROWS, Source
from bridge_convert.signature import available, signature_of

__all__ = ["BroadcastOptions", "OnnxBroadcast"]

_OLDEST = 13  # before, axes and sizes of some operators are attributes
_LARGEST = 2**31 - 2**20  # bytes of a message that protobuf can hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class BroadcastOptions(bridge.Options):
    """What is sent once."""

    inputs: tuple[str, ...] = bridge.option(
        (),
        help="Inputs that are equal for all rows of a call: names or patterns such as user_*.",
    )


class OnnxBroadcast(bridge.Adapter):
    """Makes a model that takes one row of inputs which are equal for all rows of a call."""

    name = "onnx-broadcast"
    sources = frozenset({"onnx"})
    target = "onnx"
    options_type = BroadcastOptions
    distributions = ("onnxslim", "onnx", "inference-bridge")  # the rewriting is its own
    only_named = True

    def probe(self) -> bridge.Availability:
        return available(("onnxslim", "onnxslim"), ("onnx", "onnx"))

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: BroadcastOptions
    ) -> Mapping[str, Any]:
        import onnx

        signature = signature_of(model)[1]
        marked = _marked(signature, options.inputs)
        rows = _with_rows(signature, marked)
        proto = onnx.load(str(model.file))
        outputs = [
            onnx.ValueInfoProto.FromString(o.SerializeToString()) for o in proto.graph.output
        ]
        source = Source(_prepared(proto, rows))
        _require_known(source, model.name)
        work = Rewriting(source, marked, rows)
        constants = work.run()
        made = _assembled(source, work, constants, signature, marked)
        _state(made.graph.output, outputs)
        is_large = made.ByteSize() > _LARGEST
        onnx.save_model(
            made, str(target), save_as_external_data=is_large, location=f"{target.stem}.bin"
        )
        # The checker wants a shape of every output, which runtimes do not.
        if all(one.type.tensor_type.HasField("shape") for one in made.graph.output):
            onnx.checker.check_model(str(target), full_check=True)
        return {
            "broadcast": list(marked),
            "nodes": len(made.graph.node),
            "once": work.once,
            "split": work.split,
            "repeated": work.expanded,
        }


def _marked(signature: bridge.Signature, patterns: Sequence[str]) -> tuple[str, ...]:
    """The inputs that the option names, in the signature's order.

    Raises:
        OptionError: It names none, or one that is not there.
    """
    names = signature.input_names
    if not patterns:
        raise OptionError(
            "no input is named that is equal for all rows.",
            fix="Name some, for example inputs=user_*.",
            option="inputs",
        )
    found: set[str] = set()
    for pattern in patterns:
        chosen = {pattern} & set(names) or set(fnmatch.filter(names, pattern))
        if not chosen:
            raise OptionError(
                f"the model has no input '{pattern}'.",
                fix=nearest(pattern, names),
                option="inputs",
                value=pattern,
                valid=list(names),
            )
        found |= chosen
    return tuple(name for name in names if name in found)


def _with_rows(signature: bridge.Signature, marked: Sequence[str]) -> tuple[str, ...]:
    """The inputs whose first dim is that of the marked ones.

    Raises:
        UnsupportedModel: A marked input has no free first dim, or no input is left that says
            how many rows there are.
    """
    dims = {}
    for spec in signature.required:
        if spec.shape and not isinstance(spec.shape[0], int):
            dims[spec.name] = spec.shape[0]
    for name in marked:
        if name not in dims:
            raise UnsupportedModel(
                f"input '{name}' has no free first dim that counts rows.",
                fix="Leave it out of the option 'inputs'.",
                input=name,
            )
    ours = {dims[name] for name in marked} - {None}
    if len(ours) > 1:
        raise UnsupportedModel(
            f"the first dims of the named inputs are different ones: "
            f"{', '.join(sorted(str(one) for one in ours))}.",
            fix="Name inputs of one batch dim.",
        )
    rows = [name for name, size in dims.items() if name in marked or size in ours]
    if len(rows) == len(marked):  # then dims that nobody named may be the same one
        rows = [name for name, size in dims.items() if name in marked or not (ours and size)]
    if len(rows) == len(marked):
        raise UnsupportedModel(
            "no input is left that says how many rows there are.",
            fix="Leave at least one input with rows out of the option 'inputs'.",
            inputs=list(marked),
        )
    return tuple(rows)


def _prepared(proto: Any, rows: Sequence[str]) -> Any:
    """The model with constants folded, functions inlined, and shapes in terms of ``ROWS``."""
    import onnx
    import onnx.inliner
    import onnxslim

    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    # An input with a default is a constant from here on: the proof says that it is gone.
    defaults = {one.name for one in proto.graph.initializer}
    required = [one for one in proto.graph.input if one.name not in defaults]
    if len(required) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(required)
        proto.ir_version = max(proto.ir_version, 4)  # before, all constants are inputs
    kept = [(one.name, one.SerializeToString()) for one in proto.graph.input]
    del proto.graph.value_info[:]
    for item in (*proto.graph.input, *proto.graph.output):
        for dim in item.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
        if item.name in rows:
            item.type.tensor_type.shape.dim[0].dim_param = ROWS
    found = onnxslim.slim(proto)
    if found is None:
        raise ConversionError("onnxslim made no model.", fix="Leave the model as it is.")
    left = {one.name: one for one in found.graph.input}
    for name, text in kept:  # those that nothing reads are dropped by it
        if name not in left:
            found.graph.input.append(onnx.ValueInfoProto.FromString(text))
    return found


def _require_known(source: Source, name: str) -> None:
    if source.opset < _OLDEST:
        raise UnsupportedModel(
            f"model {name} is of opset {source.opset}; wanted {_OLDEST} or later.",
            fix="Convert it to a newer opset first, with onnx.version_converter.",
            model=name,
            opset=source.opset,
        )
    passed = {one.name for one in source.graph.input} & source.outputs
    if passed:
        raise UnsupportedModel(
            f"output '{min(passed)}' of model {name} is an input as it is.",
            fix="Leave the model as it is.",
            model=name,
            output=min(passed),
        )


def _state(outputs: Any, stated: Sequence[Any]) -> None:
    """Outputs as they were stated; where no shape was, the one that was found."""
    for output, item in zip(outputs, stated, strict=True):
        if item.type.tensor_type.HasField("shape"):
            output.CopyFrom(item)
            continue
        for dim in output.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()


def _assembled(
    source: Source,
    work: Rewriting,
    constants: Sequence[Any],
    signature: bridge.Signature,
    marked: Sequence[str],
) -> Any:
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(source.model)
    graph = made.graph
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(work.draft.nodes)
    graph.initializer.extend(constants)
    known = {one.name: one for one in graph.input}
    inputs = []
    for spec in signature.required:
        item = onnx.ValueInfoProto()
        item.CopyFrom(known.pop(spec.name))
        for dim, size in zip(item.type.tensor_type.shape.dim, spec.shape or (), strict=False):
            dim.Clear()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
        if spec.name in marked:
            item.type.tensor_type.shape.dim[0].dim_value = 1
        inputs.append(item)
    inputs += known.values()
    del graph.input[:]
    graph.input.extend(inputs)
    return made
