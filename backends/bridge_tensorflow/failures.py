"""What TensorFlow's errors mean.

It has an exception class for each of its status codes, but uses some for several
things; there the texts decide. They are those of TensorFlow 2.21.
"""

from __future__ import annotations

from bridge import ErrorRule
from bridge.errors import InvalidModel, ModelNotFound, OutOfMemory, UnsupportedModel

__all__ = ["error_rules"]


def error_rules() -> tuple[ErrorRule, ...]:
    """Rules for loading and calling; the first that fits decides."""
    from tensorflow import errors

    return (
        ErrorRule(
            Exception,
            UnsupportedModel,
            r"Op type not registered '(?P<operator>[^']+)'",
            "TensorFlow has no operator '{operator}'.",
            "Import the library that registers it before loading, or convert the model.",
        ),
        ErrorRule(
            errors.OpError,
            UnsupportedModel,
            r"No OpKernel was registered to support Op '(?P<operator>[^']+)'",
            "TensorFlow has no kernel for operator '{operator}' with these types here.",
            "Use another device, or export the model without it.",
        ),
        ErrorRule(errors.ResourceExhaustedError, OutOfMemory),
        ErrorRule(errors.DataLossError, InvalidModel, fix="Copy the model again."),
        ErrorRule(
            errors.OpError,
            InvalidModel,
            r"Key (?P<variable>\S+) not found in checkpoint",
            "the model's variables lack '{variable}'.",
            "Graph and variables do not belong together; copy the whole folder again.",
        ),
        ErrorRule(  # what the saver makes of it where the graph is TensorFlow 2's
            ValueError,
            InvalidModel,
            r"No variables to save",
            "the model's variables are not those of its graph.",
            "Graph and variables do not belong together; copy the whole folder again.",
        ),
        ErrorRule(
            errors.OutOfRangeError,
            InvalidModel,
            r"Read less bytes than requested|Read fewer bytes than requested",
            "the model's variables are truncated.",
            "Copy the model again.",
        ),
        ErrorRule(
            errors.NotFoundError,
            ModelNotFound,
            r"No such file or directory|Failed to find any matching files",
            fix="Copy the whole folder again.",
        ),
    )
