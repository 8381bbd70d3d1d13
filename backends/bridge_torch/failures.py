"""What torch's errors mean.

Most of them are ``RuntimeError``; the texts decide. They are those of torch 2.13.
"""

from __future__ import annotations

from bridge import ErrorRule
from bridge.errors import (
    DTypeMismatch,
    InvalidModel,
    OutOfMemory,
    PredictError,
    ShapeMismatch,
    UnsupportedModel,
)

__all__ = ["error_rules"]


def error_rules() -> tuple[ErrorRule, ...]:
    """Rules for loading and calling; the first that fits decides."""
    import torch

    return (
        ErrorRule(torch.OutOfMemoryError, OutOfMemory),
        ErrorRule(RuntimeError, OutOfMemory, r"can't allocate memory|out of memory"),
        ErrorRule(
            RuntimeError,
            UnsupportedModel,
            r"Unknown builtin op: (?P<operator>[\w:.]+)",
            message="this torch does not know the model's operator {operator}.",
            fix="Install the library that defines it, or a newer torch.",
        ),
        ErrorRule(
            RuntimeError,
            InvalidModel,
            r"PytorchStreamReader failed|failed finding central directory"
            r"|Unexpected end of|expect opcode|is not a ZIP archive",
            fix="The file may be truncated; export or copy it again.",
        ),
        ErrorRule(
            Exception,
            PredictError,
            r"failed in the TorchScript interpreter.*\n(builtins\.)?(?P<raised>\w+: [^\n]+)",
            message="the model raised {raised}",
        ),
        ErrorRule(
            AssertionError,
            ShapeMismatch,
            r"Guard failed: (?P<guard>[^\n]+)",
            message="the inputs do not keep the exported program's condition {guard}.",
            fix="Use sizes for which the program was exported, or export it anew.",
        ),
        ErrorRule(TypeError, DTypeMismatch, r"can't convert np.ndarray|byte order different"),
    )
