"""Tables of checkpoints that stock TensorFlow wrote: look-ups, deltas, readers meanwhile, files."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import (
    BackendUnavailable,
    DTypeMismatch,
    InvalidModel,
    ModelNotFound,
    ShapeMismatch,
    UnexpectedInput,
    UnsupportedModel,
)
from bridge_deeprec.checkpoint import Checkpoint
from bridge_deeprec.tables import Tables

tf = pytest.importorskip("tensorflow")
pytest.importorskip("pandas")
pytest.importorskip("google_crc32c")

DIM = 3


def save(prefix: Path, tensors: Mapping[str, Any]) -> Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


def rows_of(keys: Any, version: int) -> Any:
    """Rows that tell which id and version they are of."""
    keys = np.asarray(keys)
    return (keys[..., None] * np.array([1, 2, 3]) + version).astype(np.float32)


def full(folder: Path, keys: Any, version: int = 100, **more: Any) -> Checkpoint:
    keys = np.asarray(keys)
    tensors = {"n-keys": keys, "n-values": rows_of(keys, version), **more}
    return Checkpoint.open(save(folder / f"model.ckpt-{version}", tensors))


def delta(folder: Path, keys: Any, version: int, values: Any = None, name: str = "n") -> Checkpoint:
    keys = np.asarray(keys)
    tensors = {
        f"{name}-sparse_incr_keys": keys,
        f"{name}-sparse_incr_values": rows_of(keys, version) if values is None else values,
        f"{name}-sparse_incr_versions": np.zeros(len(keys), np.int64),
    }
    home = folder / ".incremental_checkpoint"
    return Checkpoint.open(save(home / f"incremental_model.ckpt-{version}", tensors))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_are_found_by_id(dtype: type, tmp_path: Path) -> None:
    keys = np.array([5, 1000, -7, 2**31 - 1], dtype)
    tables = Tables.build(full(tmp_path, keys))
    table = tables.current["n"]
    assert (len(table), table.dim, table.key_dtype) == (4, DIM, dtype)
    for asked in (np.int32, np.int64):
        ids = np.array([[5, 5, 6], [2**31 - 1, -7, 1000]], asked)
        found = tables.gather("n", ids)
        wanted = rows_of(ids, 100)
        wanted[0, 2] = 0  # an id that was never seen
        np.testing.assert_array_equal(found, wanted, strict=True)
        assert tables.lookup("n", ids).tolist() == [[0, 0, 4], [3, 2, 1]]
        out = np.full((2, 3, DIM), np.nan, np.float32)
        assert tables.gather("n", ids, out) is out
        np.testing.assert_array_equal(out, wanted)
    # An id beyond 32 bits is no other one, whatever the table was saved as.
    assert not tables.gather("n", np.array([5 + 2**32])).any()
    assert tables.gather("n", np.zeros((0, 2), np.int64)).shape == (0, 2, DIM)
    assert tables.gather("n", np.int64(5)).tolist() == rows_of(5, 100).tolist()
    every_other = np.repeat(keys, 2)[::2]
    np.testing.assert_array_equal(tables.gather("n", every_other), rows_of(keys, 100))


def test_a_million_rows_are_those_of_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    # All different, as the factor is odd, all over 64 bits, and in no order.
    keys = (np.arange(1_000_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
    values = random.standard_normal((len(keys), 2), dtype=np.float32)
    halves = keys % 2 == 0
    tensors = {}
    for part, own in enumerate((halves, ~halves)):
        tensors[f"n/part_{part}-keys"] = keys[own]
        tensors[f"n/part_{part}-values"] = values[own]
    tables = Tables.build(Checkpoint.open(save(tmp_path / "model.ckpt-1", tensors)))
    np.testing.assert_array_equal(tables.gather("n", keys), values, strict=True)
    assert not tables.gather("n", keys[:1000] + 1).any()


def test_default_rows_are_chosen_by_id(tmp_path: Path) -> None:
    # The id 9 was seen, and not often enough for a row.
    checkpoint = full(tmp_path, np.array([1, 2]), **{"n-keys_filtered": np.array([9])})
    assert checkpoint.info("n").filtered == 1
    assert Tables.build(checkpoint, defaults={"n": 0.5}).gather("n", np.array([9])).tolist() == [
        [0.5] * DIM
    ]
    rows = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM)
    tables = Tables.build(checkpoint, defaults={"n": rows})
    np.testing.assert_array_equal(
        tables.gather("n", np.array([4, 5, 2, 7, -1])),
        [rows[0], rows[1], *rows_of([2], 100), rows[3], rows[3]],
    )
    tables.apply(delta(tmp_path, np.array([5]), 101))
    np.testing.assert_array_equal(
        tables.gather("n", np.array([4, 5, 9])), [rows[0], *rows_of([5], 101), rows[1]]
    )
    for wrong in (np.zeros((2, DIM + 1)), np.zeros(DIM), np.full((1, DIM), np.nan)):
        with pytest.raises(InvalidModel, match="default rows of 'n' should be finite and of the"):
            Tables.build(checkpoint, defaults={"n": wrong})


def test_tables_without_rows_give_default_rows(tmp_path: Path) -> None:
    tables = Tables.build(full(tmp_path, np.zeros(0, np.int64)))
    assert tables.gather("n", np.array([1, 1])).tolist() == [[0] * DIM] * 2
    tables.apply(delta(tmp_path, np.zeros(0, np.int64), 101))
    tables.apply(delta(tmp_path, np.array([1]), 102))
    assert tables.gather("n", np.array([1])).tolist() == rows_of([1], 102).tolist()


def test_what_is_asked_wrongly_is_refused(tmp_path: Path) -> None:
    checkpoint = full(tmp_path, np.arange(3))
    tables = Tables.build(checkpoint)
    with pytest.raises(UnexpectedInput, match="no table 'm'"):
        tables.gather("m", np.arange(3))
    with pytest.raises(ModelNotFound, match="no EmbeddingVariable 'm'"):
        Tables.build(checkpoint, names=["m"])
    for ids in (np.arange(3.0), np.array(["a"]), np.arange(3, dtype=np.uint64)):
        with pytest.raises(DTypeMismatch, match="should be int32 or int64 and are"):
            tables.gather("n", ids)
    with pytest.raises(DTypeMismatch, match="should be float32 and is float64"):
        tables.gather("n", np.arange(3), np.empty((3, DIM)))
    for out in (np.empty((3, DIM + 1), np.float32), np.empty((DIM, 3), np.float32).T):
        with pytest.raises(ShapeMismatch):
            tables.gather("n", np.arange(3), out)


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="the id 4 is in 'n-keys' more than once") as caught:
        Tables.build(full(tmp_path, np.array([1, 4, 2, 4])))
    assert caught.value.model == str(tmp_path / "model.ckpt-100")
    tables = Tables.build(full(tmp_path, np.array([1, 4])))
    with pytest.raises(InvalidModel, match="the id 7 is in 'n-sparse_incr_keys'"):
        tables.apply(delta(tmp_path, np.array([7, 7]), 101))
    assert tables.current.version == 100


def test_deltas_replace_and_add_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tables = Tables.build(full(tmp_path, np.arange(1000)))
    newest = dict.fromkeys(range(1000), 100)
    first, compacted = tables.current, 0
    for version in range(101, 121):
        keys = random.permutation(1500)[:80]
        applied = tables.apply(delta(tmp_path, keys, version))
        newest.update(dict.fromkeys(keys.tolist(), version))
        assert applied.version == tables.current.version == version
        ids = random.permutation(1500)
        wanted = np.stack([rows_of(i, newest[i]) if i in newest else [0] * DIM for i in ids])
        for snapshot in (applied, tables.current):
            np.testing.assert_array_equal(snapshot.gather("n", ids), wanted)
            assert len(snapshot["n"]) == len(newest)
        compacted += tables.current["n"].changed == 0
    assert 1 <= compacted < 20
    np.testing.assert_array_equal(first.gather("n", np.arange(1000)), rows_of(np.arange(1000), 100))
    tables.save(tmp_path / "saved")
    again = Tables.open(tmp_path / "saved")
    np.testing.assert_array_equal(again.gather("n", ids), wanted)
    assert again.current.version == 120


def test_deltas_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    tables = Tables.build(full(tmp_path, np.arange(5), m_other=np.zeros(2)))
    tables.apply(delta(tmp_path, np.arange(2), 103))
    now = tables.current
    nan = np.full((1, DIM), np.nan, np.float32)
    one = np.arange(1)
    for bad, error, text in (
        (
            delta(tmp_path / "1", one, 102),
            InvalidModel,
            "has the version 102; wanted one above 103",
        ),
        (
            delta(tmp_path / "2", one, 103),
            InvalidModel,
            "has the version 103; wanted one above 103",
        ),
        (
            delta(tmp_path / "3", one, 104, np.ones((1, 4), "f")),
            InvalidModel,
            "rows of 4 for int64",
        ),
        (delta(tmp_path / "4", one.astype(np.int32), 104), InvalidModel, "for int32 ids in 'n'"),
        (delta(tmp_path / "5", one, 104, nan), InvalidModel, "holds NaN"),
        (
            delta(tmp_path / "6", one, 104, name="m"),
            UnsupportedModel,
            "rows of 'm', which has no table",
        ),
        (full(tmp_path / "7", one, 105), InvalidModel, "is a full one"),
    ):
        with pytest.raises(error, match=text) as caught:
            tables.apply(bad)
        assert caught.value.model == str(bad.prefix)
        assert tables.current is now
    with pytest.raises(InvalidModel, match="is incremental; wanted a full one"):
        Tables.build(delta(tmp_path, one, 104))


def test_deltas_of_parts_and_with_dense_variables_are_taken(tmp_path: Path) -> None:
    """As DeepRec writes them: an EmbeddingVariable in parts, a dense one of which rows changed."""
    tables = Tables.build(full(tmp_path, np.arange(4)))
    tensors: dict[str, Any] = {"dense/bias": np.zeros(2, np.float32)}
    for stem, keys in (("n/part_0", [0, 2]), ("n/part_1", [5]), ("n/part_0/Adagrad", [0, 2])):
        buckets = np.searchsorted(keys, np.arange(1001)).astype(np.int32)
        tensors |= {
            f"{stem}-sparse_incr_keys": np.array(keys, np.int64),
            f"{stem}-sparse_incr_values": rows_of(keys, 101),
            f"{stem}-sparse_incr_versions": np.zeros(len(keys), np.int64),
            f"{stem}-sparse_incr_freqs": np.ones(len(keys), np.int64),
            f"{stem}-incr_partition_offset": buckets,
        }
    tensors |= {
        "plain-sparse_incr_keys": np.array([3, 9], np.int32),
        "plain-sparse_incr_values": np.ones((2, 5), np.float32),
    }
    one = Checkpoint.open(save(tmp_path / ".incremental_checkpoint" / "m.ckpt-101", tensors))
    assert (one.dense, one.dense_rows, one.slots) == (("dense/bias",), ("plain",), ("n/Adagrad",))
    tables.apply(one)
    np.testing.assert_array_equal(
        tables.gather("n", np.arange(6)),
        np.stack([rows_of(n, 101 if n in {0, 2, 5} else 100) * (n != 4) for n in range(6)]),
    )


def test_a_variable_that_looks_like_a_slot_of_another_is_changed_too(tmp_path: Path) -> None:
    """It lies below the other, and as many rows of both have changed."""
    keys = np.arange(4)
    below = {"n/m-keys": keys[:3], "n/m-values": rows_of(keys[:3], 100)}
    tables = Tables.build(full(tmp_path, keys, **below))
    tensors = {
        f"{name}-sparse_incr_{what}": value
        for name in ("n", "n/m")
        for what, value in (("keys", keys[:1]), ("values", rows_of(keys[:1], 101)))
    }
    one = Checkpoint.open(save(tmp_path / ".incremental_checkpoint" / "m.ckpt-101", tensors))
    assert one.slots == ("n/m",)
    tables.apply(one)
    for name in ("n", "n/m"):
        np.testing.assert_array_equal(tables.gather(name, keys[:1]), rows_of(keys[:1], 101))


def test_rows_of_variables_without_a_table_are_left_out(tmp_path: Path) -> None:
    """A signature may need some of a training's variables only."""
    keys = np.arange(4)
    whole = full(tmp_path, keys, **{"m-keys": keys, "m-values": rows_of(keys, 100)})
    tables = Tables.build(whole, names=["n"])
    tensors = {
        f"{name}-sparse_incr_{what}": value
        for name, count in (("m", 1), ("n", 2))
        for what, value in (
            ("keys", keys[:count]),
            ("values", rows_of(keys[:count], 101)),
            ("versions", np.zeros(count, np.int64)),
        )
    }
    tables.apply(
        Checkpoint.open(save(tmp_path / ".incremental_checkpoint" / "m.ckpt-101", tensors))
    )
    assert list(tables.current.tables) == ["n"]
    np.testing.assert_array_equal(tables.gather("n", keys[:2]), rows_of(keys[:2], 101))


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = full(tmp_path, np.arange(3))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(BackendUnavailable, match="pandas is not installed"):
            Tables.build(checkpoint)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="google-crc32c is not installed"):
        Checkpoint.open(checkpoint.prefix)


