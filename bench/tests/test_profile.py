from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bridge import DType, Signature, TensorSpec
from bridge.errors import DTypeMismatch, InputError, MissingInput, ModelNotFound
from bridge_bench.profile import InputProfile, read_inputs

SIGNATURE = Signature(
    (
        TensorSpec("x", DType.FLOAT16, ("N", "T")),
        TensorSpec("ids", DType.INT64, ("N", None)),
        TensorSpec("tiny", DType.UINT8, (None,)),
        TensorSpec("flag", DType.BOOL, (3,)),
        TensorSpec("text", DType.STRING, ("N",)),
        TensorSpec("z", DType.COMPLEX64, ()),
        TensorSpec("optional", DType.FLOAT32, (1,), has_default=True),
    ),
    (),
)


def test_made_inputs_fit_and_repeat() -> None:
    profile = InputProfile(rows=5, dims={"T": 7}, highest_id=1000)
    made = profile.make(SIGNATURE)
    assert {name: (str(a.dtype), a.shape) for name, a in made.items()} == {
        "x": ("float16", (5, 7)),
        "ids": ("int64", (5, 1)),
        "tiny": ("uint8", (5,)),
        "flag": ("bool", (3,)),
        "text": ("object", (5,)),
        "z": ("complex64", ()),
    }
    again = profile.make(SIGNATURE)
    other = profile.make(SIGNATURE, variant=1)
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not np.array_equal(made["x"], other["x"])


def test_integers_stay_below_the_highest_id() -> None:
    signature = Signature((TensorSpec("ids", DType.INT32, (None, 1000)),), ())
    for highest in (0, 3, 10**12):
        ids = InputProfile(highest_id=highest).make(signature)["ids"]
        assert ids.min() >= 0
        assert ids.max() <= highest
    assert set(InputProfile(highest_id=3).make(signature)["ids"].ravel()) == {0, 1, 2, 3}


def test_shapes_and_constants_override() -> None:
    for wrong in (1.5, 2.0**70):
        with pytest.raises(InputError, match="is no int64"):
            InputProfile(constants={"ids": wrong}).make(SIGNATURE)
    open_rank = Signature(
        (TensorSpec("x", DType.FLOAT32, None), TensorSpec("sr", DType.INT64, ())), ()
    )
    made = InputProfile(shapes={"x": (2, 576)}, constants={"sr": 16000}).make(open_rank)
    assert made["x"].shape == (2, 576)
    assert made["sr"] == 16000
    with pytest.raises(InputError, match="Did you mean 'sr'"):
        InputProfile(shapes={"x": (1,)}, constants={"srx": 1}).make(open_rank)
    with pytest.raises(InputError, match="no known shape"):
        InputProfile().make(open_rank)
    unchecked = Signature((TensorSpec("x", None, (2,)),), ())
    with pytest.raises(InputError, match="its dtype is unknown"):
        InputProfile().make(unchecked)


@pytest.fixture
def narrow() -> Signature:
    return Signature(
        (TensorSpec("x", DType.FLOAT32, (None,)), TensorSpec("s", DType.STRING, (None,))), ()
    )


def test_files_are_read_and_checked(tmp_path: Path, narrow: Signature) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones(2, np.float32), s=np.array(["a", "b"]))
    read = read_inputs(tmp_path / "in.npz", narrow)
    assert read["s"].tolist() == ["a", "b"]
    (tmp_path / "in.json").write_text(json.dumps({"x": [1, 2], "s": ["a", "b"]}))
    assert read_inputs(tmp_path / "in.json", narrow)["x"].dtype == np.float32
    one = Signature(narrow.inputs[:1], ())
    np.save(tmp_path / "in.npy", np.ones(2, np.float32))
    assert read_inputs(tmp_path / "in.npy", one)["x"].tolist() == [1, 1]


def test_wrong_files_are_refused(tmp_path: Path, narrow: Signature) -> None:
    with pytest.raises(ModelNotFound):
        read_inputs(tmp_path / "in.npz", narrow)
    np.save(tmp_path / "in.npy", np.ones(2))
    with pytest.raises(InputError, match="requires 2 inputs"):
        read_inputs(tmp_path / "in.npy", narrow)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    with pytest.raises(InputError, match="pickled objects are refused"):
        read_inputs(tmp_path / "pickled.npz", narrow)
    np.savez(tmp_path / "wide.npz", x=np.ones(2), s=np.array(["a"]))
    with pytest.raises(DTypeMismatch):
        read_inputs(tmp_path / "wide.npz", narrow)
    np.savez(tmp_path / "short.npz", x=np.ones(2, np.float32))
    with pytest.raises(MissingInput):
        read_inputs(tmp_path / "short.npz", narrow)
    for name, text in {"a.json": "[1]", "b.json": "{", "c.txt": "x", "d.npz": "x"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            read_inputs(tmp_path / name, narrow)


@pytest.mark.parametrize(
    "profile",
    [
        InputProfile(dims={"TT": 7}),
        InputProfile(rows=8, batch_dim="M"),
        InputProfile(rows=-1),
        InputProfile(highest_id=-1),
        InputProfile(shapes={"tiny": (-2,)}),
        InputProfile(constants={"ids": float("nan")}),
        InputProfile(constants={"ids": float("inf")}),
    ],
    ids=str,
)
def test_profiles_that_cannot_be_meant_are_refused(profile: InputProfile) -> None:
    with pytest.raises(InputError):
        profile.make(SIGNATURE)


def test_inputs_with_a_default_are_made_where_they_are_named() -> None:
    made = InputProfile(constants={"optional": 2.5}).make(SIGNATURE)
    np.testing.assert_array_equal(made["optional"], np.array([2.5], np.float32))


def test_damaged_and_misnamed_archives_are_input_errors(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", DType.FLOAT32, (None,)),), ())
    np.savez(tmp_path / "whole.npz", x=np.zeros(100, np.float32))
    np.save(tmp_path / "array.npy", np.zeros(3, np.float32))
    whole = (tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 255
    odd: dict[str, bytes | bytearray] = {
        "cut.npz": whole[:200],
        "flipped.npz": flipped,
        "single.npz": (tmp_path / "array.npy").read_bytes(),
        "archive.npy": whole,
    }
    for name, data in odd.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError):
            read_inputs(tmp_path / name, signature)
    assert read_inputs(tmp_path / "array.npy", signature)["x"].shape == (3,)


@pytest.mark.parametrize(
    "values", ["[1.5]", "[300]", "[null]", '["1"]', "[true]", '{"a": 1}', "[[1], [1, 2]]"]
)
def test_json_values_are_never_changed_to_fit(tmp_path: Path, values: str) -> None:
    (tmp_path / "in.json").write_text(f'{{"x": {values}}}')
    signature = Signature((TensorSpec("x", DType.INT8, (None,)),), ())
    with pytest.raises(InputError):
        read_inputs(tmp_path / "in.json", signature)
