"""What ONNX Runtime's errors mean.

It has an exception class for each of its status codes, but uses ``Fail`` and
``InvalidArgument`` for much; the texts decide. They are those of onnxruntime 1.32, each
provoked by a test but for the ones about GPUs.
"""

from __future__ import annotations

from typing import Any

from bridge import ErrorRule
from bridge.errors import (
    BridgeError,
    DeviceUnavailable,
    InputError,
    InvalidModel,
    ModelNotFound,
    OutOfMemory,
    PredictError,
    SilentFallback,
    UnsupportedModel,
)

__all__ = ["error_rules"]

_COPY_AGAIN = "Export or copy it again."
_OTHER_BACKEND = "Use another backend, or export the model without it."
_NEWER = "Install a newer onnxruntime, or export the model for an older version."
_STATUS = r"\[ONNXRuntimeError\] : \d+ : \w+ : "
# Without the place in onnxruntime's source and the signature of its function.
_PLACE = r"(?:/\S+\.(?:cc|h|cpp|cu):\d+ (?:.*?\) )?)?"


def _rule(
    ours: type[BridgeError], pattern: str, message: str | None = None, fix: str | None = None
) -> ErrorRule:
    return ErrorRule(Exception, ours, pattern, message, fix)


_BY_TEXT: tuple[ErrorRule, ...] = (
    _rule(
        OutOfMemory,
        r"Failed to allocate memory for requested buffer of size (?P<size_bytes>\d+)",
        "onnxruntime could not allocate {size_bytes} bytes.",
        "Use a smaller batch, or a device with more memory.",
    ),
    _rule(
        OutOfMemory,
        r"(?i)bad_alloc|out of memory|cudaErrorMemoryAllocation|_STATUS_ALLOC_FAILED",
        "onnxruntime could not allocate memory.",
        "Use a smaller batch, or a device with more memory.",
    ),
    _rule(
        SilentFallback,
        r"assigned to the default CPU EP, but fallback to CPU EP has been explicitly disabled",
        "the provider cannot run every operator of the model; the others would run on the CPU.",
        "Pass options={{'cpu_nodes': True}} if that is all right, or use another backend.",
    ),
    _rule(
        DeviceUnavailable,
        r"CUDA failure \d+: (?P<why>no CUDA-capable device is detected|invalid device ordinal)",
        "onnxruntime cannot use that device: {why}.",
        "'bridge doctor' lists the devices that the driver reports.",
    ),
    _rule(
        UnsupportedModel,
        r"No Op registered for (?P<operator>\S+) with domain_version of (?P<opset>\d+)",
        "onnxruntime has no operator {operator} of opset {opset}.",
        _OTHER_BACKEND,
    ),
    _rule(
        UnsupportedModel,
        r"Fatal error: (?P<domain>[^\s:]*):(?P<operator>[^\s(]+)\(-?\d+\) is not a registered",
        "onnxruntime has no operator {domain}.{operator}.",
        "It belongs to a library of custom operators: pass its path as the option custom_ops, "
        "with trust=True.",
    ),
    _rule(
        UnsupportedModel,
        r"Could not find an implementation for (?P<operator>[^\s(]+)\((?P<opset>\d+)\) "
        r"node with name '(?P<node>[^']*)'",
        "onnxruntime has no implementation of {operator} ('{node}', opset {opset}) for the "
        "types that the model uses.",
        "Cast its inputs to float32 inside the model, or use another backend.",
    ),
    _rule(
        UnsupportedModel,
        r"Opset (?P<opset>\d+) is under development.*"
        r"for domain (?P<domain>\S+) is till opset (?P<newest>\d+)",
        "the model is of opset {opset} of {domain}; this onnxruntime knows up to {newest}.",
        _NEWER,
    ),
    _rule(
        UnsupportedModel,
        r"Unsupported model IR version: (?P<ir_version>\d+), max supported IR version: "
        r"(?P<newest>\d+)",
        "the model is of IR version {ir_version}; this onnxruntime knows up to {newest}.",
        _NEWER,
    ),
    _rule(
        UnsupportedModel,
        r"MLDataType for: tensor\((?P<dtype>\w+)\) is not currently registered",
        "onnxruntime has no tensors of dtype {dtype}.",
        _OTHER_BACKEND,
    ),
    _rule(
        UnsupportedModel,
        r"ORT format model version \[?(?P<version>\d+)\]? is not supported",
        "the file is of version {version} of the ORT format, which this onnxruntime does not know.",
        "Convert the ONNX model with the onnxruntime that is installed.",
    ),
    _rule(
        InvalidModel,
        r"ORT model verification failed|Invalid ORT format model",
        "onnxruntime cannot read the ORT file; it is truncated, or damaged.",
        _COPY_AGAIN,
    ),
    _rule(
        InvalidModel,
        r"(?i)protobuf parsing failed",
        "onnxruntime cannot read the ONNX file; it is truncated, or damaged.",
        _COPY_AGAIN,
    ),
    _rule(
        PredictError,
        r"Non-zero status code returned while running (?P<operator>\S+) node\. "
        rf"Name:'(?P<node>[^']*)' Status Message: {_PLACE}(?P<why>[^\n]*[^\s.])",
        "the operator {operator} ('{node}') failed: {why}.",
    ),
    _rule(
        InvalidModel,
        r"This is an invalid model\. (?P<why>[^\n]*[^\s.])",
        "the model breaks a rule of ONNX: {why}.",
        _COPY_AGAIN,
    ),
    _rule(
        InvalidModel,
        rf"{_STATUS}(?:Invalid model\. )?(?P<why>(?:Type Error|Node input|Node \()[^\n]*[^\s.])",
        "the model breaks a rule of ONNX: {why}.",
        _COPY_AGAIN,
    ),
    ErrorRule(
        UnicodeEncodeError,
        InputError,
        None,
        "a string input holds a character that UTF-8 cannot express (a lone surrogate).",
        "Replace such characters first.",
    ),
)


def error_rules(native: Any) -> tuple[ErrorRule, ...]:
    """The table, special rules first.

    Args:
        native: The module with onnxruntime's exception classes.
    """
    return (
        *_BY_TEXT,
        ErrorRule(
            native.NoSuchFile,
            ModelNotFound,
            rf"{_STATUS}(?P<why>[^\n]*[^\s.])",
            "{why}.",
            "Copy the model with all its files.",
        ),
        ErrorRule(native.InvalidProtobuf, InvalidModel, fix=_COPY_AGAIN),
        ErrorRule(native.InvalidGraph, InvalidModel, fix=_COPY_AGAIN),
        ErrorRule(native.NotImplemented, UnsupportedModel, fix=_OTHER_BACKEND),
    )
