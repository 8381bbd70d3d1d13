"""Recorded inputs that a conversion looks at, held to the model before anything runs."""

from __future__ import annotations

import numpy as np

from bridge.check import Arrays, check_inputs
from bridge.errors import BridgeError, InputError
from bridge.model import ModelRef
from bridge.signature import Signature

__all__ = ["check"]

_DEFAULT_KEY = "serving_default"


def check(model: ModelRef, samples: Arrays) -> None:
    """Whether samples can calibrate a model.

    What a model without a stated signature takes is not known: of such, only the numbers
    are looked at.

    Args:
        model: What is converted.
        samples: Arrays by input name.

    Raises:
        InputError: A required input is missing, an array is of another dtype or shape, is of
            no input, has no rows or other rows than the rest, or holds NaN or infinity.
    """
    signature = _signature(model)
    if signature is not None:
        try:
            check_inputs(signature, samples)
        except BridgeError as error:
            error.message = f"the samples do not fit {model.name}: {error.message}"
            error.fix = "Write the samples as the model wants its inputs; nothing is cast."
            raise
    axes = {} if signature is None else signature.batch_axes()
    rows = {name: samples[name].shape[axis] for name, axis in axes.items() if name in samples}
    if len(set(rows.values())) > 1:
        few, many = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
        raise InputError(
            f"the samples do not fit together: input '{few}' has {rows[few]} rows and input "
            f"'{many}' has {rows[many]}.",
            fix="Give every input the same number of rows.",
            input=few,
            wanted=rows[many],
            got=rows[few],
        )
    for name, array in samples.items():
        if array.size == 0:
            raise InputError(
                f"the samples of input '{name}' hold no values (shape {array.shape}).",
                fix="Give some hundred typical rows.",
                input=name,
            )
        if array.dtype.kind not in "biuOSUT" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise InputError(
                f"the samples of input '{name}' hold {count} values that are NaN or infinite.",
                fix="Leave those rows out: they would say nothing of the range of numbers.",
                input=name,
                count=count,
            )


def _signature(model: ModelRef) -> Signature | None:
    if model.declared is not None:
        return model.declared
    stated = {key: one for key, one in model.facts.signatures.items() if not key.startswith("__")}
    if model.signature_key is None and len(stated) == 1:
        return next(iter(stated.values()))
    return stated.get(model.signature_key or _DEFAULT_KEY)
