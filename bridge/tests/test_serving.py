"""Loading a record: what serves, what changed since, and what cannot run here."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import recording
from bridge.errors import (
    BackendNotFound,
    BackendUnavailable,
    DeviceUnavailable,
    InvalidRecord,
    ModelLoadFailed,
    ModelNotFound,
    OptionError,
    OutOfMemory,
    RecordWarning,
    StaleRecord,
    UntrustedModel,
)
from bridge.loading import open_model
from bridge.record import Decision, Route, SelectionRecord
from bridge.registry import Registry
from bridge.renaming import RenamedPredictor
from bridge.routing import RoutedPredictor

ROUTES = [Route(to_rows=4, arm="tiny"), Route(to_rows=None, arm="other")]


@dataclass
class Kit:
    """A record over two backends, and what its tests do with it."""

    records: ModuleType
    model: Path
    place: Path
    tiny: Any
    other: Any

    def record(self, routes: list[Route] = ROUTES, **more: Any) -> SelectionRecord:
        arms = [
            self.records.arm_record("tiny"),
            self.records.arm_record("tiny/mode=exact", options={"mode": "exact"}),
            self.records.arm_record("other", backend="other"),
            self.records.arm_record("wrong", status="not_conformant", reason="Off by 3."),
        ]
        arms = more.pop("arms", arms)
        signature = bridge.Signature.from_dict(self.records.TINY)
        made = self.records.make_record([open_model(self.model)], arms, routes, signature, **more)
        assert isinstance(made, SelectionRecord)
        return made

    def write(self, record: SelectionRecord | None = None) -> Path:
        record = self.record() if record is None else record
        found = self.records.write_record(record, [open_model(self.model)], self.place / "record")
        assert isinstance(found, Path)
        return found


@pytest.fixture
def kit(
    tiny: Any,
    plugin: type,
    tiny_model: Path,
    tmp_path: Path,
    records: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> Kit:
    class Other(type(tiny)):  # type: ignore[misc]
        name = "other"

    other = Other()
    made = Registry()
    (form,) = bridge.loading.registry().formats
    made.add(plugin((tiny, other), (form,)), "tiny", "tiny-dist")
    for module in ("loading", "inspection", "diagnosis"):
        monkeypatch.setattr(f"bridge.{module}.registry", lambda: made)
    return Kit(records, tiny_model, tmp_path, tiny, other)


def rows(count: int) -> dict[str, Any]:
    return {"x": np.ones((count, 4), np.float32), "ids": np.arange(count)}


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_record_serves_by_rows(kit: Kit) -> None:
    folder = kit.write()
    for named in (folder, str(folder), folder / "record.json", recording.read(folder)):
        with bridge.load(named) as predictor:
            assert isinstance(predictor, RoutedPredictor)
            assert predictor.predict(rows(2))["y"].shape == (2, 4)
            assert predictor.predict(rows(9))["y"].shape == (9, 4)
    assert (kit.tiny.closed, kit.other.closed) == (4, 4)
    details = predictor.info.details
    assert [one["arm"] for one in details["routes"]] == ["tiny", "other"]
    assert details["record"] == {
        "path": str(folder),
        "checksum": recording.checksum(recording.read(folder)),
    }
    assert predictor.info.model == "model.tiny"


def test_one_route_is_the_arms_own_predictor(kit: Kit) -> None:
    folder = kit.write(kit.record([Route(to_rows=None, arm="tiny/mode=exact")]))
    with bridge.load(folder) as predictor:
        assert type(predictor).__name__ == "TinyPredictor"
        assert predictor.info.options == {"mode": "exact"}
        assert predictor.info.details["record"]["arm"] == "tiny/mode=exact"


def test_one_arm_for_several_routes_is_loaded_once(kit: Kit) -> None:
    routes = [*ROUTES[:1], Route(to_rows=16, arm="other"), Route(to_rows=None, arm="tiny")]
    with bridge.load(kit.write(kit.record(routes))) as predictor:
        predictor.predict(rows(20))
    assert (kit.tiny.closed, kit.other.closed) == (1, 1)


def test_a_split_route(kit: Kit) -> None:
    route = Route(to_rows=None, arm="tiny", split_rows=4)
    with bridge.load(kit.write(kit.record([route]))) as predictor:
        found = predictor.predict(rows(9))
    np.testing.assert_array_equal(found["y"], np.ones((9, 4)) + np.arange(9)[:, None])
    assert predictor.info.details["routes"][0]["split_rows"] == 4


def test_the_folder_may_move(kit: Kit) -> None:
    folder = kit.write()
    kit.model.unlink()
    moved = shutil.move(folder, kit.place / "elsewhere")
    with bridge.load(moved) as predictor:
        assert predictor.info.details["record"]["path"] == str(moved)
        predictor.predict(rows(1))


# Which arm


@pytest.mark.parametrize("options", [{"arm": "other"}, ["arm=other"], "arm=other"])
def test_an_arm_by_its_id(kit: Kit, options: Any) -> None:
    with bridge.load(kit.write(), options=options) as predictor:
        assert predictor.info.backend == "other"


def test_the_best_arm_of_a_backend_or_device(kit: Kit) -> None:
    folder = kit.write()
    for given, backend in (
        ({"backend": "other"}, "other"),
        ({"backend": "tiny"}, "tiny"),
        ({"backend": "other", "device": "cpu"}, "other"),
        ({"options": {"arm": "other"}, "backend": "other", "device": "cpu"}, "other"),
    ):
        with bridge.load(folder, **given) as predictor:
            assert predictor.info.backend == backend
            assert predictor.info.options == {}


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"options": {"arm": "othr"}}, OptionError, "no arm 'othr'. Did you mean 'other'"),
        ({"options": {"arm": "wrong"}}, OptionError, "may not serve, it is not_conformant: Off"),
        ({"options": {"threads": 2}}, OptionError, "a record has one option, 'arm'"),
        ({"options": ["arm=tiny", "threads=2"]}, OptionError, "a record has one option"),
        ({"options": {"arm": "tiny"}, "backend": "other"}, OptionError, "runs on tiny/cpu, not"),
        ({"options": {"arm": "tiny"}, "device": "cuda"}, OptionError, "not on tiny/cuda:0"),
        ({"backend": "othr"}, BackendNotFound, "runs on othr; there are: 'tiny', 'other'"),
        ({"device": "cuda"}, DeviceUnavailable, "on cuda:0; there are"),
        ({"device": "moon"}, DeviceUnavailable, "'moon' is unknown"),
        ({"signature": "serve"}, OptionError, "signature was given for a selection record"),
    ],
)
def test_wrong_choices(kit: Kit, given: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        bridge.load(kit.write(), **given)
    assert getattr(caught.value, "fix")  # noqa: B009 - all these classes have it
    assert (kit.tiny.closed, kit.other.closed) == (0, 0)


def test_a_record_that_decided_nothing(kit: Kit) -> None:
    decision = Decision(status="none", summary="No arm passed the gate.")
    folder = kit.write(kit.record(decision=decision))
    with pytest.raises(
        InvalidRecord, match=r"decided for no arm \(none\): No arm passed"
    ) as caught:
        bridge.load(folder)
    assert caught.value.detail["status"] == "none"
    with bridge.load(folder, options={"arm": "tiny"}) as predictor:
        predictor.predict(rows(1))


def test_a_record_in_memory(kit: Kit) -> None:
    with pytest.raises(ModelNotFound, match="in memory only"):
        bridge.load(kit.record())


# What changed since


def changed(kit: Kit, **fields: Any) -> Path:
    return kit.write(dataclasses.replace(kit.record(), **fields))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("machine", {"cpu_model": "Z80"}, "the CPU changed from Z80 to"),
        ("machine", {"usable_cpus": 1000}, "the number of usable CPUs changed from 1000 to"),
        ("versions", {"numpy": "0.1"}, "numpy changed from 0.1 to"),
        ("versions", {"tiny": "0.9"}, "tiny changed from 0.9 to 1.0"),
        ("variables", {"OMP_NUM_THREADS": "77"}, "OMP_NUM_THREADS was '77' and is not set"),
    ],
)
def test_other_conditions_are_told(
    kit: Kit, field: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = changed(kit, **{field: {**getattr(kit.record(), field), **value}})
    with pytest.warns(RecordWarning, match=words) as told:
        bridge.load(folder).close()
    assert len(told) == 1
    assert told[0].filename == __file__
    with pytest.raises(StaleRecord, match=words) as caught:
        bridge.load(folder, strict=True)
    assert "strict=True" in (caught.value.fix or "")


def test_what_seldom_matters_is_not_told(kit: Kit) -> None:
    record = kit.record()
    machine = {**record.machine, "kernel": "1.0", "memory_bytes": 1, "gpus": ["a GPU"]}
    versions = {**record.versions, "unrelated": "1.0"}
    with bridge.load(changed(kit, machine=machine, versions=versions), strict=True) as predictor:
        predictor.predict(rows(1))


def test_a_changed_model_is_refused(kit: Kit) -> None:
    folder = kit.write()
    (folder / "models/0/model.tiny").write_bytes(b"TINY and new")
    with pytest.raises(StaleRecord, match="not the one that was measured"):
        bridge.load(folder)
    (folder / "models/0/model.tiny").unlink()
    with pytest.raises(ModelNotFound):
        bridge.load(folder)


def test_trust_is_not_inherited(kit: Kit) -> None:
    model = kit.records.model_record(open_model(kit.model), trust=True)
    folder = changed(kit, models=(model,))
    with pytest.raises(UntrustedModel, match="Pass trust=True"):
        bridge.load(folder)
    with bridge.load(folder, trust=True) as predictor:
        predictor.predict(rows(1))


# What cannot run here


def test_a_missing_runtime_names_the_runners_up(kit: Kit) -> None:
    folder = kit.write()
    kit.other.availability = bridge.Availability(
        installed=False, reason="module 'other' is not installed", fix="Install it."
    )
    with pytest.raises(BackendUnavailable, match="arm 'other' of the record cannot run") as caught:
        bridge.load(folder)
    error = caught.value
    assert error.fix == (
        "Install it. Runner-up that can run here: "
        "options={'arm': 'tiny'} or options={'arm': 'tiny/mode=exact'}."
    )
    assert error.detail["runners_up"] == ["tiny", "tiny/mode=exact"]
    with bridge.load(folder, options={"arm": "tiny"}) as predictor:
        predictor.predict(rows(9))
    kit.tiny.availability = kit.other.availability
    with pytest.raises(BackendUnavailable) as caught:
        bridge.load(folder)
    assert caught.value.fix == "Install it."


def test_a_backend_that_nobody_registers(kit: Kit) -> None:
    arms = [kit.records.arm_record("tiny"), kit.records.arm_record("gone", backend="gone")]
    folder = kit.write(kit.record([Route(to_rows=None, arm="gone")], arms=arms))
    with pytest.raises(BackendUnavailable, match="no plugin registers it") as caught:
        bridge.load(folder)
    assert "options={'arm': 'tiny'}" in (caught.value.fix or "")


def test_a_missing_device_names_the_runners_up(kit: Kit) -> None:
    arms = [kit.records.arm_record("tiny"), kit.records.arm_record("gpu", device="cuda:7")]
    folder = kit.write(kit.record([Route(to_rows=None, arm="gpu")], arms=arms))
    with pytest.raises(DeviceUnavailable, match="arm 'gpu' of the record cannot run") as caught:
        bridge.load(folder)
    assert "options={'arm': 'tiny'}" in (caught.value.fix or "")


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError("no"), KeyboardInterrupt()])
def test_an_arm_that_does_not_load_closes_the_others(kit: Kit, error: BaseException) -> None:
    folder = kit.write()
    kit.other.load_error = error
    with pytest.raises((ModelLoadFailed, OutOfMemory, KeyboardInterrupt)):
        bridge.load(folder)
    assert kit.tiny.closed == 1


# Other names


def test_an_arm_with_other_names(kit: Kit) -> None:
    signature = json.loads(json.dumps(kit.records.TINY).replace('"ids"', '"id"'))
    arm = kit.records.arm_record("tiny", inputs={"ids": "id"})
    record = dataclasses.replace(
        kit.record([Route(to_rows=None, arm="tiny")], arms=[arm]),
        signature=signature,
        batch_axes={"x": 0, "id": 0},
    )
    with bridge.load(kit.write(record)) as predictor:
        assert isinstance(predictor, RenamedPredictor)
        assert predictor.signature.input_names == ("x", "id")
        given = {"x": rows(3)["x"], "id": rows(3)["ids"]}
        assert predictor.predict(given)["y"].shape == (3, 4)
        assert predictor.info.details["record"]["arm"] == "tiny"


def test_outputs_that_the_record_does_not_have_are_left_out(kit: Kit) -> None:
    """Whichever arm answers, the names are the record's."""
    signature = json.loads(json.dumps(kit.records.TINY))
    signature["outputs"] = [one for one in signature["outputs"] if one["name"] == "y"]
    record = dataclasses.replace(kit.record(), signature=signature, output_batch_axes={"y": 0})
    with bridge.load(kit.write(record)) as predictor:
        for count in (1, 9):
            assert set(predictor.predict(rows(count))) == {"y"}


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_an_arm_without_the_names_it_should_have(kit: Kit, side: str) -> None:
    wrong = {"nothing": "ids"} if side == "inputs" else {"y": "nothing"}
    arm = kit.records.arm_record("tiny", **{side: wrong})
    folder = kit.write(kit.record([Route(to_rows=None, arm="tiny")], arms=[arm]))
    with pytest.raises(InvalidRecord, match="does not have the names"):
        bridge.load(folder)
    assert kit.tiny.closed == 1


