"""Packages that AOTInductor builds of exported programs, kept in the bridge's cache.

A package is native code. It is only loaded from an entry of the cache, which the bridge
has built itself and compares byte by byte, so that no trust has to be given for it. Texts
of the program, which might get into the source of that code, are kept out of it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.cache import default_cache
from bridge.cpus import cpu_flags
from bridge.device import CPU, Device
from bridge.errors import DTypeMismatch, ShapeMismatch, UnsupportedModel, UntrustedModel
from bridge.model import ModelRef
from bridge.signature import Signature
from bridge_torch.autocast import lowered
from bridge_torch.compiler import mode_settings
from bridge_torch.program import Program, quiet
from bridge_torch.runners import Package, open_package
from bridge_torch.shared import find, keep
from bridge_torch.tensors import dtype_of

__all__ = ["find_compiler", "packaged"]

# torch.export's conditions that a signature's named dims and the ranges below hold as well.
_PLAIN_GUARD = re.compile(
    r"L\['\w+'\]\.size\(\)\[\d+\] (== L\['\w+'\]\.size\(\)\[\d+\]|(==|<=|>=|<|>) \d+)"
)
_ANY_SIZE = 2**63 - 1
# Words for modes, names of dtypes, and equations such as "bij,bjk->bik".
_PLAIN_TEXT = re.compile(r"[\w ,.:>-]*")
_NOTES = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "custom")
# The compiler of torch keeps its settings in globals.
_building = threading.Lock()

Call = Callable[..., Any]


def find_compiler() -> str | None:
    """Path of the C++ compiler that torch's compilers use; ``None`` if there is none."""
    usual = "clang++" if platform.system() == "Darwin" else "g++"
    return shutil.which(os.environ.get("CXX", usual))


def packaged(
    model: ModelRef,
    exported: Any,
    named: Program,
    device: Device,
    *,
    threads: int,
    runners: int,
    mode: str,
    freezing: bool,
    autocast: str,
) -> Program:
    """A program that runs as native code, which is built if the cache does not have it.

    Args:
        model: The model on disk, whose digest names the package in the cache.
        exported: The ``ExportedProgram``, on the device.
        named: Its names and specs; not its call, so that the weights are held once.
        device: Where it runs.
        threads: Threads of one call, which are part of the code.
        runners: Calls that may run side by side.
        mode: How hard the compiler tries, in the words of ``torch.compile``.
        freezing: Whether it lays weights out for the products they are for.
        autocast: Precision of products and convolutions, in the words of the option.

    Raises:
        UnsupportedModel: It passes more than tensors, or writes to its inputs, or has sizes
            or an order in memory that compiled code would not check.
        UntrustedModel: An operator has a text that might become code of its own.
        Exception: Whatever torch's compiler raises.
    """
    checked = _checks(exported, named)
    if model.declared is not None:  # which may say less than what the code is made for
        checked = _as_exported(named.signature, checked)
    _without_texts(exported, model)
    with quiet(r"`torch\.jit\.\w+` is (deprecated|not supported)"):
        import torch
        import torch._inductor

    settings = {"cpp.threads": threads, **mode_settings(mode, graphs=False)}
    if freezing:
        settings["freezing"] = True

    def build(folder: Path) -> None:
        # torch freezes only what cannot be trained.
        with _building, quiet(".*"), torch.no_grad():
            narrow = autocast != "off"
            torch._inductor.aoti_compile_and_package(
                lowered(exported, autocast, device.kind) if narrow else exported,
                package_path=str(folder / "model.pt2"),
                inductor_configs=settings,
            )

    # The code is built for this very CPU, and may not start on another.
    hardware = [platform.machine(), *sorted(cpu_flags())]
    if device != CPU:
        major, minor = torch.cuda.get_device_capability(device.index)
        hardware += [torch.cuda.get_device_name(device.index), f"{major}.{minor}"]
    parts = {
        "model": model.digest,
        "torch": str(torch.__version__),
        "device": device.kind,
        "hardware": list(hardware),
        "threads": threads,
        "mode": mode,
        "freezing": freezing,
        "autocast": autocast,
    }
    folder = default_cache().entry("aot-inductor", parts, build, executable=True)
    index = -1 if device == CPU else device.index
    path = folder / "model.pt2"

    # Predictors of one program share its weights, unless they write to them.
    key = (path, runners, index)
    package: Package | None = None if named.stateful else find(key)
    if package is None:
        package = open_package(path, runners, index)
        if not named.stateful:
            keep(key, package)
    run = package.run

    def call(*tensors: Any) -> Any:
        checked(*tensors)
        return run(list(tensors))

    return replace(named, call=call, details={"runners": package.runners}, source=package)


