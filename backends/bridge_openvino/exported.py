"""ExportedPrograms of torch, read by OpenVINO's own converter; torch opens the file.

``bridge.formats.torch`` has scanned the file before: without trust, it holds nothing but
known operators and tensors. The converter neither keeps what torch requires of sizes nor
the names of outputs; both are taken from the program here.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import warnings
from typing import Any

from bridge import ModelRef
from bridge.errors import BackendUnavailable, UnsupportedModel
from bridge_openvino.bounds import UNBOUNDED, Limit, Limits, Range
from bridge_openvino.runtime import openvino

__all__ = ["read_exported"]

# torch.export's conditions that a signature's named dims and the ranges below hold as well:
# that two sizes are equal, or limits of one.
_SIZE = r"L\['\w+'\]\.size\(\)\[\d+\]"
_PLAIN_GUARD = re.compile(rf"{_SIZE} (== {_SIZE}|(==|<=|>=|<|>) \d+)")
# torch reads one program at a time, and its warnings are silenced for the whole process.
_reading = threading.Lock()


def read_exported(model: ModelRef) -> tuple[Any, Limits]:
    """The ``openvino.Model`` of a program on disk, and the sizes that torch allows.

    Its inputs and outputs are called as in the program's signature.

    Raises:
        BackendUnavailable: torch is not installed.
        UnsupportedModel: It passes more than tensors, changes its inputs or buffers, or has
            conditions on sizes that only torch can check.
        RuntimeError: OpenVINO cannot convert it.
    """
    if importlib.util.find_spec("torch") is None:
        raise BackendUnavailable(
            "OpenVINO reads ExportedPrograms by means of torch, which is not installed.",
            fix="Install it with: pip install 'inference-bridge[torch]'",
            backend="openvino",
        )
    stated = model.facts.signatures.get("")
    if stated is None:
        raise _unfit(f"its signature could not be read: {' '.join(model.facts.notes)}")
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        program = torch.export.load(str(model.file))
        limits = _limits(program)
        program = program.run_decompositions(_decompositions())
        _require_unchanging(program)
        # TorchFXPythonDecoder.from_exported_program does the same, but warns through the
        # root logger, and lets all dims vary.
        decoder = TorchFXPythonDecoder(program.module(), dynamic_shapes=False)
        reader = openvino().frontend.FrontEndManager().load_by_framework("pytorch")
        try:
            network = reader.convert(reader.load(decoder))
        except Exception as error:
            # The frontend's own classes are no RuntimeErrors, which OpenVINO raises elsewhere.
            raise RuntimeError(str(error)) from error
    for kind, specs, nodes in (
        ("inputs", stated.inputs, network.get_parameters()),
        ("outputs", stated.outputs, network.get_results()),
    ):
        if len(specs) != len(nodes):
            raise _unfit(f"its signature has {len(specs)} {kind}, and OpenVINO reads {len(nodes)}")
        for spec, node in zip(specs, nodes, strict=True):
            node.set_friendly_name(spec.name)
    return network, limits


def _limits(program: Any) -> Limits:
    """What torch requires of each input's sizes."""
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    graph = program.graph_signature
    inputs = [one.arg for one in graph.input_specs if one.kind is InputKind.USER_INPUT]
    results = [one.arg for one in graph.output_specs if one.kind is OutputKind.USER_OUTPUT]
    if not all(isinstance(one, TensorArgument) for one in (*inputs, *results)):
        raise _unfit("it takes or returns more than tensors")
    guards = getattr(program, "_guards_code", None)
    if guards is None or not all(_PLAIN_GUARD.fullmatch(one) for one in guards):
        raise _unfit("it has conditions on sizes that only torch can check")
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    limits: Limits = {}
    for argument in inputs:
        found = []
        for axis, size in enumerate(values[argument.name].shape):
            expression = getattr(getattr(size, "node", None), "expr", None)
            if expression is None or expression.is_Integer:
                continue
            if not expression.is_Symbol:
                raise _unfit(f"input '{argument.name}' has a size {expression}")
            allowed = program.range_constraints[expression]
            high = int(allowed.upper) if allowed.upper.is_Integer else UNBOUNDED
            found.append(Limit(axis, "", Range(max(0, int(allowed.lower)), high)))
        if found:
            limits[argument.name] = tuple(found)
    return limits


def _decompositions() -> Any:
    """Torch's table, without the operators that OpenVINO converts as they are."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    from torch.export.decomp_utils import CustomDecompTable

    table: Any = CustomDecompTable()  # type: ignore[no-untyped-call]
    for operator in ops_to_not_decompose():
        table.pop(operator, None)
    return table


def _require_unchanging(program: Any) -> None:
    """Raises ``UnsupportedModel`` where calls change something; the converter drops that."""
    graph = program.graph_signature
    if graph.buffers_to_mutate or graph.user_inputs_to_mutate:
        raise _unfit("it changes its inputs or buffers")


def _unfit(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"OpenVINO cannot take this ExportedProgram: {what}.", fix="Use backend='torch'."
    )
