"""Models with features in them: tables and assets of TensorFlow 1, and tf.Example in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bridge

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1

WORDS = ["apple", "pear", "plum"]


def table_of(words: Path) -> object:
    initializer = tf.lookup.TextFileInitializer(
        str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
    )  # fmt: skip
    return tf.lookup.StaticHashTable(initializer, -1)


def write_tensorflow_1(folder: Path, words: Path, how: str) -> None:
    """A model of TensorFlow 1: tf.Example in, a table from an asset, a variable."""
    with tf.Graph().as_default(), v1.Session() as session:
        asset = tf.constant(str(words))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        initializer = tf.lookup.TextFileInitializer(
            asset, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        )  # fmt: skip
        table = tf.lookup.StaticHashTable(initializer, -1)
        examples = v1.placeholder(tf.string, [None], name="examples")
        features = v1.io.parse_example(
            examples,
            {
                "word": v1.FixedLenFeature([], tf.string),
                "price": v1.FixedLenFeature([2], tf.float32),
                "tags": v1.VarLenFeature(tf.int64),
            },
        )
        index = table.lookup(features["word"])
        weights = v1.get_variable("weights", initializer=np.float32([1, 10, 100]))
        tags = v1.sparse.reduce_sum(features["tags"], axis=1)
        score = tf.gather(weights, tf.maximum(index, 0)) * tf.reduce_sum(features["price"], 1)
        score += tf.cast(tags, tf.float32)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        info = v1.saved_model.build_tensor_info
        definition = v1.saved_model.build_signature_def(
            inputs={"examples": info(examples)},
            outputs={"index": info(index), "score": info(score), "word": info(features["word"])},
            method_name="tensorflow/serving/predict",
        )
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={"serving_default": definition},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            **{how: v1.tables_initializer()},
        )
        builder.save()


def example(word: str, price: list[float], tags: list[int]) -> bytes:
    feature = {
        "word": tf.train.Feature(bytes_list=tf.train.BytesList(value=[word.encode()])),
        "price": tf.train.Feature(float_list=tf.train.FloatList(value=price)),
        "tags": tf.train.Feature(int64_list=tf.train.Int64List(value=tags)),
    }
    serialized: bytes = tf.train.Example(
        features=tf.train.Features(feature=feature)
    ).SerializeToString()
    return serialized


@pytest.mark.parametrize("how", ["main_op", "legacy_init_op"])
def test_tensorflow_1_wherever_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS) + "\n")
    write_tensorflow_1(tmp_path / "written", words, how)
    words.unlink()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "written", tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = [("plum", [1, 2], []), ("kiwi", [3, 4], [5, 6]), ("pear", [0, 1], [7])]
    examples = np.array([example(*one) for one in given], object)
    with bridge.load(Path("moved")) as predictor:
        monkeypatch.chdir(tmp_path)
        found = predictor.predict({"examples": examples})
        assert found["word"].tolist() == ["plum", "kiwi", "pear"]
        assert found["index"].tolist() == [2, -1, 1]
        assert found["score"].tolist() == [300, 18, 17]
        with pytest.raises(bridge.errors.PredictError, match="parse"):
            predictor.predict({"examples": np.array([b"no example"], object)})
        assert predictor.predict({"examples": examples[:1]})["score"].tolist() == [300]


def test_tensorflow_2_takes_examples(tmp_path: Path, saved: Callable[..., Path]) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS) + "\n")

    class Parsed(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = table_of(words)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "x")], autograph=False)
        def call(self, x):
            features = tf.io.parse_example(
                x,
                {
                    "word": tf.io.FixedLenFeature([], tf.string),
                    "price": tf.io.FixedLenFeature([2], tf.float32),
                    "tags": tf.io.RaggedFeature(tf.int64),
                },
            )
            return {
                "index": self.table.lookup(features["word"]),
                "tags": tf.reduce_sum(features["tags"], axis=1),
                "price": features["price"],
            }

    module = Parsed()
    folder = saved(module, tmp_path / "model", serving_default=module.call)
    words.unlink()
    examples = np.array([example("pear", [1, 2], [3, 4]), example("fig", [5, 6], [])], object)
    with bridge.load(folder.rename(tmp_path / "moved")) as predictor:
        found = predictor.predict({"x": examples})
        assert found["index"].tolist() == [1, -1]
        assert found["tags"].tolist() == [7, 0]
        assert found["price"].tolist() == [[1, 2], [5, 6]]
