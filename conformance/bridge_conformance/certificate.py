"""The certificate of one backend on one device, as data and as a JSON file.

What is true is decided here alone: the verdict is computed from the outcomes, never
stated beside them, and a file whose counts or verdict contradict its own lists is
refused. How a certificate is shown belongs to ``matrix.py``.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bridge.capabilities import Capabilities
from bridge.errors import BridgeError

__all__ = [
    "SCHEMA",
    "Area",
    "Certificate",
    "Failure",
    "InvalidCertificate",
    "KnownFailure",
    "NotVerified",
    "describe",
]

SCHEMA = "bridge-certificate/1"
MODES = ("quick", "full", "selected")
_ONNX_COUNTS = ("cases", "native", "bridge", "beyond_native", "refused", "lost")

Record = TypeVar("Record")


class InvalidCertificate(BridgeError, ValueError):
    """A certificate has another schema, lacks a field, or contradicts itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Outcomes of one topic of the suite.

    Attributes:
        name: Short name, such as ``predict``.
        title: One sentence: what the area certifies.
        passed: Tests that passed, refusals among them.
        failed: Tests that failed.
        known: Tests that failed as the backend's list says.
        not_verified: Tests that could not be run here.
        refused: Tests that allow a refusal and got one: right, but no answers.
        not_claimed: Tests of what the backend does not claim; they do not apply to it.
    """

    name: str
    title: str
    passed: int = 0
    failed: int = 0
    known: int = 0
    not_verified: int = 0
    refused: int = 0
    not_claimed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A test that failed.

    Attributes:
        id: Its public id, such as ``TestPredict::test_names``.
        area: Name of its area.
        text: What happened.
    """

    id: str
    area: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFailure:
    """A test that failed as the backend's list says.

    Attributes:
        id: Its public id.
        area: Name of its area.
        reason: Why it fails, one sentence.
        issue: Address of the issue, if there is one.
        since: Version of the runtime that it was first seen with, if known.
    """

    id: str
    area: str
    reason: str
    issue: str | None = None
    since: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotVerified:
    """A test that could not be run here; it says nothing for the backend or against it.

    Attributes:
        id: Its public id.
        area: Name of its area.
        reason: Why it could not be run, one sentence.
    """

    id: str
    area: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What one backend proved on one device.

    Attributes:
        suite_version: Version of the suite.
        bridge_version: Version of inference-bridge.
        backend: Name of the backend.
        distribution: The distribution that registers it.
        runtime_version: Version of the runtime; ``None`` if it is not installed.
        device: Such as ``cpu`` or ``cuda:0``.
        mode: ``quick``, ``full``, or ``selected`` if somebody chose among the tests.
        date: When the run ended, ISO 8601, in UTC.
        hardware: Facts about the machine.
        python: Version of Python.
        platform: Operating system and machine.
        capabilities: What the backend claims; see ``describe``.
        areas: Counts by area, in the order in which they are shown.
        failures: Every test that failed.
        known_failures: Every test that failed as listed.
        not_verified: Every test that could not be run.
        counts: Counts over foreign sets of tests, such as ``onnx``.
        measured: Numbers that tests measured, by test id.
        duration_s: How long the run took, in seconds.
        unrun: Tests that were still to be run when the run was ended; they are among those
            not verified.
    """

    suite_version: str
    bridge_version: str
    backend: str
    distribution: str
    runtime_version: str | None
    device: str
    mode: str
    date: str
    hardware: Mapping[str, Any]
    python: str
    platform: str
    capabilities: Mapping[str, Any]
    areas: tuple[Area, ...]
    failures: tuple[Failure, ...] = ()
    known_failures: tuple[KnownFailure, ...] = ()
    not_verified: tuple[NotVerified, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    duration_s: float = 0.0
    unrun: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise _wrong(f"its mode is '{self.mode}'; wanted one of {', '.join(MODES)}")
        _check_date(self.date)
        if not isinstance(self.capabilities.get("predicts"), bool):
            raise _wrong("its capabilities do not say whether the backend 'predicts'")
        names = [area.name for area in self.areas]
        if len(set(names)) != len(names):
            raise _wrong("it has two areas of one name")
        self._check_counts()
        for test, values in self.measured.items():
            for name, value in values.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise _wrong(f"{test} measured {value} as '{name}'; wanted a finite number")
        onnx = self.counts.get("onnx")
        if onnx is not None and set(onnx) != set(_ONNX_COUNTS):
            raise _wrong(
                f"its ONNX counts are {', '.join(sorted(onnx)) or 'empty'}; "
                f"wanted {', '.join(_ONNX_COUNTS)}"
            )

    def _check_counts(self) -> None:
        """Every listed test is counted in its area, and nothing else is."""
        for outcome, tests in (
            ("failed", self.failures),
            ("known", self.known_failures),
            ("not_verified", self.not_verified),
        ):
            listed = collections.Counter(test.area for test in tests)
            for area in self.areas:
                counted, found = getattr(area, outcome), listed.pop(area.name, 0)
                if counted != found:
                    raise _wrong(
                        f"area '{area.name}' counts {counted} tests as {outcome}, "
                        f"but {found} are listed"
                    )
            for name in listed:
                raise _wrong(f"a test belongs to area '{name}', which is not listed")

    @property
    def verdict(self) -> str:
        """``certified``, ``failed`` or ``not verified``.

        A case that the runtime passes and the bridge loses is a failure, listed or not. A
        run of some tests only, or of most that it had to try, verifies nothing: where a
        device is missing, the few tests that need none would pass for a certificate.
        """
        if self.failures or any(counts.get("lost") for counts in self.counts.values()):
            return "failed"
        if self.mode == "selected" or self.unrun or not self.predicts:
            return "not verified"
        if self.total("passed") <= self.total("not_verified"):
            return "not verified"
        return "certified"

    @property
    def predicts(self) -> bool:
        """Whether the backend claims to run models here; a mere builder does not."""
        return self.capabilities["predicts"] is True

    @property
    def headline(self) -> str:
        """The verdict and its counts, in one line.

        Such as ``certified: 512 passed, 12 known failures, 3 not verified``.
        """
        if self.verdict != "not verified":
            why = ""
        elif not self.predicts:
            why = " (build only, running models could not be tried)"
        elif self.unrun:
            why = f" (the run ended before {self.unrun} of its tests)"
        elif self.mode == "selected" and self.total("passed"):
            why = " (selected tests only)"
        elif self.total("passed"):
            why = " (most of the suite could not be run)"
        else:
            why = " (nothing of the suite could be run)"
        return f"{self.verdict}{why}: {self.summary}"

    @property
    def summary(self) -> str:
        """The counts that are not zero, in words."""
        known = self.total("known")
        parts = [
            (self.total("failed"), "failed"),
            (self.total("passed"), "passed"),
            (self.total("refused"), "refused as allowed"),
            (known, "known failure" if known == 1 else "known failures"),
            (self.total("not_verified"), "not verified"),
        ]
        return ", ".join(f"{count} {word}" for count, word in parts if count) or "no tests"

    def total(self, outcome: str) -> int:
        """Sum of one count of ``Area`` over all areas."""
        return sum(getattr(area, outcome) for area in self.areas)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; its schema is ``certificate.schema.json``."""
        fields = dataclasses.asdict(self)
        lists = ("areas", "failures", "known_failures", "not_verified")
        found = {name: list(value) if name in lists else value for name, value in fields.items()}
        return {"schema": SCHEMA, "verdict": self.verdict, **found}

    @classmethod
    def from_dict(cls, data: Any) -> Certificate:
        """The certificate that ``to_dict`` wrote.

        Raises:
            InvalidCertificate: It is none, of another schema, or contradicts itself.
        """
        if not isinstance(data, dict):
            raise _wrong(f"it is {_kind(data)}; wanted a JSON object")
        schema = data.get("schema")
        if schema != SCHEMA:
            raise InvalidCertificate(
                f"the certificate has schema {schema!r}; wanted '{SCHEMA}'.",
                fix="Run the suite of this version again: bridge conform NAME.",
                schema=schema,
            )
        rest = {key: value for key, value in data.items() if key not in ("schema", "verdict")}
        if "verdict" not in data:
            raise _wrong("it lacks 'verdict'")
        found = _record(cls, rest, "")
        if data["verdict"] != found.verdict:
            raise _wrong(f"it says {data['verdict']!r}, but its own outcomes say '{found.verdict}'")
        return found

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """The certificate in a file.

        Raises:
            InvalidCertificate: The file is no certificate of this schema.
            OSError: The file cannot be read.
        """
        try:
            return cls.from_dict(json.loads(path.read_bytes()))
        except InvalidCertificate as error:
            error.message = f"{path}: {error.message}"
            raise
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
            raise InvalidCertificate(
                f"{path}: the certificate is no JSON text: {error}.",
                fix="Run the suite again: bridge conform NAME.",
            ) from error

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def describe(capabilities: Capabilities) -> dict[str, Any]:
    """JSON form of what a backend claims, in a stable order."""
    return {
        "formats": sorted(capabilities.formats),
        "dtypes": sorted(str(dtype) for dtype in capabilities.dtypes),
        "dynamic_dims": capabilities.dynamic_dims,
        "zero_rows": capabilities.zero_rows,
        "bind": capabilities.bind,
        "dlpack": capabilities.dlpack,
        "deterministic": capabilities.deterministic,
        "predicts": capabilities.predicts,
        "thread_safety": capabilities.thread_safety.value,
    }


