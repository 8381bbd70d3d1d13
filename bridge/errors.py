"""Every error that the bridge raises, and the rules that map foreign ones.

The tree (second parents in brackets)::

    BridgeError
    ├─ PluginError              PluginLoadFailed (ImportError) · DuplicateName
    ├─ BackendNotFound (LookupError)
    ├─ BackendUnavailable (ImportError)
    ├─ OptionError (ValueError)
    ├─ ModelError
    │  ├─ ModelNotFound (FileNotFoundError)
    │  ├─ InvalidModel (ValueError)          empty, truncated, not what its name says
    │  ├─ UnsupportedModel (ValueError)      a sound model that this backend cannot take
    │  ├─ UntrustedModel (PermissionError)   would run code or leave its folder
    │  └─ ModelLoadFailed (RuntimeError)
    ├─ InputError (ValueError)
    │  └─ MissingInput (LookupError) · UnexpectedInput (LookupError) · UnknownOutput (LookupError)
    │     ShapeMismatch · DTypeMismatch (TypeError)
    ├─ DeviceError (RuntimeError)
    │  └─ DeviceUnavailable · SilentFallback · OutOfMemory (MemoryError)
    ├─ PredictError (RuntimeError)
    │  └─ PredictTimeout (TimeoutError) · WorkerDied
    ├─ PredictorClosed (RuntimeError) · ForkedPredictor (RuntimeError)
    ├─ ConversionError (RuntimeError)
    ├─ RecordError (ValueError)
    │  └─ InvalidRecord · UnsupportedRecord · StaleRecord · RecordNotWritten (OSError)
    ├─ MeasureError (RuntimeError)
    └─ CacheError (OSError)

A message is one sentence that says what was found, what was wanted and what was
got; ``fix`` is one sentence that says what to do. Both make up ``str(error)``. The
same facts are attributes: ``backend``, ``model``, ``device`` and the dict
``detail``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "WHOLE_TEXT",
    "BackendNotFound",
    "BackendUnavailable",
    "BridgeError",
    "CacheError",
    "ConversionError",
    "DTypeMismatch",
    "DeviceError",
    "DeviceUnavailable",
    "DuplicateName",
    "ErrorRule",
    "ForkedPredictor",
    "InputError",
    "InvalidModel",
    "InvalidRecord",
    "MeasureError",
    "MissingInput",
    "ModelError",
    "ModelLoadFailed",
    "ModelNotFound",
    "OptionError",
    "OutOfMemory",
    "PluginError",
    "PluginLoadFailed",
    "PredictError",
    "PredictTimeout",
    "PredictorClosed",
    "RecordError",
    "RecordNotWritten",
    "RecordWarning",
    "ShapeMismatch",
    "SilentFallback",
    "StaleRecord",
    "UnexpectedInput",
    "UnknownOutput",
    "UnsupportedModel",
    "UnsupportedRecord",
    "UntrustedModel",
    "WorkerDied",
    "error_classes",
    "nearest",
    "translate",
]


WHOLE_TEXT = "The runtime's whole text is in detail['native_error']."
"""The fix of an error whose text is the runtime's own."""


class BridgeError(Exception):
    """Root of all errors of the bridge.

    Args:
        message: One sentence: what, wanted, got.
        fix: One sentence: what the reader can do about it.
        backend: Name of the backend concerned, if any.
        model: The model as the user named it, if any.
        device: The device concerned, if any.
        **detail: The same facts as data, for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        fix: str | None = None,
        backend: str | None = None,
        model: str | None = None,
        device: str | None = None,
        **detail: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.backend = backend
        self.model = model
        self.device = device
        self.detail: dict[str, Any] = detail

    def __str__(self) -> str:
        return f"{self.message} {self.fix}" if self.fix else self.message


class PluginError(BridgeError):
    """A plugin does not keep the rules of plugins."""


class PluginLoadFailed(PluginError, ImportError):
    """A plugin module raised while it was imported."""


class DuplicateName(PluginError):
    """Two plugins register the same name."""


class BackendNotFound(BridgeError, LookupError):
    """No plugin registers a backend (or adapter, or format) of that name."""


class BackendUnavailable(BridgeError, ImportError):
    """The backend is known, but its runtime is not installed or cannot start."""


class OptionError(BridgeError, ValueError):
    """An option is unknown, of the wrong type, out of range or in conflict."""


class ModelError(BridgeError):
    """Something is wrong with the model, not with the call."""


class ModelNotFound(ModelError, FileNotFoundError):
    """The model, or a file that belongs to it, does not exist."""


class InvalidModel(ModelError, ValueError):
    """The file is empty, truncated, or not what its name says."""


class UnsupportedModel(ModelError, ValueError):
    """A sound model that the backend cannot take: format, operator, opset, dtype.

    Where options would lift the refusal, they are in ``detail["options"]``.
    """


class UntrustedModel(ModelError, PermissionError):
    """Loading would run code, or read outside the model's folder."""


class ModelLoadFailed(ModelError, RuntimeError):
    """The runtime refused the model for a reason that no rule names."""


class InputError(BridgeError, ValueError):
    """The call's inputs do not fit the signature."""


class MissingInput(InputError, LookupError):
    """A required input was not given."""


class UnexpectedInput(InputError, LookupError):
    """An input was given that the signature does not have."""


class UnknownOutput(InputError, LookupError):
    """An output was asked for that the signature does not have."""


class ShapeMismatch(InputError):
    """Rank, a fixed dim or a named dim of an input does not fit."""


