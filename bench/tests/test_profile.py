from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bridge import DType, Signature, TensorSpec
from bridge.errors import DTypeMismatch, InputError, MissingInput, ModelNotFound
from bridge.model import ModelFacts
from bridge_bench.profile import InputProfile, Samples, read_inputs
from bridge_bench.samples import read_labels

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


# Values by input

IDS = Signature(
    (
        TensorSpec("user_id", DType.INT64, ("N",)),
        TensorSpec("user_age", DType.FLOAT32, ("N", 2)),
        TensorSpec("item_id", DType.INT64, ("N",)),
        TensorSpec("rate", DType.INT64, ()),
        TensorSpec("bias", DType.FLOAT32, ("N",), has_default=True),
    ),
    (),
)
TOLD = ModelFacts(vocabularies={"user_id": 50, "item_id": 200_000, "other": 3})


def test_ids_stay_below_the_vocabulary_that_the_model_tells() -> None:
    profile = InputProfile(rows=2000).informed(TOLD)
    made = profile.make(IDS)
    assert made["user_id"].max() < 50
    assert made["item_id"].max() > 9
    assert np.mean(made["item_id"] == 0) > 0.03  # skewed: uniform ids would give 1 in 200000
    assert made["rate"] <= 9
    limited = InputProfile(rows=2000, highest_id=20).informed(TOLD).make(IDS)
    assert max(limited["user_id"].max(), limited["item_id"].max()) == 20
    assert profile.describe(IDS) == {
        "user_id": "zipf:vocab=50 (inferred from a table of 50 rows)",
        "user_age": "normal (default)",
        "item_id": "zipf:vocab=200000 (inferred from a table of 200000 rows)",
        "rate": "ids:vocab=10 (default: no table is known)",
    }


def test_later_values_override_and_broadcast_joins_any_kind() -> None:
    profile = InputProfile(
        rows=6,
        values=[
            ("*_id", "ids:vocab=1000"),
            ("user_*", "broadcast"),
            ("user_id", "ids:vocab=1000000"),
            ("bias", "constant:value=2"),
        ],
        constants={"rate": 16000},
    ).informed(TOLD)
    assert profile.describe(IDS) == {
        "user_id": "ids:vocab=1000000,broadcast (given)",
        "user_age": "normal,broadcast (default; broadcast as given)",
        "item_id": "ids:vocab=1000 (given)",
        "rate": "constant:value=16000 (given)",
        "bias": "constant:value=2 (given)",
    }
    made = profile.make(IDS)
    assert len(set(made["user_id"].tolist())) == 1
    assert made["user_id"].max() > 1000
    assert made["user_age"].shape == (6, 2)
    assert (made["user_age"] == made["user_age"][0]).all()
    assert len(set(made["item_id"].tolist())) > 1
    assert not np.array_equal(made["user_age"], profile.make(IDS, 1)["user_age"])
    assert profile.make(IDS, rows=0)["user_id"].shape == (0,)
    assert profile.make(IDS, rows=1)["user_age"].shape == (1, 2)


