"""SavedModels on the tensorflow backend: signatures, arrays, strings, state, threads, errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.device import CPU
from bridge.dtypes import DType
from bridge.errors import (
    DeviceUnavailable,
    InputError,
    OptionError,
    PredictError,
    PredictorClosed,
    UnsupportedModel,
)
from bridge_tensorflow.backend import TensorflowBackend

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1


class Texts(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None), tf.string, "words"),
            tf.TensorSpec((), tf.string, "end"),
        ],
        autograph=False,
    )
    def call(self, words, end):
        return {"joined": words + end, "end": end + end, "raw": tf.constant([b"\xff\x00", b"a"])}


class Counter(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.total = tf.Variable(np.zeros(1024, np.float32))

    @tf.function(input_signature=[tf.TensorSpec((1024,), tf.float32, "x")], autograph=False)
    def call(self, x):
        before = self.total.read_value() + 0.0
        with tf.control_dependencies([before]):
            self.total.assign(x)
        return {"before": before}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, saved: Callable[..., Path]) -> Path:
    module = Texts()
    return saved(module, tmp_path_factory.mktemp("texts") / "model", serving_default=module.call)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As TensorFlow 1 writes it: a variable, and a table filled from an asset file."""
    folder = tmp_path_factory.mktemp("vocabulary")
    words = folder / "words.txt"
    words.write_text("apple\npear\nplum\n")
    with tf.Graph().as_default(), v1.Session() as session:
        asset = tf.constant(str(words), name="asset")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        initializer = tf.lookup.TextFileInitializer(
            asset, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        )  # fmt: skip
        table = tf.lookup.StaticHashTable(initializer, -1)
        word = v1.placeholder(tf.string, [None], name="word")
        weights = v1.get_variable("weights", initializer=np.float32([1, 10, 100]))
        index = table.lookup(word)
        weight = tf.gather(weights, tf.maximum(index, 0))
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        info = v1.saved_model.build_tensor_info
        definition = v1.saved_model.build_signature_def(
            inputs={"word": info(word)},
            outputs={"index": info(index), "weight": info(weight), "word": info(word)},
        )
        builder = v1.saved_model.Builder(str(folder / "model"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={"look_up": definition},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
    words.unlink()
    return folder / "model"


X = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
Y = X * np.arange(4, dtype=np.float32) + 1


def test_default_signature_with_its_names(affine: Path) -> None:
    with bridge.load(affine) as predictor:
        assert str(predictor.signature) == "(x: float32 (?, 4)) -> (y: float32 (?, 4))"
        assert predictor.signature.inputs[0].native_name == "serving_default_x:0"
        assert predictor.signature.outputs[0].native_name.startswith("StatefulPartitionedCall")
        np.testing.assert_array_equal(predictor.predict({"x": X})["y"], Y)
        assert predictor.info.backend == "tensorflow"
        assert predictor.info.details["signature_key"] == "serving_default"
        assert predictor.info.versions["tensorflow"] == tf.__version__
        assert not predictor.info.stateful


def test_signature_is_chosen_by_key(affine: Path) -> None:
    with bridge.load(affine, signature="anything") as predictor:
        for shape in ((), (3,), (2, 0, 1), (1, 2, 3, 4)):
            found = predictor.predict({"x": np.full(shape, 1.5, np.float32)})
            assert found["y"].shape == shape
            assert found["rank"] == len(shape)
            assert isinstance(found["rank"], np.ndarray)


def test_unknown_key_offers_the_nearest(affine: Path) -> None:
    with pytest.raises(OptionError, match="Did you mean 'anything'"):
        bridge.load(affine, signature="anythin")


def test_keys_without_a_default_must_be_named(
    affine: Path, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    def change(graph) -> None:
        del graph.signature_def["serving_default"]

    folder = edited(affine, tmp_path / "model", change)
    with pytest.raises(OptionError, match="'anything', 'shared'"):
        bridge.load(folder)
    bridge.load(folder, signature="shared").close()


def test_no_signature_at_all(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    with pytest.raises(UnsupportedModel, match="no signature"):
        bridge.load(tmp_path / "model")


def test_declared_signature_is_refused(affine: Path) -> None:
    declared = bridge.Signature((), ())
    with pytest.raises(OptionError, match="holds its own"):
        bridge.load(affine, signature=declared)


def test_tensorflow_1_with_table_and_asset(vocabulary: Path) -> None:
    with bridge.load(vocabulary) as predictor:
        words = np.array(["plum", "apple", "kiwi"], object)
        found = predictor.predict({"word": words})
        assert found["index"].tolist() == [2, 0, -1]
        assert found["weight"].tolist() == [100, 1, 1]
        assert found["word"].tolist() == ["plum", "apple", "kiwi"]
        assert found["word"] is not words
        only = predictor.predict({"word": words}, outputs=["word"])
        assert only["word"].tolist() == ["plum", "apple", "kiwi"]


def test_tensorflow_2_table_with_asset(tmp_path: Path, saved: Callable[..., Path]) -> None:
    (tmp_path / "words.txt").write_text("apple\npear\n")

    class Lookup(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            initializer = tf.lookup.TextFileInitializer(
                str(tmp_path / "words.txt"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
            )  # fmt: skip
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "word")], autograph=False)
        def call(self, word):
            return {"index": self.table.lookup(word)}

    module = Lookup()
    folder = saved(module, tmp_path / "model", serving_default=module.call)
    (tmp_path / "words.txt").unlink()
    with bridge.load(folder) as predictor:
        found = predictor.predict({"word": np.array(["pear", "kiwi"])})
        assert found["index"].tolist() == [1, -1]


def test_strings(texts: Path) -> None:
    words = np.array([["é", "b"], ["c", "日本"]], object)
    end = np.array("!", object)
    with bridge.load(texts) as predictor:
        found = predictor.predict({"words": words, "end": end})
        assert found["joined"].tolist() == [["é!", "b!"], ["c!", "日本!"]]
        assert found["joined"].dtype == object
        assert (found["end"].shape, found["end"].item()) == ((), "!!")
        assert found["raw"].tolist() == [b"\xff\x00", b"a"]  # not UTF-8: all of it as bytes
        turned = predictor.predict({"words": words.T, "end": np.array(b"?", object)})
        assert turned["joined"].tolist() == [["é?", "c?"], ["b?", "日本?"]]
        empty = predictor.predict({"words": np.zeros((0, 3), object), "end": end})
        assert (empty["joined"].shape, empty["joined"].dtype) == ((0, 3), object)
        bound = predictor.bind({"words": (2, 2), "end": ()})
        bound.inputs["words"][...] = words
        bound.predict()
        assert bound.outputs["joined"].tolist() == words.tolist()


@pytest.mark.parametrize("dtype", sorted(TensorflowBackend().capabilities(CPU).dtypes, key=str))
def test_every_dtype_passes_through(
    dtype: DType, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    kind = tf.dtypes.as_dtype(dtype.numpy) if dtype is not DType.STRING else tf.string

    class Through(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), kind, "x")], autograph=False)
        def call(self, x):
            return {"y": tf.reshape(x, (-1, 1))}

    module = Through()
    folder = saved(module, tmp_path / "model", serving_default=module.call)
    given = np.array(["0", "1"], object) if dtype is DType.STRING else np.array([0, 1], dtype.numpy)
    with bridge.load(folder) as predictor:
        assert predictor.signature.inputs[0].dtype is dtype
        found = predictor.predict({"x": given})["y"]
        assert found.dtype == dtype.numpy
        assert found.ravel().tolist() == given.tolist()


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda x: np.repeat(x, 3, axis=1)[:, ::3],
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.float32, x.size, 1).reshape(x.shape),
        lambda x: x.view(np.matrix),
    ],
    ids=["fortran", "strided", "reversed", "misaligned", "subclass"],
)
def test_any_layout_and_inputs_stay_untouched(affine: Path, form) -> None:
    x = form(X.copy())
    before = x.tobytes()
    if not isinstance(x, np.matrix):
        x.flags.writeable = False
    with bridge.load(affine) as predictor:
        np.testing.assert_array_equal(predictor.predict({"x": x})["y"], Y)
    assert x.tobytes() == before


