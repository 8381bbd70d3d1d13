"""``bridge.load`` and ``bridge.backends``: from what users have to a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.backend import Backend
from bridge.device import Device
from bridge.errors import BackendNotFound
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor
from bridge.registry import registry
from bridge.signature import Signature

__all__ = ["backends", "load", "open_model"]


def backends() -> dict[str, Backend]:
    """All registered backends by name, whether their runtimes are installed or not."""
    return {backend.name: backend for backend in registry().backends}


def open_model(
    model: object, *, signature: str | Signature | None = None, trust: bool = False
) -> ModelRef:
    """Finds out what a model is; see ``bridge.load`` for the arguments and errors."""
    return ModelRef.open(model, registry().formats, trust=trust, signature=signature)


def load(
    model: object,
    *,
    backend: str | None = None,
    device: str | Device | None = None,
    options: Options | Mapping[str, Any] | Sequence[str] | None = None,
    signature: str | Signature | None = None,
    trust: bool = False,
) -> Predictor:
    """Loads a model and returns its predictor.

    Args:
        model: Path of a file or folder, bytes of an ONNX model, or a live
            ``torch.nn.Module``, ``ExportedProgram`` or Keras model.
        backend: Name of the backend; ``None`` means the one native to the format.
        device: Such as ``"cpu"`` or ``"cuda:0"``; ``None`` means the CPU, or the first
            CUDA device for formats that run only there.
        options: Options of the backend: an instance of its options class, a dict, or
            texts of the form ``key=value``.
        signature: Which of a SavedModel's signatures to use, or a whole ``Signature``
            for formats that hold none (TorchScript).
        trust: The model may run code of its own. A model file is untrusted input
            otherwise: pickles, native code and operators that touch files are refused.

    Raises:
        ModelNotFound, InvalidModel, UnsupportedModel, UntrustedModel, ModelLoadFailed:
            Something is wrong with the model.
        BackendNotFound, BackendUnavailable: Something is wrong with the backend.
        DeviceUnavailable, SilentFallback: Something is wrong with the device.
        OptionError: Something is wrong with an option.
    """
    found = open_model(model, signature=signature, trust=trust)
    name = backend if backend is not None else found.format.native_backend
    try:
        chosen = registry().backends.get(name)
    except BackendNotFound as error:
        error.model = found.name
        raise
    return chosen.load(found, device=device, options=options)
