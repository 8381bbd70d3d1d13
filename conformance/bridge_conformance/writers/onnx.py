"""Networks as ONNX files; their operators are ONNX's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import DType, TensorSpec
from bridge_conformance.network import Network
from bridge_conformance.writing import NotExpressible

__all__ = ["onnx_model", "write_onnx"]

_COMPLEX = frozenset({DType.COMPLEX64, DType.COMPLEX128})

# The oldest opset with all operators in the form used here, and the first ones whose
# Identity takes what is newer; each with the IR version of the same release.
# Source: the table of versions in onnx, docs/Versioning.md, and docs/Changelog.md.
_PLAIN = (18, 8)
_NEWER = {
    **dict.fromkeys((one for one in DType if one.value.startswith("float8")), (19, 9)),
    DType.INT4: (21, 10),
    DType.UINT4: (21, 10),
    DType.FLOAT4_E2M1FN: (23, 11),
    DType.FLOAT8_E8M0FNU: (24, 12),
    DType.INT2: (25, 13),
    DType.UINT2: (25, 13),
}


def write_onnx(network: Network, folder: Path) -> Path:
    """Writes one self-contained file, checked by onnx in full.

    Raises:
        NotExpressible: The network computes with complex numbers.
    """
    path = folder / f"{network.name}.onnx"
    path.write_bytes(onnx_model(network).SerializeToString(deterministic=True))
    return path


def onnx_model(network: Network) -> Any:
    """The checked ``onnx.ModelProto``; see ``write_onnx``."""
    import onnx
    from onnx import helper, numpy_helper

    operators = {node.op for node in network.nodes}
    if network.dtypes & _COMPLEX and operators != {"Identity"}:
        raise NotExpressible("ONNX passes complex numbers on, but its operators take none.")
    nodes: list[Any] = []
    constants = dict(network.constants)
    for node in network.nodes:
        inputs = list(node.inputs)
        attributes: dict[str, Any] = {}
        if node.op in ("ReduceSum", "ReduceMean", "Reshape"):
            # What others keep in an attribute is an input in ONNX.
            key = "shape" if node.op == "Reshape" else "axis"
            inputs.append(f"{node.output}.{key}")
            constants[inputs[-1]] = _integers(node.attributes[key])
            if key == "axis":
                attributes["keepdims"] = 0
        else:
            attributes.update(node.attributes)
        nodes.append(
            helper.make_node(node.op, inputs, [node.output], name=node.output, **attributes)
        )
    graph = helper.make_graph(
        nodes,
        network.name,
        [_value(spec) for spec in network.inputs],
        [_value(spec) for spec in network.outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset, ir_version = max(_NEWER.get(dtype, _PLAIN) for dtype in network.dtypes)
    model = helper.make_model(
        graph,
        producer_name="bridge_conformance",
        ir_version=ir_version,
        opset_imports=[helper.make_opsetid("", opset)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _integers(value: int | tuple[int, ...]) -> npt.NDArray[np.int64]:
    return np.array(value, np.int64).reshape(-1)


def _value(spec: TensorSpec) -> Any:
    from onnx import helper

    assert spec.dtype is not None
    element = helper.np_dtype_to_tensor_dtype(spec.dtype.numpy)
    return helper.make_tensor_value_info(spec.name, element, spec.shape)
