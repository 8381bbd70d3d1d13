"""A backend without a runtime, and a cache with something to build, for the tests of the core."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.cache import Cache
from bridge.check import Arrays
from bridge.registry import Registry


class TinyFormat(bridge.Format):
    name = "tiny"
    title = "Tiny"
    native_backend = "tiny"
    suffixes = (".tiny",)

    def sniff(self, file: Any) -> bool:
        return file.head.startswith(b"TINY")


SPEC = bridge.Signature(
    (
        bridge.TensorSpec("x", bridge.DType.FLOAT32, ("rows", 4)),
        bridge.TensorSpec("ids", bridge.DType.INT64, ("rows",)),
    ),
    (
        bridge.TensorSpec("y", bridge.DType.FLOAT32, ("rows", 4)),
        bridge.TensorSpec("total", bridge.DType.FLOAT32, ("rows",)),
    ),
)


class TinyPredictor(bridge.Predictor):
    def __init__(self, backend: TinyBackend, device: bridge.Device) -> None:
        super().__init__(SPEC, bridge.PredictorInfo(device=backend.runs_on or device))
        self.backend = backend
        self.threads: set[str] = set()

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        self.backend.enter()
        self.threads.add(threading.current_thread().name)
        try:
            self.backend.during(inputs)
            y = inputs["x"] + inputs["ids"][:, None].astype(np.float32)
            return {"y": y, "total": y.sum(axis=1)}
        finally:
            self.backend.leave()

    def _close(self) -> None:
        self.backend.closed += 1


@dataclass(frozen=True, kw_only=True)
class TinyOptions(bridge.Options):
    threads: int | None = bridge.option(None, help="Threads.", minimum=1, maximum=64)
    mode: str = bridge.option("fast", help="How to run.", choices=("fast", "exact"))


@dataclass(eq=False)
class TinyBackend(bridge.Backend):
    name = "tiny"
    options_type = TinyOptions
    device_kinds = ("cpu", "cuda")
    safety: bridge.ThreadSafety = bridge.ThreadSafety.SHARED
    formats: frozenset[str] = frozenset({"tiny"})
    dynamic_dims: bool = False
    zero_rows: bool = True
    predicts: bool = True
    availability: bridge.Availability = field(
        default_factory=lambda: bridge.Availability(installed=True, version="1.0")
    )
    runs_on: bridge.Device | None = None
    during: Callable[[Any], None] = lambda inputs: None
    load_error: Exception | None = None
    closed: int = 0
    running: int = 0
    most_running: int = 0

    def enter(self) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        time.sleep(0.001)

    def leave(self) -> None:
        self.running -= 1

    def probe(self) -> bridge.Availability:
        return self.availability

    def devices(self) -> tuple[bridge.Device, ...]:
        return (bridge.CPU, bridge.Device("cuda", 0))

    def capabilities(self, device: bridge.Device) -> bridge.Capabilities:
        return bridge.Capabilities(
            formats=self.formats,
            dynamic_dims=self.dynamic_dims,
            zero_rows=self.zero_rows,
            predicts=self.predicts,
            thread_safety=self.safety,
        )

    def error_rules(self) -> tuple[bridge.ErrorRule, ...]:
        return (
            bridge.ErrorRule(
                KeyError,
                bridge.errors.UnsupportedModel,
                pattern=r"operator (?P<operator>\w+)",
                message="operator '{operator}' is unknown to tiny.",
                fix="Leave '{operator}' out.",
            ),
        )

    def _load(self, model: bridge.ModelRef, device: bridge.Device, options: Any) -> Any:
        if self.load_error is not None:
            raise self.load_error
        return TinyPredictor(self, device)


@dataclass(eq=False)
class Plugin:
    """A plugin object that registers what it was given."""

    backends: tuple[bridge.Backend, ...] = ()
    formats: tuple[bridge.Format, ...] = ()

    @bridge.hookimpl
    def register_backends(self, register: Callable[[bridge.Backend], None]) -> None:
        for backend in self.backends:
            register(backend)

    @bridge.hookimpl
    def register_formats(self, register: Callable[[bridge.Format], None]) -> None:
        for one in self.formats:
            register(one)


@pytest.fixture
def plugin() -> type[Plugin]:
    return Plugin


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyBackend:
    """The backend, registered in a registry of its own."""
    backend = TinyBackend()
    made = Registry()
    made.add(Plugin((backend,), (TinyFormat(),)), "tiny", "tiny-dist")
    assert not made.failures
    for module in ("loading", "inspection", "diagnosis"):
        monkeypatch.setattr(f"bridge.{module}.registry", lambda: made)
    return backend


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tiny"
    path.write_bytes(b"TINY model")
    return path


@pytest.fixture
def tiny_inputs() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "x": np.arange(8, dtype=np.float32).reshape(2, 4),
        "ids": np.array([1, 2], np.int64),
    }


class Builder:
    """Builds a file, a folder with a file and an empty folder, and counts."""

    def __init__(self, content: bytes = b"content") -> None:
        self.content = content
        self.folders: list[Path] = []

    def __call__(self, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        self.folders.append(folder)
        (folder / "model.bin").write_bytes(self.content)
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_bytes(b"data")
        (folder / "assets").mkdir()

    @property
    def count(self) -> int:
        return len(self.folders)

    @staticmethod
    def read(folder: Path) -> bytes:
        """The content that was built; everything else has to be there too."""
        assert (folder / "variables" / "data").read_bytes() == b"data"
        assert (folder / "assets").is_dir()
        return (folder / "model.bin").read_bytes()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def builder() -> type[Builder]:
    return Builder


@pytest.fixture
def build() -> Builder:
    return Builder()


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def records() -> ModuleType:
    """Hand-made selection records."""
    module = beside("records")
    module.TINY = SPEC.to_dict()  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="session")
def record_schema() -> ModuleType:
    """The JSON schema of records, as their dataclasses say."""
    return beside("record_schema")
