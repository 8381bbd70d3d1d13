"""What OpenVINO's errors mean: it raises ``RuntimeError`` with several lines for all.

The texts are those of openvino 2026.4.1, each provoked by a test.
"""

from __future__ import annotations

from bridge import ErrorRule
from bridge.errors import (
    BridgeError,
    DeviceUnavailable,
    InvalidModel,
    ModelLoadFailed,
    ModelNotFound,
    OutOfMemory,
    PredictError,
    ShapeMismatch,
    UnsupportedModel,
    UntrustedModel,
)

__all__ = ["error_rules"]

_OTHER_BACKEND = "Use the backend native to the format, or export the model without it."
_COPY_AGAIN = "Export or copy it again."
# The last line says what happened; those before it say where in OpenVINO's source.
_LAST_LINE = r"(?P<why>[^\n]*[^\s.])\.?\s*\Z"


def _rule(
    ours: type[BridgeError], pattern: str, message: str | None, fix: str | None = None
) -> ErrorRule:
    return ErrorRule(RuntimeError, ours, pattern, message, fix)


_RULES: tuple[ErrorRule, ...] = (
    _rule(
        OutOfMemory,
        r"(?i)bad_alloc|out of memory|not enough memory|(failed to|cannot|can't) allocate",
        "OpenVINO could not allocate memory.",
        "Use a smaller batch or fewer streams, or a machine with more memory.",
    ),
    _rule(
        InvalidModel,
        r"Variable or resource `(?P<variable>[^`]*)` is not initialized",
        "the variable '{variable}' has no value; files of the folder 'variables' are missing.",
        _COPY_AGAIN,
    ),
    _rule(
        UnsupportedModel,
        r"No conversion rule found for operations: (?P<operators>[^\n]+)",
        "OpenVINO has no conversion for the operators {operators}.",
        _OTHER_BACKEND,
    ),
    _rule(
        UnsupportedModel,
        # The cause is the last line before the blank one.
        r"\n-- (?P<operators>\S+) with a message:\n"
        r"(?:[^\n]+\n)*?(?P<why>[^\n]+?)\.?\n(?:\n|Summary)",
        "OpenVINO cannot convert the operator {operators}: {why}.",
        _OTHER_BACKEND,
    ),
    _rule(
        UnsupportedModel,
        r"Opset (?P<opset>\S+) doesn't contain the operation with type: (?P<operators>\S+)",
        "OpenVINO's {opset} has no operator {operators}.",
        "Use the OpenVINO version that wrote the model, or an extension of it.",
    ),
    _rule(
        UnsupportedModel,
        r"Cannot create (?P<operators>\S+) layer (?P<node>\S+) .* from unsupported opset: "
        r"(?P<opset>\S+)",
        "this OpenVINO has no {opset}, which the operator {operators} ('{node}') is of.",
        "Use the OpenVINO version that wrote the model, or a newer one.",
    ),
    _rule(
        UnsupportedModel,
        r"Unsupported data type (?P<dtype>\w+)",
        "OpenVINO does not take the data type {dtype}.",
        _OTHER_BACKEND,
    ),
    _rule(
        ModelNotFound,
        r"bin file cannot be found",
        "the weights are missing: there is no .bin file of the same name beside the .xml file.",
        "Copy both files.",
    ),
    _rule(
        InvalidModel,
        r"Incorrect weights in bin file",
        "the .bin file is smaller than the .xml file says.",
        "Copy both files again.",
    ),
    _rule(
        UntrustedModel,
        r"Path '(?P<file>[^']*)' resolves to .* outside the base directory",
        "the model names the file '{file}' outside its folder.",
        "Keep external data beside the model.",
    ),
    _rule(
        ModelNotFound,
        r"externally stored data in file \((?P<file>[^,)]*)",
        "the external data '{file}' is missing or too short.",
        "Copy it into the model's folder.",
    ),
    _rule(
        InvalidModel,
        r"pugi::status_ok'[^\n]*\n(?P<why>[^\n]+)",
        "the .xml file is not well-formed: {why}.",
        _COPY_AGAIN,
    ),
    _rule(
        InvalidModel,
        r"(?:Unable to read the model|Saved Model cannot be parsed|Wrong index file"
        r"|FlatBuffer verification failed)",
        "OpenVINO cannot read the file; it is truncated, or of a version that it does not know.",
        _COPY_AGAIN,
    ),
    _rule(
        InvalidModel,
        r"(?P<tensor>[^\n]+) node not found in graph cache",
        "the graph reads the tensor '{tensor}', which nothing in it makes.",
        "Export the model again.",
    ),
    _rule(
        InvalidModel,
        r"size of the initializer does not match .* for tensor '(?P<tensor>[^']*)'",
        "the data of the tensor '{tensor}' does not fit its shape.",
        _COPY_AGAIN,
    ),
    _rule(
        DeviceUnavailable,
        r'Cannot load library "[^"]*?(?P<plugin>\w+_plugin)\.so": (?P<why>[^\n]+)',
        "OpenVINO's {plugin} cannot be loaded: {why}.",
        "Install the driver of the device, or use device='cpu'.",
    ),
    _rule(
        ShapeMismatch,
        r"node with name '(?P<node>[^']*)'.*Batch size is zero",
        "OpenVINO's operator '{node}' does not take an empty batch.",
        "Answer empty batches without calling predict.",
    ),
    _rule(
        PredictError,
        r"\AException from src/inference/src/cpp/infer_request\.cpp.*"
        r"\[CPU\] (?P<operator>\S+) node with name '(?P<node>[^']*)'.*\n" + _LAST_LINE,
        "the operator {operator} ('{node}') failed: {why}.",
    ),
    _rule(
        PredictError,
        r"\AException from src/inference/src/cpp/infer_request\.cpp.*\n" + _LAST_LINE,
        "{why}.",
    ),
    _rule(ModelLoadFailed, r"src/(?:inference|frontends|core)/.*\n" + _LAST_LINE, "{why}."),
)


def error_rules() -> tuple[ErrorRule, ...]:
    """Rules for loading and calling; the first that fits decides."""
    return _RULES
