"""Records on disk: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

import bridge
from bridge import document, placement, recording
from bridge.errors import (
    InvalidRecord,
    ModelNotFound,
    RecordError,
    RecordNotWritten,
    StaleRecord,
    UnsupportedRecord,
    UntrustedModel,
)
from bridge.loading import open_model
from bridge.record import Route, SelectionRecord

CALLS = {"calls.npz": b"not really"}


@pytest.fixture
def record(tiny: Any, tiny_model: Path, records: ModuleType) -> SelectionRecord:
    made = records.make_record(
        [open_model(tiny_model)],
        [
            records.arm_record("tiny"),
            records.arm_record("tiny/mode=exact", options={"mode": "exact"}),
        ],
        [Route(to_rows=16, arm="tiny"), Route(to_rows=None, arm="tiny/mode=exact", split_rows=64)],
        bridge.Signature.from_dict(records.TINY),
    )
    assert isinstance(made, SelectionRecord)
    return made


@pytest.fixture
def write(tiny_model: Path, records: ModuleType) -> Callable[..., Path]:
    def call(record: SelectionRecord, folder: Path, attachments: Any = CALLS) -> Path:
        found = records.write_record(record, [open_model(tiny_model)], folder, attachments)
        assert isinstance(found, Path)
        return found

    return call


@pytest.fixture
def folder(record: SelectionRecord, write: Callable[..., Path], tmp_path: Path) -> Path:
    return write(record, tmp_path / "chosen")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The record's document, changed by somebody who knows how to make a checksum."""
    file = folder / "record.json"
    found = json.loads(file.read_bytes())
    found.pop("checksum")
    change(found)
    found["checksum"] = recording._checksum(found)
    file.write_text(json.dumps(found))
    return folder


# What goes in comes out


def test_round_trip(record: SelectionRecord, folder: Path) -> None:
    found = recording.read(folder)
    assert found == dataclasses.replace(record, attachments=found.attachments)
    assert found == recording.read(folder / "record.json") == recording.read(str(folder))
    assert found.folder == folder
    assert SelectionRecord.from_dict(found.to_dict()) == found
    assert "folder" not in found.to_dict()
    assert recording.attachment(found, "calls.npz") == CALLS["calls.npz"]
    assert recording.attachment(found, "other") is None
    assert recording.model(found, 0).digest == record.models[0].digest
    recording.verify(found)
    stored = json.loads((folder / "record.json").read_bytes())
    assert stored == recording.to_document(found)
    assert stored["checksum"] == recording.checksum(found)
    assert recording.is_record(folder)
    assert recording.is_record(folder / "record.json")
    assert not recording.is_record(folder / "models")


