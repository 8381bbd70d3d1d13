"""``bridge.load`` and ``bridge.backends``: from what users have to a predictor."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.backend import Backend
from bridge.device import Device
from bridge.errors import BackendNotFound, OptionError
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor
from bridge.registry import registry
from bridge.signature import Signature

if TYPE_CHECKING:
    from bridge.isolated import Isolation
    from bridge.record import SelectionRecord

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
    strict: bool = False,
    isolated: bool | Isolation = False,
) -> Predictor:
    """Loads a model, or the winners of a selection record, and returns the predictor.

    Args:
        model: Path of a file or folder, bytes of an ONNX model, a live
            ``torch.nn.Module``, ``ExportedProgram`` or Keras model, or a selection record:
            its folder, its ``record.json``, or the ``SelectionRecord`` itself.
        backend: Name of the backend; ``None`` means the one native to the format. Of a
            record, its best-ranked arm of that backend.
        device: Such as ``"cpu"`` or ``"cuda:0"``; ``None`` means the CPU, or the first
            CUDA device for formats that run only there. Of a record, its best-ranked arm
            there; ``None`` means where it was measured.
        options: Options of the backend: an instance of its options class, a dict, or
            texts of the form ``key=value``. Of a record, ``{"arm": id}`` serves with that
            arm instead of the winners.
        signature: Which of a SavedModel's signatures to use, or a whole ``Signature``
            for formats that hold none (TorchScript).
        trust: The model may run code of its own. A model file is untrusted input
            otherwise: pickles, native code and operators that touch files are refused.
            A record whose writer trusted a model asks for it again.
        strict: Refuse a record that was measured on another machine, with other versions
            or another environment; else that is a ``RecordWarning``. Models have no such
            history, so that it changes nothing for them.
        isolated: Load it in a process of its own, so that a crash or a hang of the runtime
            is an error of the calls in flight: see ``IsolatedPredictor``. An ``Isolation``
            says how. Of a record, every arm gets a process. Backends that are
            ``always_isolated`` do so in any case.

    Raises:
        ModelNotFound, InvalidModel, UnsupportedModel, UntrustedModel, ModelLoadFailed:
            Something is wrong with the model.
        BackendNotFound, BackendUnavailable: Something is wrong with the backend.
        DeviceUnavailable, SilentFallback: Something is wrong with the device.
        OptionError: Something is wrong with an option.
        InvalidRecord, UnsupportedRecord, StaleRecord: Something is wrong with the record.
        WorkerDied, PredictTimeout: An isolated process ended while it loaded the model, or
            took too long.
    """
    record = _record(model)
    if record is not None:
        from bridge.serving import load_record

        if signature is not None:
            raise OptionError(
                "signature was given for a selection record, which has its own.",
                fix="Leave it out.",
            )
        return load_record(
            record,
            functools.partial(load, isolated=isolated),
            backend=backend,
            device=device,
            options=options,
            trust=trust,
            strict=strict,
        )
    found = open_model(model, signature=signature, trust=trust)
    name = backend if backend is not None else found.format.native_backend
    try:
        chosen = registry().backends.get(name)
    except BackendNotFound as error:
        error.model = found.name
        raise
    if not isolated and not chosen.always_isolated:
        return chosen.load(found, device=device, options=options)
    from bridge.isolated import IsolatedPredictor, Isolation

    isolation = isolated if isinstance(isolated, Isolation) else Isolation()
    if chosen.always_isolated:
        where = chosen.default_device(found) if device is None else Device.parse(device)
        more = chosen.worker_environment(where, chosen.options_type.make(options))
        wanted = {**more, **(isolation.environment or {})}
        isolation = dataclasses.replace(isolation, environment=wanted)
    return IsolatedPredictor.load(
        found, backend=name, device=device, options=options, isolation=isolation
    )


def _record(model: object) -> SelectionRecord | None:
    """The selection record that a user means, if it is one."""
    if isinstance(model, (str, os.PathLike)):
        path = Path(os.fsdecode(model))
        if path.suffix != ".json" and not os.path.lexists(path / "record.json"):
            return None  # what reads records is not imported for every model
        from bridge import recording

        return recording.read(path) if recording.is_record(path) else None
    known = sys.modules.get("bridge.record")  # without it, nobody has one
    return model if known is not None and isinstance(model, known.SelectionRecord) else None
