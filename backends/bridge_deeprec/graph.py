"""Cutting the lookups out of a graph, with TensorFlow's own tools.

The graph is parsed as a protobuf message, because TensorFlow does not know its operators,
and imported only when they are gone. In the place of each lookup stands a placeholder of
its rows, under the same name, so that nothing behind it changes. Variables are made anew
with values of the checkpoint. What only orders operators (control inputs) is dropped:
nothing that runs in a call changes anything.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.errors import InvalidModel, UnsupportedModel
from bridge.formats.tensorflow.graph import MetaGraph
from bridge.signature import Signature
from bridge_deeprec.dense import DenseValues
from bridge_deeprec.lookup import Cut, Lookup, table_name
from bridge_deeprec.operators import GATHERS, HANDLE, INITIALIZER
from bridge_deeprec.steps import STEPS, Step, run

__all__ = ["Graph", "Rows"]

_HANDLES = ("VarHandleOp",)
_REFERENCES = ("Variable", "VariableV2")
_KEY = "serving_default"


@dataclass(frozen=True, slots=True)
class Rows:
    """A lookup as the dense model sees it.

    Attributes:
        input: Name of the dense model's input that takes the rows.
        table: The table that they come from.
        ids: The tensor of their ids.
        width: Numbers in a row.
    """

    input: str
    table: str
    ids: str
    width: int


class Graph:
    """The graph of one signature, to be cut.

    Args:
        path: The ``saved_model.pb``.
        graph: The same graph, as read without TensorFlow.
        signature: What of it is wanted.
        cut: Where its lookups are.
        model: The model as errors name it.

    Attributes:
        rows: The lookups, in order of their nodes.
        passed: What of the steps the dense model takes: tensors by its inputs' names. Known
            once it is written.
    """

    def __init__(
        self, path: Path, graph: MetaGraph, signature: Signature, cut: Cut, model: str
    ) -> None:
        from tensorflow.core.protobuf import saved_model_pb2

        message = saved_model_pb2.SavedModel()
        message.ParseFromString(path.read_bytes())
        meta = next(one for one in message.meta_graphs if set(one.meta_info_def.tags) == graph.tags)
        self._nodes = {node.name: node for node in meta.graph_def.node}
        self._versions = meta.graph_def.versions
        self._signature = signature
        self._cut = cut
        self._model = model
        self.passed: Mapping[str, str] = {}
        self.rows = tuple(
            Rows(f"rows_{number}", one.table, one.ids, self._width(one))
            for number, one in enumerate(cut.lookups)
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is computed in front of the model."""
        return tuple(self._step(self._nodes[name]) for name in self._cut.steps)

    def default_rows(self) -> dict[str, npt.NDArray[np.float32] | None]:
        """Rows of ids that a table does not hold, by table, as its initializer says.

        ``None`` where that draws random numbers, which only the training had.
        """
        return {one.table: self._default_rows(one) for one in self._cut.lookups}

    def write(self, target: Path, values: DenseValues) -> None:
        """Writes the dense model as a SavedModel.

        Args:
            target: Folder to make.
            values: Those of its variables.
        """
        import tensorflow as tf

        tensors = self._in_front()
        rows_of = {one.node for one in self._cut.lookups}
        ends = rows_of | (set(self._cut.steps) - self._constant)
        definition, variables, needed = self.part(self.output_names, ends)
        self.add_inputs(definition, needed)
        self.passed = self._pass_on(definition, ends - rows_of)
        added = {f"{lookup.node}:0": rows.input for lookup, rows in self._looked_up()}
        for lookup, rows in self._looked_up():
            shape = tensors.get_tensor_by_name(rows.ids).shape.concatenate([rows.width])
            _add_placeholder(definition, lookup.node, tf.float32, shape)
        for name, one in self.passed.items():
            source = tensors.get_tensor_by_name(one)
            _add_placeholder(definition, name, source.dtype, source.shape)
            added[f"{name}:0"] = name
        graph = tf.Graph()
        with graph.as_default():
            mapped, fed = self.variables(variables, values)
            tf.import_graph_def(definition, input_map=mapped, name="")
            inputs = {
                spec.name: graph.get_tensor_by_name(spec.native_name)
                for spec in self._signature.inputs
                if _name(spec.native_name) in needed
            }
            inputs.update({name: graph.get_tensor_by_name(one) for one, name in added.items()})
            step_inputs = {tensor: f"{name}:0" for name, tensor in self.passed.items()}
            outputs = {
                spec.name: graph.get_tensor_by_name(
                    step_inputs.get(str(spec.native_name), str(spec.native_name))
                )
                for spec in self._signature.outputs
            }
            _save(graph, target, inputs, outputs, fed)

    def _looked_up(self) -> Iterator[tuple[Lookup, Rows]]:
        return zip(self._cut.lookups, self.rows, strict=True)

    @functools.cached_property
    def _constant(self) -> set[str]:
        """Steps that no input leads to."""
        found: set[str] = set()
        for name in self._cut.steps:
            if all(_name(one) in found for one in self._nodes[name].input if one[0] != "^"):
                found.add(name)
        return found

    def _pass_on(self, definition: Any, steps: Set[str]) -> dict[str, str]:
        """Lets what steps compute come in from outside; tensors by the inputs' names.

        Computed twice it might come in another order, which the rows would not fit.
        """
        wanted = [str(spec.native_name) for spec in self._signature.outputs]
        wanted += [one for node in definition.node for one in node.input]
        wanted = [one if ":" in one else f"{one}:0" for one in wanted if _name(one) in steps]
        names = {one: f"step_{at}" for at, one in enumerate(dict.fromkeys(wanted))}
        for node in definition.node:
            for at, one in enumerate(node.input):
                if _name(one) in steps:
                    node.input[at] = names[one if ":" in one else f"{one}:0"]
        return {name: tensor for tensor, name in names.items()}

    @property
    def output_names(self) -> list[str]:
        """Nodes of the signature's outputs."""
        return [_name(spec.native_name) for spec in self._signature.outputs]

    def part(self, roots: Sequence[str], ends: Set[str]) -> tuple[Any, list[Any], set[str]]:
        """The part of the graph that some nodes need.

        Args:
            roots: The nodes.
            ends: Nodes to stop at, which are left out, as inputs are.

        Returns:
            The definition without variables, the variables' nodes, and names of the inputs'
            nodes that it needs.
        """
        import tensorflow as tf

        fed = {_name(spec.native_name) for spec in self._signature.inputs}
        definition = tf.compat.v1.GraphDef(versions=self._versions)
        variables, needed = [], set[str]()
        stack, seen = list(roots), set(roots)
        while stack:
            name = stack.pop()
            if name in ends:
                continue
            if name in fed:
                needed.add(name)
                continue
            node = self._nodes[name]
            if node.op in (*_HANDLES, *_REFERENCES):
                variables.append(node)
                continue
            _add(definition, node)
            before = {_name(one) for one in node.input if not one.startswith("^")}
            stack += sorted(before - seen)
            seen |= before
        return definition, variables, needed

    def add_inputs(self, definition: Any, names: Set[str]) -> None:
        """Adds placeholders for inputs, by the names of their nodes."""
        import tensorflow as tf

        for spec in self._signature.inputs:
            if _name(spec.native_name) not in names:
                continue
            assert spec.dtype is not None  # one that has no counterpart was refused
            kind = tf.as_dtype(spec.dtype.numpy)
            sizes = spec.shape and [size if isinstance(size, int) else None for size in spec.shape]
            _add_placeholder(definition, _name(spec.native_name), kind, tf.TensorShape(sizes))

    def gathers(self) -> dict[str, tuple[str, str, int]]:
        """Every node that gathers: the tensor of its ids, its table, numbers in a row."""
        found: dict[str, tuple[str, str, int]] = {}
        stack = list(self.output_names)
        seen = set(stack)
        while stack:
            node = self._nodes[stack.pop()]
            if node.op in GATHERS:
                handle = self._nodes[_name(node.input[0])]
                while handle.op != HANDLE:
                    handle = self._nodes[_name(handle.input[0])]
                ids = node.input[1] if ":" in node.input[1] else f"{node.input[1]}:0"
                width = handle.attr["shape"].shape.dim[0].size
                found[node.name] = (ids, table_name(_variable(handle)), width)
                continue
            before = {_name(one) for one in node.input if not one.startswith("^")}
            stack += before - seen
            seen |= before
        return found

    def _in_front(self) -> Any:
        """A graph of inputs and steps, which tells dtypes and shapes of what comes from them."""
        import tensorflow as tf

        definition = tf.compat.v1.GraphDef(versions=self._versions)
        for name in self._cut.steps:
            _add(definition, self._nodes[name])
        self.add_inputs(definition, {_name(spec.native_name) for spec in self._signature.inputs})
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(definition, name="")
        return graph

    def variables(
        self, nodes: Sequence[Any], values: DenseValues
    ) -> tuple[dict[str, Any], dict[Any, dict[Any, npt.NDArray[Any]]]]:
        """New variables in the current graph, for some of the old ones.

        Returns:
            What stands for the tensor of each old one, and by variable what to feed to its
            initializer.
        """
        import tensorflow as tf

        parts = _Parts(nodes, values, self._model)
        mapped, fed = {}, {}
        for number, node in enumerate(nodes):
            value = parts.value(node)
            source = tf.compat.v1.placeholder(value.dtype, value.shape)
            made = tf.compat.v1.Variable(
                source, trainable=False, use_resource=True, name=f"variable_{number}"
            )
            is_handle = node.op in _HANDLES
            mapped[f"{node.name}:0"] = made.handle if is_handle else made.read_value()
            fed[made] = {source: value}
        return mapped, fed

    def _width(self, lookup: Lookup) -> int:
        """Numbers in a row, as the variable's handle says."""
        sizes = [size.size for size in self._nodes[lookup.handle].attr["shape"].shape.dim]
        if len(sizes) != 1 or sizes[0] < 1:
            raise UnsupportedModel(
                f"rows of '{lookup.table}' have the shape {tuple(sizes)}; wanted one dim.",
                fix="Export the model with tables of vectors.",
                model=self._model,
                node=lookup.handle,
            )
        gather = self._nodes[lookup.gather]
        if gather.attr["is_use_default_value_tensor"].b:
            raise UnsupportedModel(
                f"'{lookup.gather}' brings its own rows for absent ids, which is not done in "
                "front of the model.",
                fix="Export the model without default_value for its lookups.",
                model=self._model,
                node=lookup.gather,
            )
        return int(sizes[0])

    def _default_rows(self, lookup: Lookup) -> npt.NDArray[np.float32] | None:
        for node in self._nodes.values():
            if node.op != INITIALIZER or list(node.input[:2]) != [lookup.handle] * 2:
                continue
            if node.attr["filter_freq"].i > 0:  # then every id without a row gets the same one
                row = np.full((1, self._width(lookup)), node.attr["default_value_no_permission"].f)
                return row.astype(np.float32)
            order = self._constant_steps(node.input[2])
            if order is None:
                return None
            tensors = run([self._step(self._nodes[name]) for name in order], {})
            name = node.input[2]
            rows = tensors[name if ":" in name else f"{name}:0"]
            return np.ascontiguousarray(rows.reshape(-1, self._width(lookup)), np.float32)
        return None

    def _constant_steps(self, tensor: str) -> list[str] | None:
        """Steps to a tensor that needs no input; ``None`` where there are no such steps."""
        order: list[str] = []
        stack, opened = [tensor.partition(":")[0]], set[str]()
        while stack:
            name = stack[-1]
            node = self._nodes.get(name)
            if node is None or node.op not in STEPS:
                return None
            before = [one.partition(":")[0] for one in node.input if not one.startswith("^")]
            if name in opened or not before:
                stack.pop()
                if name not in order:
                    order.append(name)
                continue
            opened.add(name)
            stack += [one for one in before if one not in order]
        return order

    def _step(self, node: Any) -> Step:
        inputs = [one if ":" in one else f"{one}:0" for one in node.input if one[0] != "^"]
        return Step(node.name, node.op, tuple(inputs), _attrs(node))


