"""Which options a model can have, and which of these are worth measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.cpus import cpu_flags, default_threads
from bridge.device import CPU, Device
from bridge.errors import OptionError
from bridge.model import ModelRef
from bridge.search import Pruned
from bridge_torch.options import TorchOptions
from bridge_torch.package import find_compiler

__all__ = ["candidates", "misplaced", "require_place"]

_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Flags of CPUs that multiply in bfloat16; without them it is slower than float32."""

# Ways to execute besides eager, by format.
_EXECUTIONS: dict[str, tuple[str, ...]] = {
    "torchscript": ("frozen",),
    "exported_program": ("compiled", "aot_inductor"),
    "aot_inductor": (),
    "torch_module": ("frozen", "compiled"),
    "torch_pickle": ("frozen", "compiled"),
}


def candidates(model: ModelRef, device: Device) -> list[Mapping[str, Any] | Pruned]:
    """Threads, then each way to execute that the format knows and compilers allow."""
    cpus = default_threads()
    threads: list[dict[str, Any]] = [{}]
    if device == CPU:
        threads += [{"threads": 1}, *([{"threads": cpus // 2}] if cpus > 3 else [])]
    else:
        threads += [{"tf32": True}]
    compiled = threads[:1]
    if device == CPU:
        compiled = [*threads[:2], {"freezing": True}]
        if cpu_flags() & _BF16_FLAGS:
            compiled.append({"freezing": True, "autocast": "bf16"})
    found: list[Mapping[str, Any] | Pruned] = list(threads)
    for execution, sets in (
        ("frozen", threads),
        ("aot_inductor", compiled),
        ("compiled", threads[:1]),
    ):
        values = {"execution": execution}
        reason = _out_of_place(execution, model)
        if reason is not None:
            found.append(Pruned(values, f"not-for-{_dashed(model.format.name)}", reason))
        elif execution != "frozen" and find_compiler() is None:
            reason = f"execution={execution} needs a C++ compiler, and there is none here."
            found.append(Pruned(values, "no-cxx-compiler", reason))
        else:
            found += [{**values, **more} for more in sets]
            if execution == "compiled":
                found.append(_per_size(model))
    if device == CPU:
        if model.format.name != "aot_inductor":
            found.append(_reduced())
        found.append({"threads": cpus})
    return found


def _reduced() -> Mapping[str, Any] | Pruned:
    values = {"autocast": "bf16"}
    if cpu_flags() & _BF16_FLAGS:
        return values
    return Pruned(values, "no-instructions", "This CPU has no instructions for bfloat16.")


def _out_of_place(execution: str, model: ModelRef) -> str | None:
    """Why a model of its format cannot be executed so; ``None`` if it may."""
    known = _EXECUTIONS[model.format.name]
    if execution in ("eager", *known) and not (
        execution == "aot_inductor" and model.live is not None
    ):
        return None
    if model.live is not None and execution == "aot_inductor":
        return "execution=aot_inductor is for an ExportedProgram on disk, not for a live model."
    others = ", ".join(("eager", *known))
    return f"execution={execution} is not for {model.format.title} models; these have {others}."


def _per_size(model: ModelRef) -> Mapping[str, Any] | Pruned:
    """Code for fixed sizes, where they are fixed; elsewhere new ones would stop calls."""
    values = {"execution": "compiled", "dynamic": False}
    signature = next(iter(model.facts.signatures.values()), model.declared)
    if signature is not None and all(
        spec.shape is not None and all(isinstance(size, int) for size in spec.shape)
        for spec in signature.inputs
    ):
        return values
    return Pruned(
        values,
        "compiles-per-size",
        "torch.compile would compile again for each new size, which stops that call.",
    )


def require_place(options: TorchOptions, model: ModelRef) -> None:
    """Raises ``OptionError`` for what the model's format cannot do, or leaves without effect."""
    name = model.format.name
    reason = _out_of_place(options.execution, model)
    if reason is not None:
        raise OptionError(
            reason,
            fix=f"Use execution={(*_EXECUTIONS[name], 'eager')[0]}.",
            option="execution",
            value=options.execution,
            rule=f"not-for-{_dashed(name)}",
        )
    is_package = name == "aot_inductor"
    if options.weights is not None and name not in ("torch_module", "torch_pickle"):
        raise misplaced(options, "weights", "the file holds weights of its own")
    if options.runners is not None and not is_package and options.execution != "aot_inductor":
        raise misplaced(options, "runners", "only AOTInductor has runners")
    if is_package and options.channels_last:
        raise misplaced(options, "channels_last", "a package has its layout built in")
    if is_package and options.autocast != "off":
        raise misplaced(options, "autocast", "a package has its precision built in")


def misplaced(options: TorchOptions, name: str, reason: str) -> OptionError:
    """The error for an option that this model leaves without effect."""
    return OptionError(
        f"{name}={getattr(options, name)} has no effect here: {reason}.",
        fix=f"Leave {name} out.",
        option=name,
        rule=f"{_dashed(name)}-out-of-place",
    )


def _dashed(name: str) -> str:
    return name.replace("_", "-")
