"""ONNX files of torch's exporters, with the weights beside them where one file is too small."""

from __future__ import annotations

from pathlib import Path

import bridge
from bridge_convert.signature import name_onnx

__all__ = ["LARGEST_BYTES", "finish_onnx"]

LARGEST_BYTES = 2**31 - 2**24
"""Most weights in one file: protobuf's 2 GiB, less some room for the graph.

Source: https://protobuf.dev/programming-guides/proto-limits/
"""


def finish_onnx(target: Path, signature: bridge.Signature) -> int:
    """Sees to it that a file states the names and dims of a signature; see ``name_onnx``.

    Args:
        target: What an exporter wrote. Weights in a file beside it stay there, unread.
        signature: What the model was converted from.

    Returns:
        The number of nodes.

    Raises:
        ConversionError: It has other inputs or outputs.
    """
    import onnx

    proto = onnx.load(str(target), load_external_data=False)
    name_onnx(proto, signature)
    onnx.save_model(proto, str(target))
    return len(proto.graph.node)