class _Parts:
    """Values of variables, those of partitioned ones cut from the whole."""

    def __init__(self, nodes: Sequence[Any], values: DenseValues, model: str) -> None:
        self._values = values
        self._model = model
        self._sizes: dict[str, dict[int, tuple[int, ...]]] = {}
        for node in nodes:
            whole, number = _part(_variable(node))
            if number is not None:
                self._sizes.setdefault(whole, {})[number] = _shape(node)

    def value(self, node: Any) -> npt.NDArray[Any]:
        name, shape = _variable(node), _shape(node)
        whole, number = _part(name)
        if number is not None and name not in self._values:
            value = self._cut(self._values.read(whole), whole, number)
        else:
            value = self._values.read(name)
        if value.shape != shape:
            raise InvalidModel(
                f"variable '{name}' is {value.shape} in the checkpoint; the graph wants {shape}.",
                fix="Use the checkpoint that was written with this model.",
                model=self._model,
                variable=name,
            )
        return value

    def _cut(self, value: npt.NDArray[Any], whole: str, number: int) -> npt.NDArray[Any]:
        """One part: parts lie one after the other along the dim in which they do not fill."""
        sizes = self._sizes[whole]
        mine = sizes[number]
        axes = [axis for axis, size in enumerate(mine) if size != value.shape[axis]]
        if not axes:
            return value
        missing = set(range(number)) - sizes.keys()
        if missing:  # then there is no telling where this one begins
            raise InvalidModel(
                f"part {number} of variable '{whole}' is in the graph without part {min(missing)}.",
                fix="Export the model with all parts of its variables.",
                model=self._model,
                variable=whole,
            )
        start = sum(sizes[one][axes[0]] for one in range(number))
        return value.take(range(start, start + mine[axes[0]]), axis=axes[0])


