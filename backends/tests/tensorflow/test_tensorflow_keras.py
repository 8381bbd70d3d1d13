"""Keras archives and live Keras models on the tensorflow backend."""

from __future__ import annotations

import copy
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import (
    InvalidModel,
    ModelLoadFailed,
    OptionError,
    UnsupportedModel,
    UntrustedModel,
)

keras = pytest.importorskip("keras")
layers = keras.layers
# Keras 3.15 converts its variables in a way that numpy 2 warns about, in saving too.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def network():
    keras.utils.set_random_seed(0)
    found = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    found.layers[1].moving_mean.assign(np.arange(5))
    return found


def expected(network: object, inputs: object) -> np.ndarray:
    return np.asarray(network(inputs, training=False))


def test_file(network: object, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    facts = bridge.inspect(path).facts
    assert facts.versions == {"keras": keras.__version__}
    assert facts.operators["Dense"] == 2
    with bridge.load(path) as predictor:
        (name,) = predictor.signature.input_names
        np.testing.assert_allclose(
            predictor.predict({name: X})["output_0"], expected(network, X), rtol=1e-6
        )
        assert predictor.info.versions["keras"] == keras.__version__
        assert predictor.info.format == "keras"
        assert not predictor.info.stateful
        assert predictor.predict({name: X[:0]})["output_0"].shape == (0, 2)


def test_input_names_do_not_depend_on_what_was_built_before(network, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    names = set()
    for _ in range(2):
        keras.Input((1,))
        with bridge.load(path) as predictor:
            names.add(predictor.signature.input_names)
    assert len(names) == 1


def test_live_model_is_not_changed(network: object) -> None:
    network.compile("adam", "mse")
    before = {
        "config": copy.deepcopy(network.get_config()),
        "attributes": set(vars(network)),
        "weights": [np.array(weight) for weight in network.get_weights()],
        "optimizer": network.optimizer,
    }
    with bridge.load(network) as predictor:
        (name,) = predictor.signature.input_names
        first = predictor.predict({name: X})["output_0"]
        np.testing.assert_allclose(first, expected(network, X), rtol=1e-6)
        network.layers[0].kernel.assign(np.zeros((4, 5)))  # the predictor has its own weights
        np.testing.assert_array_equal(predictor.predict({name: X})["output_0"], first)
        network.layers[0].kernel.assign(before["weights"][0])
    assert network.get_config() == before["config"]
    assert set(vars(network)) == before["attributes"]
    assert network.optimizer is before["optimizer"]
    for weight, kept in zip(network.get_weights(), before["weights"], strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_several_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    joined = layers.Concatenate()([left, right])
    network = keras.Model(
        {"left": left, "right": right},
        {"sum": keras.ops.sum(joined, axis=1), "best": keras.ops.max(left, axis=1)},
    )
    path = tmp_path / "model.keras"
    network.save(path)
    with bridge.load(path) as predictor:
        assert predictor.signature.input_names == ("left", "right")
        found = predictor.predict({"left": X, "right": X[:, :3]})
        np.testing.assert_allclose(found["sum"], X.sum(1) + X[:, :3].sum(1), rtol=1e-5)
        np.testing.assert_array_equal(found["best"], X.max(1))


def test_strings_and_look_up(tmp_path: Path) -> None:
    network = keras.Sequential(
        [keras.Input((), dtype="string"), layers.StringLookup(vocabulary=["a", "b"])]
    )
    path = tmp_path / "model.keras"
    network.save(path)
    with bridge.load(path) as predictor:
        (name,) = predictor.signature.input_names
        found = predictor.predict({name: np.array(["b", "z", "a"])})
        assert found["output_0"].tolist() == [2, 0, 1]


def test_recurrent_layer(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((None, 4)), layers.LSTM(3)])
    path = tmp_path / "model.keras"
    network.save(path)
    with bridge.load(path) as predictor:
        (name,) = predictor.signature.input_names
        steps = np.stack([X, X + 1], axis=1)
        np.testing.assert_allclose(
            predictor.predict({name: steps})["output_0"], expected(network, steps), rtol=1e-5
        )


class Doubled(keras.Model):
    def __init__(self, **given: object) -> None:
        super().__init__(**given)
        self.dense = layers.Dense(2)

    def call(self, x, training: bool = False):
        return self.dense(x) * 2.0


def test_subclassed_model_once_it_has_been_called() -> None:
    network = Doubled()
    with pytest.raises(UnsupportedModel, match="never been built"):
        bridge.load(network)
    wanted = expected(network, X)
    with bridge.load(network) as predictor:
        (name,) = predictor.signature.input_names
        np.testing.assert_allclose(predictor.predict({name: X})["output_0"], wanted, rtol=1e-6)


def test_custom_class_needs_trust(tmp_path: Path) -> None:
    network = Doubled()
    wanted = expected(network, X)
    path = tmp_path / "model.keras"
    network.save(path)
    with pytest.raises(UntrustedModel, match="custom class"):
        bridge.load(path)
    with keras.saving.custom_object_scope({"Doubled": Doubled}):
        predictor = bridge.load(path, trust=True)
    (name,) = predictor.signature.input_names
    np.testing.assert_allclose(predictor.predict({name: X})["output_0"], wanted, rtol=1e-6)
    predictor.close()


def test_lambda_is_refused_and_runs_only_with_trust(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2.0)])
    path = tmp_path / "model.keras"
    network.save(path)
    with pytest.raises(UntrustedModel, match="Lambda"):
        bridge.load(path)
    with bridge.load(path, trust=True) as predictor:
        (name,) = predictor.signature.input_names
        np.testing.assert_array_equal(predictor.predict({name: X})["output_0"], X * 2)


def test_truncated_file(network: object, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidModel):
        bridge.load(path)


def test_damaged_weights(network: object, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = members["model.weights.h5"]
    members["model.weights.h5"] = weights[: len(weights) // 2]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises((InvalidModel, ModelLoadFailed)):
        bridge.load(path)


def test_unknown_key_offers_the_nearest(network: object) -> None:
    with pytest.raises(OptionError, match="serving_default"):
        bridge.load(network, signature="serving_defualt")


def test_nothing_is_printed_and_logging_stays_as_it_was(
    network: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    handlers = list(logging.root.handlers)
    capfd.readouterr()
    for model in (path, network):
        with bridge.load(model) as predictor:
            predictor.warmup()
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers


def test_config_that_is_no_model(network: object, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1]["class_name"] = "Dens"
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelLoadFailed, match="Dens"):
        bridge.load(path)
