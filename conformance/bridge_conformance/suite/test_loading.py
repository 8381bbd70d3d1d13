"""Loading a model in every claimed format, and refusing everything else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge import BridgeError
from bridge.errors import (
    InvalidModel,
    ModelError,
    ModelNotFound,
    OptionError,
    UnsupportedModel,
    UntrustedModel,
)
from bridge.loading import open_model
from bridge.registry import registry
from bridge_conformance.claims import not_verified, refuses, requires
from bridge_conformance.comparison import assert_outputs
from bridge_conformance.subject import Subject
from bridge_conformance.writing import writers

_FORMATS = sorted(one.name for one in registry().formats)
_TIMEOUT_S = 60

_IMPORTS = """
import json, sys
from bridge_conformance.writing import load_test_plugins
load_test_plugins()
import bridge
backend = bridge.backends()[sys.argv[1]]
before = set(sys.modules)
backend.probe()
backend.capabilities(bridge.Device.parse(sys.argv[2]))
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def _copy(path: Path, target: Path) -> Path:
    """A copy of a model, with all files beside it that it may need."""
    if path.is_dir():
        return Path(shutil.copytree(path, target))
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in path.parent.iterdir():
        if file.is_file() and file.stem == path.stem:
            shutil.copy(file, target.with_suffix(file.suffix))
    return target.with_suffix(path.suffix)


