"""Checkpoints that stock TensorFlow writes with the names that DeepRec gives its tensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import InvalidModel, ModelError, ModelNotFound, UnsupportedModel
from bridge_deeprec.bundle import Bundle
from bridge_deeprec.checkpoint import Checkpoint, EmbeddingInfo
from bridge_deeprec.sorted_table import TableError, masked_crc, read_table

tf = pytest.importorskip("tensorflow")
google_crc32c = pytest.importorskip("google_crc32c")

RANDOM = np.random.default_rng(7)


def save(prefix: Path, tensors: Mapping[str, Any], slices: Mapping[str, str] | None = None) -> Path:
    """Write a checkpoint; the slices are TensorFlow's text for parts of a larger tensor."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[name.partition("@")[0] for name in tensors],
        shape_and_slices=[(slices or {}).get(name, "") for name in tensors],
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


def embedding(name: str, keys: Any, dim: int = 4, **more: Any) -> dict[str, Any]:
    """What DeepRec writes of an EmbeddingVariable; its values are random."""
    keys = np.asarray(keys)
    order = np.argsort(keys % 1000, kind="stable") if keys.dtype.kind == "i" else slice(None)
    keys = keys[order]
    buckets = keys % 1000 if keys.dtype.kind == "i" else np.zeros(0)
    return {
        f"{name}-keys": keys,
        f"{name}-values": RANDOM.standard_normal((len(keys), dim), dtype=np.float32),
        f"{name}-versions": np.zeros(0, np.int64),
        f"{name}-freqs": np.arange(len(keys), dtype=np.int64),
        f"{name}-keys_filtered": np.zeros(0, keys.dtype),
        f"{name}-versions_filtered": np.zeros(0, np.int64),
        f"{name}-freqs_filtered": np.zeros(0, np.int64),
        f"{name}-partition_offset": np.searchsorted(buckets, np.arange(1001)).astype(np.int32),
        f"{name}-partition_filter_offset": np.zeros(1001, np.int32),
        **{f"{name}-{end}": value for end, value in more.items()},
    }


FILTERED = np.array([7, 9, 11], np.int64)
FULL = {
    **embedding("user", np.array([2**62, 5, -(2**63), 1005], np.int64), keys_filtered=FILTERED),
    **embedding("user/Adagrad", np.array([2**62, 5, -(2**63), 1005], np.int64)),
    **embedding("a/item/part_0", np.array([2, 4], np.int32), 8),
    **embedding("a/item/part_1", np.array([1], np.int32), 8),
    **embedding("a/item/part_0/Adam_1", np.array([2, 4], np.int32), 8),
    **embedding("a/item/part_1/Adam_1", np.array([1], np.int32), 8),
    **embedding("a/none", np.zeros(0, np.int64), 2),
    "dense/kernel": RANDOM.standard_normal((3, 2)),
    "sort-keys": np.arange(3.0),
    "global_step": np.int64(100),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("full") / "model.ckpt-100", FULL)


def test_what_is_in_a_checkpoint_is_told_apart(full: Path) -> None:
    found = Checkpoint.open(full)
    assert found.version == 100
    assert not found.is_incremental
    int32, int64 = np.dtype(np.int32), np.dtype(np.int64)
    assert found.variables == (
        EmbeddingInfo("a/item", int32, dim=8, rows=3, partitions=2, filtered=0),
        EmbeddingInfo("a/none", int64, dim=2, rows=0, partitions=1, filtered=0),
        EmbeddingInfo("user", int64, dim=4, rows=4, partitions=1, filtered=3),
    )
    assert found.slots == ("a/item/Adam_1", "user/Adagrad")
    assert found.dense == ("dense/kernel", "global_step", "sort-keys")


