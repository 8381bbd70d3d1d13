"""SavedModels to ONNX, by tf2onnx.

The SavedModel is read by TensorFlow's graph loader, which restores any that was ever
written, and frozen: variables become constants. The object graph, which Python classes of
the model's writer may be needed to restore, is not looked at.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import bridge
from bridge.errors import ConversionError, ErrorRule, UnsupportedModel
from bridge.formats.tensorflow import SavedModel
from bridge.formats.tensorflow.graph import MetaGraph
from bridge.formats.tensorflow.reach import keeps_state, reach
from bridge_convert.signature import available, name_onnx

__all__ = ["OnnxOptions", "SavedModelToOnnx", "served"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxOptions(bridge.Options):
    """Options of the adapters that write ONNX."""

    opset: int = bridge.option(
        18,
        help="Version of ONNX's operators to write.",
        minimum=13,
        maximum=25,
        when="A runtime is older, or an operator is only in newer ones.",
    )


class SavedModelToOnnx(bridge.Adapter):
    """The chosen signature of a SavedModel, its names kept."""

    name = "saved_model-to-onnx"
    sources = frozenset({"saved_model"})
    target = "onnx"
    options_type = OnnxOptions
    distributions = ("tf2onnx", "onnx", "tensorflow-cpu", "tensorflow")

    def probe(self) -> bridge.Availability:
        found = available(("tf2onnx", "tf2onnx"))
        if not found.installed:
            return found
        runtime = bridge.find_runtime(
            "tensorflow", ("tensorflow-cpu", "tensorflow"), "tensorflow", exclusive=False
        )
        return found if runtime.installed else runtime

    def error_rules(self) -> tuple[ErrorRule, ...]:
        return (
            ErrorRule(
                Exception,
                ConversionError,
                pattern=r"No Op registered for (?P<operator>\w+)",
                message="tf2onnx cannot convert the operator {operator}.",
                fix="Try another route: 'bridge routes' shows them.",
            ),
        )

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: OnnxOptions
    ) -> Mapping[str, Any]:
        graph, key = served(model)
        signature = graph.signatures[key]
        _require_dense(signature)
        frozen, inputs, outputs = _frozen(model.file, graph.tags, signature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of numpy
            import onnx
            import tf2onnx.convert

            proto, _ = tf2onnx.convert.from_graph_def(
                frozen,
                name=model.name,
                input_names=list(inputs),
                output_names=list(outputs),
                opset=options.opset,
                tensors_to_rename={**inputs, **outputs},
            )
            name_onnx(proto, signature)
            # tf2onnx keeps operators that it does not know, under TensorFlow's names.
            onnx.checker.check_model(proto)
            onnx.save_model(
                proto,
                str(target),
                save_as_external_data=proto.ByteSize() >= _MOST_BYTES,
                location=f"{target.name}.data",
            )
        return {"signature": key, "opset": options.opset, "nodes": len(proto.graph.node)}


_MOST_BYTES = 2**31 - 2**20  # of one protobuf message, less some


def served(model: bridge.ModelRef) -> tuple[MetaGraph, str]:
    """The graph of a SavedModel and the key of its signature, chosen as the backend does.

    Raises:
        OptionError: There is no such signature.
        UnsupportedModel: There is none at all, or calling it changes variables, which a
            converted model, whose variables are constants, would not do.
    """
    kind = SavedModel()
    graph = kind.graph(model)
    key = kind.signature_key(model, graph)
    outputs = graph.signatures[key].outputs
    roots = [(spec.native_name or "").partition(":")[0] for spec in outputs]
    if keeps_state(reach(graph, roots)):
        raise UnsupportedModel(
            f"calls of signature '{key}' change the model, which a converted one would not do.",
            fix="Use backend='tensorflow', or export it with its state as inputs and outputs.",
            model=model.name,
        )
    return graph, key


def _require_dense(signature: bridge.Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if not spec.native_name:
            raise UnsupportedModel(
                f"'{spec.name}' is sparse or composite, which ONNX does not know.",
                fix="Export a signature of dense tensors.",
                tensor=spec.name,
            )


def _frozen(
    folder: Path, tags: Iterable[str], signature: bridge.Signature
) -> tuple[Any, dict[str, str], dict[str, str]]:
    """The graph with its variables as constants; tensors of inputs and outputs to names.

    An output that is an input, or another output, gets a tensor of its own: ONNX tells
    them apart by name.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph,
    )
    from tensorflow.python.saved_model.loader_impl import SavedModelLoader

    loader = SavedModelLoader(str(folder))
    graph = tf.Graph()
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    with graph.as_default(), tf.compat.v1.Session(graph=graph, config=config) as session:
        saver, _ = loader.load_graph(graph, sorted(tags))
        loader.restore_variables(session, saver)
        loader.run_init_ops(session, sorted(tags))
        inputs = {str(spec.native_name): spec.name for spec in signature.inputs}
        outputs: dict[str, str] = {}
        for spec in signature.outputs:
            own = tf.identity(graph.get_tensor_by_name(spec.native_name), name="bridge_output")
            outputs[own.name] = spec.name
        inlined = _inlined(graph, [*inputs, *outputs])
        names = [tensor.partition(":")[0] for tensor in outputs]
        frozen = convert_variables_to_constants_from_session_graph(session, inlined, names)
    return frozen, inputs, outputs


def _inlined(graph: Any, kept: list[str]) -> Any:
    """The graph with functions replaced by what they do, loops and conditions left whole.

    Freezing does not follow every kind of variable into functions, and tf2onnx knows only
    functions that are loops and conditions.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.framework.convert_to_constants import disable_lower_using_switch_merge
    from tensorflow.python.grappler import tf_optimizer

    whole = disable_lower_using_switch_merge(graph.as_graph_def())
    for function in whole.library.function:
        function.attr.pop("api_implements", None)  # it keeps Keras's recurrent layers apart
    meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=whole, graph=graph)
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend(kept)
    meta_graph.collection_def.clear()
    meta_graph.collection_def["train_op"].CopyFrom(fetched)
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1  # small graphs too
    rewrites.optimizers.append("function")
    rewrites.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta_graph)
