"""Composite formats: a model of another format with something around it, by any plugin."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import proof
from bridge.conversion import convert
from bridge.errors import InvalidModel, OptionError, UnsupportedModel, WorkerDied
from bridge.loading import open_model
from bridge.registry import registry
from bridge.routes import find_routes, held_format, require_target, runners
from bridge_bench.plan import plan

PLUGIN = """
import dataclasses, json
import numpy as np
import bridge
from bridge.errors import InvalidModel

F32, I64 = bridge.DType.FLOAT32, bridge.DType.INT64

class Sum(bridge.Format):
    name, title, native_backend = "sum", "Sum", "adder"
    def sniff(self, file):
        return file.head.startswith(b"SUM")

class Adder(bridge.Predictor):
    def __init__(self):
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("rows", F32, ("n", 2)),),
                (bridge.TensorSpec("y", F32, ("n",)),),
            ),
            bridge.PredictorInfo(provider="adder", threads=1),
        )
    def _predict(self, inputs, outputs):
        return {"y": inputs["rows"].sum(axis=1)}
    def _close(self):
        pass

class Backend(bridge.Backend):
    name = "adder"
    def probe(self):
        return bridge.Availability(installed=True, version="1")
    def capabilities(self, device):
        return bridge.Capabilities(formats=frozenset({"sum"}), dynamic_dims=True, zero_rows=True)
    def search_space(self, model, device):
        assert model.format.name == "sum", model.format.name
        return (self.options_type(),)
    def _load(self, model, device, options):
        assert model.format.name == "sum", model.format.name
        return Adder()

class Lookup(bridge.Predictor):
    def __init__(self, table, inner):
        super().__init__(
            bridge.Signature(
                (bridge.TensorSpec("ids", I64, ("n",)),), inner.signature.outputs
            ),
            inner.info,
        )
        self.table, self.inner = table, inner
    def _update(self, source):
        table = np.array(json.loads(source.read_text()), np.float32)
        if np.array_equal(table, self.table):
            raise InvalidModel("the table is the same.", fix="Wait for a newer one.")
        if len(table) != len(self.table):
            raise InvalidModel("the newer table is of another length.", fix="Copy it again.")
        self.table = table
        self.info = dataclasses.replace(self.info, details={"source": source.name})
    def _predict(self, inputs, outputs):
        return self.inner.predict({"rows": self.table[inputs["ids"]]}, outputs)
    def _close(self):
        self.inner.close()

class WithTable(bridge.Format):
    name, title, native_backend, holds = "sum_with_table", "Sum with table", "adder", "sum"
    def sniff(self, file):
        return file.is_folder and "table.json" in file.members
    def files(self, model):
        return (model.file / "table.json", model.file / "model.sum")
    def describe(self, model):
        signature = bridge.Signature(
            (bridge.TensorSpec("ids", I64, ("n",)),), (bridge.TensorSpec("y", F32, ("n",)),)
        )
        return bridge.ModelFacts(signatures={"": signature}, vocabularies={"ids": 3})
    def inner(self, model):
        path = model.file / "model.sum"
        if not path.exists():
            raise InvalidModel("there is no model inside.", fix="Copy it again.")
        return bridge.loading.open_model(path, trust=model.trust)
    def front(self, model, predictor):
        table = json.loads((model.file / "table.json").read_text())
        if len(table) < 3:
            raise InvalidModel("the table is too short.", fix="Copy it again.")
        return Lookup(np.array(table, np.float32), predictor)

class Packed(WithTable):
    name, title, holds = "packed", "Packed", None
    refines = "sum_with_table"
    def sniff(self, file):
        return super().sniff(file) and "packed" in file.members
    def inner(self, model):
        return None

class Pack(bridge.Adapter):
    name, sources, target = "pack", frozenset({"packed"}), "sum_with_table"
    def probe(self):
        return bridge.Availability(installed=True)
    def _convert(self, model, target, options):
        target.mkdir()
        for path in model.file.iterdir():
            if path.name != "packed":
                (target / path.name).write_bytes(path.read_bytes())
        return {}

@bridge.hookimpl
def register_backends(register):
    register(Backend())

@bridge.hookimpl
def register_formats(register):
    for kind in (Sum, WithTable, Packed):
        register(kind())

@bridge.hookimpl
def register_adapters(register):
    register(Pack())
"""

Make = Callable[..., Path]
IDS = {"ids": np.array([2, 0, 2], np.int64)}
WANTED = [11.0, 3.0, 11.0]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Installs the plugin for this process and its children; makes models."""
    site = tmp_path / "site"
    info = site / "adder-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "adder.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nadder = adder\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("BRIDGE_PLUGINS", "adder")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    registry.cache_clear()

    def made(table: str = "[[1, 2], [3, 4], [5, 6]]", *, packed: bool = False) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "table.json").write_text(table)
        (folder / "model.sum").write_text("SUM")
        if packed:
            (folder / "packed").touch()
        return folder

    yield made
    registry.cache_clear()
    sys.modules.pop("adder", None)