def test_readers_see_one_version_while_deltas_are_applied(tmp_path: Path) -> None:
    """Every delta renews every row, so that rows of two versions would not agree."""
    keys = np.arange(300)
    tables = Tables.build(full(tmp_path, keys))
    deltas = [delta(tmp_path, keys[: None if n % 3 else 60], 101 + n) for n in range(30)]
    ids = np.tile(keys[:60], 5)
    seen: set[int] = set()
    wrong: list[Any] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            snapshot = tables.current
            rows = snapshot.gather("n", ids)
            version = snapshot.version
            assert version is not None
            seen.add(version)
            if not (rows == rows_of(ids, version)).all():
                wrong.append(version)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for one in deltas:
            before = set(seen)
            tables.apply(one)
            while not seen - before and len(seen) < 5:
                done.wait(0.001)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not wrong
    assert len(seen) >= 5
    assert tables.current.version == 130


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    tables = Tables.build(full(tmp_path, np.arange(50)), defaults={"n": 7.0})
    tables.save(folder)
    return folder


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_tables_are_the_same(saved: Path, mmap: bool) -> None:
    tables = Tables.open(saved, mmap=mmap)
    table = tables.current["n"]
    assert (tables.current.version, len(table), table.key_dtype) == (100, 50, np.int64)
    ids = np.array([3, 49, 50])
    np.testing.assert_array_equal(
        tables.gather("n", ids), np.concatenate([rows_of(ids[:2], 100), np.full((1, DIM), 7, "f")])
    )
    with pytest.raises(ValueError, match="read-only") if mmap else _nothing():
        table.values[0] = 0
    tables.apply(delta(saved.parent, np.array([3, 50]), 101))
    np.testing.assert_array_equal(tables.gather("n", ids[::2]), rows_of([3, 50], 101))


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_tables_are_not_written_over_others(saved: Path) -> None:
    with pytest.raises(FileExistsError):
        Tables.open(saved).save(saved)


