"""A model of any of torch's formats as one callable over tensors, with what is known of it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bridge.errors import OptionError, UnsupportedModel, nearest
from bridge.formats.torch.script import Argument, output_names, script_signature
from bridge.signature import Signature
from bridge_torch.writes import script_writes

__all__ = ["Program", "declare", "of_module", "of_script", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a predictor runs.

    Attributes:
        call: Takes the inputs in the signature's order; those left out are no arguments,
            and the ones after them go by keyword.
        signature: Names and specs.
        provider: What executes, in torch's words.
        numbers: Inputs that the model takes as Python numbers.
        written: Inputs that the model writes to, so that it gets a copy.
        leaves: Names of the members of the flat sequence that ``call`` returns, None for
            those that are no outputs; None if ``call`` returns any structure.
        stateful: A call changes the model.
        exclusive: Calls must not run side by side.
        is_learning: The outputs, and what is written, are known only after a call.
        first: What that call runs in place of ``call``, whose tensors it would compile for
            although no later call has such ones.
        buffers: Gives the tensors that a stateful model might change.
        details: For ``info.details``.
        pinned: Inputs go to the device by way of page-locked memory.
        source: What is shared with other predictors of the same file, held while this one
            lives.
        positional: Inputs that go by position, from the first on; those after an input that
            the caller's signature does not name go by keyword. None if there is none.
    """

    call: Callable[..., Any]
    signature: Signature
    provider: str
    numbers: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    leaves: tuple[str | None, ...] | None = None
    stateful: bool = False
    exclusive: bool = False
    is_learning: bool = False
    first: Callable[..., Any] | None = None
    buffers: Callable[[], list[Any]] = list
    details: Mapping[str, Any] = field(default_factory=dict)
    pinned: bool = False
    source: Any = None
    positional: int | None = None


def declare(program: Program, declared: Signature | None) -> Program:
    """The program with the signature that the caller states, if any.

    Raises:
        OptionError: The signature names an input that the model does not have, leaves
            out a required one, or has another number of outputs.
    """
    if declared is None:
        return program
    known = {spec.name: spec for spec in program.signature.inputs}
    for spec in declared.inputs:
        if spec.name not in known:
            raise OptionError(
                f"signature= names an input '{spec.name}' that the model does not have.",
                fix=nearest(spec.name, known),
                option="signature",
            )
    stated = {spec.name: spec for spec in declared.inputs}
    for spec in program.signature.required:
        if spec.name not in stated:
            raise OptionError(
                f"signature= leaves out the model's input '{spec.name}'.",
                fix="Add it.",
                option="signature",
            )
    count = len(program.signature.outputs)
    if count and count != len(declared.outputs):
        raise OptionError(
            f"signature= has {len(declared.outputs)} outputs; the model returns {count}.",
            fix=f"The model's own are: {', '.join(program.signature.output_names)}.",
            option="signature",
        )
    if not declared.outputs:
        raise OptionError(
            "signature= has no outputs.", fix="Name what the model returns.", option="signature"
        )
    # The model's order and native names; the caller's dtypes and shapes.
    inputs = tuple(
        dataclasses.replace(
            stated[spec.name],
            native_name=spec.native_name,
            has_default=spec.has_default,
            dtype=spec.dtype if spec.name in program.numbers else stated[spec.name].dtype,
        )
        for spec in program.signature.inputs
        if spec.name in stated
    )
    leaves = program.leaves
    if leaves is not None:
        names = iter(declared.output_names)
        leaves = tuple(None if leaf is None else next(names) for leaf in leaves)
    in_order = itertools.takewhile(stated.__contains__, program.signature.input_names)
    positional = sum(1 for _ in in_order)
    return dataclasses.replace(
        program,
        signature=Signature(inputs, declared.outputs),
        leaves=leaves,
        positional=positional if positional < len(inputs) else None,
    )