def _main_file(path: Path) -> Path:
    """The largest file of a model, which is the one worth damaging."""
    if path.is_file():
        return path
    return max(
        (one for one in path.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size
    )


class TestLoading:
    """Models of every claimed format load and answer; all else is refused by name."""

    @requires("format")
    @pytest.mark.parametrize("format", _FORMATS)
    def test_format(self, subject: Subject, load: Any, format: str) -> None:
        """A model of a claimed format loads, and answers like its oracle."""
        if format not in writers():
            not_verified(f"no plugin registers a writer of {format} models.")
        network = subject.network("affine")
        predictor = load("affine", format)
        inputs = network.inputs_for(rows=3)
        given = dict(zip(predictor.signature.input_names, inputs.values(), strict=True))
        results = predictor.predict(given)
        wanted = network.oracle(inputs)
        assert_outputs(dict(zip(wanted, results.values(), strict=True)), wanted)

    @refuses("format")
    @pytest.mark.parametrize("format", sorted(writers()))
    def test_format_is_refused(self, subject: Subject, format: str) -> None:
        """A model of a format that is not claimed raises UnsupportedModel."""
        path = subject.path("affine", format)
        with pytest.raises(UnsupportedModel) as caught:
            subject.open(path, trust=True).close()
        assert caught.value.backend == subject.backend.name
        assert caught.value.fix

    @requires("format")
    @pytest.mark.parametrize("format", sorted(writers()))
    def test_format_is_detected(self, subject: Subject, format: str) -> None:
        """What a model is, its content decides."""
        path = subject.path("affine", format)
        assert open_model(path).format.name == format

    @requires("format")
    @pytest.mark.parametrize("format", sorted(writers()))
    def test_trust(self, subject: Subject, format: str) -> None:
        """Native code is refused without trust; a model that only computes needs none."""
        path = subject.path("affine", format)
        if not writers()[format].is_code:
            open_model(path).format.check(open_model(path))
            return
        with pytest.raises(UntrustedModel) as caught:
            subject.open(path, signature=subject.network("affine").signature).close()
        assert "trust" in (caught.value.fix or "")

    def test_info(self, subject: Subject, load: Any) -> None:
        """``info`` names backend, format, model, device, what executes, and versions."""
        info = load("affine").info
        assert info.backend == subject.backend.name
        assert info.format == subject.format
        assert info.model == subject.path("affine").name
        assert info.device == subject.device
        assert info.provider
        assert info.precision == "float32"
        assert info.versions
        assert all(isinstance(text, str) and text for text in info.versions.values())
        json.dumps(info.to_dict())

    def test_odd_path(self, subject: Subject, tmp_path: Path) -> None:
        """Spaces and other scripts in a path do no harm."""
        network = subject.network("fixed")
        path = _copy(subject.path("fixed"), tmp_path / "a folder, größer" / "模型 1.x")
        inputs = network.inputs_for()
        with subject.open(path) as predictor:
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    def test_relative_path(
        self, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path is that of the moment of loading."""
        network = subject.network("fixed")
        path = _copy(subject.path("fixed"), tmp_path / "there" / "model.x")
        monkeypatch.chdir(tmp_path)
        inputs = network.inputs_for()
        with subject.open(os.path.relpath(path)) as predictor:
            monkeypatch.chdir("/")
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    def test_model_may_go_after_loading(self, subject: Subject, tmp_path: Path) -> None:
        """A loaded model needs its files no more."""
        network = subject.network("fixed")
        path = _copy(subject.path("fixed"), tmp_path / "there" / "model.x")
        inputs = network.inputs_for()
        with subject.open(path) as predictor:
            shutil.rmtree(path if path.is_dir() else path.parent)
            assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    def test_missing_file(self, subject: Subject, tmp_path: Path) -> None:
        """A path where nothing is raises ModelNotFound."""
        with pytest.raises(ModelNotFound, match="nothing-here"):
            subject.open(tmp_path / "nothing-here.model").close()

    def test_empty_file(self, subject: Subject, tmp_path: Path) -> None:
        """An empty file raises InvalidModel."""
        path = tmp_path / f"empty{subject.path('affine').suffix}"
        path.touch()
        with pytest.raises(InvalidModel, match="empty"):
            subject.open(path).close()

    def test_foreign_bytes(self, subject: Subject, tmp_path: Path) -> None:
        """A file that is no model raises a ModelError."""
        path = tmp_path / f"foreign{subject.path('affine').suffix}"
        path.write_bytes(bytes(range(256)) * 16)
        with pytest.raises(ModelError):
            subject.open(path).close()

    @pytest.mark.parametrize("eighths", range(1, 8))
    def test_truncated_file(self, subject: Subject, tmp_path: Path, eighths: int) -> None:
        """A model cut off anywhere raises a ModelError, and takes nothing down."""
        path = _copy(subject.path("mixed"), tmp_path / "cut" / "model.x")
        file = _main_file(path)
        file.write_bytes(file.read_bytes()[: file.stat().st_size * eighths // 8])
        with pytest.raises(ModelError):
            subject.open(path).close()

    @pytest.mark.parametrize("seed", range(12))
    def test_damaged_file(self, subject: Subject, tmp_path: Path, seed: int) -> None:
        """A flipped bit gives a typed error or an answer, never a crash or a foreign error."""
        network = subject.network("mixed")
        path = _copy(subject.path("mixed"), tmp_path / "damaged" / "model.x")
        file = _main_file(path)
        data = bytearray(file.read_bytes())
        # Spread over the file; 2654435761 is Knuth's multiplier (TAOCP 3, section 6.4).
        place = seed * 2654435761 % (len(data) * 8)
        data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        with contextlib.suppress(BridgeError), subject.open(path) as predictor:
            predictor.predict(network.inputs_for())

    def test_unknown_option(self, subject: Subject) -> None:
        """An option that the backend does not have raises OptionError."""
        with pytest.raises(OptionError, match="no_such_option"):
            subject.open(subject.path("affine"), options={"no_such_option": 1}).close()

    def test_two_of_one_model(self, subject: Subject, load: Any) -> None:
        """Predictors of one model do not know of each other."""
        network = subject.network("affine")
        first, second = load("affine"), load("affine")
        inputs, others = network.inputs_for(seed=1), network.inputs_for(rows=5, seed=2)
        assert_outputs(first.predict(inputs), network.oracle(inputs))
        assert_outputs(second.predict(others), network.oracle(others))
        first.close()
        assert_outputs(second.predict(inputs), network.oracle(inputs))

    @pytest.mark.builds
    def test_probe_is_light(self, subject: Subject) -> None:
        """Being asked whether it is there, and what it can do, imports no runtime."""
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTS, subject.backend.name, str(subject.device)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        own = type(subject.backend).__module__.partition(".")[0]
        light = {*sys.stdlib_module_names, "bridge", "numpy", "pluggy", own}
        foreign = [name for name in json.loads(done.stdout) if name not in light]
        assert not foreign, f"probe() or capabilities() imported {foreign}"