def test_damaged_folders_are_refused(saved: Path) -> None:
    values, keys = saved / "table-0.values.npy", saved / "table-0.keys.npy"
    sound = values.read_bytes()

    def refused(error: type, text: str) -> None:
        with pytest.raises(error, match=text) as caught:
            Tables.open(saved)
        assert caught.value.model == str(saved)

    values.write_bytes(sound[:-1])
    refused(InvalidModel, "'table-0.values.npy' is no sound .npy file")
    values.write_bytes(sound[:40])
    refused(InvalidModel, "'table-0.values.npy' is no sound .npy file")
    values.write_bytes(sound[:-1] + b"\0")
    refused(InvalidModel, "'table-0.values.npy' is not the file that was written")
    assert len(Tables.open(saved, verify=False).current["n"]) == 50
    for position in range(0, 128, 3):  # the header
        for value in (0, 0x27, 0x39, 0x7B, 0xFF):
            values.write_bytes(sound[:position] + bytes([value]) + sound[position + 1 :])
            if values.read_bytes() != sound:
                with pytest.raises(InvalidModel):
                    Tables.open(saved)
    np.save(values, np.zeros((51, DIM)))
    refused(InvalidModel, r"should be float32\[51, 3\] and is float64\[51, 3\]")
    np.save(values, np.array([{}]), allow_pickle=True)
    refused(InvalidModel, "'table-0.values.npy' is no sound .npy file")
    values.write_bytes(b"PK\3\4" + sound)
    refused(InvalidModel, "'table-0.values.npy' is no sound .npy file")
    np.save(values, np.zeros((DIM, 51), np.float32).T)
    refused(InvalidModel, r"should be float32\[51, 3\]")
    values.unlink()
    refused(ModelNotFound, "table-0.values.npy' does not exist or is a link")
    values.symlink_to(keys)
    refused(ModelNotFound, "does not exist or is a link")
    values.unlink()
    os.mkfifo(values)
    refused(ModelNotFound, "does not exist or is a link")


def test_unsound_manifests_are_refused(saved: Path) -> None:
    path = saved / "tables.json"
    sound = json.loads(path.read_text())
    table = sound["tables"][0]
    for text in (
        "",
        "{",
        "[" * 100_000,
        "[]",
        json.dumps({**sound, "schema": 2}),
        json.dumps({**sound, "version": -1}),
        json.dumps({**sound, "tables": 3}),
        json.dumps({**sound, "tables": [table, table]}),
        *(
            json.dumps({**sound, "tables": [{**table, key: value}]})
            for key, value in (
                ("name", 3),
                ("key_dtype", "object"),
                ("key_dtype", ["int64"]),
                ("rows", -1),
                ("rows", True),
                ("rows", 2**40),
                ("dim", 0),
                ("defaults", 0),
                ("keys", None),
                ("values", "sha256:0"),
            )
        ),
    ):
        path.write_text(text)
        with pytest.raises((InvalidModel, ModelNotFound)) as caught:
            Tables.open(saved)
        assert caught.value.model == str(saved)
    path.unlink()
    with pytest.raises(ModelNotFound, match="there are no tables in"):
        Tables.open(saved)