def _add(definition: Any, node: Any) -> None:
    """Adds a node as it is, but for its place and for what it is only ordered behind."""
    made = definition.node.add()
    made.CopyFrom(node)
    made.device = ""
    made.attr.pop("_class", None)  # the nodes that it has to share a device with
    del made.input[:]
    made.input.extend(one for one in node.input if not one.startswith("^"))


def _add_placeholder(definition: Any, name: str, dtype: Any, shape: Any) -> None:
    made = definition.node.add(name=name, op="Placeholder")
    made.attr["dtype"].type = dtype.as_datatype_enum
    made.attr["shape"].shape.CopyFrom(shape.as_proto())


def _name(tensor: str | None) -> str:
    return (tensor or "").partition(":")[0]


def _variable(node: Any) -> str:
    return node.attr["shared_name"].s.decode("utf-8", "replace") or str(node.name)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(size.size for size in node.attr["shape"].shape.dim)


def _part(name: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.+)/part_(\d+)", name)
    return (found[1], int(found[2])) if found else (name, None)


def _save(
    graph: Any,
    target: Path,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    fed: Mapping[Any, Mapping[Any, npt.NDArray[Any]]],
) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    describe = v1.saved_model.build_tensor_info
    with v1.Session(graph=graph, config=v1.ConfigProto(device_count={"GPU": 0})) as session:
        for variable, value in fed.items():
            session.run(variable.initializer, value)
        signature = v1.saved_model.build_signature_def(
            {name: describe(tensor) for name, tensor in inputs.items()},
            {name: describe(tensor) for name, tensor in outputs.items()},
            v1.saved_model.signature_constants.PREDICT_METHOD_NAME,
        )
        builder = v1.saved_model.Builder(str(target))
        builder.add_meta_graph_and_variables(
            session, [v1.saved_model.tag_constants.SERVING], {_KEY: signature}
        )
        builder.save()


