"""From OpenVINO's ports to the names that users know.

OpenVINO names tensors, not inputs and outputs: a port may have several names or none, and
inputs that nothing reads are gone. The bridge's own reader knows the names that the
model's author gave, and the names of dims; OpenVINO knows what it will really exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bridge import DType, ModelRef, Signature, TensorSpec
from bridge.errors import UnsupportedModel, nearest
from bridge.formats.openvino.graph import ELEMENT_TYPES

__all__ = ["Port", "Ports", "find_ports"]

# Without what its Python API does not exchange safely; see ``OpenvinoBackend.capabilities``.
_DTYPES = {name: dtype for name, dtype in ELEMENT_TYPES.items() if name != "string"}
_DEFAULT_KEY = "serving_default"


@dataclass(frozen=True)
class Port:
    """One input or output of an OpenVINO model.

    Attributes:
        index: Its position in the model.
        label: Name of the node, without what the ONNX reader appends to it.
        names: Names of the tensor, sorted.
        dtype: Element type.
        shape: Dims; ``None`` where even the rank is unknown.
    """

    index: int
    label: str
    names: tuple[str, ...]
    dtype: DType
    shape: tuple[int | None, ...] | None

    @property
    def name(self) -> str:
        """The name for users where the model's own reader knows none."""
        return self.label if not self.names or self.label in self.names else self.names[0]