def test_the_folder_is_plain_and_readable(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {"record.json", "calls.npz", "models", "models/0", "models/0/model.tiny"}
    for path in (folder, *folder.rglob("*")):
        wanted = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == wanted & ~umask, path
    text = (folder / "record.json").read_text()
    assert '"blocks": [0.001, null, 0.0012]' in text  # for people
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_whole_numbers_serve_as_numbers(record: SelectionRecord, folder: Path) -> None:
    whole = dataclasses.replace(record, elapsed_s=20)
    assert recording.checksum(whole) == recording.checksum(
        dataclasses.replace(record, elapsed_s=20.0)
    )
    found = SelectionRecord.from_dict({**record.to_dict(), "elapsed_s": 20})
    assert type(found.elapsed_s) is float


def test_fields_with_defaults_may_be_missing(record: SelectionRecord) -> None:
    plain = record.to_dict()
    for name in ("canary", "floor_s", "elapsed_s", "warnings", "attachments"):
        del plain[name]
    found = SelectionRecord.from_dict(plain)
    assert found.canary is None
    assert found.warnings == ()


def test_a_folder_that_moved_is_the_same_record(folder: Path, tmp_path: Path) -> None:
    before = recording.read(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    found = recording.read(moved)
    assert found == before
    assert found.folder == moved
    assert recording.model(found, 0).path == moved / "models/0/model.tiny"


def test_writing_again_replaces_the_whole(
    record: SelectionRecord, write: Callable[..., Path], folder: Path
) -> None:
    (folder / "report.html").write_text("page")
    assert write(dataclasses.replace(record, seed=8), folder, None) == folder
    assert recording.read(folder).seed == 8
    assert not (folder / "calls.npz").exists()
    assert not (folder / "report.html").exists()


def test_models_given_as_bytes_and_as_folders(tmp_path: Path) -> None:
    made = bridge.ModelRef(format=open_format(), data=b"TINY")
    path, files = recording.model_files(made, 3)
    assert (path, files) == ("models/3/model.tiny", {"models/3/model.tiny": b"TINY"})
    saved = tmp_path / "saved"
    (saved / "variables").mkdir(parents=True)
    (saved / "graph").touch()
    (saved / "variables" / "data").touch()
    path, files = recording.model_files(bridge.ModelRef(format=FolderFormat(), path=saved), 1)
    assert path == "models/1/saved"
    assert files == {
        "models/1/saved/graph": saved / "graph",
        "models/1/saved/variables/data": saved / "variables" / "data",
    }


class FolderFormat(bridge.Format):
    name, title, native_backend = "folder", "Folder", "tiny"

    def files(self, model: bridge.ModelRef) -> tuple[Path, ...]:
        return (model.file / "graph", model.file / "variables" / "data")


def open_format() -> bridge.Format:
    made = bridge.Format()
    made.name, made.title, made.native_backend, made.suffixes = "tiny", "Tiny", "tiny", (".tiny",)
    return made


# Its schema


def test_documents_fit_the_schema(folder: Path, record_schema: ModuleType) -> None:
    found = json.loads((folder / "record.json").read_bytes())
    schema = json.loads(record_schema.place().read_text(encoding="utf-8"))
    judge = jsonschema.Draft202012Validator(schema)
    judge.validate(found)
    found["decision"]["routes"][0]["arm"] = 3
    assert not judge.is_valid(found)


def test_the_schema_is_that_of_the_dataclasses(record_schema: ModuleType) -> None:
    stored = json.loads(record_schema.place().read_text(encoding="utf-8"))
    assert stored == record_schema.make(), "run python bridge/tests/record_schema.py"


# What is damaged or strange


@pytest.mark.parametrize("seed", range(4))
def test_bit_flips_are_noticed(folder: Path, seed: int) -> None:
    whole = recording.read(folder)
    data = (folder / "record.json").read_bytes()
    chance = random.Random(seed)
    for _ in range(50):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 4))):
            damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (folder / "record.json").write_bytes(damaged)
        try:
            found = recording.read(folder)
        except RecordError:
            continue
        assert found == whole  # white space