def _without_texts(exported: Any, model: ModelRef) -> None:
    """Removes notes, which a compiler may write into comments, and refuses odd arguments."""
    from torch.fx import GraphModule
    from torch.utils import _pytree as pytree

    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            for note in _NOTES:
                node.meta.pop(note, None)
            for value in pytree.tree_leaves((node.args, node.kwargs)):
                if isinstance(value, str) and not _PLAIN_TEXT.fullmatch(value) and not model.trust:
                    raise UntrustedModel(
                        f"the operator {node.target} has the text {value[:60]!r}, which might get "
                        "into the code that is compiled.",
                        fix="Pass trust=True if you know who made the file, or use eager.",
                        model=model.name,
                    )


def _checks(exported: Any, named: Program) -> Call:
    """A function that raises for sizes for which the program was not exported.

    Compiled code does not look at sizes: it would read beyond an array's end.
    """
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    graph = exported.graph_signature
    inputs = [one.arg for one in graph.input_specs if one.kind is InputKind.USER_INPUT]
    results = [one.arg for one in graph.output_specs if one.kind is OutputKind.USER_OUTPUT]
    if not all(isinstance(one, TensorArgument) for one in (*inputs, *results)):
        raise _unfit("it takes or returns more than tensors")
    if named.written:
        raise _unfit("it writes to its inputs")
    nodes = {node.name: node.meta["val"] for node in exported.graph.nodes if "val" in node.meta}
    limits = []
    seen = set()
    for position, argument in enumerate(inputs):
        example = nodes[argument.name]
        if not example.is_contiguous():  # the code would read arrays in the example's order
            raise _unfit(f"the example of input '{argument.name}' was not contiguous in memory")
        for axis, size in enumerate(example.shape):
            expression = getattr(getattr(size, "node", None), "expr", None)
            if expression is None or expression in seen:
                continue
            if not expression.is_Symbol:
                raise _unfit(f"input '{argument.name}' has a size {expression}")
            seen.add(expression)
            limits.append((position, axis, *_range(exported, expression), argument.name))
    guards = getattr(exported, "_guards_code", None)
    if guards is not None and all(_PLAIN_GUARD.fullmatch(one) for one in guards):
        return _within(tuple(limits))
    every: Call | None = getattr(exported.module(), "_guards_fn", None)
    if every is None:
        raise _unfit("this torch does not tell its conditions on sizes")
    return every


def _as_exported(own: Signature, check: Call) -> Call:
    """``check`` after a look at dtypes and shapes, for a signature that a caller has stated."""

    def held(*tensors: Any) -> None:
        sizes: dict[str, int] = {}
        for spec, tensor in zip(own.inputs, tensors, strict=True):
            dtype, shape = dtype_of(tensor.dtype), tuple(tensor.shape)
            if dtype is not spec.dtype:
                raise DTypeMismatch(
                    f"input '{spec.name}' has dtype {dtype.value}; the program was exported for "
                    f"{spec.dtype.value if spec.dtype else 'any'}.",
                    fix="Pass that dtype, or export the program anew.",
                    input=spec.name,
                )
            wanted = spec.shape if spec.shape is not None else (None,) * len(shape)
            if len(shape) != len(wanted) or any(
                size != (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
                for dim, size in zip(wanted, shape, strict=True)
                if dim is not None
            ):
                raise ShapeMismatch(
                    f"input '{spec.name}' has shape {shape}; the program was exported for "
                    f"{spec.shape_text}, with {sizes}.",
                    fix="Use sizes for which the program was exported, or export it anew.",
                    input=spec.name,
                    got=shape,
                )
        check(*tensors)

    return held


def _within(limits: tuple[tuple[int, int, int, int, str], ...]) -> Call:
    def check(*tensors: Any) -> None:
        for position, axis, low, high, name in limits:
            if not low <= tensors[position].shape[axis] <= high:
                size = tensors[position].shape[axis]
                most = "or more" if high == _ANY_SIZE else f"to {high}"
                raise ShapeMismatch(
                    f"input '{name}' has size {size} in axis {axis}; the program was exported "
                    f"for {low} {most}.",
                    fix="Use sizes for which the program was exported, or export it anew.",
                    input=name,
                    axis=axis,
                    size=size,
                )

    return check


def _range(exported: Any, symbol: Any) -> tuple[int, int]:
    """Smallest and largest size of a dim that varies."""
    allowed = exported.range_constraints[symbol]
    high = int(allowed.upper) if allowed.upper.is_Integer else _ANY_SIZE
    return max(0, int(allowed.lower)), high


def _unfit(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"AOTInductor cannot be used for this program here: {what}.",
        fix="Use execution=compiled or eager.",
    )