@dataclass(frozen=True)
class Ports:
    """A signature, and the port behind each of its names.

    Attributes:
        signature: What users see.
        inputs: Port of each input; inputs that nothing reads have none.
        outputs: Name of each output port, in OpenVINO's order.
    """

    signature: Signature
    inputs: dict[str, Port]
    outputs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it."""
        return {
            "signature": self.signature.to_dict(),
            "inputs": {
                name: {**asdict(port), "dtype": port.dtype.value}
                for name, port in self.inputs.items()
            },
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ports:
        """Reads the JSON form."""
        return cls(
            Signature.from_dict(data["signature"]),
            {name: _port_of(port) for name, port in data["inputs"].items()},
            tuple(data["outputs"]),
        )


def find_ports(model: ModelRef, network: Any) -> Ports:
    """Signature of a model as OpenVINO reads it.

    Args:
        model: The model.
        network: The ``openvino.Model`` read from it.

    Raises:
        UnsupportedModel: A dtype cannot be exchanged, OpenVINO would serve another
            signature than the wanted one, or its ports do not fit the signature.
    """
    inputs = [_port(node, index, "input") for index, node in enumerate(network.inputs)]
    outputs = [_port(node, index, "output") for index, node in enumerate(network.outputs)]
    known = _stated_signature(model)
    if known is None:
        return Ports(
            Signature(_plain_specs(inputs), _plain_specs(outputs)),
            {port.name: port for port in inputs},
            tuple(port.name for port in outputs),
        )
    # An ONNX initialiser that is an input too has become a constant, and cannot be given.
    into = _matched(known.inputs, inputs)
    out_of = _matched(known.outputs, outputs)
    if len(into) < len(inputs) or len(out_of) < max(len(known.outputs), len(outputs)):
        raise UnsupportedModel(
            f"OpenVINO reads the model as ({_listed(inputs)}) -> ({_listed(outputs)}), which "
            f"does not fit its signature {known}.",
            fix=f"Use backend='{model.format.native_backend}'."
            if model.format.native_backend != "openvino"
            else "Give the inputs and outputs of the model unique names.",
        )
    by_index = {port.index: name for name, port in out_of.items()}
    return Ports(
        Signature(
            tuple(
                _merged(spec, into.get(spec.name))
                for spec in known.inputs
                if spec.name in into or not spec.has_default
            ),
            tuple(_merged(spec, out_of[spec.name]) for spec in known.outputs),
        ),
        into,
        tuple(by_index[index] for index in range(len(outputs))),
    )


def _port_of(data: Mapping[str, Any]) -> Port:
    shape = data["shape"]
    return Port(
        data["index"],
        data["label"],
        tuple(data["names"]),
        DType(data["dtype"]),
        None if shape is None else tuple(shape),
    )


def _port(node: Any, index: int, kind: str) -> Port:
    label = node.node.friendly_name.removesuffix("/sink_port_0")  # OpenVINO's ONNX reader
    names = tuple(sorted(node.names))
    native = node.element_type.get_type_name()
    if native not in _DTYPES:
        shown = label if not names or label in names else names[0]
        raise UnsupportedModel(
            f"{kind} '{shown}' is of type {native}, which OpenVINO's Python API does not "
            "exchange safely.",
            fix="Use another backend, or export the model with numeric inputs and outputs.",
            dtype=native,
            tensor=shown,
        )
    dims = node.partial_shape
    shape = None
    if not dims.rank.is_dynamic:
        shape = tuple(None if item.is_dynamic else item.get_length() for item in dims)
    return Port(index, label, names, _DTYPES[native], shape)


def _stated_signature(model: ModelRef) -> Signature | None:
    """The signature that the model's own bytes state and OpenVINO serves.

    Of a SavedModel, OpenVINO 2026.4 converts ``serving_default``; without it, the union
    of all signatures, which is only right if there is one (both tried).
    """
    stated = {
        key: signature
        for key, signature in model.facts.signatures.items()
        if not key.startswith("__")  # TensorFlow's own
    }
    wanted = model.signature_key
    if wanted is not None and wanted not in stated:
        raise UnsupportedModel(
            f"the model has no signature '{wanted}'.",
            fix=nearest(wanted, stated),
            wanted=wanted,
            valid=sorted(stated),
        )
    if not stated:
        return None
    served = next(iter(stated)) if len(stated) == 1 else _DEFAULT_KEY
    if served not in stated or (wanted or served) != served:
        keys = ", ".join(f"'{key}'" for key in sorted(stated))
        asked = f"signature '{wanted}'" if wanted else "one of them without a default"
        raise UnsupportedModel(
            f"the model has the signatures {keys}; OpenVINO cannot serve {asked}, only "
            f"'{_DEFAULT_KEY}' or a signature that is alone.",
            fix=f"Use backend='{model.format.native_backend}', or export the model with this "
            "signature alone.",
            wanted=wanted,
            valid=sorted(stated),
        )
    return stated[served]


def _plain_specs(ports: Sequence[Port]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(port.name, port.dtype, port.shape, native_name=port.name) for port in ports
    )


def _matched(specs: Sequence[TensorSpec], ports: Sequence[Port]) -> dict[str, Port]:
    """The port of each spec, the surest criterion first; specs and ports may be left over."""
    criteria: tuple[Callable[[TensorSpec, Port], bool], ...] = (
        lambda spec, port: spec.name == port.label and spec.name in port.names,
        lambda spec, port: spec.name == port.label,
        lambda spec, port: spec.name in port.names,
        lambda spec, port: spec.native_name in port.names or spec.native_name == port.label,
        lambda spec, port: (spec.native_name or "").removesuffix(":0") in (*port.names, port.label),
    )
    found: dict[str, Port] = {}
    left = list(ports)
    for fits in criteria:
        for spec in specs:
            hits = [port for port in left if spec.name not in found and fits(spec, port)]
            if hits:
                # Ports of one criterion and one name are the same tensor.
                found[spec.name] = hits[0]
                left.remove(hits[0])
    unmatched = [spec for spec in specs if spec.name not in found]
    if len(unmatched) == 1 and len(left) == 1 and _alike(unmatched[0], left[0]):
        found[unmatched[0].name] = left[0]
    return found


def _alike(spec: TensorSpec, port: Port) -> bool:
    return spec.dtype in (None, port.dtype) and (
        spec.shape is None or port.shape is None or len(spec.shape) == len(port.shape)
    )


def _merged(spec: TensorSpec, port: Port | None) -> TensorSpec:
    """What the reader says, with what OpenVINO will really exchange."""
    if port is None:  # nothing reads it: the caller gives it, and nothing is done with it
        return spec
    shape = port.shape
    if shape is None or (spec.shape is not None and len(spec.shape) == len(shape)):
        shape_of = shape or (None,) * len(spec.shape or ())
        both = zip(spec.shape or (), shape_of, strict=True)
        dims = tuple(named if named is not None else inferred for named, inferred in both)
        return TensorSpec(
            spec.name,
            port.dtype,
            None if spec.shape is None else dims,
            native_name=spec.native_name or port.name,
        )
    return TensorSpec(spec.name, port.dtype, shape, native_name=spec.native_name or port.name)


def _listed(ports: Sequence[Port]) -> str:
    return ", ".join(port.name for port in ports)