def test_data_are_those_that_tensorflow_wrote(full: Path) -> None:
    found = Checkpoint.open(full)
    for name, parts in {
        "user": ["user"],
        "a/item": ["a/item/part_0", "a/item/part_1"],
        "a/item/Adam_1": ["a/item/part_0/Adam_1", "a/item/part_1/Adam_1"],
        "a/none": ["a/none"],
    }.items():
        keys, values = found.read_embedding(name, spare=2)
        wanted = np.concatenate([FULL[f"{part}-keys"] for part in parts])
        np.testing.assert_array_equal(keys, wanted, strict=True)
        rows = np.concatenate([FULL[f"{part}-values"] for part in parts])
        np.testing.assert_array_equal(values[: len(rows)], rows, strict=True)
        assert values.shape == (len(rows) + 2, rows.shape[1])
    np.testing.assert_array_equal(found.read_filtered("user"), FILTERED, strict=True)
    assert found.read_filtered("a/item").dtype == np.int32
    np.testing.assert_array_equal(found.read_dense("dense/kernel"), FULL["dense/kernel"])
    assert found.read_dense("global_step").shape == ()


def test_the_bundle_reads_what_tensorflow_reads(tmp_path: Path) -> None:
    tensors = {f"scope_{n % 7}/{'v' * (n % 50)}{n}": np.full(n % 3, n) for n in range(600)}
    for dtype in ("bool", "uint8", "int16", "float16", "float64", "complex64", "uint64"):
        tensors[dtype] = np.arange(6).reshape(2, 3).astype(dtype)
    tensors["bfloat16"] = np.arange(4, dtype=np.float32).astype(tf.bfloat16.as_numpy_dtype)
    tensors["empty"] = np.zeros((0, 3), np.float32)
    # Lengths and starts of one, two and three bytes in the order-preserving code of slices.
    large = RANDOM.standard_normal((20_000, 2), dtype=np.float32)
    slices = {}
    for start, end in ((0, 63), (63, 8_300), (8_300, 20_000)):
        tensors[f"large@{start}"] = large[start:end]
        slices[f"large@{start}"] = f"20000 2 {start},{end - start}:-"
    prefix = save(tmp_path / "model", tensors, slices)
    ours, theirs = Bundle(prefix), tf.train.load_checkpoint(str(prefix))
    assert ours.tensors.keys() == theirs.get_variable_to_shape_map().keys()
    assert len(ours.tensors) == 610
    for name, shape in theirs.get_variable_to_shape_map().items():
        assert ours.tensors[name].shape == tuple(shape)
        np.testing.assert_array_equal(ours.read(name), theirs.get_tensor(name), strict=True)


def test_data_in_several_files_are_found(tmp_path: Path) -> None:
    parts = [save(tmp_path / f"part{n}", {f"t{n}": np.full(3, n)}) for n in range(3)]
    merged = tmp_path / "merged"
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(part) for part in parts], destination_prefix=str(merged)
    )
    bundle = Bundle(merged)
    assert [bundle.read(f"t{n}").tolist() for n in range(3)] == [[n] * 3 for n in range(3)]
    lost = tmp_path / "merged.data-00001-of-00003"
    lost.unlink()
    with pytest.raises(ModelNotFound, match=r"lacks its file 'merged\.data-00001-of-00003'"):
        Bundle(merged)


