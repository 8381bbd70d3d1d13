"""The backend: what torch can do here, and how each format becomes a program."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import bridge
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.cpus import usable_cpus
from bridge.device import CPU, Device
from bridge.dtypes import DType
from bridge.errors import (
    BridgeError,
    ErrorRule,
    OptionError,
    UnsupportedModel,
)
from bridge.model import ModelRef
from bridge.search import Pruned, combine
from bridge_torch.autocast import PRECISIONS, widened, with_autocast
from bridge_torch.compiler import compiled
from bridge_torch.cuda import recorded, require_cuda, with_tf32
from bridge_torch.failures import error_rules
from bridge_torch.images import require_images, with_images_last, with_weights_last
from bridge_torch.options import TorchOptions
from bridge_torch.package import packaged
from bridge_torch.predictor import TorchPredictor
from bridge_torch.program import Program, declare, of_module, of_script, quiet
from bridge_torch.shared import content_key, find, keep
from bridge_torch.space import candidates, misplaced, require_place
from bridge_torch.threads import call_threads, import_torch, limited
from bridge_torch.weights import module_with

__all__ = ["TorchBackend"]

_FORMATS = frozenset(
    ("torchscript", "exported_program", "aot_inductor", "torch_module", "torch_pickle")
)
_SCRIPT_IS_DEPRECATED = r"`torch\.jit\.\w+` is (deprecated|not supported)"
# Without strings, and without the small types: torch 2.13 has names for most of them, but
# its tensors of these cannot be made from arrays or turned into some.
_DTYPES = frozenset(DType) - {
    DType.STRING,
    DType.INT2,
    DType.INT4,
    DType.UINT2,
    DType.UINT4,
    DType.FLOAT4_E2M1FN,
    DType.FLOAT8_E8M0FNU,
}


class TorchBackend(bridge.Backend):
    """PyTorch: TorchScript, ExportedProgram, AOTInductor packages, live modules, pickles.

    A live module in evaluation mode is used as it is. If any part of it is in training
    mode, or if its parameters are on another device, a copy is made: the copy is put into
    evaluation mode, shares parameters and buffers with the original where the device
    allows, and the caller's module is not touched. Hooks that are registered on a module
    itself after loading are not called. A TorchScript file is put into evaluation mode
    after loading.
    """

    name = "torch"
    options_type: ClassVar[type[bridge.Options]] = TorchOptions
    device_kinds = ("cpu", "cuda")

    def probe(self) -> bridge.Availability:
        return bridge.find_runtime("torch", ("torch",), "torch")

    def devices(self) -> tuple[Device, ...]:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return (CPU, *(Device("cuda", index) for index in range(count)))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            formats=_FORMATS if device.kind in self.device_kinds else frozenset(),
            dtypes=_DTYPES,
            dynamic_dims=True,
            zero_rows=True,
            dlpack=device == CPU,
            deterministic=device == CPU,
            thread_safety=ThreadSafety.SHARED,
        )

    def search_space(self, model: ModelRef, device: Device) -> tuple[bridge.Options | Pruned, ...]:
        return combine(TorchOptions, candidates(model, device))

    def error_rules(self) -> tuple[ErrorRule, ...]:
        return error_rules()

    def _load(self, model: ModelRef, device: Device, options: Any) -> bridge.Predictor:
        assert isinstance(options, TorchOptions)
        torch = import_torch()
        if device == CPU:
            require_cuda(options)
        require_place(options, model)
        program = declare(_PROGRAMS[model.format.name](model, device, options), model.declared)
        threads = None
        if device == CPU or options.threads is not None:
            threads = call_threads(options.threads)
        versions = {"torch": str(torch.__version__)}
        if device.kind == "cuda":
            versions["cuda"] = str(torch.version.cuda)
        info = bridge.PredictorInfo(
            device=device,
            provider=program.provider,
            precision=_precision(options),
            threads=threads,
            stateful=program.stateful,
            versions=versions,
            details=program.details,
        )
        return TorchPredictor(_called(program, device, options, threads), info)


def _precision(options: TorchOptions) -> str:
    if options.autocast != "off":
        return PRECISIONS[options.autocast]
    return "tf32" if options.tf32 else "float32"


def _called(
    program: Program, device: Device, options: TorchOptions, threads: int | None
) -> Program:
    """The program with all that a call has around it, the innermost first."""
    import torch

    call, exclusive = program.call, program.exclusive
    if options.channels_last:
        require_images(program.signature)
        call = with_images_last(call)
    if options.execution == "aot_inductor" and options.autocast != "off":
        call = widened(call, options.autocast, program.signature)  # the rest is compiled in
    elif options.autocast != "off":
        call = with_autocast(call, options.autocast, device.kind, program.signature)
    if device.kind == "cuda":
        call = with_tf32(call, allowed=options.tf32)
    if options.cuda_graphs:
        if program.stateful:
            raise OptionError(
                "cuda_graphs=True is not for models that keep state: recording calls them.",
                fix="Leave it out.",
                option="cuda_graphs",
                rule="cuda-graphs-with-state",
            )
        call, exclusive = recorded(call, device), True
    if threads is not None and (options.threads or threads != torch.get_num_threads()):
        call = limited(call, threads)
    return dataclasses.replace(program, call=call, exclusive=exclusive, pinned=options.pinned)


def _script_program(model: ModelRef, device: Device, options: TorchOptions) -> Program:
    import torch

    # What torch.jit.load does after its deprecation warning, which would be raised in a
    # program that turns warnings into errors, and can only be silenced process-wide.
    read: Callable[..., Any] = torch._C.import_ir_module
    wrap: Callable[..., Any] = torch.jit._recursive.wrap_cpp_module
    where = torch.device(str(device))
    # Weights in another layout are nobody else's.
    key = None if options.channels_last else ("torchscript", where, content_key(model.file))
    module = find(key)
    if module is None:
        unit = torch._C.CompilationUnit()
        module = wrap(read(unit, str(model.file), where, {}, False)).eval()  # noqa: FBT003 - positional in C++
        if options.channels_last:
            with_weights_last(module)
    program = _of_scripted(module, options, model)
    if key is None or program.stateful or options.execution != "eager":
        return program
    keep(key, module)
    return dataclasses.replace(program, source=module)


def _of_scripted(module: Any, options: TorchOptions, model: ModelRef) -> Program:
    provider = "TorchScript"
    if options.execution == "frozen":
        import torch

        with quiet(_SCRIPT_IS_DEPRECATED):
            module = torch.jit.optimize_for_inference(torch.jit.freeze(module))
        provider = "TorchScript, frozen"
    return of_script(module, provider, model.declared)


# torch reads one program at a time: a second thread would find its deserializer, which is a
# global, "already set" (AssertionError, seen with torch 2.13).
_reading = threading.Lock()


def _exported_program(model: ModelRef, device: Device, options: TorchOptions) -> Program:
    import torch

    from bridge_torch.exported import flat_module, of_exported

    exported: Any = model.live
    key = None
    if exported is None:
        # The compiler takes notes off the program; weights in another layout are nobody else's.
        if options.execution != "aot_inductor" and not options.channels_last and device == CPU:
            key = ("exported_program", content_key(model.file))
        exported = find(key)
    if exported is None:
        with _reading:
            exported = _read_exported(model)
    if device != CPU:
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, str(device))
    if options.execution == "aot_inductor":
        named = of_exported(exported, None, "AOTInductor")
        if options.freezing and named.stateful:
            raise misplaced(options, "freezing", "the model changes what would be frozen")
        threads = call_threads(options.threads)
        runners = _runners(options, threads, device)
        return packaged(
            model,
            exported,
            named,
            device,
            threads=threads,
            runners=runners,
            mode=options.mode,
            freezing=options.freezing,
            autocast=options.autocast,
        )
    module = flat_module(exported)
    if options.channels_last and model.live is None and isinstance(module, torch.nn.Module):
        with_weights_last(module)
    if options.execution == "compiled":
        program = of_exported(exported, compiled(module, options), "torch.compile")
        program = dataclasses.replace(program, exclusive=True)
    else:
        program = of_exported(exported, module, "eager")
    if key is None or program.stateful:
        return program
    keep(key, exported)
    return dataclasses.replace(program, source=exported)


def _runners(options: TorchOptions, threads: int, device: Device) -> int:
    """Calls that run side by side: as many as the CPUs can serve, if nothing is said."""
    if options.runners is not None:
        return options.runners
    return max(1, usable_cpus() // threads) if device == CPU else 1


def _read_exported(model: ModelRef) -> Any:
    import torch

    try:
        return torch.export.load(str(model.file))
    except RuntimeError as error:  # its text only refers to what has been logged
        for operator in model.facts.operators:
            space, _, name = operator.partition("::")
            if name and not hasattr(getattr(torch.ops, space), name):
                raise UnsupportedModel(
                    f"this torch does not know the model's operator {operator}.",
                    fix="Import the library that registers it before loading, or install a newer "
                    "torch.",
                ) from error
        raise


def _package_program(model: ModelRef, device: Device, options: TorchOptions) -> Program:
    from bridge_torch.exported import of_package
    from bridge_torch.runners import open_package

    index = device.index if device.kind == "cuda" else -1
    runners = _runners(options, call_threads(options.threads), device)
    package = open_package(model.file, runners, index)
    built_for = str(package.metadata.get("AOTI_DEVICE_KEY", device.kind))
    if built_for != device.kind:
        raise UnsupportedModel(
            f"the package was built for {built_for}; {device} was asked for.",
            fix=f"Load it with device='{built_for}', or build it again.",
        )
    return of_package(package, model.declared)


def _pickle_program(model: ModelRef, device: Device, options: TorchOptions) -> Program:
    import torch

    # Reached with trust only: TorchPickle.check refuses otherwise.
    found = torch.load(str(model.file), map_location=str(device), weights_only=False)
    if not isinstance(found, torch.nn.Module):
        what = f"an object of class {type(found).__name__}"
        if isinstance(found, dict):
            what = f"a dict of {len(found)} entries, probably the weights (state dict) of a model"
        raise UnsupportedModel(
            f"the pickle holds {what}, and no model.",
            fix="Build the module, call load_state_dict on it, and pass the module itself, or "
            "export it with torch.export.save.",
        )
    return _of_live(found, model, device, options)


def _module_program(model: ModelRef, device: Device, options: TorchOptions) -> Program:
    return _of_live(model.live, model, device, options)


def _of_live(live: Any, model: ModelRef, device: Device, options: TorchOptions) -> Program:
    import torch

    if options.weights is not None:
        if isinstance(live, torch.jit.ScriptModule):
            raise misplaced(options, "weights", "a scripted module holds weights of its own")
        live = module_with(live, options.weights)
    module = _ready(live, device, fresh_images=options.channels_last)
    if isinstance(module, torch.jit.ScriptModule):
        if options.execution in ("compiled", "aot_inductor"):
            raise _illegal(options, "TorchScript", "frozen")
        return _of_scripted(module, options, model)
    if options.execution == "frozen":
        try:
            with quiet(_SCRIPT_IS_DEPRECATED):
                scripted = torch.jit.script(module)
        except Exception as error:
            raise UnsupportedModel(
                f"{type(module).__name__} cannot be turned into TorchScript: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else error!r}",
                fix="Use execution=compiled or eager.",
            ) from error
        return _of_scripted(scripted, options, model)
    if options.execution == "compiled":
        program = of_module(module, compiled(module, options), "torch.compile", model.declared)
        return dataclasses.replace(program, exclusive=True, first=module)
    return of_module(module, module, "eager", model.declared)


def _ready(module: Any, device: Device, *, fresh_images: bool) -> Any:
    """The module if it can be used as it is, else a copy; see ``TorchBackend``.

    With ``fresh_images`` it is a copy that has the weights of convolutions to itself, in
    the layout for channels that come last.
    """
    import torch

    wanted = torch.device(str(device))
    tensors = [*module.parameters(), *module.buffers()]
    is_elsewhere = any(tensor.device != wanted for tensor in tensors)
    is_training = any(part.training for part in module.modules())
    if not is_elsewhere and not is_training and not fresh_images:
        return module
    shared = {
        id(tensor): tensor
        for tensor in tensors
        if not is_elsewhere and not (fresh_images and tensor.dim() == 4)
    }
    try:
        made = copy.deepcopy(module, shared)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{type(module).__name__} is in training mode or not on {device}, and cannot be "
            f"copied: {error}.",
            fix=f"Call .eval() and .to('{device}') on it first.",
        ) from error
    made = made.to(wanted).eval()
    return with_weights_last(made) if fresh_images else made


def _illegal(options: TorchOptions, what: str, instead: str) -> BridgeError:
    return OptionError(
        f"option 'execution' cannot be '{options.execution}' for {what}.",
        fix=f"Use execution={instead}.",
        option="execution",
        value=options.execution,
        rule="not-for-torchscript",
    )


_PROGRAMS: dict[str, Callable[[ModelRef, Device, TorchOptions], Program]] = {
    "torchscript": _script_program,
    "exported_program": _exported_program,
    "aot_inductor": _package_program,
    "torch_module": _module_program,
    "torch_pickle": _pickle_program,
}
