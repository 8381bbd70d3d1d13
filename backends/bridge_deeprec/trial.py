"""What was cut, beside the graph as it was wired, before anybody gets to see it.

DeepRec's library is not needed for that: TensorFlow runs the original graph up to the ids of
each single gather, rows are put in the gathers' places, and it goes on from there. So the
ids, the parts of partitioned variables and what is behind them are the original's; only the
rows of an id are taken from the tables in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bridge import proof
from bridge.check import Arrays
from bridge.errors import BridgeError, ConversionError, InputError, PredictError
from bridge.predictor import Predictor
from bridge_deeprec.dense import DenseValues
from bridge_deeprec.graph import Graph
from bridge_deeprec.tables import Snapshot

__all__ = ["Original", "compare"]

_KEYS = 64


class Original:
    """The graph with its own wiring, in a session.

    Args:
        graph: The graph.
        values: Those of its variables.
        inputs: Tensors of the inputs, by name.
        outputs: Tensors of the outputs, by name.
    """

    def __init__(
        self,
        graph: Graph,
        values: DenseValues,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        gathers = graph.gathers()
        roots = sorted({ids.partition(":")[0] for ids, _, _ in gathers.values()})
        first, variables, _ = graph.part(roots, frozenset())
        assert not variables  # no id is computed from one
        graph.add_inputs(first, {tensor.partition(":")[0] for tensor in inputs.values()})
        then, variables, needed = graph.part(graph.output_names, gathers.keys())
        native = tf.Graph()
        with native.as_default():
            tf.import_graph_def(first, name="ids")

            def tensor(name: str, prefix: str) -> Any:
                return native.get_tensor_by_name(f"{prefix}/{name}")

            self._inputs = {name: tensor(one, "ids") for name, one in inputs.items()}
            self._ids = {
                node: (tensor(ids, "ids"), table) for node, (ids, table, _) in gathers.items()
            }
            mapped, fed = graph.variables(variables, values)
            passed = {inputs[name]: one for name, one in self._inputs.items()}
            mapped.update(
                {name: one for name, one in passed.items() if name.partition(":")[0] in needed}
            )
            self._rows = {}
            for node, (_, _, width) in gathers.items():
                shape = self._ids[node][0].shape.concatenate([width])
                self._rows[node] = mapped[f"{node}:0"] = v1.placeholder(tf.float32, shape)
            tf.import_graph_def(then, input_map=mapped, name="whole")
            self._outputs = {
                name: passed[one] if one in passed else tensor(one, "whole")
                for name, one in outputs.items()
            }
        self._session = v1.Session(graph=native, config=v1.ConfigProto(device_count={"GPU": 0}))
        for variable, value in fed.items():
            self._session.run(variable.initializer, value)

    def predict(self, inputs: Arrays, tables: Snapshot) -> Arrays:
        """What the graph computes with the rows of some tables."""
        given = {self._inputs[name]: array for name, array in inputs.items()}
        ids = self._session.run({node: one for node, (one, _) in self._ids.items()}, given)
        for node, array in ids.items():
            given[self._rows[node]] = tables.gather(self._ids[node][1], array)
        found: Arrays = self._session.run(self._outputs, given)
        return found

    def close(self) -> None:
        """Ends the session."""
        self._session.close()


def compare(
    right: Callable[[Arrays, Snapshot], Arrays], made: Predictor, now: Snapshot
) -> dict[str, Any]:
    """Runs two on made-up inputs, whole numbers drawn from the ids of the tables.

    Args:
        right: What is right, for inputs and tables.
        made: What is to be judged.
        now: The tables.

    Returns:
        Calls that were compared and the largest difference; what the one that is right does
        not take is left out.

    Raises:
        ConversionError: They differ, or what was made fails.
    """
    import tensorflow as tf

    pool = np.concatenate([one.index.keys[:_KEYS] for one in now.tables.values()] + [[0, 1]])
    random = np.random.default_rng(0)
    calls, worst = 0, 0.0
    for given in _generated(made):
        for one in (given, _with_ids(given, pool, random)):
            try:
                wanted = right(one, now)
            except (
                tf.errors.OpError,
                PredictError,
                InputError,
            ):  # made-up numbers may mean nothing to a graph
                continue
            try:
                got = made.predict(one)
            except BridgeError as error:
                raise ConversionError(
                    f"what was cut out of the graph does not run: {error.message}",
                    fix="Serve the model with DeepRec's own library.",
                    **error.detail,
                ) from error
            for name, one_of in wanted.items():
                worst = max(worst, _difference(name, np.asarray(one_of), got[name]))
            calls += 1
    return {"calls": calls, "max_abs": worst}


def _generated(made: Predictor) -> list[Arrays]:
    """Made-up inputs; none where the signature does not say enough."""
    try:
        return proof.generated(made.signature)
    except ConversionError:
        return []


def _with_ids(given: Arrays, pool: Any, random: np.random.Generator) -> Arrays:
    """Ids of the tables in the place of whole numbers."""
    found = {}
    for name, array in given.items():
        found[name] = array
        if array.dtype.kind in "iu":
            bounds = np.iinfo(array.dtype)
            fitting = pool[(pool >= bounds.min) & (pool <= bounds.max)]
            found[name] = random.choice(fitting, array.shape).astype(array.dtype)
    return found


def _difference(name: str, wanted: Any, got: Any) -> float:
    """The largest difference of an output; texts, which both hand on, are not looked at."""
    if wanted.dtype.hasobject:
        return 0.0
    worst, is_same = 0.0, np.array_equal(got, wanted)
    if wanted.dtype.kind == "f" and wanted.shape == got.shape:
        atol, rtol = proof.STRICT
        is_same = np.allclose(got, wanted, rtol, atol, equal_nan=True)
        worst = float(np.nanmax(np.abs(got - wanted), initial=0.0))
    if not is_same:
        raise ConversionError(
            f"output '{name}' differs from that of the graph as it was wired, by {worst:.3g}.",
            fix="Serve the model with DeepRec's own library, and report this.",
            output=name,
            max_abs=worst,
        )
    return worst
