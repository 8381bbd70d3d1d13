"""What the conversions of ONNX models to reduced precision have in common."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import ConversionError, UnsupportedModel
from bridge_convert.signature import available, name_onnx, signature_of

__all__ = ["loaded", "quantised", "quiet", "reducer", "written"]

# What a model has whose activations are quantised; weights alone leave DequantizeLinear.
_QUANTISED = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})

_MAX_BYTES = 2**31 - 2**20  # of a protobuf message, with some left for what is no weights


def reducer() -> bridge.Availability:
    """Whether onnxruntime, whose tools reduce precision, and onnx are installed."""
    return available(("onnxruntime", "onnxruntime"), ("onnx", "onnx"))


def loaded(model: bridge.ModelRef) -> Any:
    """The ``onnx.ModelProto`` of a model whose precision was not reduced before.

    Raises:
        UnsupportedModel: It is quantised already.
    """
    import onnx

    proto = onnx.load(str(model.file))
    found = sorted({node.op_type for node in proto.graph.node} & _QUANTISED)
    if found:
        raise UnsupportedModel(
            f"model {model.name} is quantised already: it has {', '.join(found)}.",
            fix="Convert the model that it was made from; embeddings before matrices.",
            model=model.name,
            operators=found,
        )
    return proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the tools' advice out of the caller's logs; use it around their import as well.

    They log to the root logger, and import modules beside them by a bare name, for which
    they add their folder to ``sys.path`` for good.
    """
    root = logging.getLogger()
    level, path = root.level, sys.path[:]
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from onnxruntime import transformers

            sys.path.append(str(Path(transformers.__file__).parent))
            yield
    finally:
        root.setLevel(level)
        sys.path[:] = path


def quantised(tool: Callable[..., None], proto: Any, folder: Path, **how: Any) -> Any:
    """What a tool that only writes files makes of a model.

    Args:
        tool: ``onnxruntime.quantization.quantize_dynamic`` or ``quantize_static``.
        proto: The ``onnx.ModelProto``.
        folder: Where to write, for a moment.
        how: Keyword arguments of the tool.
    """
    import onnx

    is_large = proto.ByteSize() > _MAX_BYTES
    with tempfile.TemporaryDirectory(dir=folder) as work:
        path = Path(work, "quantised.onnx")
        tool(proto, str(path), use_external_data_format=is_large, **how)
        return onnx.load(str(path))


def written(model: bridge.ModelRef, proto: Any, target: Path) -> dict[str, Any]:
    """Writes a reduced model with the names and dims of its source; facts about it.

    Raises:
        ConversionError: Its inputs or outputs are others, of another dtype among them.
    """
    import onnx

    signature = signature_of(model)[1]
    name_onnx(proto, signature)
    _require_dtypes(proto, signature)
    size_bytes = proto.ByteSize()
    onnx.save_model(
        proto,
        str(target),
        save_as_external_data=size_bytes > _MAX_BYTES,
        location=f"{target.stem}.data",
    )
    names = onnx.TensorProto.DataType.Name
    tensors = Counter(names(one.data_type).lower() for one in proto.graph.initializer)
    return {"tensors": dict(tensors), "bytes": size_bytes, "bytes_before": model.size_bytes}


def _require_dtypes(proto: Any, signature: bridge.Signature) -> None:
    import onnx

    for specs, values in (
        (signature.inputs, proto.graph.input),
        (signature.outputs, proto.graph.output),
    ):
        known = {spec.name: spec.dtype for spec in specs}
        for value in values:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            got, wanted = bridge.DType.of(kind), known.get(value.name)
            if wanted is not None and got is not wanted:
                raise ConversionError(
                    f"'{value.name}' became {got} in the converted model; wanted {wanted}.",
                    fix="The converter does not know a part of this model; use another one.",
                    name=value.name,
                )
