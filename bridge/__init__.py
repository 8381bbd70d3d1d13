"""One ``Predictor`` over every inference runtime.

``bridge.load(model)`` returns a predictor; ``bridge.inspect(model)`` tells what a model
is and who can run it; ``bridge.doctor()`` tells what is installed. Importing this
package loads no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.adapter import Adapter, CalibratedAdapter
    from bridge.backend import Availability, Backend, Refusal, find_runtime
    from bridge.binding import Bound
    from bridge.capabilities import Capabilities, ThreadSafety
    from bridge.check import Layout
    from bridge.conversion import convert
    from bridge.cpus import set_thread_budget, thread_budget
    from bridge.device import CPU, Device
    from bridge.diagnosis import doctor
    from bridge.dtypes import DType
    from bridge.errors import BridgeError, ErrorRule
    from bridge.hookspecs import hookimpl
    from bridge.inspection import inspect
    from bridge.isolated import Isolation
    from bridge.loading import backends, load
    from bridge.model import Format, ModelFacts, ModelRef
    from bridge.options import Options, option
    from bridge.predictor import Predictor, PredictorInfo
    from bridge.record import SelectionRecord
    from bridge.signature import Signature, TensorSpec

# Public name -> module that defines it. Resolved on first use, so that importing the
# package costs a few milliseconds whatever is used later.
_HOMES = {
    "Adapter": "adapter",
    "Availability": "backend",
    "Backend": "backend",
    "Bound": "binding",
    "BridgeError": "errors",
    "CPU": "device",
    "CalibratedAdapter": "adapter",
    "Capabilities": "capabilities",
    "DType": "dtypes",
    "Device": "device",
    "ErrorRule": "errors",
    "Format": "model",
    "Isolation": "isolated",
    "Layout": "check",
    "ModelFacts": "model",
    "ModelRef": "model",
    "Options": "options",
    "Predictor": "predictor",
    "PredictorInfo": "predictor",
    "Refusal": "backend",
    "SelectionRecord": "record",
    "Signature": "signature",
    "TensorSpec": "signature",
    "ThreadSafety": "capabilities",
    "backends": "loading",
    "convert": "conversion",
    "doctor": "diagnosis",
    "find_runtime": "backend",
    "hookimpl": "hookspecs",
    "inspect": "inspection",
    "load": "loading",
    "option": "options",
    "set_thread_budget": "cpus",
    "thread_budget": "cpus",
}

__all__ = [
    "CPU",
    "Adapter",
    "Availability",
    "Backend",
    "Bound",
    "BridgeError",
    "CalibratedAdapter",
    "Capabilities",
    "DType",
    "Device",
    "ErrorRule",
    "Format",
    "Isolation",
    "Layout",
    "ModelFacts",
    "ModelRef",
    "Options",
    "Predictor",
    "PredictorInfo",
    "Refusal",
    "SelectionRecord",
    "Signature",
    "TensorSpec",
    "ThreadSafety",
    "backends",
    "convert",
    "doctor",
    "find_runtime",
    "hookimpl",
    "inspect",
    "load",
    "option",
    "set_thread_budget",
    "thread_budget",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("inference-bridge")
    if name in _HOMES:
        value = getattr(import_module(f"bridge.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'bridge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "errors"])
