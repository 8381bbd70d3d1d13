"""Execution providers: those of the build, and those of plugin packages (``onnxruntime-ep-*``).

A plugin package has the module ``onnxruntime_ep_<name>`` with ``get_library_path()`` and
``get_ep_names()``; that it is installed is all the trust that it needs. Its library is
registered when a predictor first asks for it, stays registered, and changes nothing for
sessions that do not ask.

Source: https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/packaging.html
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import threading
from typing import Any

from bridge.device import CPU, Device
from bridge.errors import BackendUnavailable, DeviceUnavailable
from bridge_onnxruntime.options import OnnxruntimeOptions
from bridge_onnxruntime.runtime import onnxruntime

__all__ = ["PROVIDERS", "is_plugin", "plugin_device", "plugins", "provider_list"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_MODULE = "onnxruntime_ep_"
_NVIDIA = 0x10DE  # its PCI vendor id

_registered: dict[str, tuple[str, ...]] = {}
_registering = threading.Lock()


def is_plugin(options: OnnxruntimeOptions) -> bool:
    """Whether the options ask for a plugin's provider."""
    return options.provider not in (None, *PROVIDERS)


def plugins() -> tuple[str, ...]:
    """Names of the installed plugins, such as ``openvino``; nothing is imported."""
    found = (item.name for item in pkgutil.iter_modules())
    return tuple(
        sorted(
            name.removeprefix(_MODULE).replace("_", "-")
            for name in found
            if name.startswith(_MODULE)
        )
    )


def provider_list(device: Device, options: OnnxruntimeOptions) -> list[Any]:
    """The build's providers for a session, with their settings; not for plugins."""
    if device == CPU:
        return [PROVIDERS["cpu"]]
    place = {"device_id": str(device.index)}
    # float32 means float32.
    settings = {**place, "use_tf32": "0"}
    if options.cuda_graph:
        settings["enable_cuda_graph"] = "1"
    chosen: list[Any] = [(PROVIDERS["cuda"], settings)]
    if options.provider == "tensorrt":
        chosen.insert(0, (PROVIDERS["tensorrt"], place))
    if options.cpu_nodes:
        chosen.append(PROVIDERS["cpu"])
    return chosen


def plugin_device(name: str, device: Device) -> Any:
    """The plugin's ``OrtEpDevice`` for a device; its library is registered first.

    Raises:
        BackendUnavailable: The plugin is not installed, or cannot be loaded.
        DeviceUnavailable: It has no such device here.
    """
    names = _register(name)
    wanted = {"cpu": "CPU", "cuda": "GPU"}[device.kind]
    there = [item for item in onnxruntime().get_ep_devices() if item.ep_name in names]
    fits = [
        item
        for item in there
        if item.device.type.name == wanted
        and (device.kind != "cuda" or item.device.vendor_id == _NVIDIA)
    ]
    if device.index < len(fits):
        return fits[device.index]
    kinds = sorted({f"{item.device.type.name} of {item.device.vendor}" for item in there})
    raise DeviceUnavailable(
        f"the plugin {name} has no device for {device} here, only: {', '.join(kinds) or 'none'}.",
        fix="Use another device, or leave provider out.",
        wanted=str(device),
        there=kinds,
    )


def _register(name: str) -> tuple[str, ...]:
    """The names of a plugin's providers, once its library is registered."""
    with _registering:
        if name not in _registered:
            _registered[name] = _load(name)
        return _registered[name]


def _load(name: str) -> tuple[str, ...]:
    module_name = _MODULE + name.replace("-", "_")
    if importlib.util.find_spec(module_name) is None:
        there = ", ".join(plugins()) or "none"
        raise BackendUnavailable(
            f"the provider {name} is no part of onnxruntime, and no plugin of that name is "
            f"installed; installed are: {there}.",
            fix=f"pip install onnxruntime-ep-{name}; or leave provider out.",
            wanted=name,
            there=list(plugins()),
        )
    ort = onnxruntime()
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendUnavailable(
            f"onnxruntime {ort.__version__} takes no plugins; they came with 1.23.",
            fix="Install a newer onnxruntime, or leave provider out.",
            wanted=name,
        )
    try:
        module: Any = importlib.import_module(module_name)
        names = tuple(module.get_ep_names())
        if any(item.ep_name in names for item in ort.get_ep_devices()):
            return names  # the program has registered it itself
        # Some providers take the name under which they are registered for their own.
        ort.register_execution_provider_library(names[0], module.get_library_path())
    except Exception as error:
        raise BackendUnavailable(
            f"the plugin {name} is installed, but onnxruntime {ort.__version__} cannot load it: "
            f"{error}.",
            fix=f"Install what it names, or another version of onnxruntime-ep-{name}.",
            wanted=name,
        ) from error
    return names