def test_what_is_said_of_one_input_changes_no_other() -> None:
    plain = InputProfile(rows=5).make(IDS)
    other = InputProfile(rows=5, values={"user_id": "zipf:vocab=7"}).make(IDS)
    assert not np.array_equal(plain["user_id"], other["user_id"])
    for name in ("user_age", "item_id", "rate"):
        np.testing.assert_array_equal(plain[name], other[name])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"user": "normal"}, "Did you mean 'user_id'|Did you mean 'user_age'"),
        ({"usr_*": "normal"}, "no input of the signature is called like 'usr_\\*'"),
        ({"rate": "broadcast"}, "no batch axis"),
        ({"user_id": "normal"}, "cannot hold 'normal'"),
        ({"user_id": "choice"}, "list what to choose"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        InputProfile(values=values).make(IDS)


def test_zeros_keep_what_was_fixed() -> None:
    profile = InputProfile(rows=3, constants={"rate": 16000}).informed(TOLD)
    zeros = profile.zeros(IDS, rows=2)
    assert zeros["rate"] == 16000
    assert not zeros["user_id"].any()
    assert zeros["user_age"].shape == (2, 2)


# Samples


def samples(rows: int = 10, **changes: npt.NDArray[Any]) -> Samples:
    arrays: dict[str, npt.NDArray[Any]] = {
        "user_id": np.arange(rows),
        "user_age": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        "item_id": np.arange(rows) + 100,
        "rate": np.array(8000),
    }
    return Samples.of({**arrays, **changes})


def test_rows_are_drawn_together_and_all_before_any_comes_again() -> None:
    profile = InputProfile(rows=4, samples=samples())
    made = [profile.make(IDS, variant) for variant in range(5)]
    for one in made:
        np.testing.assert_array_equal(one["item_id"], one["user_id"] + 100)
        np.testing.assert_array_equal(one["user_age"][:, 0], one["user_id"] * 2)
        assert one["rate"] == 8000
    order = np.concatenate([one["user_id"] for one in made])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(range(10))
    assert list(order[:10]) != list(order[10:])
    assert profile.make(IDS, rows=25)["user_id"].shape == (25,)
    assert profile.make(IDS, rows=0)["user_id"].shape == (0,)
    again = InputProfile(rows=4, samples=samples()).make(IDS, 3)
    np.testing.assert_array_equal(again["user_id"], made[3]["user_id"])
    assert profile.describe(IDS)["user_id"] == "rows of 'arrays', in random order"


def test_recorded_rows_are_gone_through_as_they_are_whatever_is_broadcast() -> None:
    recorded = samples()
    profile = InputProfile(samples=recorded, values={"user_*": "broadcast"})
    batches = list(profile.batches(IDS, 4))
    for name in ("user_id", "user_age", "item_id"):  # labels belong to these very rows
        whole = np.concatenate([one[name] for one in batches])
        np.testing.assert_array_equal(whole, recorded.arrays[name])


def test_values_override_samples_and_broadcast_repeats_one_of_them() -> None:
    profile = InputProfile(
        rows=5,
        samples=samples(),
        values={"item_id": "zipf:vocab=3", "user_*": "broadcast", "rate": "constant:value=1"},
    )
    made = profile.make(IDS)
    assert made["item_id"].max() < 3
    assert len(set(made["user_id"].tolist())) == 1
    assert (made["user_age"] == [made["user_id"][0] * 2, made["user_id"][0] * 2 + 1]).all()
    assert made["rate"] == 1


def test_batches_go_through_all_samples_in_order() -> None:
    batches = list(InputProfile(samples=samples()).batches(IDS, 4))
    assert [len(one["user_id"]) for one in batches] == [4, 4, 2]
    assert np.concatenate([one["user_id"] for one in batches]).tolist() == list(range(10))
    with pytest.raises(InputError, match="no rows of samples"):
        list(InputProfile().batches(IDS, 4))


def test_samples_that_do_not_fit_are_refused() -> None:
    wrong = {
        r"'user_id' .*float64.* wants int64": samples(user_id=np.zeros(10)),
        r"'user_age' has shape \(10, 3\).* wants \(N, 2\)": samples(
            user_age=np.zeros((10, 3), np.float32)
        ),
        "dim 'N' is 10 here but 9": samples(user_id=np.arange(9)),
        "'user_idd' is not in the signature": samples(user_idd=np.arange(10)),
        "hold no rows": samples(rows=0),
    }
    for said, one in wrong.items():
        with pytest.raises(InputError, match=said) as caught:
            InputProfile(samples=one).make(IDS)
        assert "samples 'arrays'" in caught.value.message
    free = Signature(tuple(TensorSpec(name, DType.INT64, (None,)) for name in "ab"), ())
    uneven = Samples.of({"a": np.arange(3), "b": np.arange(4)})
    with pytest.raises(InputError, match="input 'a' has 3 rows and input 'b' has 4"):
        InputProfile(samples=uneven).make(free)
    few = Samples.of({"user_id": np.arange(3)})
    with pytest.raises(MissingInput, match="lack input 'user_age"):
        InputProfile(samples=few).make(IDS)
    rest = {"user_age": "normal", "item_id": "ids:vocab=4", "rate": "constant:value=1"}
    assert InputProfile(rows=2, samples=few, values=rest).make(IDS)["item_id"].shape == (2,)


def test_dims_of_samples_size_what_is_made_up() -> None:
    signature = Signature(
        (TensorSpec("a", DType.FLOAT32, ("N", "T")), TensorSpec("b", DType.FLOAT32, ("N", "T"))), ()
    )
    few = Samples.of({"a": np.zeros((3, 7), np.float32)})
    profile = InputProfile(rows=2, samples=few, values={"b": "normal"})
    assert profile.make(signature)["b"].shape == (2, 7)
    with pytest.raises(InputError, match="dim 'T' is 7 in the samples of 'a' and 5"):
        dataclasses.replace(profile, dims={"T": 5}).make(signature)


def test_profiles_survive_json(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **samples().arrays)
    read = Samples.read(tmp_path / "data.npz", IDS)
    profile = InputProfile(
        rows=3,
        constants={"rate": 1.5},
        values={"user_*": "broadcast", "item_id": "zipf:vocab=7"},
        samples=read,
    ).informed(TOLD)
    document = json.loads(json.dumps(profile.to_dict()))
    assert document["samples"]["name"] == "data.npz"
    assert InputProfile.from_dict(document, read) == profile
    for other in (None, samples(rows=9)):
        with pytest.raises(InputError, match=r"draws from the samples 'data\.npz'"):
            InputProfile.from_dict(document, other)
    plain = InputProfile()
    assert InputProfile.from_dict(plain.to_dict()) == plain
    with pytest.raises(InputError, match="profile without"):
        InputProfile.from_dict(plain.to_dict(), read)


def test_samples_with_their_batch_dim_elsewhere() -> None:
    signature = Signature((TensorSpec("state", DType.FLOAT32, (2, "N", 3)),), ())
    state = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    profile = InputProfile(rows=3, batch_dim="N", samples=Samples.of({"state": state}))
    assert profile.make(signature)["state"].shape == (2, 3, 3)


def test_labels_are_read_and_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([0, 1, 1]))
    np.savez(tmp_path / "y.npz", click=np.array([0, 1, 1]), like=np.array([1, 1, 0]))
    assert read_labels(tmp_path / "y.npy", 3)[""].tolist() == [0, 1, 1]
    assert set(read_labels(tmp_path / "y.npz", 3)) == {"click", "like"}
    for name in ("y.npy", "y.npz"):
        with pytest.raises(InputError, match="have 3 rows; the samples have 4"):
            read_labels(tmp_path / name, 4)
    (tmp_path / "y.csv").write_text("0")
    with pytest.raises(InputError, match=r"wanted \.npy or \.npz"):
        read_labels(tmp_path / "y.csv")
    with pytest.raises(ModelNotFound):
        read_labels(tmp_path / "none.npy")