def copy(full: Path, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for end in (".index", ".data-00000-of-00001"):
        shutil.copyfile(f"{full}{end}", folder / f"{name}{end}")
    return folder / name


def test_the_newest_checkpoint_is_the_one_that_deeprec_takes(full: Path, tmp_path: Path) -> None:
    home = tmp_path / "checkpoints"
    for age, folder in enumerate(("b", "a", "c")):
        for name in ("model.ckpt-9", "model.ckpt-10", "model"):
            copy(full, home / folder, name)
        (home / folder / "checkpoint").touch()
        os.utime(home / folder / "checkpoint", (1000 - age, 1000 - age))
    newest = home / "b" / "model.ckpt-10"
    (home / "b" / "model.ckpt-99-user-ssd_record.index").touch()  # of another checkpoint
    for path in (home, home / "b", newest, f"{newest}.index"):
        assert Checkpoint.open(path).prefix == newest
    assert Checkpoint.open(newest).version == 10
    saved = tmp_path / "saved_model"
    copy(full, saved / "variables", "variables")
    assert Checkpoint.open(saved).prefix == saved / "variables" / "variables"
    assert Checkpoint.open(saved).version is None
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nothing", home / "b" / "model.ckpt-11"):
        with pytest.raises(ModelNotFound):
            Checkpoint.open(nothing)


def test_deltas_come_in_the_order_of_their_numbers(full: Path, tmp_path: Path) -> None:
    base = copy(full, tmp_path, "model.ckpt-100")
    folder = tmp_path / ".incremental_checkpoint"
    keys = {"user-sparse_incr_keys": np.array([5]), "user-sparse_incr_values": np.ones((1, 4), "f")}
    for number in (99, 1000, 100, 101, 200):
        save(folder / f"incremental_model.ckpt-{number}", {**keys, "dense/bias": np.ones(2)})
    (folder / "no-number.index").touch()
    found = Checkpoint.open(base)
    assert [path.name.rpartition("-")[2] for path in found.deltas()] == ["101", "200", "1000"]
    assert [path.name.rpartition("-")[2] for path in found.deltas(after=200)] == ["1000"]
    delta = Checkpoint.open(folder)
    assert (delta.version, delta.is_incremental, delta.dense) == (1000, True, ("dense/bias",))
    assert delta.variables[0].rows == 1


def changed(**tensors: Any) -> dict[str, Any]:
    """A small sound checkpoint, but for these; ``None`` leaves one out, ``__`` is a dash."""
    found = {**embedding("n", np.arange(3)), "step": np.int64(1)}
    for name, value in tensors.items():
        found[name.replace("__", "-").replace("OF", "/")] = value
    return {name: value for name, value in found.items() if value is not None}


NAN = np.zeros((3, 4), np.float32)
NAN[1, 2] = np.nan
BAD = {
    "no values": (changed(n__values=None), InvalidModel, "'n' has 8 of its tensors, but no values"),
    "no keys": (changed(n__keys=None), InvalidModel, "but no keys"),
    "fewer rows": (
        changed(n__values=np.zeros((2, 4), np.float32)),
        InvalidModel,
        r"'n-values' should be float32\[3, dim\], as there are 3 ids, and is float32\[2, 4\]",
    ),
    "no rank": (changed(n__values=np.zeros(3, np.float32)), InvalidModel, r"is float32\[3\]"),
    "no dim": (changed(n__values=np.zeros((3, 0), np.float32)), InvalidModel, r"\[3, 0\]"),
    "half": (changed(n__values=np.zeros((3, 4), np.float16)), UnsupportedModel, "are float16"),
    "strings": (changed(n__keys=np.array([b"a", b"b", b"c"])), UnsupportedModel, "are strings"),
    "float ids": (changed(n__keys=np.arange(3.0)), InvalidModel, r"is float64\[3\]"),
    "versions": (changed(n__versions=np.zeros(2, np.int64)), InvalidModel, "'n-versions' should"),
    "filtered": (changed(n__keys_filtered=np.zeros(2, np.int32)), InvalidModel, r"int64\[M\]"),
    "offsets": (changed(n__partition_offset=np.zeros(9, np.int32)), InvalidModel, r"int32\[1001\]"),
    "offsets that lie": (
        changed(n__partition_offset=np.full(1001, 3, np.int32)),
        InvalidModel,
        "should go from 0 to 3",
    ),
    "NaN": (changed(n__values=NAN), InvalidModel, "row 1 of 'n-values', of the id 1, holds NaN"),
    "both": (
        changed(nOFpart_0__keys=np.arange(1), nOFpart_0__values=np.ones((1, 4), "f")),
        InvalidModel,
        "both whole and in parts",
    ),
    "twice": (changed(n__sparse_incr_keys=np.arange(1)), InvalidModel, "full and incrementally"),
    "gap": (
        {**embedding("p/part_0", np.arange(2)), **embedding("p/part_2", np.arange(2))},
        InvalidModel,
        "'p' lacks its part 1 of at least 3",
    ),
    "parts that differ": (
        {**embedding("p/part_0", np.arange(2)), **embedding("p/part_1", np.arange(2), 8)},
        InvalidModel,
        "the parts of 'p' differ: int64 ids with dim 4 and int64 ids with dim 8",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_refused(case: str, tmp_path: Path) -> None:
    tensors, error, text = BAD[case]
    prefix = save(tmp_path / "model.ckpt-1", tensors)
    with pytest.raises(error, match=text) as caught:
        Checkpoint.open(prefix).read_embedding("n")
    assert caught.value.model == str(prefix)
    assert caught.value.detail["tensor"]


def test_rows_on_ssd_are_refused(full: Path, tmp_path: Path) -> None:
    prefix = copy(full, tmp_path, "model.ckpt-100")
    (tmp_path / "model.ckpt-100-user-ssd_record.index").touch()
    with pytest.raises(UnsupportedModel, match="storage on SSD"):
        Checkpoint.open(prefix)


def test_an_index_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.ckpt-1.index")
    (tmp_path / "model.ckpt-2.index").mkdir()
    for name in ("model.ckpt-1", "model.ckpt-2"):
        with pytest.raises(InvalidModel, match="is no file"):
            Checkpoint.open(tmp_path / name)


def test_unreadable_tensors_are_named(tmp_path: Path) -> None:
    found = Checkpoint.open(save(tmp_path / "model", {"words": np.array([b"a"])}))
    with pytest.raises(UnsupportedModel, match="'words'"):
        found.read_dense("words")
    with pytest.raises(ModelNotFound, match="no tensor 'other'"):
        found.read_dense("other")
    with pytest.raises(ModelNotFound, match="no EmbeddingVariable 'other'"):
        found.read_embedding("other")


def test_slices_have_to_make_up_the_tensor(tmp_path: Path) -> None:
    part = {"part": "4 2 0,3:-"}
    prefix = save(tmp_path / "model", {"part": np.ones((3, 2))}, part)
    with pytest.raises(InvalidModel, match="hold 6 elements of 8"):
        Bundle(prefix).read("part")


def test_truncated_and_changed_files_are_refused(tmp_path: Path) -> None:
    prefix = save(tmp_path / "model.ckpt-1", changed())
    index, data = Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")
    sound = index.read_bytes()
    for position in range(0, len(sound), 2):
        for damaged in (sound[:position], _flipped(sound, position))[position % 10 > 0 :]:
            index.write_bytes(damaged)
            try:
                Checkpoint.open(prefix)
            except ModelError:
                continue
            # Behind the handles in the footer is padding.
            assert position >= len(sound) - 48
            assert len(damaged) == len(sound)
    index.write_bytes(sound)
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(InvalidModel, match="which ends at byte") as caught:
        Checkpoint.open(prefix)
    assert caught.value.detail["got"] == caught.value.detail["wanted"] - 1
    data.write_bytes(whole)
    start = whole.index(Bundle(prefix).read("n-values").tobytes())
    data.write_bytes(_flipped(whole, start + 20))
    with pytest.raises(InvalidModel, match="checksum of 'n-values' does not fit"):
        Checkpoint.open(prefix).read_embedding("n")


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def test_tables_with_right_checksums_and_wrong_content_are_refused(tmp_path: Path) -> None:
    """An index that somebody made up, not one that was damaged."""
    prefix = save(tmp_path / "model.ckpt-1", changed())
    index = Path(f"{prefix}.index")
    sound = index.read_bytes()
    block = len(sound) - 48  # the blocks end here; the first begins at 0
    first = next(
        end
        for end in range(5, block)
        if masked_crc(google_crc32c.value(sound[: end - 4]))
        == int.from_bytes(sound[end - 4 : end], "little")
    )
    assert read_table(sound)
    outcomes = set()
    for position in range(first - 5):
        for value in (0, 255):
            content = bytearray(sound)
            content[position] = value
            crc = masked_crc(google_crc32c.value(bytes(content[: first - 4])))
            content[first - 4 : first] = crc.to_bytes(4, "little")
            index.write_bytes(content)
            try:
                checkpoint = Checkpoint.open(prefix)
                for info in checkpoint.variables:
                    checkpoint.read_embedding(info.name)
            except ModelError as error:
                outcomes.add(type(error))
    assert outcomes >= {InvalidModel}
    with pytest.raises(TableError, match="magic"):
        read_table(bytes(100))
    with pytest.raises(TableError, match="footer"):
        read_table(b"")
