"""Backends with one defect each, and a plugin that registers them beside the sound ones.

What cannot be seen from outside has no backend here. ``deterministic=False`` and
``thread_safety=EXCLUSIVE`` of a backend that could promise more only let the bridge do more
and the suite ask less. ``zero_rows=False`` is true wherever it is said: the bridge itself
then refuses empty batches.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sound import (
    ModestBackend,
    NetworkFile,
    SketchFile,
    SoundBackend,
    SoundPredictor,
    StaticBackend,
    run,
)

import bridge
from bridge.binding import Bound
from bridge.check import Arrays
from bridge.device import CPU, Device
from bridge.dtypes import DType
from bridge.errors import DeviceUnavailable, UnsupportedModel
from bridge.model import ModelRef
from bridge_conformance.writing import Writer

DEFECTS: dict[str, SoundBackend] = {}


def defect(kind: type[Any]) -> type[Any]:
    """Registers a backend, or the backend of a predictor, by the name of its class."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)
    members: dict[str, Any] = {"name": name.lstrip("_"), "__module__": __name__}
    if issubclass(kind, SoundPredictor):
        members["predictor_type"] = kind
        base: type[SoundBackend] = SoundBackend
    else:
        base = kind
    made = type(kind.__name__, (base,), members)()
    DEFECTS[made.name] = made
    return kind


def claims(**changed: Any) -> Callable[[type[Any]], type[Any]]:
    """Registers likewise, with other capabilities than the sound ones."""

    def register(kind: type[Any]) -> type[Any]:
        made = defect(kind)
        backend = list(DEFECTS.values())[-1]
        usual = backend.capabilities(CPU)
        said = dataclasses.replace(usual, **changed)
        backend.capabilities = lambda device: said  # type: ignore[method-assign]
        return made

    return register


# What predict does wrong.