def test_users_get_the_front_and_the_backend_the_model_inside(make: Make) -> None:
    folder = make()
    with bridge.load(folder) as predictor:
        assert predictor.signature.input_names == ("ids",)
        assert predictor.predict(IDS)["y"].tolist() == WANTED
        assert (predictor.info.backend, predictor.info.format) == ("adder", "sum_with_table")
        assert (predictor.info.model, predictor.info.provider) == ("model", "adder")
        bound = predictor.bind({"ids": (2,)})
        bound.inputs["ids"][...] = [1, 1]
        bound.predict()
        assert bound.outputs["y"].tolist() == [7.0, 7.0]
        inner: bridge.Predictor = predictor.inner  # type: ignore[attr-defined]
    with pytest.raises(bridge.errors.PredictorClosed):
        inner.predict({"rows": np.zeros((1, 2), np.float32)})


def test_a_whole_signature_is_refused(make: Make) -> None:
    stated = bridge.Signature((bridge.TensorSpec("x", bridge.DType.INT64, ("n",)),), ())
    with pytest.raises(OptionError, match="its format holds its own"):
        bridge.load(make(), signature=stated)


def test_it_works_in_a_process_of_its_own(make: Make, tmp_path: Path) -> None:
    (tmp_path / "newer").write_text("[[0, 1], [0, 2], [0, 3]]")
    (tmp_path / "short").write_text("[]")
    with bridge.load(make(), isolated=True) as predictor:
        assert predictor.signature.input_names == ("ids",)
        assert predictor.predict(IDS)["y"].tolist() == WANTED
        assert predictor.info.format == "sum_with_table"
        predictor.update(tmp_path / "newer")
        assert predictor.predict(IDS)["y"].tolist() == [3.0, 1.0, 3.0]
        assert predictor.info.details["source"] == "newer"
        with pytest.raises(InvalidModel, match="another length"):
            predictor.update(tmp_path / "short")
        (tmp_path / "newer").write_text("[[1, 1], [0, 2], [0, 3]]")
        predictor.update(tmp_path / "newer")
        first = predictor.info.details["pid"]
        os.kill(first, signal.SIGKILL)
        with contextlib.suppress(WorkerDied):
            predictor.predict(IDS)
        assert predictor.predict(IDS)["y"].tolist() == [3.0, 2.0, 3.0]  # taken over again, once
        assert predictor.info.details["pid"] != first
        assert predictor.info.details["source"] == "newer"


def test_parameters_are_renewed_whole_or_not_at_all(make: Make, tmp_path: Path) -> None:
    (tmp_path / "newer").write_text("[[0, 1], [0, 2], [0, 3]]")
    (tmp_path / "short").write_text("[]")
    folder = make()
    with bridge.load(folder) as predictor:
        predictor.update(str(tmp_path / "newer"))
        with pytest.raises(InvalidModel, match="another length"):
            predictor.update(tmp_path / "short")
        assert predictor.predict(IDS)["y"].tolist() == [3.0, 1.0, 3.0]
    with (
        bridge.load(folder / "model.sum") as plain,
        pytest.raises(UnsupportedModel, match="cannot be renewed while it is loaded"),
    ):
        plain.update(tmp_path / "newer")


def test_a_front_that_fails_closes_the_model_inside(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("[]")
    closed: list[Any] = []

    def close(predictor: bridge.Predictor) -> None:
        closed.append(predictor)

    monkeypatch.setattr(bridge.Predictor, "close", close)
    with pytest.raises(InvalidModel, match="the table is too short") as caught:
        bridge.load(folder)
    assert (caught.value.backend, caught.value.model) == ("adder", "model")
    assert len(closed) == 1


def test_inspection_asks_backends_about_the_model_inside(make: Make) -> None:
    folder = make()
    found = bridge.inspect(folder)
    assert (found.format, found.problem) == ("sum_with_table", None)
    assert [(one.backend, one.is_capable) for one in found.candidates] == [("adder", True)]
    (folder / "model.sum").unlink()
    found = bridge.inspect(folder)
    assert found.problem is not None
    with pytest.raises(bridge.errors.ModelError):
        bridge.load(folder)


def test_a_selection_plans_arms_on_the_model_inside(make: Make) -> None:
    (arm,) = plan([open_model(make())])
    assert (arm.id, arm.rule, arm.is_default) == ("adder", None, True)


def test_a_route_to_the_format_inside_leads_to_the_composite(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(packed=True)
    model = open_model(folder)
    assert model.format.name == "packed"  # refines sum_with_table, which knows it as well
    assert held_format("sum_with_table") == "sum"
    assert [one.name for one in runners("sum_with_table")] == ["adder"]
    assert proof.find_runner("sum_with_table") == "adder"
    require_target("sum")
    for target in ("sum", "sum_with_table"):
        assert [route.name for route in find_routes(model, target)] == ["pack"]
    with pytest.raises(UnsupportedModel, match="does not load Packed"):
        bridge.load(folder)
    made = convert(folder, "sum", verify=False)
    assert (made.target, made.open().format.name) == ("sum_with_table", "sum_with_table")
    with bridge.load(made.path) as predictor:
        assert predictor.predict(IDS)["y"].tolist() == WANTED