def test_truncation_is_noticed(folder: Path) -> None:
    data = (folder / "record.json").read_bytes()
    for length in (0, 1, 40, len(data) // 2, len(data) - 3):
        (folder / "record.json").write_bytes(data[:length])
        with pytest.raises(InvalidRecord, match="is no selection record"):
            recording.read(folder)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("[]", UnsupportedRecord, "schema is 'None'"),
        ("{}", UnsupportedRecord, "schema is 'None'"),
        ('{"schema": 1}', UnsupportedRecord, "schema is '1'"),
        ('{"schema": "inference-bridge/selection-record/2"}', UnsupportedRecord, "version 2"),
        ('{"schema": "inference-bridge/selection-record/0"}', UnsupportedRecord, "schema is"),
        ('{"schema": "inference-bridge/selection-record/1"}', InvalidRecord, "checksum"),
        ('{"a": NaN}', InvalidRecord, "NaN is no number"),
        ('{"a": -Infinity}', InvalidRecord, "-Infinity is no number"),
        ('{"a": 1e999}', InvalidRecord, "beyond the range"),
        ('{"a": 1, "a": 2}', InvalidRecord, "stands twice"),
        ("[" * 100_000, InvalidRecord, "nested too deeply"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", InvalidRecord, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", InvalidRecord, "is no selection record"),
        ("\udcff", InvalidRecord, "is no selection record"),
    ],
)
def test_other_documents(tmp_path: Path, text: str, kind: type[RecordError], words: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(kind, match=words) as caught:
        recording.read(tmp_path)
    assert caught.value.fix


def test_a_document_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_MOST_BYTES", 1000)
    with pytest.raises(InvalidRecord, match="more than 1000 bytes"):
        recording.read(folder)


@pytest.mark.parametrize("kind", ["nothing", "folder", "fifo"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / "record.json").mkdir()
    if kind == "fifo":
        os.mkfifo(tmp_path / "record.json")
    with pytest.raises((ModelNotFound, InvalidRecord)):
        recording.read(tmp_path)


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        inner: Any = found
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


ROUTE = ("decision", "routes", 0)
BROKEN: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put(*ROUTE, "arm", value=3), r"decision.routes\[0\].arm: wanted text, got whole number"),
    (put(*ROUTE, "arm", value="other"), r"decision.routes\[0\].arm: 'other' is unknown"),
    (put(*ROUTE, "to_rows", value=None), r"decision.routes\[0\].to_rows: wanted a number"),
    (put(*ROUTE, "to_rows", value=True), r"to_rows: wanted whole number, got true or false"),
    (put(*ROUTE, "to_rows", value=1.5), r"to_rows: wanted whole number, got number"),
    (put("decision", "routes", 1, "split_rows", value=0), "split_rows: 0 is less than 1"),
    (put("decision", "status", value="won"), "decision.status: 'won' is unknown"),
    (put("decision", "verdicts", 0, "winner", value="x"), "verdicts.0..winner: 'x'"),
    (put("decision", "verdicts", 0, "ranking", value=["x"]), "verdicts.0.: 'x'"),
    (put("arms", 0, "model", value=1), r"arms\[0\].model: 1 is no index"),
    (put("arms", 0, "model", value=-1), r"arms\[0\].model: -1 is no index"),
    (put("arms", 1, "id", value="tiny"), "stands for several"),
    (put("arms", 0, "status", value="great"), r"arms\[0\].status: 'great'"),
    (put("arms", 0, "options", value=[]), r"arms\[0\].options: wanted object, got list"),
    (put("arms", 0, "inputs", value={"a": "z"}), r"arms\[0\].inputs: 'z' is unknown"),
    (put("arms", 0, "outputs", value={"y": "a", "total": "a"}), "names repeat"),
    (put("arms", 0, "buckets", 0, "rows", value=5), "5 is no bucket"),
    (put("arms", value={}), "arms: wanted list, got object"),
    (put("models", value=[]), "models: there is none"),
    (put("models", 0, "path", value=None), r"routes\[0\].arm: the model of 'tiny' is not"),
    (put("models", 0, "path", value="../model.tiny"), r"models\[0\].path: .* holds '..'"),
    (put("models", 0, "path", value="/etc/passwd"), r"models\[0\].path: .* is absolute"),
    (put("models", 0, "path", value="models/./x"), "empty part or '.'"),
    (put("models", 0, "path", value="calls.npz"), "does not lie in 'models/'"),
    (put("models", 0, "digest", value="12"), "no SHA-256"),
    (put("models", 0, "declared", value={}), r"models\[0\].declared: it is no signature"),
    (put("attachments", value={"../x": "0" * 64}), "holds '..'"),
    (put("attachments", value={"record.json": "0" * 64}), "the name is taken"),
    (put("signature", value={"inputs": [{}], "outputs": []}), "signature: it is no signature"),
    (put("batch_axes", value={"z": 0}), "batch_axes: 'z' is unknown"),
    (put("batch_axes", value={"x": 2}), "2 is no axis"),
    (put("batch_axes", value={}), "no rows to split"),
    (put("buckets", 0, "weight", value=2.0), r"buckets\[0\]: rows are negative, or the weight"),
    (put("buckets", 0, "to_rows", value=None), r"buckets\[0\].to_rows"),
    (put("gate", "reference", value="x"), "gate.reference: 'x'"),
    (put("more", value=1), "more: no such field is known"),
    (put("limits", "more", value=1), "limits.more: no such field is known"),
    (lambda found: found.pop("seed"), "seed: the field is missing"),
    (lambda found: found["limits"].pop("concurrency") and found.pop("gate"), "gate: the field"),
    (put("elapsed_s", value=10**400), "elapsed_s: wanted finite number"),
    (put("seed", value=None), "seed: wanted whole number, got null"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_inconsistent(folder: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    with pytest.raises(InvalidRecord, match=words) as caught:
        recording.read(rewritten(folder, change))
    assert caught.value.fix
    assert caught.value.detail["path"] == str(folder)


def test_what_would_be_refused_is_not_written(
    record: SelectionRecord, write: Callable[..., Path], tmp_path: Path
) -> None:
    arm = dataclasses.replace(record.arms[0], load_s=float("nan"))
    odd = dataclasses.replace(record, arms=(arm, record.arms[1]))
    with pytest.raises(InvalidRecord, match=r"arms\[0\].load_s: wanted finite number, got nan"):
        write(odd, tmp_path / "out")
    odd = dataclasses.replace(record, profile={"a": {"b": {1, 2}}})
    with pytest.raises(InvalidRecord, match=r"profile\['a'\]\['b'\]: wanted JSON value, got set"):
        write(odd, tmp_path / "out")
    with pytest.raises(InvalidRecord, match=r"models\[0\].path: no file is given"):
        recording.write(record, tmp_path / "out", files={})
    with pytest.raises(InvalidRecord, match=r"holds '..'"):
        recording.write(record, tmp_path / "out", files={"../x": b""})
    assert not (tmp_path / "out").exists()


def test_canonical_form_is_one() -> None:
    assert document.canonical({"b": 1, "a": "ä"}) == b'{"a":"\\u00e4","b":1}'


# The files beside the document


def test_missing_model(folder: Path) -> None:
    (folder / "models/0/model.tiny").unlink()
    with pytest.raises(ModelNotFound):
        recording.model(recording.read(folder), 0)


def test_changed_model_and_attachment(folder: Path) -> None:
    (folder / "models/0/model.tiny").write_bytes(b"TINY model, a newer one")
    (folder / "calls.npz").write_bytes(b"others")
    found = recording.read(folder)
    with pytest.raises(StaleRecord, match="not the one that was measured") as caught:
        recording.model(found, 0)
    assert caught.value.detail["wanted"] == found.models[0].digest
    with pytest.raises(InvalidRecord, match="'calls.npz' of the record .* was changed"):
        recording.verify(found)


def test_record_in_memory_has_no_model(record: SelectionRecord) -> None:
    with pytest.raises(ModelNotFound, match="in memory only"):
        recording.model(record, 0)


def test_trust_is_asked_for_again(folder: Path) -> None:
    rewritten(folder, put("models", 0, "trust", value=True))
    found = recording.read(folder)
    with pytest.raises(UntrustedModel, match="trust=True when it was measured"):
        recording.model(found, 0)
    assert recording.model(found, 0, trust=True).trust
    rewritten(folder, put("models", 0, "trust", value=False))
    assert not recording.model(recording.read(folder), 0, trust=True).trust


@pytest.mark.parametrize("link", ["model", "folder of models"])
def test_links_out_of_the_folder(folder: Path, tmp_path: Path, link: str) -> None:
    place = folder / ("models/0/model.tiny" if link == "model" else "models/0")
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(UntrustedModel, match="leaves the record's folder"):
        recording.model(recording.read(folder), 0, trust=True)


def test_links_of_the_document_and_of_attachments(folder: Path, tmp_path: Path) -> None:
    (folder / "calls.npz").rename(tmp_path / "outside")
    (folder / "calls.npz").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidRecord, match="symbolic link that leaves"):
        recording.attachment(recording.read(folder), "calls.npz")
    (folder / "record.json").rename(tmp_path / "record.json")
    (folder / "record.json").symlink_to(tmp_path / "record.json")
    with pytest.raises(InvalidRecord, match="symbolic link that leaves"):
        recording.read(folder)


def test_links_inside_are_fine(folder: Path) -> None:
    (folder / "..data").mkdir()  # as volumes of Kubernetes are laid out
    (folder / "record.json").rename(folder / "..data/record.json")
    (folder / "record.json").symlink_to("..data/record.json")
    assert recording.read(folder).folder == folder


# Where it may be written


@pytest.mark.parametrize("there", ["file", "link", "other files", "more files", "other record"])
def test_other_things_are_not_replaced(
    record: SelectionRecord, write: Callable[..., Path], folder: Path, tmp_path: Path, there: str
) -> None:
    target = tmp_path / "target"
    if there == "file":
        target.write_text("mine")
    elif there == "link":
        target.symlink_to(folder)
    elif there == "other files":
        target.mkdir()
        (target / "mine").touch()
    elif there == "more files":
        folder.rename(target)
        (target / "mine").touch()
    else:
        target.mkdir()
        (target / "record.json").write_text('{"schema": "music"}')
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(RecordNotWritten, match="cannot be written") as caught:
        write(record, target)
    assert isinstance(caught.value, OSError)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    with pytest.raises(RecordNotWritten):
        recording.check_target(target)


def test_a_folder_in_use_is_not_replaced(
    record: SelectionRecord,
    write: Callable[..., Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder / "models")
    for named in (Path(), Path(".."), folder):
        with pytest.raises(RecordNotWritten, match="cannot be written"):
            write(record, named)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    with pytest.raises(RecordNotWritten, match="is a mount point"):
        write(record, folder)
    assert recording.read(folder)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RecordNotWritten, match="the current folder was removed"):
        write(record, Path("out"))
    with pytest.raises(ModelNotFound, match="the current folder was removed"):
        recording.read("out")
    write(record, tmp_path / "out")
    write(record, tmp_path / "out")


def test_empty_and_damaged_folders_are_replaced(
    record: SelectionRecord, write: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert recording.read(write(record, tmp_path / "empty"))
    data = (folder / "record.json").read_bytes()
    (folder / "record.json").write_bytes(data[:5000])
    assert recording.read(write(record, folder))
    assert recording.read(write(record, tmp_path / "new" / "folders"))


def test_model_changed_while_it_was_measured(
    record: SelectionRecord, write: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    tiny_model.write_bytes(b"TINY but other")
    with pytest.raises(RecordNotWritten, match="changed since it was measured"):
        write(record, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.tiny"]


STEPS = [
    *(("os.mkdir", nth) for nth in (2, 3, 4)),
    *(("os.fsync", nth) for nth in (1, 3, 4, 6)),
    ("shutil.copyfileobj", 1),
    ("os.rename", 1),
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("name", "nth"), STEPS)
@pytest.mark.parametrize("is_first", [True, False])
def test_disk_error_at_each_step(
    record: SelectionRecord,
    write: Callable[..., Path],
    tmp_path: Path,
    name: str,
    nth: int,
    number: int,
    is_first: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out"
    if not is_first:
        write(dataclasses.replace(record, seed=1), target)
    real = getattr(sys.modules[name.split(".")[0]], name.split(".")[1])
    calls = 0

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    import shutil  # noqa: F401 - named in STEPS

    with monkeypatch.context() as patch:
        patch.setattr(name, failing)
        with pytest.raises(RecordNotWritten, match=os.strerror(number)) as caught:
            write(dataclasses.replace(record, seed=2), target)
    assert calls == nth
    assert caught.value.__cause__ is not None
    names = {"model.tiny"} if is_first else {"model.tiny", "out"}
    assert {path.name for path in tmp_path.iterdir()} == names
    if not is_first:
        assert recording.read(target).seed == 1
    assert recording.read(write(dataclasses.replace(record, seed=3), target)).seed == 3


def test_full_device_at_the_end_of_a_write(
    record: SelectionRecord,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What fills up while the last file is written: the document."""

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *about: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> int:
            self.stream.write(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        stream = real(self, mode, *args, **options)
        return Full(stream) if self.name == "record.json" and "x" in mode else stream

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(RecordNotWritten, match="No space left"):
        write(record, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.tiny"]


def test_interrupt_while_writing(
    record: SelectionRecord,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(record, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.tiny"]


@pytest.mark.parametrize("is_first", [True, False])
def test_without_a_kernel_that_exchanges(
    record: SelectionRecord,
    write: Callable[..., Path],
    tmp_path: Path,
    is_first: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "_exchange", lambda one, other: False)
    if not is_first:
        write(dataclasses.replace(record, seed=1), tmp_path / "out")
    write(dataclasses.replace(record, seed=2), tmp_path / "out")
    assert recording.read(tmp_path / "out").seed == 2
    assert {path.name for path in tmp_path.iterdir()} == {"model.tiny", "out"}


RACER = """
import dataclasses, json, os, sys
from pathlib import Path
from bridge import recording
from bridge.errors import RecordNotWritten

source, target = Path(sys.argv[1]), Path(sys.argv[2])
seed, rounds = int(sys.argv[3]), int(sys.argv[4])
record = dataclasses.replace(recording.read(source), seed=seed)
recording._check_digests = lambda record, folder: None  # no plugin knows this model here
files = {"models/0/model.tiny": source / "models/0/model.tiny"}
if sys.argv[5] == "two steps":
    from bridge import placement
    placement._exchange = lambda one, other: False
for _ in range(rounds):
    recording.write(record, target, files=files, attachments={"calls.npz": b"x" * 1000})
    found = None
    while found is None:
        try:
            found = recording.read(target)
        except Exception:
            if sys.argv[5] == "one step":
                raise
    assert found.seed in (1, 2, 3)
"""


@pytest.mark.parametrize("way", ["one step", "two steps"])
def test_racing_writers(folder: Path, tmp_path: Path, way: str) -> None:
    target = tmp_path / "target"
    words = [sys.executable, "-c", RACER, str(folder), str(target)]
    racers = [
        subprocess.Popen([*words, str(seed), "12", way], stderr=subprocess.PIPE, text=True)
        for seed in (1, 2, 3)
    ]
    for racer in racers:
        _, said = racer.communicate(timeout=60)
        assert racer.returncode == 0, said
    assert recording.read(target).seed in (1, 2, 3)
    assert {path.name for path in target.iterdir()} == {"record.json", "models", "calls.npz"}
    assert {path.name for path in tmp_path.iterdir()} == {"model.tiny", "chosen", "target"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "read-only"
    place.mkdir()
    place.chmod(0o500)
    yield place
    place.chmod(0o700)


def test_unwritable(
    record: SelectionRecord,
    write: Callable[..., Path],
    read_only: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if os.geteuid() == 0:  # root passes permission bits
        monkeypatch.setattr(os, "access", lambda path, mode: path != read_only)
    with pytest.raises(RecordNotWritten, match="may not be written to"):
        write(record, read_only / "out")
    assert list(read_only.iterdir()) == []


def test_a_json_file_is_a_record_by_its_name_or_its_content(tmp_path: Path) -> None:
    other = tmp_path / "model.json"
    other.write_bytes(b"\x08\x07 an ONNX model that somebody called so")
    assert not recording.is_record(other)
    other.write_text('{"schema": "inference-bridge/selection-record/1"}')
    assert recording.is_record(other)
    (tmp_path / "record.json").write_text("nonsense")
    assert recording.is_record(tmp_path / "record.json")
    assert recording.is_record(tmp_path)
