"""Models to OpenVINO IR, by OpenVINO's own converter; numbers keep their precision."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import bridge
from bridge.errors import ConversionError, ErrorRule, UnsupportedModel
from bridge_convert.saved_model import served
from bridge_convert.signature import signature_of

__all__ = [
    "OnnxToIr",
    "SavedModelToIr",
    "ToIr",
    "converted",
    "name_ports",
    "save",
    "save_in_order",
]


class ToIr(bridge.Adapter):
    """What all conversions to IR have in common."""

    target = "openvino_ir"
    distributions: ClassVar[tuple[str, ...]] = ("openvino",)

    def probe(self) -> bridge.Availability:
        """Whether all ``distributions`` are installed; the last that is not, if any."""
        found = [bridge.find_runtime(name, (name,), name) for name in reversed(self.distributions)]
        return next((one for one in found if not one.installed), found[-1])

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """What OpenVINO says of operators that it does not know."""
        return tuple(
            ErrorRule(
                Exception,  # OpConversionFailure is no RuntimeError
                ConversionError,
                pattern=pattern,
                message="OpenVINO cannot convert the operator {operator}.",
                fix="Try another route: 'bridge routes' shows them.",
            )
            for pattern in (
                r"No conversion rule found for operations: (?P<operator>[^\n]+)",
                r"Conversion is failed for: (?P<operator>[^\n]+)",
            )
        )


class OnnxToIr(ToIr):
    """ONNX to an ``.xml`` with its ``.bin`` beside it."""

    name = "onnx-to-openvino_ir"
    sources = frozenset({"onnx"})

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        import openvino

        # Asked by name, the reader takes any file, whatever it is called.
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        network = reader.convert(reader.load(str(model.file)))
        return save(network, signature_of(model)[1], target)


class SavedModelToIr(ToIr):
    """The default signature of a SavedModel, or the one that it has."""

    name = "saved_model-to-openvino_ir"
    sources = frozenset({"saved_model"})

    def _convert(
        self, model: bridge.ModelRef, target: Path, options: bridge.Options
    ) -> Mapping[str, Any]:
        graph, key = served(model)
        stated = [one for one in graph.signatures if not one.startswith("__")]
        # OpenVINO reads the default signature; without it, the union of all of them.
        if key != "serving_default" and len(stated) > 1:
            raise UnsupportedModel(
                f"OpenVINO converts the signature 'serving_default' only, not '{key}'.",
                fix="Convert to onnx, which takes any signature.",
                wanted=key,
            )
        return save(converted(str(model.file)), graph.signatures[key], target)


def converted(source: Any, **arguments: Any) -> Any:
    """An ``openvino.Model`` made by ``openvino.convert_model``.

    That sets level, filters and handlers of the root logger, which belongs to the process,
    and after an error leaves them so.
    """
    import openvino

    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        return openvino.convert_model(source, **arguments)
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


_saving = threading.Lock()  # warnings are silenced for the whole process


def save(network: Any, signature: bridge.Signature, target: Path) -> Mapping[str, Any]:
    """Writes an ``openvino.Model`` whose ports get the names of a signature.

    Raises:
        ConversionError: Its inputs or outputs are not those of the signature.
    """
    name_ports(network.inputs, signature.inputs, "input")
    name_ports(network.outputs, signature.outputs, "output")
    return _written(network, target)


def save_in_order(network: Any, signature: bridge.Signature, target: Path) -> Mapping[str, Any]:
    """The same for a network whose ports are the signature's, in its order.

    The converter of torch's programs leaves all dims open: they become the signature's.
    """
    import openvino

    shapes = {}
    for kind, ports, specs in (
        ("inputs", network.inputs, signature.required),
        ("outputs", network.outputs, signature.outputs),
    ):
        if len(ports) != len(specs):
            raise ConversionError(
                f"OpenVINO made a model with {len(ports)} {kind}; wanted {len(specs)}.",
                fix="Try another route: 'bridge routes' shows them.",
            )
        for port, spec in zip(ports, specs, strict=True):
            _name(port, spec.name)
            if kind == "inputs" and spec.shape is not None:
                shapes[port] = openvino.PartialShape(
                    [size if isinstance(size, int) else -1 for size in spec.shape]
                )
    network.reshape(shapes)
    return _written(network, target)


def _written(network: Any, target: Path) -> Mapping[str, Any]:
    if target.suffix == ".bin":
        raise ConversionError(
            f"'{target.name}' is where the weights of an IR go, not its network.",
            fix=f"Write to '{target.stem}.xml'; the weights go beside it.",
            name=target.name,
        )
    with _saving, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino

        # It gives the file this suffix if it has another, and names the weights after it.
        written = target.with_name(f"{target.stem}.xml")
        openvino.save_model(network, str(written), compress_to_fp16=False)
        if written != target:
            written.rename(target)
    return {"operators": len(network.get_ops())}


def name_ports(ports: Sequence[Any], specs: Sequence[bridge.TensorSpec], kind: str) -> None:
    """Gives each port the name of the spec that it is: told by name, else the only one left.

    Raises:
        ConversionError: A port is none of them.
    """
    left = list(specs)
    pairs = []
    unnamed = []
    for port in ports:
        label = port.node.friendly_name.removesuffix("/sink_port_0")
        names = {*port.names, label}
        names |= {name.removesuffix(":0") for name in names}
        found = next((spec for spec in left if spec.name in names), None) or next(
            (
                spec
                for spec in left
                if spec.native_name in names or (spec.native_name or "").removesuffix(":0") in names
            ),
            None,
        )
        if found is None:
            unnamed.append(port)
            continue
        left.remove(found)
        pairs.append((port, found))
    if len(unnamed) == len(left) == 1:
        pairs.append((unnamed[0], left[0]))
    elif unnamed or (left and kind == "output"):
        raise ConversionError(
            f"OpenVINO made a model with other {kind}s: "
            f"{', '.join(str(sorted(port.names)) for port in ports)}; wanted "
            f"{', '.join(spec.name for spec in specs)}.",
            fix="Try another route: 'bridge routes' shows them.",
        )
    for port, spec in pairs:
        _name(port, spec.name)


def _name(port: Any, name: str) -> None:
    port.get_tensor().set_names({name})
    port.node.set_friendly_name(name)
