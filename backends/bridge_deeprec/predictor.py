"""One signature of a model in DeepRec's library, called with protobuf messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.check import Arrays, Layout
from bridge.errors import PredictError
from bridge.predictor import Predictor, PredictorInfo
from bridge.signature import Signature
from bridge_deeprec.library import ServedModel
from bridge_deeprec.request import decode_model_info, decode_response, encode_request

__all__ = ["ProcessorPredictor", "version"]


def version(model: ServedModel) -> dict[str, Any]:
    """``model_path`` and ``full_version`` of what serves now, for ``info.details``.

    The library says nothing of deltas: that one was applied, it cannot tell.

    Raises:
        PredictError: The library does not tell.
    """
    path = decode_model_info(model.model_info())
    number = re.search(r"-(\d+)$", path)
    return {"model_path": path, "full_version": None if number is None else int(number[1])}


class ProcessorPredictor(Predictor):
    """Answers calls of one signature.

    The checks of the bridge come first, since the library ends its process for an unknown
    name, and some builds for a shape that does not fit the number of values.

    Args:
        model: The model in the library.
        signature: What users call its tensors; ``native_name`` is the tensor's own name.
        key: Name of the signature.
        names: What requests name: ``alias``, keys of the signature, or ``tensor``.
        info: What really runs.
    """

    layout = Layout.CONTIGUOUS

    def __init__(
        self,
        model: ServedModel,
        signature: Signature,
        key: str,
        names: str,
        info: PredictorInfo,
    ) -> None:
        super().__init__(signature, info)
        self._model: ServedModel | None = model
        self._key = key
        self.names = names
        specs = (*signature.inputs, *signature.outputs)
        self._names = {
            spec.name: (spec.native_name if names == "tensor" else None) or spec.name
            for spec in specs
        }
        self._specs = {spec.name: spec for spec in signature.outputs}

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        assert self._model is not None
        names = self._names
        request = encode_request(
            self._key,
            {names[name]: array for name, array in inputs.items()},
            # Always named: with none, older builds compute nothing, newer ones everything.
            [names[name] for name in outputs],
        )
        found = decode_response(self._model.process(request))
        return {name: self._output(name, found) for name in outputs}

    def _changed_details(self) -> Mapping[str, Any]:
        assert self._model is not None
        return version(self._model)

    def _close(self) -> None:
        self._model = None  # the library keeps it until the process ends

    def _output(self, name: str, found: Arrays) -> Any:
        spec = self._specs[name]
        # Newer builds answer by key whatever was asked; older ones by the name asked for.
        array = found.get(name)
        if array is None:
            array = found.get(self._names[name])
        if array is None:
            got = ", ".join(sorted(found)) or "nothing"
            raise self._odd(f"output '{name}' is missing; it holds {got}", name)
        if spec.dtype is not None and array.dtype != spec.dtype.numpy:
            raise self._odd(f"output '{name}' is {array.dtype}; the model says {spec.dtype}", name)
        if spec.shape is not None and (
            len(spec.shape) != array.ndim
            or any(
                isinstance(want, int) and want != got
                for want, got in zip(spec.shape, array.shape, strict=True)
            )
        ):
            raise self._odd(
                f"output '{name}' has shape {array.shape}; the model says {spec.shape_text}", name
            )
        return array

    def _odd(self, what: str, output: str) -> PredictError:
        return PredictError(
            f"the answer of DeepRec's library does not fit the model: {what}.",
            fix="The library may be of another version, or broken; try another build.",
            output=output,
        )