def of_script(module: Any, provider: str, declared: Signature | None) -> Program:
    """The program of a TorchScript module in evaluation mode.

    Raises:
        UnsupportedModel: An input is neither tensor nor number, or the outputs are a list,
            or a dict with keys made at run time, and ``declared`` does not name them.
    """
    import torch

    method = module._c._get_method("forward")
    schema = method.schema
    arguments = [
        Argument(item.name, item.type.annotation_str, item.has_default_value())
        for item in schema.arguments[1:]
    ]
    kind = schema.returns[0].type
    returns = kind.annotation_str
    if returns.startswith("__torch__."):
        returns = kind.str()  # a named tuple's fields; annotation_str has only its class
    graph = method.graph.copy()
    torch._C._jit_pass_inline(graph)
    names = output_names(returns) or _returned_keys(graph)
    if names is None and declared is None:
        raise UnsupportedModel(
            f"the model returns {returns}, whose members are known only after a call.",
            fix="Name the outputs with signature=bridge.Signature(...), or wrap the model so that "
            "it returns a tuple of tensors.",
        )
    if names is None and declared is not None:
        names = declared.output_names
    signature = script_signature(arguments, names or ())
    stateful, written = script_writes(graph)
    has_hooks = any(
        getattr(module._c, name, list)()
        for name in ("_get_forward_hooks", "_get_forward_pre_hooks")
    )
    return Program(
        # Past Module.__call__, whose hooks a scripted method does not use.
        call=module if has_hooks else method,
        signature=signature,
        provider=provider,
        numbers=frozenset(spec.name for spec in signature.inputs if spec.dtype is not None),
        written=frozenset(
            spec.name
            for index, spec in enumerate(signature.inputs)
            if spec.native_name in {arguments[item].name for item in written}
        ),
        stateful=stateful,
        exclusive=stateful,
    )


def _returned_keys(graph: Any) -> tuple[str, ...] | None:
    """The keys of the dict that a graph returns, if it is built in one place."""
    node = next(iter(graph.outputs())).node()
    if node.kind() != "prim::DictConstruct":
        return None
    keys = [item.toIValue() for item in list(node.inputs())[::2]]
    return tuple(keys) if keys and all(isinstance(key, str) for key in keys) else None


_NUMBERS = (bool, int, float)


def of_module(
    module: Any, call: Callable[..., Any], provider: str, declared: Signature | None
) -> Program:
    """The program of a live module, from the signature of its ``forward``.

    The names are those of the arguments. Outputs are taken from the return annotation if
    that says it, else learned from the first call.

    Raises:
        UnsupportedModel: ``forward`` takes ``*args``, and nothing names the inputs.
    """
    arguments = []
    is_open = False
    parameters = inspect.signature(module.forward).parameters.values()
    for item in parameters:
        if item.kind is item.VAR_KEYWORD:
            continue
        if item.kind is item.VAR_POSITIONAL:
            is_open = True
            continue
        has_default = item.default is not item.empty
        arguments.append(Argument(item.name, _argument_type(item), has_default=has_default))
    if is_open and declared is None:
        raise UnsupportedModel(
            f"{type(module).__name__}.forward takes any number of tensors, which names no inputs.",
            fix="Pass signature=bridge.Signature(...) with the inputs in order.",
        )
    if is_open and declared is not None:
        arguments = [Argument(spec.name) for spec in declared.inputs]
    returns = _return_type(module.forward)
    names = output_names(returns) if returns is not None else None
    signature = script_signature(arguments, names or ())
    # Past Module.__call__, which takes 1 to 3 µs, where it does no more than call forward.
    is_plain = call is module and not _is_more_than_forward(module)
    direct: Callable[..., Any] = module.forward if is_plain else call
    return Program(
        call=direct,
        signature=signature,
        provider=provider,
        numbers=frozenset(spec.name for spec in signature.inputs if spec.dtype is not None),
        is_learning=True,
        buffers=lambda: list(module.buffers()),
    )


def _is_more_than_forward(module: Any) -> bool:
    """Whether to call the module does more than to call its ``forward``."""
    from torch.nn.modules import module as shared

    if type(module).__call__ is not shared.Module.__call__ or module._compiled_call_impl:
        return True
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(
        getattr(module, name, None) or getattr(shared, f"_global{name}", None) for name in names
    )


def _argument_type(item: inspect.Parameter) -> str:
    text = item.annotation if isinstance(item.annotation, str) else None
    if item.annotation in _NUMBERS:
        return str(item.annotation.__name__)
    if text in ("int", "float", "bool"):
        return text
    if item.default is item.empty or item.default is None:
        return "Tensor"
    # An optional setting: a number can be given as one, anything else keeps its default.
    return type(item.default).__name__


def _return_type(forward: Callable[..., Any]) -> str | None:
    annotation = inspect.signature(forward).return_annotation
    if annotation is inspect.Signature.empty:
        return None
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = text.replace("torch.", "").replace("typing.", "")
    return re.sub(r"\btuple\[", "Tuple[", text)


_quiet = threading.Lock()


@contextmanager
def quiet(*messages: str) -> Iterator[None]:
    """Silences warnings that our own calls cause, by the beginning of their text.

    Used around rare, slow steps only: Python's warning filters belong to the whole
    process, so a warning of another thread with the same text would be lost too, and the
    lock keeps our own uses from restoring each other's filters.
    """
    import warnings

    with _quiet, warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        yield