def _not_in_front(node: Any, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"node '{node.name}' (operator {node.op}) leads to the ids of a lookup and is not computed "
        f"in front of the model: {reason}.",
        fix="Serve the model with DeepRec's own library, or export it with plain lookups of ids "
        "that are inputs.",
        node=node.name,
        operator=node.op,
    )


def _attrs(node: Any) -> dict[str, Any]:
    """What of a step's attributes numpy has to know."""
    import tensorflow as tf

    def kind(name: str) -> str:
        code = node.attr[name].type or tf.int32.as_datatype_enum  # the default of all of them
        found = np.dtype(tf.as_dtype(code).as_numpy_dtype)
        if found.kind not in "biuf":  # such as bfloat16, which numpy has no name for
            raise _not_in_front(node, f"it makes {tf.as_dtype(code).name}")
        return str(found.str)

    if node.op == "GatherV2" and node.attr["batch_dims"].i:
        raise _not_in_front(node, "it has batch_dims")
    if node.op == "Const":
        value = tf.make_ndarray(node.attr["value"].tensor)
        texts = value.dtype.hasobject
        if not texts and value.dtype.kind not in "biuf":
            raise _not_in_front(node, f"it is {value.dtype}")
        flat = [one.decode("utf-8") if texts else one for one in value.ravel().tolist()]
        return {"value": flat, "dtype": value.dtype.str, "shape": list(value.shape)}
    if node.op == "Cast":
        return {"dtype": kind("DstT")}
    if node.op in ("Shape", "Size"):
        return {"dtype": kind("out_type")}
    if node.op in ("Unique", "UniqueWithCounts"):
        return {"dtype": kind("out_idx")}
    if node.op == "Squeeze":
        return {"axes": list(node.attr["squeeze_dims"].list.i)}
    if node.op in ("Max", "Prod", "Sum"):
        return {"keep_dims": bool(node.attr["keep_dims"].b)}
    if node.op == "Pack":
        return {"axis": int(node.attr["axis"].i)}
    if node.op == "StridedSlice":
        masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        return {name: int(node.attr[name].i) for name in masks}
    return {}