def aligned(rows: int) -> np.ndarray:
    """Random values at an address that TensorFlow takes without a copy."""
    memory = np.zeros(rows * 16 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    x = memory[start : start + rows * 16].view(np.float32).reshape(rows, 4)
    x[...] = np.random.default_rng(0).normal(size=x.shape)
    return x


def test_outputs_belong_to_the_caller(affine: Path) -> None:
    with bridge.load(affine, signature="shared") as predictor:
        x = aligned(64)
        before = x.copy()
        first = predictor.predict({"x": x})
        kept = {name: array.copy() for name, array in first.items()}
        for array in first.values():
            assert array.flags.owndata
            assert not np.shares_memory(array, x)
            array[...] = 77
        np.testing.assert_array_equal(x, before)
        second = predictor.predict({"x": x})
        for name, array in second.items():
            np.testing.assert_array_equal(array, kept[name])


def test_zero_rows(affine: Path) -> None:
    with bridge.load(affine) as predictor:
        found = predictor.predict({"x": np.zeros((0, 4), np.float32)})["y"]
        assert (found.shape, found.dtype) == ((0, 4), np.float32)


def test_subset_computes_no_more_than_asked(tmp_path: Path) -> None:
    class Checked(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")], autograph=False)
        def call(self, x):
            return {"good": x + 1.0, "bad": tf.debugging.check_numerics(x, "not finite")}

    # Out of the function, so that the graph itself can be pruned, as TensorFlow 1 writes it.
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        v1.saved_model.simple_save(
            session,
            str(tmp_path / "model"),
            {"x": x},
            {"good": x + 1.0, "bad": tf.debugging.check_numerics(x, "not finite")},
        )
    with bridge.load(tmp_path / "model") as predictor:
        bad = np.float32([np.nan])
        assert list(predictor.predict({"x": bad}, outputs=["good"])) == ["good"]
        with pytest.raises(PredictError, match="not finite"):
            predictor.predict({"x": bad})
        with pytest.raises(InputError, match="'good'"):
            predictor.predict({"x": bad}, outputs=["goood"])


def test_signature_defaults_may_be_left_out(
    affine: Path, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    def change(graph) -> None:
        default = tf.make_tensor_proto(X)
        graph.signature_def["serving_default"].defaults["x"].CopyFrom(default)

    with bridge.load(edited(affine, tmp_path / "model", change)) as predictor:
        assert predictor.signature.inputs[0].has_default
        np.testing.assert_array_equal(predictor.predict({})["y"], Y)
        np.testing.assert_array_equal(predictor.predict({"x": X + 1})["y"][:, 0], [1, 1])
        np.testing.assert_array_equal(predictor.predict({})["y"], Y)


def test_bound_outputs_are_filled_in_place(affine: Path) -> None:
    with bridge.load(affine, signature="shared") as predictor:
        bound = predictor.bind({"x": (2, 4)})
        bound.inputs["x"][...] = X
        bound.predict()
        first = dict(bound.outputs)
        bound.outputs["constant"][...] = 9
        bound.outputs["same"][...] = 9
        np.testing.assert_array_equal(bound.inputs["x"], X)
        bound.predict()
        assert all(bound.outputs[name] is first[name] for name in first)
        np.testing.assert_array_equal(bound.outputs["same"], X)
        np.testing.assert_array_equal(bound.outputs["constant"], np.arange(4))
        assert isinstance(bound.outputs["shape"], np.ndarray)


def test_state_is_declared_and_keeps_no_caller_memory(
    tmp_path: Path, saved: Callable[..., Path]
) -> None:
    module = Counter()
    folder = saved(module, tmp_path / "model", serving_default=module.call)
    with bridge.load(folder) as predictor, bridge.load(folder) as other:
        assert predictor.info.stateful
        x = aligned(256).reshape(-1)
        given = x.copy()
        assert not predictor.predict({"x": x})["before"].any()
        x[...] = 5
        np.testing.assert_array_equal(predictor.predict({"x": x})["before"], given)
        assert not other.predict({"x": x})["before"].any()  # each predictor has its own state


def test_eight_threads_get_their_own_answers(affine: Path) -> None:
    with bridge.load(affine) as predictor, ThreadPoolExecutor(8) as pool:

        def work(seed: int) -> bool:
            x = np.random.default_rng(seed).normal(size=(seed + 1, 4)).astype(np.float32)
            wanted = x * np.arange(4, dtype=np.float32) + 1
            return all(
                np.allclose(predictor.predict({"x": x})["y"], wanted, atol=1e-6) for _ in range(50)
            )

        assert all(pool.map(work, range(8)))


def test_close(affine: Path) -> None:
    predictor = bridge.load(affine)
    predictor.close()
    predictor.close()
    with pytest.raises(PredictorClosed):
        predictor.predict({"x": X})


def test_close_lets_running_calls_finish(affine: Path) -> None:
    predictor = bridge.load(affine)
    started = threading.Barrier(5)
    answers: list[object] = []

    def work() -> None:
        started.wait()
        try:
            while True:
                answers.append(np.array_equal(predictor.predict({"x": X})["y"], Y))
        except PredictorClosed:
            pass
        except Exception as error:  # noqa: BLE001 - the test looks at it
            answers.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    while len(answers) < 20:
        pass
    predictor.close()
    for thread in threads:
        thread.join()
    assert set(answers) == {True}


def test_cuda_is_not_here(affine: Path) -> None:
    if bridge.Device("cuda") in bridge.backends()["tensorflow"].devices():
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceUnavailable, match="cpu"):
        bridge.load(affine, device="cuda")


def test_nothing_is_printed(affine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options in ({}, {"xla": True}):
        with bridge.load(affine, options=options) as predictor:
            predictor.predict({"x": X})
            predictor.predict({"x": X[:1]})
    assert capfd.readouterr() == ("", "")


def test_arrays_of_others_reach_the_operators_without_a_copy(affine: Path) -> None:
    class Exported:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **arguments: object) -> object:
            return self.array.__dlpack__(**arguments)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    x = aligned(64)
    tensor = tf.identity(x)
    with bridge.load(affine, signature="shared") as predictor:
        spec = predictor.signature.output("same")
        call = predictor._lease.session.call(
            [predictor.signature.inputs[0].native_name], [spec.native_name]
        )
        for given, address in (
            (x, x.ctypes.data),
            (Exported(x), x.ctypes.data),
            (tensor, np.from_dlpack(tensor).ctypes.data),
        ):
            inputs = predictor._check({"x": given})
            (result,) = call(inputs["x"])
            assert result.ctypes.data == address  # tf.identity hands its input on
            np.testing.assert_array_equal(predictor.predict({"x": given})["same"], x)


def test_native_call_gives_the_same(affine: Path) -> None:
    from bridge.loading import open_model
    from bridge_tensorflow.native import load

    call, named = load(open_model(affine))
    np.testing.assert_array_equal(named(call({"x": X}))["y"], Y)
    shared, _ = load(open_model(affine), signature_key="shared")
    np.testing.assert_array_equal(shared({"x": X})["variable"], np.arange(4))
