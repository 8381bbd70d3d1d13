"""A compiled model with its ports: compiled now, taken from the cache, or another predictor's.

What is taken from the cache has been exported by OpenVINO itself, on a CPU with the same
instructions. It is compared byte by byte before OpenVINO sees it, for OpenVINO does not
check what it imports. The ports are kept beside it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import CPU, Device, DType, ModelRef
from bridge.cache import JSON, Cache, default_cache
from bridge.cpus import cpu_flags, usable_cpus
from bridge.errors import InvalidModel, UnsupportedModel
from bridge_openvino.bounds import (
    Limit,
    Limits,
    Range,
    fixed,
    joined,
    limits_of,
    parsed,
    reshape,
)
from bridge_openvino.options import OpenvinoOptions
from bridge_openvino.ports import Ports, find_ports
from bridge_openvino.reading import read
from bridge_openvino.runtime import compiled, core, imported, openvino, require_own_process

__all__ = ["Program", "find_program"]

_BLOB, _PORTS = "model.blob", "ports.json"
# What OpenVINO says of a device that its blobs depend on, where it says so.
_TRAITS = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "GPU_DRIVER_VERSION", "NPU_DRIVER_VERSION")

# Operators with graphs of their own, whose tensors are not among the model's.
_WITH_BODY = frozenset({"If", "Loop", "TensorIterator"})

_alive: weakref.WeakValueDictionary[str, Program] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


@dataclass(eq=False)
class Program:
    """What a predictor runs.

    Attributes:
        native: The ``openvino.CompiledModel``.
        ports: Its signature, and the port behind each name.
        limits: Sizes for which it was compiled, by input.
        is_checked: Any call may meet sizes that none has met before, as far as is known; it
            matters where there is one thread.
        origin: ``compiled``, or ``cache`` if nothing had to be compiled.
        memory: Holds the weights of what came from the cache.
        turn: To be held while it runs, if it has one thread and sizes that vary.
        streams: Calls that run side by side.
    """

    native: Any
    ports: Ports
    limits: Limits
    is_checked: bool
    origin: str = "compiled"
    memory: npt.NDArray[np.uint8] | None = None
    turn: threading.Lock | None = field(init=False, default=None)
    streams: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self.streams = int(_property(self.native, "NUM_STREAMS") or 1)
        has_one_thread = _property(self.native, "INFERENCE_NUM_THREADS") == 1
        if has_one_thread and (self.is_checked or _varies(self.native)):
            self.turn = threading.Lock()


def find_program(
    model: ModelRef, device: Device, place: str, config: Mapping[str, Any], options: OpenvinoOptions
) -> Program:
    """The program of a model with these options.

    Args:
        model: The model, already checked.
        device: Where it runs.
        place: OpenVINO's name for that.
        config: Properties of OpenVINO.
        options: The options that ``config`` was made from.

    Raises:
        BackendUnavailable: This process was forked from one that had compiled a model.
        UnsupportedModel: It has float64 tensors, and the options do not allow that.
        RuntimeError: OpenVINO refuses the model.
    """

    def make() -> Program:
        if options.cache:
            return _kept(model, device, place, config, options)
        return _compiled(model, place, config, options)

    if not options.shared:
        return make()
    require_own_process()  # before the lock, which a fork may have copied while it was held
    parts = _parts(model, device, place, config, options)
    # Whoever wants nothing mapped, or an entry in the cache, gets no program made otherwise.
    parts |= {"is_mapped": options.enable_mmap, "cache": options.cache}
    key = Cache.key("openvino-model", parts)
    with _sharing:
        found = _alive.get(key)
        if found is None:
            found = _alive[key] = make()
    _require_float32(found.ports, options)
    return found


def _compiled(
    model: ModelRef, place: str, config: Mapping[str, Any], options: OpenvinoOptions
) -> Program:
    with read(model, is_mapped=options.enable_mmap) as (network, own):
        ports = find_ports(model, network)
        _require_float32(ports, options)
        chosen: Limits = {}
        if options.bounds:
            chosen = limits_of(ports, parsed(options.bounds))
            reshape(network, ports, chosen)
            ports = fixed(find_ports(model, network), chosen)
        # It takes some milliseconds, and matters for one-thread programs only.
        is_checked = _threads(config) != 1 or not _sizes_follow(network)
        return Program(compiled(network, place, config), ports, joined(own, chosen), is_checked)


def _kept(
    model: ModelRef, device: Device, place: str, config: Mapping[str, Any], options: OpenvinoOptions
) -> Program:
    made: list[Program] = []

    def build(folder: Path) -> None:
        program = _compiled(model, place, config, options)
        if dataclasses.replace(model).digest != model.digest:  # no other content under this key
            raise InvalidModel(
                f"the model '{model.name}' was changed while it was loaded.",
                fix="Load it again; replace a model by renaming, not by overwriting.",
                model=model.name,
            )
        stream = io.BytesIO()
        program.native.export_model(stream)
        (folder / _BLOB).write_bytes(stream.getbuffer())
        told = {
            "ports": program.ports.to_dict(),
            "limits": program.limits,
            "is_checked": program.is_checked,
        }
        (folder / _PORTS).write_text(json.dumps(told), "utf-8")
        made.append(program)

    parts = _parts(model, device, place, config, options)
    folder = default_cache().entry("openvino-model", parts, build, executable=True)
    if made:
        return made[-1]
    told = json.loads((folder / _PORTS).read_text("utf-8"))
    ports = Ports.from_dict(told["ports"])
    _require_float32(ports, options)
    blob = np.memmap(folder / _BLOB, np.uint8, "c")
    native = imported(blob, place, config)
    limits = {
        name: tuple(Limit(axis, dim, Range(*sizes)) for axis, dim, sizes in items)
        for name, items in told["limits"].items()
    }
    return Program(native, ports, limits, told["is_checked"], origin="cache", memory=blob)


def _threads(config: Mapping[str, Any]) -> int:
    return min(int(config.get("INFERENCE_NUM_THREADS", 0)), usable_cpus())


def _property(native: Any, name: str) -> Any:
    return (
        native.get_property(name) if name in native.get_property("SUPPORTED_PROPERTIES") else None
    )


def _varies(native: Any) -> bool:
    return any(port.partial_shape.is_dynamic for port in (*native.inputs, *native.outputs))


def _sizes_follow(network: Any) -> bool:
    """Whether the sizes of inputs determine those of all tensors, as far as can be told."""
    ov = openvino()
    trial = network.clone()
    try:
        shapes = {
            index: ov.PartialShape([2 if item.is_dynamic else item for item in port.partial_shape])
            for index, port in enumerate(trial.inputs)
        }
        trial.reshape(shapes)
    except (RuntimeError, TypeError):  # such sizes do not fit, or a rank is unknown
        return False
    operators = trial.get_ops()
    return all(
        operator.get_type_name() not in _WITH_BODY
        and all(out.partial_shape.is_static for out in operator.outputs())
        for operator in operators
    )


def _parts(
    model: ModelRef, device: Device, place: str, config: Mapping[str, Any], options: OpenvinoOptions
) -> dict[str, JSON]:
    """All that a compiled model depends on."""
    return {
        "model": model.digest,
        "format": model.format.name,
        "signature": model.signature_key,
        "openvino": openvino().get_version(),
        "hardware": _hardware(device, place),
        "config": {name: str(value) for name, value in config.items()},
        "bounds": sorted(options.bounds),
    }


def _hardware(device: Device, place: str) -> list[JSON]:
    if device == CPU:
        return [platform.machine(), *sorted(cpu_flags())]
    said = core().get_property(place, "SUPPORTED_PROPERTIES")
    return [place, *(str(core().get_property(place, name)) for name in _TRAITS if name in said)]


def _require_float32(ports: Ports, options: OpenvinoOptions) -> None:
    for spec in (*ports.signature.inputs, *ports.signature.outputs):
        if spec.dtype is DType.FLOAT64 and not options.narrow_float64:
            raise UnsupportedModel(
                f"'{spec.name}' is float64, which OpenVINO computes in float32.",
                fix="Use another backend, or accept that with options={'narrow_float64': True}.",
                tensor=spec.name,
                options={"narrow_float64": True},
            )