@defect
class MutatesItsInput(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        for array in inputs.values():
            if array.flags.writeable and array.dtype.kind == "f":
                array[...] = 0
        return results


@defect
class ReusesAnOutputBuffer(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        kept = vars(self).setdefault("kept", {})
        for name, array in results.items():
            held = kept.setdefault((name, array.shape), array)
            held[...] = array
            results[name] = held
        return results


@defect
class DropsAnOutput(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        if len(results) > 1:
            results.popitem()
        return results


@defect
class ReturnsFloat64(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        return {name: array.astype(np.float64) for name, array in results.items()}


@defect
class SwapsTwoOutputs(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        return dict(zip(results, reversed(results.values()), strict=True))


@defect
class ReturnsItsInput(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        for node in self.network.nodes:
            if node.op == "Identity" and node.inputs[0] in inputs:
                results[node.output] = inputs[node.inputs[0]]
        return results


@defect
class SpreadsNan(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        for array in results.values():
            if array.dtype == np.float32 and np.isnan(array).any():
                array[...] = np.nan
        return results


@defect
class SwallowsErrors(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        try:
            return super()._predict(inputs, outputs)
        except Exception:  # noqa: BLE001 - the defect
            return {
                spec.name: np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape])
                for spec in self.signature.outputs
            }


@defect
class SwallowsInterrupts(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        try:
            return super()._predict(inputs, outputs)
        except KeyboardInterrupt:
            return super()._predict(inputs, outputs)


@defect
class CrashesTheProcess(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        if any(array.ndim == 0 for array in inputs.values()):
            os.abort()
        return super()._predict(inputs, outputs)


@defect
class IsNotThreadSafe(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        self.inputs = inputs
        time.sleep(0)  # as native code does that lets go of the interpreter's lock
        return super()._predict(self.inputs, outputs)


# What is left behind.


@defect
class LeaksInPython(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        vars(self).setdefault("kept", []).append(bytearray(1024))
        return super()._predict(inputs, outputs)


@defect
class LeaksInNativeCode(SoundPredictor):
    malloc = ctypes.CDLL(None).malloc

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        self.malloc(1024)
        return super()._predict(inputs, outputs)


@defect
class KeepsInputsAlive(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        if "total" in results:
            total = results["total"]
            whole = np.concatenate([total, inputs["x"].ravel()])
            results["total"] = whole[: total.size]
        return results


@defect
class HangsInClose(SoundPredictor):
    def _close(self) -> None:
        threading.Event().wait()


@defect
class LeavesDescriptors(SoundPredictor):
    def _close(self) -> None:
        os.open(os.devnull, os.O_RDONLY)


@defect
class LeavesThreads(SoundPredictor):
    def _close(self) -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@defect
class IsNeverCollected(SoundPredictor):
    kept: list[object] = []  # noqa: RUF012

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept.append(self)


@defect
class PrintsAtExit(SoundPredictor):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        atexit.register(print, "a predictor was left open")


@defect
class TakesSignals(SoundBackend):
    def _load(self, model: ModelRef, device: Device, options: Any) -> bridge.Predictor:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return super()._load(model, device, options)


@defect
class CrashesForkedChildren(SoundBackend):
    is_registered = False

    def _load(self, model: ModelRef, device: Device, options: Any) -> bridge.Predictor:
        if not self.is_registered:
            os.register_at_fork(after_in_child=os.abort)
            self.is_registered = True
        return super()._load(model, device, options)


# What is claimed, and is not so; or is not claimed, and is.


@defect
class IgnoresTheDevice(SoundBackend):
    device_kinds = ("cpu", "cuda")

    def devices(self) -> tuple[Device, ...]:
        return (CPU, Device("cuda"))


class _Refusing(SoundBackend):
    """Loads only what ``fits``, whatever it claims."""

    def fits(self, model: ModelRef) -> bool:
        return True

    def _load(self, model: ModelRef, device: Device, options: Any) -> bridge.Predictor:
        if not self.fits(model):
            raise UnsupportedModel("this model is not for this backend.", fix="Use another.")
        return super()._load(model, device, options)


@defect
class OverClaimsDtypes(_Refusing):
    def fits(self, model: ModelRef) -> bool:
        (signature,) = model.facts.signatures.values()
        return all(spec.dtype is not DType.COMPLEX128 for spec in signature.inputs)


@claims(formats=frozenset({"network", "sketch"}))
class OverClaimsFormats(_Refusing):
    def fits(self, model: ModelRef) -> bool:
        return model.format.name == "network"


class _Unrefusing(SoundBackend):
    """Loads what it says it does not."""

    def refuse(self, model: ModelRef, device: Device) -> None:
        return None


@claims(dtypes=frozenset(DType) - {DType.INT16})
class UnderClaimsDtypes(_Unrefusing):
    pass


@claims()
class UnderClaimsFormats(_Unrefusing):
    pass


@defect
class OverClaimsDynamicDims(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != vars(self).setdefault("shapes", shapes):
            raise ValueError("built for other shapes")
        return super()._predict(inputs, outputs)


@claims(dynamic_dims=False)
class UnderClaimsDynamicDims(_Unrefusing):
    pass


@defect
class OverClaimsZeroRows(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        if any(not array.size for array in inputs.values()):
            raise ValueError("nothing to compute")
        return super()._predict(inputs, outputs)


@defect
class OverClaimsBind(SoundPredictor):
    def _bind(self, inputs: Arrays) -> Bound:
        return Bound(self, inputs)


@claims(bind=False)
class UnderClaimsBind(SoundBackend):
    pass


@defect
class OverClaimsDlpack(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return run(self.network, {name: array.copy() for name, array in inputs.items()})


@claims(dlpack=False)
class UnderClaimsDlpack(SoundBackend):
    pass


@defect
class OverClaimsDeterminism(SoundPredictor):
    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = super()._predict(inputs, outputs)
        self.calls = vars(self).get("calls", 0) + 1
        if self.calls % 2:
            for array in results.values():
                if array.dtype == np.float32:
                    np.nextafter(array, np.float32(np.inf), out=array)
        return results


@defect
class OverClaimsPredicts(SoundBackend):
    def _load(self, model: ModelRef, device: Device, options: Any) -> bridge.Predictor:
        raise DeviceUnavailable("models can be built here, and not run.", fix="Go elsewhere.")


@claims(predicts=False)
class UnderClaimsPredicts(SoundBackend):
    pass


@bridge.hookimpl
def register_backends(register: Callable[[bridge.Backend], None]) -> None:
    register(SoundBackend())
    register(ModestBackend())
    register(StaticBackend())
    for backend in DEFECTS.values():
        register(backend)


@bridge.hookimpl
def register_formats(register: Callable[[bridge.Format], None]) -> None:
    register(NetworkFile())
    register(SketchFile())


@bridge.hookimpl
def register_conformance_models(register: Callable[[Writer], None]) -> None:
    for kind in (NetworkFile(), SketchFile()):
        register(Writer(kind.name, "numpy", kind.write))
