"""The shortest idiomatic use of OpenVINO, as a yardstick for the bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import ModelRef
from bridge.cpus import default_threads
from bridge.errors import UnsupportedModel
from bridge_openvino.runtime import openvino

__all__ = ["load"]

Arrays = dict[str, npt.NDArray[np.generic]]


def load(
    model: ModelRef, *, threads: int | None = None, signature_key: str | None = None
) -> tuple[Callable[[Arrays], Any], Callable[[Any], Arrays]]:
    """OpenVINO's own call, in float32 on the CPU, and what names its results.

    It does what OpenVINO's own examples do: ``infer`` with a dict, which copies inputs
    and outputs. Not for several threads.

    Args:
        model: A model whose file has its usual suffix, or the bytes of an ONNX model.
        threads: Threads to use; ``None`` means the bridge's default.
        signature_key: ``serving_default`` or ``None``: OpenVINO offers no choice.

    Returns:
        The call, and what turns its result into arrays by name.

    Raises:
        UnsupportedModel: Another signature was asked for.
    """
    if signature_key not in (None, "serving_default"):
        raise UnsupportedModel(f"OpenVINO offers no choice of '{signature_key}'.")
    core = openvino().Core()
    network = core.read_model(model.path if model.data is None else model.data)
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": threads or default_threads(),
    }
    request = core.compile_model(network, "CPU", config).create_infer_request()
    names: list[str] = []
    for port in network.outputs:  # a port has several names, and two may share one
        free = sorted(port.names - set(names))
        names.append(free[0] if free else f"output {len(names)}")

    return request.infer, lambda results: dict(zip(names, results.values(), strict=True))
