"""Programs of ``torch.export`` and of AOTInductor."""

from __future__ import annotations

import re
from typing import Any

from bridge.dtypes import DType
from bridge.errors import OptionError, UnsupportedModel
from bridge.formats.torch.structure import ExportedTensor, named_leaves, program_signature
from bridge.signature import Signature
from bridge_torch.program import Program
from bridge_torch.runners import Package
from bridge_torch.tensors import dtype_of
from bridge_torch.writes import written_placeholders

__all__ = ["flat_module", "of_exported", "of_package"]


def flat_module(exported: Any) -> Any:
    """The exported graph as a function that takes and returns flat tensors.

    ``ExportedProgram.module()`` packs and unpacks nested arguments and compares their
    structure in each call, which costs more than a small model. The graph is the same,
    and its guards on sizes, which torch 2.9 and newer make part of the graph, stay.
    """
    from torch.fx.graph import CodeGen
    from torch.utils import _pytree as pytree

    module = exported.module()
    if not hasattr(module, "_guards_fn"):  # sizes are checked by a hook on nested arguments
        in_spec = exported.call_spec.in_spec

        def run(*flat: Any) -> Any:
            args, keywords = pytree.tree_unflatten(list(flat), in_spec)
            return tuple(pytree.tree_leaves(module(*args, **keywords), is_leaf=_is_none))

        return run
    module.graph.set_codegen(CodeGen())
    module.recompile()
    module.validate_inputs = False  # the hook would compare the nesting that is gone
    return module


def _is_none(value: Any) -> bool:
    return value is None


def of_exported(exported: Any, call: Any, provider: str) -> Program:
    """The program of an ExportedProgram.

    Inputs are called as torch.export names them: by argument, those inside tuples, lists
    and dicts by argument and position or key (``features_0``). Arguments that were
    constants at export are not inputs.

    Args:
        exported: The program.
        call: ``flat_module(exported)``, or something compiled from it.
        provider: What executes.

    Raises:
        UnsupportedModel: An input is neither tensor nor whole number, or a tensor has a
            dtype unknown here.
    """
    from torch.export.graph_signature import (
        ConstantArgument,
        InputKind,
        OutputKind,
        SymIntArgument,
        TensorArgument,
    )
    from torch.utils import _pytree as pytree

    nodes = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    graph = exported.graph_signature
    constants: dict[int, Any] = {}
    inputs = []
    numbers = set()
    arguments = [item.arg for item in graph.input_specs if item.kind is InputKind.USER_INPUT]
    for index, argument in enumerate(arguments):
        if isinstance(argument, TensorArgument):
            inputs.append(_tensor(argument.name, nodes[argument.name]))
        elif isinstance(argument, SymIntArgument):
            inputs.append(ExportedTensor(argument.name, DType.INT64, None))
            numbers.add(argument.name)
        elif isinstance(argument, ConstantArgument):
            constants[index] = argument.value
        else:
            raise UnsupportedModel(
                f"the program's input {argument} is neither a tensor nor a whole number.",
                fix="Wrap the model so that forward takes tensors, and export it again.",
            )
    results = [item.arg for item in graph.output_specs if item.kind is OutputKind.USER_OUTPUT]
    out_spec = exported.call_spec.out_spec
    nested = pytree.tree_unflatten(list(range(len(results))), out_spec)
    outputs = []
    leaves: list[str | None] = [None] * len(results)
    for name, position in named_leaves(nested):
        argument = results[position]
        if isinstance(argument, TensorArgument):
            leaves[position] = name
            outputs.append(_tensor(name, nodes[argument.name]))
        elif isinstance(argument, SymIntArgument):
            leaves[position] = name
            outputs.append(ExportedTensor(name, DType.INT64, ()))
    written = written_placeholders(exported)
    inputs_of_user = frozenset(graph.user_inputs)
    stateful = bool(graph.buffers_to_mutate) or bool(written - inputs_of_user)
    return Program(
        call=call if not constants else _with_constants(call, constants),
        signature=program_signature(inputs, outputs),
        provider=provider,
        numbers=frozenset(numbers),
        written=frozenset(graph.user_inputs_to_mutate.values()) | (written & inputs_of_user),
        leaves=tuple(leaves),
        stateful=stateful,
        exclusive=stateful,
    )


def _with_constants(call: Any, constants: dict[int, Any]) -> Any:
    order = sorted(constants.items())

    def run(*tensors: Any) -> Any:
        arguments = list(tensors)
        for index, value in order:
            arguments.insert(index, value)
        return call(*arguments)

    return run


def _tensor(name: str, value: Any) -> ExportedTensor:
    dims: list[int | str] = [
        size if isinstance(size, int) else str(getattr(size.node, "expr", size))
        for size in value.shape
    ]
    try:
        dtype = dtype_of(value.dtype)
    except ValueError:
        raise UnsupportedModel(
            f"the program's tensor '{name}' has dtype {value.dtype}, which has no numpy form.",
            fix="Convert it inside the model, and export it again.",
        ) from None
    return ExportedTensor(name, dtype, dims)


def of_package(package: Package, declared: Signature | None) -> Program:
    """The program of an AOTInductor package.

    A package names nothing, and its code does not check dtypes and shapes: a wrong
    array would be read beyond its end. So the caller has to state the signature, with
    inputs in the order of the exported program's.

    Args:
        package: The package, loaded.
        declared: The stated signature.

    Raises:
        UnsupportedModel: No complete signature is stated.
        OptionError: It has another number of inputs or outputs than the package.
    """
    from torch.utils import _pytree as pytree

    if declared is None or any(
        spec.dtype is None or spec.shape is None for spec in declared.inputs
    ):
        raise UnsupportedModel(
            "an AOTInductor package holds no signature, and its code does not check its inputs.",
            fix="Pass signature=bridge.Signature(...) with dtype and shape of each input.",
        )
    in_spec, out_spec = (pytree.treespec_loads(text) for text in package.call_spec)
    for kind, stated, found in (
        ("inputs", len(declared.inputs), in_spec.num_leaves),
        ("outputs", len(declared.outputs), out_spec.num_leaves),
    ):
        if stated != found:
            raise OptionError(
                f"signature= has {stated} {kind}; the package has {found}.",
                fix="State them in the order of the exported program.",
                option="signature",
            )
    run = package.run
    metadata = {re.sub("^AOTI_", "", key).lower(): value for key, value in package.metadata.items()}
    return Program(
        call=lambda *tensors: run(list(tensors)),
        signature=declared,
        provider="AOTInductor",
        leaves=declared.output_names,
        details={"package": metadata, "runners": package.runners},
    )
