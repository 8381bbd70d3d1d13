"""The signature that a converted model has to keep, and how ONNX models are made to state it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge import Availability, ModelRef, Signature, TensorSpec, find_runtime
from bridge.errors import ConversionError, UnsupportedModel, nearest

__all__ = ["available", "name_onnx", "signature_of"]

_DEFAULT_KEY = "serving_default"
_EXTRA = "convert"


def available(*modules: tuple[str, str]) -> Availability:
    """Whether all these modules are installed; the first one's version.

    Args:
        modules: Pairs of module and distribution, the converter first.
    """
    found = [
        find_runtime(module, (distribution,), _EXTRA, exclusive=False)
        for module, distribution in modules
    ]
    return next((one for one in found if not one.installed), found[0])


def signature_of(model: ModelRef) -> tuple[str, Signature]:
    """The signature of a model that is to be kept, and its key.

    Raises:
        UnsupportedModel: There is none of that key, or several and none is the default.
    """
    if model.declared is not None:
        return "", model.declared
    stated = {key: one for key, one in model.facts.signatures.items() if not key.startswith("__")}
    wanted = model.signature_key
    if wanted is None and len(stated) == 1:
        return next(iter(stated.items()))
    key = _DEFAULT_KEY if wanted is None else wanted
    if key in stated:
        return key, stated[key]
    if not stated:
        raise UnsupportedModel(
            f"model {model.name} states no signature that a converted one could keep.",
            fix="State it: signature=bridge.Signature(...), or --signature FILE.json.",
            model=model.name,
        )
    raise UnsupportedModel(
        f"model {model.name} has no signature '{key}'.",
        fix=nearest(key, stated),
        model=model.name,
        wanted=key,
        valid=sorted(stated),
    )


def name_onnx(proto: Any, signature: Signature) -> None:
    """Sees to it that an ONNX model states the names and dims of a signature.

    Args:
        proto: An ``onnx.ModelProto`` with its inputs and outputs in the signature's order
            or under its names; dims that the signature names are named in it, invented names
            of other dims are removed.
        signature: What the model was converted from.

    Raises:
        ConversionError: It has other inputs or outputs.
    """
    stated = {size for spec in signature.inputs for size in spec.shape or ()}
    for kind, specs, values in (
        ("inputs", signature.inputs, proto.graph.input),
        ("outputs", signature.outputs, proto.graph.output),
    ):
        known = {value.name: value for value in values}
        if set(known) - {spec.name for spec in specs}:
            raise ConversionError(
                f"the converter made a model with the {kind} {_listed(known)}; wanted "
                f"{_listed([spec.name for spec in specs])}.",
                fix="The converter may not know a part of this model; try another route.",
            )
        for spec in specs:
            if spec.name in known:
                _name_dims(known[spec.name].type.tensor_type.shape, spec, stated)
            elif kind == "outputs":
                raise ConversionError(
                    f"the converter dropped the output '{spec.name}'.",
                    fix="Try another route: 'bridge routes' shows them.",
                    output=spec.name,
                )


def _name_dims(shape: Any, spec: TensorSpec, stated: set[Any]) -> None:
    if spec.shape is None or len(spec.shape) != len(shape.dim):
        for dim in shape.dim:
            if dim.HasField("dim_param") and dim.dim_param not in stated:
                dim.Clear()
        return
    for dim, size in zip(shape.dim, spec.shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif isinstance(size, str):
            dim.dim_param = size
        elif dim.HasField("dim_param"):
            dim.Clear()


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
