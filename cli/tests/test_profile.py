"""The options that say what inputs a model gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from bridge.dtypes import DType
from bridge.errors import InputError, ModelNotFound
from bridge.signature import Signature, TensorSpec
from bridge_bench.profile import InputProfile
from bridge_cli.profile import make_profile, read_samples

SIGNATURE = Signature(
    (TensorSpec("ids", DType.INT64, ("N",)), TensorSpec("a=b", DType.FLOAT32, ("N",))), ()
)


def profile(*inputs: str, **changes: Any) -> InputProfile:
    words: dict[str, Any] = {
        "rows": 3,
        "batch_dim": None,
        "dims": None,
        "shapes": None,
        "constants": None,
        "highest_id": None,
        "seed": 0,
    }
    return make_profile(**{**words, **changes}, inputs=inputs)


def test_inputs_are_given_by_name_or_pattern() -> None:
    made = profile("ids=zipf:vocab=200000", "*=broadcast", "a=b=uniform:low=5,high=6")
    assert made.describe(SIGNATURE) == {
        "ids": "zipf:vocab=200000,broadcast (given)",
        "a=b": "uniform:low=5,high=6,broadcast (given)",
    }
    assert profile("ids=ids:vocab=3", highest_id=7).highest_id == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ids", "not of the form ids=zipf"),
        ("=normal", "not of the form"),
        ("ids=zpf:vocab=3", "Did you mean 'zipf'"),
        ("ids=zipf:vocab=-3", "whole number above 0"),
        ("ids=", "no kind of values ''"),
    ],
)
def test_inputs_that_say_nothing_are_bad_options(text: str, said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said) as caught:
        profile(text)
    assert caught.value.param_hint == "--input"


def test_samples_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **{"ids": np.arange(5), "a=b": np.zeros(5, np.float32)})
    made = read_samples(path, profile(), SIGNATURE)
    assert sorted(made.make(SIGNATURE, rows=5)["ids"].tolist()) == [0, 1, 2, 3, 4]
    assert read_samples(None, profile(), SIGNATURE) == profile()
    np.savez(path, ids=np.arange(5.0))
    with pytest.raises(InputError, match="samples 'rows.npz' do not fit: input 'ids'"):
        read_samples(path, profile(), SIGNATURE)
    with pytest.raises(ModelNotFound):
        read_samples(tmp_path / "none.npz", profile(), SIGNATURE)


def test_inspect_shows_the_tables_that_inputs_index(bridge: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import bridge_zoo

    path = bridge_zoo.build("ranker", formats=["onnx"], folder=tmp_path)["onnx"]
    assert "16 rows" in bridge("inspect", path).out
    document = bridge("inspect", path, "--json").document("inspect")
    assert document["vocabularies"]["id_39"] == 300
