"""The networks that lie inside the onnx package without their weights.

Their graphs are those of well-known networks; weights are constants that the graph makes
itself. onnx has the outputs on disk, and generates the inputs as ``case`` does.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from bridge_conformance.datasets.cases import Case, LibraryMissing
from bridge_conformance.tolerance import Tolerance

__all__ = ["NETWORKS", "case"]

NETWORKS = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
"""Names of all that onnx 1.23 has."""


def case(name: str) -> tuple[Case, Tolerance]:
    """A network with its input and output, and the tolerance that onnx states for it.

    Raises:
        LibraryMissing: onnx is not installed.
    """
    found = importlib.util.find_spec("onnx")
    if found is None or found.origin is None:
        raise LibraryMissing("the networks lie inside onnx, which is not installed.")
    import onnx

    data = Path(found.origin).parent / "backend" / "test" / "data"
    stated = json.loads((data / "real" / f"test_{name}" / "data.json").read_text("utf-8"))
    path = data / "light" / f"light_{name}.onnx"
    graph = onnx.load(path).graph
    constants = {item.name for item in graph.initializer}
    inputs = {}
    for item in graph.input:
        if item.name not in constants:
            shape = tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
            count = int(np.prod(shape))
            inputs[item.name] = (np.arange(count).reshape(shape) / count).astype(np.float32)
    outputs = {
        item.name: onnx.numpy_helper.to_array(
            onnx.load_tensor(path.with_name(f"{path.stem}_output_{index}.pb"))
        )
        for index, item in enumerate(graph.output)
    }
    return Case(name, path, inputs, outputs), Tolerance(stated["rtol"], stated["atol"])
