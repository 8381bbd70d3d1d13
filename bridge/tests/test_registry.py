from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.errors import BackendNotFound, DuplicateName, PluginLoadFailed
from bridge.registry import Registry


def test_built_in_plugins_load_like_any_other() -> None:
    made = Registry()
    made.load_entry_points()
    assert {backend.name for backend in made.backends} >= {
        "onnxruntime",
        "openvino",
        "reference",
        "tensorflow",
        "tensorrt",
        "torch",
    }
    assert not [one for one in made.failures if one.distribution == "inference-bridge"]


def test_one_name_from_two_plugins_is_an_error_naming_both(tiny: Any, plugin: Any) -> None:
    made = Registry()
    made.add(plugin(backends=(tiny,)), "one", "dist-one")
    made.add(plugin(backends=(tiny,)), "two", "dist-two")
    assert not made.failures
    with pytest.raises(DuplicateName) as caught:
        made.backends.get("tiny")
    assert "dist-one" in str(caught.value)
    assert "dist-two" in str(caught.value)
    assert [str(one) for one in made.backends.duplicates()] == [str(caught.value)]
    assert list(made.backends) == []


def test_a_failing_plugin_is_recorded_and_takes_nothing_down(tiny: Any, plugin: Any) -> None:
    class Broken:
        @bridge.hookimpl
        def register_backends(self, register: Any) -> None:
            raise RuntimeError("broken inside")

    class Misspelt:
        @bridge.hookimpl
        def register_backend(self, register: Any) -> None:
            raise AssertionError("never called")

    made = Registry()
    made.add(Broken(), "broken", "dist-broken")
    made.add(Misspelt(), "misspelt", "dist-misspelt")
    made.add(plugin(backends=(tiny,)), "fine", "dist-fine")
    assert made.backends.get("tiny") is tiny
    assert [(one.name, one.distribution) for one in made.failures] == [
        ("broken", "dist-broken"),
        ("misspelt", "dist-misspelt"),
    ]
    assert all(isinstance(one.error, PluginLoadFailed) for one in made.failures)
    assert "broken inside" in made.failures[0].traceback
    assert "register_backend" in str(made.failures[1].error)


def test_unknown_names() -> None:
    with pytest.raises(BackendNotFound, match="there is no backend 'x'. There are none."):
        Registry().backends.get("x")


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """Two external distributions: one that raises on import, one that works."""
    for name, code in {
        "bad_plugin": "raise SystemExit('no licence')",
        "good_plugin": "import bridge\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[bridge]\n{name} = {name}\n")
    return tmp_path


def run(code: str, folder: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_an_external_plugin_that_raises_on_import_is_only_reported(external: Path) -> None:
    code = (
        "import bridge; d = bridge.doctor();"
        "print(len(bridge.backends()) >= 6, d.is_healthy, [f.name for f in d.failures],"
        " 'no licence' in str(d.failures[0].error), 'good_plugin' in"
        " bridge.diagnosis.registry().plugins)"
    )
    assert run(code, external) == "True False ['bad_plugin'] True True"


def test_bridge_plugins_limits_loading(external: Path) -> None:
    code = (
        "import bridge; d = bridge.doctor();"
        "print(sorted(bridge.backends()), [f.name for f in d.failures])"
    )
    assert run(code, external, BRIDGE_PLUGINS="torch, good_plugin") == "['torch'] []"
    assert run(code, external, BRIDGE_PLUGINS="") == "[] []"
    assert run(code, external, BRIDGE_PLUGINS="torch,nope") == "['torch'] ['nope']"


def test_half_a_plugin_is_none(tiny: Any, plugin: Any) -> None:
    class Half:
        @bridge.hookimpl
        def register_backends(self, register: Any) -> None:
            register(tiny)
            raise SystemExit("no licence")

    made = Registry()
    made.add(Half(), "half", "dist-half")
    made.add(plugin(backends=(tiny, type(tiny))), "class", "dist-class")  # not an instance
    made.add(plugin(formats=(tiny,)), "kind", "dist-kind")
    assert [one.name for one in made.failures] == ["half", "class", "kind"]
    assert "wanted an instance of Backend" in str(made.failures[1].error)
    assert "wanted an instance of Format" in str(made.failures[2].error)
    assert list(made.backends) == []
    assert list(made.formats) == []


def test_doctor_reports_a_probe_that_raises(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> bridge.Availability:
        raise RuntimeError("broken probe")

    monkeypatch.setattr(tiny, "probe", probe)
    found = bridge.doctor(deep=True)
    (report,) = found.backends
    assert report.problem == "RuntimeError: broken probe"
    assert not report.availability.installed
    assert not found.is_healthy
