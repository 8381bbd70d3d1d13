"""A predictor whose inputs and outputs are called something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.binding import Bound
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.check import Arrays
from bridge.errors import InputError
from bridge.predictor import Predictor
from bridge.signature import Signature

__all__ = ["RenamedPredictor"]


class RenamedPredictor(Predictor):
    """A predictor seen under other names; it owns the one inside.

    Args:
        inner: What answers.
        signature: With the names that users know.
        inputs: Names of the inner inputs -> names that users know; others stay.
        outputs: Names that users know -> names of the inner outputs; others stay.
    """

    def __init__(
        self,
        inner: Predictor,
        signature: Signature,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        super().__init__(signature, inner.info)
        self._inner = inner
        theirs = {ours: name for name, ours in inputs.items()}
        self._inputs = {name: theirs.get(name, name) for name in signature.input_names}
        self._outputs = {name: outputs.get(name, name) for name in signature.output_names}
        self._renames = bool(inputs)
        # The predictor inside takes care of threads and refuses what it cannot take.
        claims = Capabilities(zero_rows=True, thread_safety=ThreadSafety.SHARED)
        self._attach(inner.info, claims, (), None)

    def predict(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Arrays:
        if outputs is not None or type(inputs) is not dict:
            return super().predict(inputs, outputs)
        names = self._inputs
        try:
            found = self._inner.predict(
                {names[name]: value for name, value in inputs.items()} if self._renames else inputs
            )
        except (KeyError, InputError):
            # Again, through the checks of this predictor, whose errors name what users know.
            return super().predict(inputs)
        return {name: found[theirs] for name, theirs in self._outputs.items()}

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        renamed = {self._inputs[name]: array for name, array in inputs.items()}
        found = self._inner.predict(renamed, [self._outputs[name] for name in outputs])
        return {name: found[self._outputs[name]] for name in outputs}

    def _bind(self, inputs: Arrays) -> Bound:
        shapes = {self._inputs[name]: array.shape for name, array in inputs.items()}
        return _RenamedBound(self, self._inner.bind(shapes), self._inputs, self._outputs)

    def _close(self) -> None:
        self._inner.close()


class _RenamedBound(Bound):
    def __init__(
        self,
        predictor: Predictor,
        inner: Bound,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
    ) -> None:
        arrays = {
            ours: inner.inputs[theirs] for ours, theirs in inputs.items() if theirs in inner.inputs
        }
        super().__init__(predictor, arrays)
        self._inner = inner
        self._names = outputs
        self._show()

    def _run(self) -> None:
        self._inner.predict()
        self._show()

    def _show(self) -> None:
        there = self._inner.outputs
        for ours, theirs in self._names.items():
            if theirs in there:
                self.outputs[ours] = there[theirs]
