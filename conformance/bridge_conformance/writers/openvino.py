"""Networks as OpenVINO IR, converted from their ONNX models."""

from __future__ import annotations

from pathlib import Path

from bridge import DType
from bridge_conformance.network import Network
from bridge_conformance.writers.onnx import onnx_model
from bridge_conformance.writing import NotExpressible

__all__ = ["write_ir"]

# What the ONNX reader of OpenVINO 2026.4 raises for.
_UNREAD = frozenset(
    {
        DType.INT2,
        DType.UINT2,
        DType.FLOAT8_E4M3FNUZ,
        DType.FLOAT8_E5M2FNUZ,
        DType.COMPLEX64,
        DType.COMPLEX128,
    }
)


def write_ir(network: Network, folder: Path) -> Path:
    """Writes ``.xml`` and ``.bin``, with all weights in their own type.

    Raises:
        NotExpressible: OpenVINO's ONNX reader does not take an element type.
    """
    import openvino

    unread = network.dtypes & _UNREAD
    if unread:
        raise NotExpressible(f"OpenVINO's ONNX reader takes no {', '.join(map(str, unread))}.")
    path = folder / f"{network.name}.xml"
    converted = openvino.Core().read_model(onnx_model(network).SerializeToString())
    openvino.save_model(converted, path, compress_to_fp16=False)
    return path