# What it needs

PLUGIN = """
import numpy as np
import bridge

class Doubling(bridge.Format):
    name, title, native_backend = "doubling", "Doubling", "doubling"
    def sniff(self, file):
        return file.head.startswith(b"DOUBLE")

class Predictor(bridge.Predictor):
    def __init__(self):
        x = bridge.TensorSpec("x", bridge.DType.FLOAT32, ("n",))
        y = bridge.TensorSpec("y", bridge.DType.FLOAT32, ("n",))
        super().__init__(bridge.Signature((x,), (y,)), bridge.PredictorInfo())
    def _predict(self, inputs, outputs):
        return {"y": inputs["x"] * 2}
    def _close(self):
        pass

class Backend(bridge.Backend):
    name = "doubling"
    def probe(self):
        return bridge.Availability(installed=True, version="3")
    def capabilities(self, device):
        return bridge.Capabilities(formats=frozenset({"doubling"}))
    def _load(self, model, device, options):
        return Predictor()

@bridge.hookimpl
def register_backends(register):
    register(Backend())

@bridge.hookimpl
def register_formats(register):
    register(Doubling())
"""

LOAD = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {banned}:
            raise AssertionError(f"{{name}} was imported")
sys.meta_path.insert(0, Finder())
import numpy as np
import bridge
record = sys.argv[1]
predictor = bridge.load(record, strict=True)
print(predictor.predict({{"x": np.arange(6, dtype=np.float32)}})["y"].tolist())
"""


def test_loading_needs_the_core_and_the_winners_alone(
    records: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another place, in a process that cannot import bench, cli, converters or scipy."""
    site = tmp_path / "site"
    (site / "doubling-3.dist-info").mkdir(parents=True)
    (site / "doubling_plugin.py").write_text(PLUGIN)
    (site / "doubling-3.dist-info/METADATA").write_text("Name: doubling\nVersion: 3\n")
    (site / "doubling-3.dist-info/entry_points.txt").write_text(
        "[bridge]\ndoubling = doubling_plugin\n"
    )
    (tmp_path / "model").write_bytes(b"DOUBLE")

    class Doubling(bridge.Format):
        name, title, native_backend = "doubling", "Doubling", "doubling"

    models = [bridge.ModelRef(format=Doubling(), path=tmp_path / "model")]
    spec = bridge.DType.FLOAT32
    signature = bridge.Signature(
        (bridge.TensorSpec("x", spec, ("n",)),), (bridge.TensorSpec("y", spec, ("n",)),)
    )
    route = [
        Route(to_rows=4, arm="doubling"),
        Route(to_rows=None, arm="doubling", split_rows=4),
    ]
    arms = [records.arm_record("doubling", backend="doubling")]
    record = records.make_record(models, arms, route, signature)
    record = dataclasses.replace(record, versions={**record.versions, "doubling": "3"})
    monkeypatch.setattr(recording, "_check_digests", lambda record, folder: None)
    written = records.write_record(record, models, tmp_path / "written")
    (tmp_path / "far" / "away").mkdir(parents=True)
    moved = shutil.move(written, tmp_path / "far" / "away" / "record")
    (tmp_path / "model").unlink()
    banned = ["bridge_bench", "bridge_cli", "bridge_convert", "bridge_zoo", "bridge_conformance"]
    code = LOAD.format(banned={*banned, "scipy", "onnx", "typer", "rich", "psutil"})
    done = subprocess.run(
        [sys.executable, "-c", code, str(moved)],
        env={**os.environ, "PYTHONPATH": str(site), "BRIDGE_PLUGINS": "doubling"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


@pytest.mark.parametrize("reach", [Path, str])
def test_what_is_no_record_loads_as_before(kit: Kit, reach: Callable[[Path], Any]) -> None:
    with bridge.load(reach(kit.model), strict=True) as predictor:
        assert "record" not in predictor.info.details
    with pytest.raises(ModelNotFound, match="there is no model"):
        bridge.load(reach(kit.place / "nothing"))
    with pytest.raises(ModelNotFound, match="there is no model"):
        bridge.load(reach(kit.place / "nothing.json"))
    with pytest.raises(ModelNotFound, match="does not exist"):
        bridge.load(reach(kit.place / "record.json"))
