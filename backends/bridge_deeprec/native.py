"""The shortest use of DeepRec's library: the yardstick, used for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from bridge.errors import BackendUnavailable
from bridge.model import ModelRef
from bridge_deeprec.configuration import model_config
from bridge_deeprec.library import Library, ServedModel, find
from bridge_deeprec.options import DeeprecOptions
from bridge_deeprec.request import decode_response, encode_request

__all__ = ["load"]

_Arrays = dict[str, npt.NDArray[Any]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> tuple[Callable[[_Arrays], Any], Callable[[Any], _Arrays]]:
    """``process`` in this process, as the demos of DeepRec call it.

    Args:
        model: A SavedModel.
        threads: Threads of one operator and of operators side by side.
        signature_key: Which signature; ``None`` means the model's, or the default.

    Returns:
        The call, and what turns its result into arrays by name.

    Raises:
        BackendUnavailable: The library is not there.

    Source: ``serving/processor/tests/end2end/demo.cc`` of DeepRec.
    """
    path = find()
    if path is None:
        raise BackendUnavailable("libserving_processor.so was not found.")
    key = signature_key or model.signature_key or "serving_default"
    options = DeeprecOptions(
        inter_op_parallelism_threads=threads, intra_op_parallelism_threads=threads
    )
    served = ServedModel(Library(path), json.dumps(model_config(options, str(model.file), key)))
    outputs = model.facts.signatures[key].output_names
    return lambda inputs: served.process(encode_request(key, inputs, outputs)), decode_response
