"""Networks in ONNX Runtime's own format, which only ONNX Runtime itself writes."""

from __future__ import annotations

from pathlib import Path

from bridge_conformance.network import Network
from bridge_conformance.writers.onnx import onnx_model
from bridge_conformance.writing import NotExpressible

__all__ = ["write_ort"]


def write_ort(network: Network, folder: Path) -> Path:
    """Loads the ONNX model and has the session save itself.

    Raises:
        NotExpressible: ONNX Runtime lacks a type or a kernel, without which it saves none.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    if any("complex" in dtype.value for dtype in network.dtypes):
        raise NotExpressible("ONNX Runtime has no complex tensors.")
    path = folder / f"{network.name}.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    # Not more than basic: what comes after that fits only the machine that does it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    model = onnx_model(network).SerializeToString()
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except NoKernel as error:
        reason = str(error).rpartition(" : ")[2].rstrip(".")
        raise NotExpressible(f"ONNX Runtime saves only what it can run: {reason}.") from error
    return path
