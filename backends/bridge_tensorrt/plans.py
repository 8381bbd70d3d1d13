"""Engines of ONNX models, kept in the bridge's cache and loaded onto the GPU from there.

The key holds all that an engine depends on: the model's content, the options about
building, the module and its version, the GPU. Another of any of these is another entry.
A damaged entry is built anew by the cache, and an entry that TensorRT refuses here, each
with one warning.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bridge import ModelRef
from bridge.cache import JSON, default_cache
from bridge.errors import CacheError, ModelLoadFailed, UnsupportedModel
from bridge.logs import logger
from bridge_tensorrt.building import build
from bridge_tensorrt.engine import Engine, deserialise
from bridge_tensorrt.options import EngineOptions
from bridge_tensorrt.profiles import DEFAULT_BATCH
from bridge_tensorrt.refitting import graph_digest, refit

__all__ = ["Plan", "load_plan"]

KIND = "engine"
# Counted up when the same options come to build other engines.
_RECIPE = 2
_ENGINE, _PRECISION, _WEIGHTS = "model.engine", "precision.txt", "weights.txt"

_log = logger("tensorrt")


@dataclass(frozen=True)
class Plan:
    """An engine of an ONNX model, on the device.

    Attributes:
        engine: The engine.
        precision: The floating-point types that occur in it.
        refitted: Its weights were exchanged after it was built.
        key: What tells it from other engines, in hexadecimal digits.
    """

    engine: Engine
    precision: str
    refitted: bool
    key: str


def load_plan(
    trt: Any, model: ModelRef, options: EngineOptions, gpu: tuple[str, str], *, host_code: bool
) -> Plan:
    """The engine of a model for this GPU, built if the cache has none that can be used.

    Args:
        trt: The module.
        model: An ONNX model.
        options: How to build.
        gpu: Name and compute capability of the current device.
        host_code: See ``deserialise``.

    Raises:
        See ``build`` and ``deserialise``.
    """
    parts = _parts(trt, options, gpu)
    graph = graph_digest(model) if options.refittable else None
    if graph is not None:
        plan = _loaded(trt, model, options, {**parts, "graph": graph}, host_code=host_code)
        if plan is not None:
            return plan
        _log.warning("%s is built anew: the engine of its graph cannot be refitted", model.name)
    plan = _loaded(trt, model, options, {**parts, "model": model.digest}, host_code=host_code)
    assert plan is not None, "an engine of this very model needs no refitting"
    return plan


def _loaded(
    trt: Any,
    model: ModelRef,
    options: EngineOptions,
    parts: dict[str, JSON],
    *,
    host_code: bool,
) -> Plan | None:
    """The plan of an entry; ``None`` if it has other weights and cannot be refitted."""

    def write(folder: Path) -> None:
        built = build(trt, model, options)
        (folder / _ENGINE).write_bytes(built.data)
        (folder / _PRECISION).write_text(built.facts["precision"], encoding="utf-8")
        (folder / _WEIGHTS).write_text(model.digest or "", encoding="ascii")
        made.append(folder)

    made: list[Path] = []
    cache = default_cache()
    folder = cache.entry(KIND, parts, write, executable=True)
    try:
        engine = _engine(trt, model, folder, host_code=host_code)
    except (UnsupportedModel, ModelLoadFailed) as error:
        if made:
            raise  # it was built here and now: another build gives the same
        _log.warning("the engine of %s in the cache is built again: %s", model.name, error.args[0])
        with contextlib.suppress(CacheError):  # another process was faster
            cache.rm([cache.key(KIND, parts)])
        folder = cache.entry(KIND, parts, write, executable=True)
        engine = _engine(trt, model, folder, host_code=host_code)
    is_other = (folder / _WEIGHTS).read_text(encoding="ascii") != (model.digest or "")
    if is_other and not refit(engine, model):
        return None
    precision = (folder / _PRECISION).read_text(encoding="utf-8")
    return Plan(engine, precision, is_other, cache.key(KIND, parts))


def _engine(trt: Any, model: ModelRef, folder: Path, *, host_code: bool) -> Engine:
    data = (folder / _ENGINE).read_bytes()
    return deserialise(trt, data, model.name, host_code=host_code)


def _parts(trt: Any, options: EngineOptions, gpu: tuple[str, str]) -> dict[str, JSON]:
    """What an engine depends on besides the model; defaults are spelt out, for they may change."""
    values = {item.name: getattr(options, item.name) for item in fields(EngineOptions)}
    if options.batch is None and options.buckets is None:
        values["batch"] = DEFAULT_BATCH
    del values["module"]
    return {
        "recipe": _RECIPE,
        "module": trt.__name__,
        "version": trt.__version__,
        "gpu": list(gpu),
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        },
    }
