"""ONNX's own test cases, those of ``onnx.backend.test``, as plain data.

Listing the names takes onnx seconds, because its node cases are computed while they are
imported: the names are cached, and the cases made when the first one is asked for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import locale
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.cache import default_cache

__all__ = ["KINDS", "DataSet", "Interface", "OnnxCase", "case", "names"]

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""The kinds of cases whose models lie inside onnx; those of ``real`` are downloaded."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Inputs of one call and what has to come out, in the order of the graph.

    A tensor is a numpy array, a sequence a list of arrays, an optional value one of
    these or ``None``.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


# Operators of ONNX whose results are drawn; Dropout is compared, since its seed is stated.
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


_LOCALE = "en_US.UTF-8"  # the one that the cases ask for, as onnxruntime completes it


@dataclass(frozen=True, slots=True)
class Interface:
    """What the graph of a case says about itself.

    Attributes:
        inputs: Names of inputs, in order.
        outputs: Names of outputs, in order.
        others: Names of those inputs and outputs that are sequences or optional values.
        operators: Names of its operators.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    others: frozenset[str]
    operators: frozenset[str]

    @property
    def is_random(self) -> bool:
        """Whether the values of outputs are drawn."""
        return not self.operators.isdisjoint(_RANDOM)

    @property
    def missing(self) -> str | None:
        """What some runtimes need for the case and this machine lacks, as a phrase."""
        if "StringNormalizer" in self.operators and not _has_locale():
            return f"the locale {_LOCALE} is not installed"
        if "ImageDecoder" in self.operators and importlib.util.find_spec("PIL") is None:
            return "Pillow is not installed"
        return None


@dataclass(frozen=True, slots=True)
class OnnxCase:
    """One case of ONNX's suite.

    Attributes:
        name: Such as ``test_add_bcast``; unique over all kinds.
        kind: One of ``KINDS``.
        rtol: Tolerance relative to the wanted value, as the case states it.
        atol: Absolute tolerance, as the case states it.
    """

    name: str
    kind: str
    rtol: float
    atol: float
    _model: Callable[[], bytes] = field(repr=False)
    _data_sets: Callable[[], Sequence[DataSet]] = field(repr=False)

    @property
    def model(self) -> bytes:
        """The ``ModelProto`` as bytes."""
        return self._model()

    @property
    def interface(self) -> Interface:
        """What the graph says about itself."""
        import onnx

        graph = onnx.load_model_from_string(self.model).graph
        values = (*graph.input, *graph.output)
        return Interface(
            tuple(value.name for value in graph.input),
            tuple(value.name for value in graph.output),
            frozenset(
                value.name for value in values if value.type.WhichOneof("value") != "tensor_type"
            ),
            frozenset(node.op_type for node in graph.node),
        )

    @property
    def data_sets(self) -> Sequence[DataSet]:
        """What to feed, and what has to come out; made anew each time."""
        return self._data_sets()


def is_installed() -> bool:
    """Whether onnx, which holds the cases, is installed; it is not imported."""
    return importlib.util.find_spec("onnx") is not None


def names(kind: str | None = None) -> tuple[str, ...]:
    """Names of all cases, or those of one kind, in the order of ``KINDS``.

    Raises:
        PackageNotFoundError: onnx is not installed.
    """
    listed = json.loads((_index() / "names.json").read_text(encoding="utf-8"))
    return tuple(name for one in KINDS if kind in (None, one) for name in listed[one])


def case(name: str) -> OnnxCase:
    """The case of that name.

    Raises:
        KeyError: onnx has no such case.
    """
    return _cases()[name]


def _has_locale() -> bool:
    now = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, _LOCALE)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, now)
    return True


def _index() -> Path:
    def build(folder: Path) -> None:
        listed: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for one in _cases().values():
            listed[one.kind].append(one.name)
        (folder / "names.json").write_text(json.dumps(listed), encoding="utf-8")

    parts = {"onnx": importlib.metadata.version("onnx"), "kinds": list(KINDS)}
    return default_cache().entry("onnx-case-names", parts, build)


@functools.cache
def _cases() -> dict[str, OnnxCase]:
    from onnx.backend.test.loader import load_model_tests

    cases = {}
    with warnings.catch_warnings(action="ignore"):  # casts that overflow on purpose
        for kind in KINDS:
            for native in sorted(load_model_tests(kind=kind), key=lambda native: native.name):
                cases[native.name] = _case(native, kind)
    return cases


def _case(native: Any, kind: str) -> OnnxCase:
    if native.model_dir is None:
        return OnnxCase(
            native.name,
            kind,
            native.rtol,
            native.atol,
            lambda: bytes(native.model.SerializeToString()),
            lambda: [
                DataSet(tuple(map(_value, inputs)), tuple(map(_value, outputs)))
                for inputs, outputs in native.data_sets
            ],
        )
    folder = Path(native.model_dir)
    return OnnxCase(
        native.name,
        kind,
        native.rtol,
        native.atol,
        (folder / "model.onnx").read_bytes,
        lambda: [
            DataSet(_stored(one, "input"), _stored(one, "output"))
            for one in sorted(folder.glob("test_data_set_*"))
        ],
    )


def _stored(folder: Path, role: str) -> tuple[Any, ...]:
    """The tensors of one data set on disk; none of the stored cases has other values."""
    from onnx import TensorProto

    count = len(list(folder.glob(f"{role}_*.pb")))
    return tuple(
        _value(TensorProto.FromString((folder / f"{role}_{index}.pb").read_bytes()))
        for index in range(count)
    )


def _value(given: Any) -> Any:
    """Arrays for tensors, texts as objects; lists and ``None`` stay what they are."""
    from onnx import TensorProto, numpy_helper

    if given is None:
        return None
    if isinstance(given, (list, tuple)):
        return [_value(item) for item in given]
    if isinstance(given, TensorProto):
        given = numpy_helper.to_array(given)
    array = np.array(given, order="C")  # many cases state scalars as numpy scalars
    return array.astype(object) if array.dtype.kind == "U" else array