_LISTS: Mapping[str, type] = {
    "tuple[Area, ...]": Area,
    "tuple[Failure, ...]": Failure,
    "tuple[KnownFailure, ...]": KnownFailure,
    "tuple[NotVerified, ...]": NotVerified,
}


def _record(kind: type[Record], data: Any, where: str) -> Record:
    """A dataclass of this module from its JSON form; all fields are wanted, and no others."""
    assert dataclasses.is_dataclass(kind)
    wanted = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if not isinstance(data, dict):
        raise _wrong(f"'{where}' is {_kind(data)}; wanted an object")
    place = f"'{where}'" if where else "it"
    for name in sorted(wanted.keys() - data.keys()):
        raise _wrong(f"{place} lacks '{name}'")
    for name in sorted(data.keys() - wanted.keys()):
        raise _wrong(f"{place} has the unknown field '{name}'")
    inside = f"{where}." if where else ""
    return kind(**{name: _value(data[name], wanted[name], inside + name) for name in wanted})


def _value(value: Any, wanted: str, where: str) -> Any:
    """One field, checked against the text of its annotation."""
    if wanted in _LISTS:
        if not isinstance(value, list):
            raise _wrong(f"'{where}' is {_kind(value)}; wanted a list")
        return tuple(_record(_LISTS[wanted], item, f"{where}[{i}]") for i, item in enumerate(value))
    if wanted in ("int", "float"):
        _check_number(value, where, int if wanted == "int" else (int, float))
    elif wanted.startswith("str"):
        if not isinstance(value, str) and not (value is None and wanted == "str | None"):
            raise _wrong(f"'{where}' is {_kind(value)}; wanted a text")
    elif not isinstance(value, dict):
        raise _wrong(f"'{where}' is {_kind(value)}; wanted an object")
    elif wanted.startswith("Mapping[str, Mapping"):
        for key, inner in value.items():
            if not isinstance(inner, dict):
                raise _wrong(f"'{where}.{key}' is {_kind(inner)}; wanted an object")
            for name, count in inner.items() if wanted.endswith("int]]") else ():
                _check_number(count, f"{where}.{key}.{name}", int)
    return value


def _check_number(value: Any, where: str, kinds: Any) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise _wrong(
            f"'{where}' is {_kind(value)}; wanted {'an integer' if kinds is int else 'a number'}"
        )
    if not 0 <= value < math.inf:
        raise _wrong(f"'{where}' is {value}; wanted a finite number from 0 on")


def _check_date(text: str) -> None:
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise _wrong(f"its date is '{text}'; wanted ISO 8601") from error
    if found.utcoffset() != dt.timedelta(0):
        raise _wrong(f"its date '{text}' is not in UTC")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "an integer"}
    return names.get(type(value), "a number")


def _wrong(what: str) -> InvalidCertificate:
    return InvalidCertificate(
        f"the certificate is not valid: {what}.",
        fix="Run the suite again: bridge conform NAME.",
    )
