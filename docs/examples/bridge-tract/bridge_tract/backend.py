"""ONNX models run by tract, a runtime written in Rust, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import bridge
from bridge import DType
from bridge.check import Arrays
from bridge.errors import UnsupportedModel

# Types that numpy and tract share, with tract's words for them, such as f32.
_BITS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}
_WORDS = {DType(f"{kind}{n}"): f"{kind[0]}{n}" for kind, bits in _BITS.items() for n in bits}
_WORDS[DType.BOOL] = "bool"

# What tract's errors mean; the names of groups are filled into the texts.
_OPERATOR = "tract cannot do the {operator} of this model."
_RULES = (
    (r'node #\d+ ".*?" (Unimplemented\()?(?P<operator>[A-Za-z]+)', _OPERATOR),
    (r"Building node .*?\((?P<operator>\w+)\)", _OPERATOR),
    (r"DatumType (in.*API )?(?P<dtype>\w+)", "tract cannot hand out its type {dtype}."),
)
_OTHER = "Use another backend, or export the model without it."


class TractBackend(bridge.Backend):
    name = "tract"

    def probe(self) -> bridge.Availability:
        return bridge.find_runtime("tract", ("tract",))

    def capabilities(self, device: bridge.Device) -> bridge.Capabilities:
        return bridge.Capabilities(
            formats=frozenset({"onnx"}),
            dtypes=frozenset(_WORDS),
            dynamic_dims=True,
            dlpack=True,
            zero_rows=False,  # a sum over a dim of size 0 ends the process
            deterministic=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )

    def error_rules(self) -> tuple[bridge.ErrorRule, ...]:
        from tract import TractError

        return tuple(
            bridge.ErrorRule(TractError, UnsupportedModel, pattern, text, _OTHER)
            for pattern, text in _RULES
        )

    def _load(self, model: bridge.ModelRef, device: bridge.Device, options: Any) -> TractPredictor:
        import tract

        with tempfile.NamedTemporaryFile() as copy:  # for models given as bytes
            copy.write(model.data or b"")
            copy.flush()
            graph = tract.onnx().load(model.path or copy.name)
        stated = model.facts.signatures[""]
        # Inputs that the model holds a value for are constants to tract.
        names = [graph.input_name(index) for index in range(graph.input_count())]
        signature = bridge.Signature(tuple(map(stated.input, names)), stated.outputs)
        _state_dims(graph, signature)
        cpu = tract.runtime_for_name("cpu")
        native = cpu.prepare(graph.into_model())
        for fact in native.output_facts():
            fact.datum_type()  # fails for sizes of dims, which tract cannot hand out
        info = bridge.PredictorInfo(provider=cpu.name(), versions={"tract": tract.version()})
        return TractPredictor(signature, info, native)


class TractPredictor(bridge.Predictor):
    layout = bridge.Layout.ANY  # tract copies every array, whatever its strides

    def __init__(self, signature: bridge.Signature, info: bridge.PredictorInfo, native: Any):
        super().__init__(signature, info)
        self._native = native

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        results = self._native.run([inputs[name] for name in self.signature.input_names])
        named = dict(zip(self.signature.output_names, results, strict=True))
        return {name: named[name].to_numpy() for name in outputs}

    def _close(self) -> None:
        del self._native


def _state_dims(graph: Any, signature: bridge.Signature) -> None:
    """Gives dims without a name one, which tract needs, and leaves outputs for it to infer."""
    for index in range(graph.output_count()):
        graph.set_output_fact(index, None)
    for index, spec in enumerate(signature.inputs):
        if spec.dtype in _WORDS and spec.shape is not None:
            dims = [
                f"_{index}_{n}" if dim is None else str(dim) for n, dim in enumerate(spec.shape)
            ]
            graph.set_input_fact(index, ",".join([*dims, _WORDS[spec.dtype]]))
