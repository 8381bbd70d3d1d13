from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.errors import InvalidModel, ModelNotFound, UnsupportedModel
from bridge.formats import BUILT_IN
from bridge.loading import open_model
from bridge.model import FileProbe, ModelRef

FORMATS = tuple(kind() for kind in BUILT_IN)


def opened(path: object, **said: Any) -> ModelRef:
    return ModelRef.open(path, FORMATS, **said)


def test_nothing_there_offers_what_is(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match="Did you mean 'model.onnx'"):
        opened(tmp_path / "modle.onnx")
    with pytest.raises(ModelNotFound, match="Check the path"):
        opened(tmp_path / "zzzz")
    with pytest.raises(ModelNotFound, match="There is no folder"):
        opened(tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(ModelNotFound):
        opened(tmp_path / "model.onnx" / "below-a-file")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        opened("a" * 5000)
    with pytest.raises(ModelNotFound, match="cannot be read"):
        opened("a\0b")


def test_empty_files_and_special_files_are_refused_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(InvalidModel, match="is empty"):
        opened(empty)
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    with pytest.raises(InvalidModel, match="not a regular file"):
        opened(pipe)
    with pytest.raises(InvalidModel, match="not a regular file"):
        opened("/dev/null")
    with pytest.raises(InvalidModel, match="empty"):
        opened(b"")


def test_unknown_content_is_told_apart_from_broken_content(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello, this is no model")
    with pytest.raises(UnsupportedModel, match="known are .*ONNX.*SavedModel"):
        opened(text)
    named = tmp_path / "model.onnx"
    named.write_text("hello, this is no model")
    with pytest.raises(InvalidModel, match="called .onnx, but its 23 bytes are no ONNX"):
        opened(named)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UnsupportedModel, match="the folder"):
        opened(folder)


def test_parts_of_a_model_point_to_the_whole(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(UnsupportedModel, match="whole folder") as caught:
        opened(tmp_path / "saved_model.pb")
    assert str(tmp_path) in str(caught.value.fix)
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "net.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(UnsupportedModel, match="weights of an OpenVINO IR"):
        opened(tmp_path / "net.bin")
    with pytest.raises(UnsupportedModel, match="no format taken as bytes"):
        opened(b"PK\x03\x04 some archive")


def test_odd_names_are_fine(tmp_path: Path, tiny: Any) -> None:
    for name in ("naïve 模型.tiny", "with\nnewline", "no_suffix", "x.onnx"):
        path = tmp_path / name
        path.write_bytes(b"TINY")
        assert open_model(path).format.name == "tiny"
        assert open_model(os.fspath(path)).name == name


def test_two_formats_that_both_claim_a_file_are_an_error(
    tmp_path: Path, tiny: Any, plugin: Any
) -> None:
    class Greedy(bridge.Format):
        name, title, native_backend = "greedy", "Greedy", "tiny"

        def sniff(self, file: FileProbe) -> bool:
            return True

    bridge.loading.registry().add(plugin(formats=(Greedy(),)), "greedy", "greedy-dist")
    path = tmp_path / "x"
    path.write_bytes(b"TINY")
    with pytest.raises(UnsupportedModel, match="more than one format: greedy and tiny"):
        open_model(path)


def test_digest_depends_on_bytes_and_not_on_the_place(tmp_path: Path, tiny: Any) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"TINY 1")
    second.write_bytes(b"TINY 1")
    assert open_model(first).digest == open_model(second).digest
    assert open_model(first).size_bytes == 6
    second.write_bytes(b"TINY 2")
    assert open_model(first).digest != open_model(second).digest


def test_relative_paths_are_made_absolute(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").write_bytes(b"TINY")
    monkeypatch.chdir(tmp_path)
    assert open_model("m").path == tmp_path / "m"


def test_what_the_caller_says_is_kept(tmp_path: Path, tiny: Any) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"TINY")
    found = open_model(path, signature="score", trust=True)
    assert (found.signature_key, found.trust, found.declared) == ("score", True, None)
    declared = bridge.Signature((), ())
    assert open_model(found, signature=declared).declared is declared
    with pytest.raises(bridge.errors.OptionError, match="signature is of class int"):
        open_model(path, signature=3)  # type: ignore[arg-type]


def test_zip_members_are_seen_without_their_top_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("top/code/x.py", "")
        archive.writestr("top/data.pkl", "")
    assert FileProbe(path, path.read_bytes()).members == {"code/x.py", "data.pkl"}
    path.write_bytes(path.read_bytes()[:40])
    assert FileProbe(path, path.read_bytes()).members == frozenset()


def test_paths_need_no_current_folder(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"TINY")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert open_model(path).path == path
    with pytest.raises(ModelNotFound, match="current folder was removed"):
        open_model("m")


def test_path_objects_may_hold_bytes(tmp_path: Path, tiny: Any) -> None:
    class Encoded:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "m")

    (tmp_path / "m").write_bytes(b"TINY")
    assert open_model(Encoded()).path == tmp_path / "m"