class DTypeMismatch(InputError, TypeError):
    """The dtype of an input is not the one of the signature; nothing is cast silently."""


class DeviceError(BridgeError, RuntimeError):
    """Something about the device."""


class DeviceUnavailable(DeviceError):
    """The device asked for is not there, or this backend cannot use it."""


class SilentFallback(DeviceError):
    """The runtime would run, or runs, somewhere else than was asked for."""


class OutOfMemory(DeviceError, MemoryError):
    """Host or device memory ran out; the predictor stays usable."""


class PredictError(BridgeError, RuntimeError):
    """The runtime failed while it computed."""


class PredictTimeout(PredictError, TimeoutError):
    """A worker gave no answer within its deadline."""


class WorkerDied(PredictError):
    """The worker process ended while a call was in flight."""


class PredictorClosed(BridgeError, RuntimeError):
    """``predict`` was called after ``close``."""


class ForkedPredictor(BridgeError, RuntimeError):
    """The predictor was loaded in the parent process of this forked child."""


class ConversionError(BridgeError, RuntimeError):
    """An adapter could not turn the model into the wanted format."""


class RecordError(BridgeError, ValueError):
    """Something is wrong with a selection record."""


class InvalidRecord(RecordError):
    """The record is corrupt, truncated, or decides nothing that could be served."""


class UnsupportedRecord(RecordError):
    """The record has a schema that this version does not read."""


class StaleRecord(RecordError):
    """The model, or with ``strict=True`` the machine or a version, is not the record's."""


class RecordNotWritten(RecordError, OSError):
    """The record could not be written; nothing half-written is left."""


class RecordWarning(UserWarning):
    """The machine, a version or the environment is not that of the record that is loaded."""


class MeasureError(BridgeError, RuntimeError):
    """A measurement failed, or its load generator said nothing that can be trusted."""


class CacheError(BridgeError, OSError):
    """The cache folder cannot be used."""


def error_classes() -> dict[str, type[BridgeError]]:
    """All error classes by name, to rebuild an error that crossed a process border."""
    found = {"BridgeError": BridgeError}
    pending = [BridgeError]
    while pending:
        for child in pending.pop().__subclasses__():
            if child.__module__ == __name__:
                found[child.__name__] = child
                pending.append(child)
    return found


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The sentence that offers the nearest valid names, for use as a ``fix``."""
    name = str(name)  # a caller may have passed anything
    valid = sorted(candidates)
    ranked = sorted(((_likeness(name, other), other) for other in valid), reverse=True)
    # Names about as close as the closest one; 0.55 keeps out what merely shares letters.
    close = [other for like, other in ranked[:3] if like >= max(0.55, ranked[0][0] - 0.1)]
    if close:
        return "Did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    if not valid:
        return "There are none."
    shown = ", ".join(f"'{other}'" for other in valid[:12])
    more = f" and {len(valid) - 12} more" if len(valid) > 12 else ""
    return f"Valid are: {shown}{more}."


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """One row of a backend's table of foreign errors.

    Attributes:
        foreign: The runtime's exception type.
        ours: The class to raise instead.
        pattern: Regular expression that the text must contain; ``None`` fits any text.
            Its named groups become entries of ``detail``.
        message: What to say, a ``str.format`` template over those groups;
            ``None`` keeps the runtime's own first line.
        fix: The sentence that says what to do, a template of the same kind.
    """

    foreign: type[BaseException]
    ours: type[BridgeError]
    pattern: str | None = None
    message: str | None = None
    fix: str | None = None


def translate(
    error: BaseException,
    rules: Iterable[ErrorRule],
    default: type[BridgeError],
    *,
    frame: str = "the runtime failed",
    **context: Any,
) -> BridgeError:
    """The bridge's error for a foreign one; the caller raises it ``from`` the original.

    The first rule that fits wins, so that a table lists the special before the
    general. ``MemoryError`` becomes ``OutOfMemory`` unless a rule says otherwise.

    Args:
        error: What was raised.
        rules: The table.
        default: The class where no rule fits.
        frame: Who failed at what, for texts that are the runtime's own.
        **context: Attributes of the new error.
    """
    if isinstance(error, BridgeError):
        return error
    text = str(error).strip()
    first_line = _first_line(text) or type(error).__name__
    for rule in (*rules, ErrorRule(MemoryError, OutOfMemory, fix="Use smaller batches.")):
        if not isinstance(error, rule.foreign):
            continue
        match = re.search(rule.pattern, text, re.DOTALL) if rule.pattern else None
        if rule.pattern and match is None:
            continue
        groups = {} if match is None else {k: v or "" for k, v in match.groupdict().items()}
        return rule.ours(
            rule.message.format(**groups) if rule.message else _sentence(f"{frame}: {first_line}"),
            fix=rule.fix.format(**groups) if rule.fix else None if rule.message else WHOLE_TEXT,
            native_error=text,
            **context,
            **groups,
        )
    return default(
        _sentence(f"{frame}: {type(error).__name__}: {first_line}"),
        fix=WHOLE_TEXT,
        native_error=text,
        **context,
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "...")) else f"{text}."


def _likeness(name: str, other: str) -> float:
    """From 0 to 1; case and punctuation, the commonest slips, do not count."""
    left, right = (re.sub(r"\W|_", "", text).lower() for text in (name, other))
    return difflib.SequenceMatcher(None, left, right).ratio()


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 400 else line[:397] + "..."
