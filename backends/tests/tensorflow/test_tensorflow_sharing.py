"""Predictors of one model share its session, and what must not be shared is not."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import InvalidModel

tf = pytest.importorskip("tensorflow")

from bridge_tensorflow import lease  # noqa: E402

X = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
Y = X * np.arange(4, dtype=np.float32) + 1


def session_of(predictor: bridge.Predictor) -> object:
    return predictor._lease.session


def test_equal_predictors_share_weights_and_executors(affine: Path) -> None:
    with bridge.load(affine) as first, bridge.load(affine) as second:
        assert session_of(first) is session_of(second)
        assert not first.info.details["shared_weights"]
        assert second.info.details["shared_weights"]
        assert len(session_of(first)._calls) == 1
        other = bridge.load(affine, signature="anything")
        assert session_of(other) is session_of(first)
        np.testing.assert_array_equal(other.predict({"x": X})["y"], X * 2)
        other.close()
        np.testing.assert_array_equal(second.predict({"x": X})["y"], Y)
    assert not lease._entries


def test_the_last_one_closes_the_session(affine: Path) -> None:
    first, second = bridge.load(affine), bridge.load(affine)
    native = session_of(first).native
    first.close()
    np.testing.assert_array_equal(second.predict({"x": X})["y"], Y)
    assert not native._closed
    second.close()
    assert native._closed
    with bridge.load(affine) as third:
        assert not third.info.details["shared_weights"]
        np.testing.assert_array_equal(third.predict({"x": X})["y"], Y)


def test_predictors_that_nobody_closes_take_the_session_with_them(affine: Path) -> None:
    first, second = bridge.load(affine), bridge.load(affine)
    native = weakref.ref(session_of(first).native)
    first.close()
    del first, second
    gc.collect()
    assert native() is None
    assert not lease._entries


def test_other_settings_have_a_session_of_their_own(affine: Path) -> None:
    with bridge.load(affine) as usual:
        for options in ({"executor": "single_threaded"}, {"inter_threads": 1}):
            with bridge.load(affine, options=options) as other:
                assert session_of(other) is not session_of(usual)


def test_files_that_changed_are_loaded_anew(
    affine: Path, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    class Constant(tf.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = tf.Variable(value, name="value")

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")], autograph=False)
        def call(self, x):
            return {"y": x * self.value}

    folders = []
    for value in (2.0, 3.0):
        module = Constant(value)
        folders.append(saved(module, tmp_path / str(value), serving_default=module.call))
    x = np.float32([1, 2])
    with bridge.load(folders[0]) as before:
        for path in (folders[1] / "variables").iterdir():
            shutil.copyfile(path, folders[0] / "variables" / path.name)
        with bridge.load(folders[0]) as after:
            assert before.predict({"x": x})["y"].tolist() == [2, 4]
            assert after.predict({"x": x})["y"].tolist() == [3, 6]


def test_loads_at_once_open_one_session(affine: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        predictors = list(pool.map(lambda _: bridge.load(affine), range(4)))
    assert len({id(session_of(predictor)) for predictor in predictors}) == 1
    assert sum(predictor.info.details["shared_weights"] for predictor in predictors) == 3
    for predictor in predictors:
        np.testing.assert_array_equal(predictor.predict({"x": X})["y"], Y)
        predictor.close()
    assert not lease._entries


def test_a_failed_load_leaves_nothing_behind(affine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(affine, folder)
    (folder / "variables" / "variables.index").write_bytes(b"")
    with pytest.raises(InvalidModel):
        bridge.load(folder)
    assert not lease._entries
