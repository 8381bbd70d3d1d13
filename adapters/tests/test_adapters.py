"""Every adapter on a small model: numbers, names, dtypes and dims survive."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import ConversionError, OptionError, UnsupportedModel, UntrustedModel
from bridge.loading import open_model
from bridge.registry import registry
from bridge_convert import onnx_file

SUFFIXES = {"onnx": ".onnx", "openvino_ir": ".xml", "saved_model": "", "aot_inductor": ".pt2"}


def convert(name: str, model: Path, folder: Path, *, options: Any = None, **how: Any) -> Path:
    """Converts in this process, where the runtimes are imported already."""
    adapter = registry().adapters.get(name)
    if not adapter.probe().installed:
        pytest.skip(f"{name}: {adapter.probe().reason}")
    target = folder / f"made{SUFFIXES[adapter.target]}"
    facts = adapter.convert(open_model(model, **how), target, options=options)
    assert facts
    return target


def dims(signature: bridge.Signature) -> dict[str, tuple[Any, ...]]:
    """Shapes by name, sorted; names of dims count only where the format can carry them."""
    found = {spec.name: spec.shape or () for spec in (*signature.inputs, *signature.outputs)}
    return dict(sorted(found.items()))


def scripted(module: Any, folder: Path) -> Path:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(folder / "module.pt"))  # type: ignore[no-untyped-call]
    return folder / "module.pt"


COLUMN = bridge.Signature(
    (bridge.TensorSpec("x", bridge.DType.FLOAT32, ("batch", 1)),),
    (bridge.TensorSpec("y", bridge.DType.FLOAT32, ("batch", 1)),),
)
NAMED = {"click": ("batch", 2), "ids": ("batch",), "norm": ("batch",), "x": ("batch", 3)}
FREE = {
    name: tuple(None if size == "batch" else size for size in shape)
    for name, shape in NAMED.items()
}


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
def test_torchscript(
    target: str,
    torchscript: Path,
    stated: bridge.Signature,
    check: Callable[..., bridge.Signature],
    tmp_path: Path,
) -> None:
    made = convert(f"torchscript-to-{target}", torchscript, tmp_path, signature=stated)
    found = check(made)
    assert found.input_names == ("ids", "x")
    assert dims(found) == (NAMED if target == "onnx" else FREE)


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
def test_outputs_that_torchscript_does_not_name_get_the_stated_names(
    target: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1)  # it counts calls, but only in training

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            return 2 * self.norm(x)

    path = scripted(Net().eval(), tmp_path)
    made = convert(f"torchscript-to-{target}", path, tmp_path, signature=COLUMN)
    with bridge.load(made) as predictor:
        found = predictor.predict({"x": np.ones((3, 1), np.float32)})
    np.testing.assert_allclose(found["y"], [[2], [2], [2]], rtol=1e-4)


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
@pytest.mark.parametrize("kind", ["assigned", "in_place"])
def test_torchscript_that_keeps_state_is_refused(target: str, kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Counter(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.in_place = kind == "in_place"

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            if self.in_place:
                self.count.add_(1)
            else:
                self.count = self.count + 1
            return x + self.count

    path = scripted(Counter().eval(), tmp_path)
    with pytest.raises(UnsupportedModel, match="calls of the module change it"):
        convert(f"torchscript-to-{target}", path, tmp_path, signature=COLUMN)


def test_torchscript_gets_its_inputs_by_name(tmp_path: Path) -> None:
    """In whatever order they are stated, also where the file does not tell its outputs."""
    torch = pytest.importorskip("torch")
    zeros = torch.zeros(1, 1)

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(
            self,
            a: torch.Tensor,  # type: ignore[name-defined]
            b: torch.Tensor = zeros,  # type: ignore[name-defined]
            c: torch.Tensor = zeros,  # type: ignore[name-defined]
        ) -> list[torch.Tensor]:  # type: ignore[name-defined]
            return [a + 10 * b + 100 * c]

    path = scripted(Net(), tmp_path)
    (x,), (y,) = COLUMN.inputs, COLUMN.outputs

    def stated(*names: str) -> bridge.Signature:
        return bridge.Signature(tuple(dataclasses.replace(x, name=name) for name in names), (y,))

    made = convert("torchscript-to-openvino_ir", path, tmp_path, signature=stated("b", "a"))
    with bridge.load(made) as predictor:
        ones = np.ones((2, 1), np.float32)
        assert predictor.predict({"a": 2 * ones, "b": ones})["y"].tolist() == [[12], [12]]
    with pytest.raises(UnsupportedModel, match="leaves out 'b', an argument before 'c'"):
        convert("torchscript-to-onnx", path, tmp_path, signature=stated("a", "c"))
    with pytest.raises(OptionError, match="an input 'd' that the model does not have"):
        convert("torchscript-to-onnx", path, tmp_path, signature=stated("a", "d"))


def test_torchscript_states_too_little_by_itself(torchscript: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no dtypes and no shapes"):
        convert("torchscript-to-onnx", torchscript, tmp_path)


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
def test_exported_program(
    target: str, exported: Path, check: Callable[..., bridge.Signature], tmp_path: Path
) -> None:
    found = check(convert(f"exported_program-to-{target}", exported, tmp_path))
    assert found.input_names == ("ids", "x")
    assert dims(found) == (NAMED if target == "onnx" else FREE)


def test_the_older_exporter_takes_exported_programs_too(
    exported: Path, check: Callable[..., bridge.Signature], tmp_path: Path
) -> None:
    options = {"exporter": "traced"}
    found = check(convert("exported_program-to-onnx", exported, tmp_path, options=options))
    assert dims(found) == NAMED


def test_weights_too_large_for_one_file_are_beside_it(
    exported: Path,
    check: Callable[..., bridge.Signature],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 100)
    made = convert("exported_program-to-onnx", exported, tmp_path)
    assert dims(check(made)) == NAMED
    assert [one.name for one in open_model(made).format.files(open_model(made))] == [
        "made.onnx",
        "made.onnx.data",
    ]
    proto = onnx.load(made, load_external_data=False)
    assert any(map(onnx.external_data_helper.uses_external_data, proto.graph.initializer))


def test_the_older_exporter_takes_no_weights_too_large_for_one_file(
    torchscript: Path,
    stated: bridge.Signature,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 800)  # the table alone
    with pytest.raises(UnsupportedModel, match="one file; the model has 856 bytes of weights"):
        convert("torchscript-to-onnx", torchscript, tmp_path, signature=stated)


@pytest.mark.parametrize(("exporter", "opset"), [("auto", 13), ("dynamo", 21)])
def test_the_opset_is_the_one_asked_for(
    exporter: str, opset: int, exported: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    options = {"exporter": exporter, "opset": opset}
    made = convert("exported_program-to-onnx", exported, tmp_path, options=options)
    found = {one.domain: one.version for one in onnx.load(made).opset_import}
    assert found == {"": opset}


@pytest.mark.parametrize(
    ("exporter", "opset", "kind", "text"),
    [
        ("traced", 21, OptionError, "writes opsets up to 20; got 21"),
        ("dynamo", 13, ConversionError, "wrote opset 18; wanted 13"),
    ],
)
def test_an_opset_that_an_exporter_does_not_write_is_refused(
    exporter: str, opset: int, kind: type[Exception], text: str, exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=text):
        convert(
            "exported_program-to-onnx",
            exported,
            tmp_path,
            options={"exporter": exporter, "opset": opset},
        )


def test_programs_that_keep_state_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Counter(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.count += 1
            return x + self.count

    program = torch.export.export(Counter().eval(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "counter.pt2")
    for target in ("onnx", "openvino_ir"):
        with pytest.raises(UnsupportedModel, match="changes its inputs or buffers"):
            convert(f"exported_program-to-{target}", tmp_path / "counter.pt2", tmp_path)


def test_native_code_is_only_made_of_what_is_trusted(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedModel, match="may run code"):
        convert("exported_program-to-aot_inductor", exported, tmp_path)


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
def test_saved_model(
    target: str, saved_model: Path, check: Callable[..., bridge.Signature], tmp_path: Path
) -> None:
    found = check(convert(f"saved_model-to-{target}", saved_model, tmp_path))
    assert dims(found) == FREE


def test_another_signature_of_a_saved_model(saved_model: Path, tmp_path: Path) -> None:
    """Outputs that are the input, and each other; a loop."""
    made = convert("saved_model-to-onnx", saved_model, tmp_path, signature="same")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with bridge.load(made) as predictor:
        found = predictor.predict({"x": x})
    assert set(found) == {"first", "second", "loop"}
    np.testing.assert_array_equal(found["first"], x)
    np.testing.assert_array_equal(found["second"], x)
    np.testing.assert_array_equal(found["loop"], 8 * x)
    with pytest.raises(UnsupportedModel, match="'serving_default' only, not 'same'"):
        convert("saved_model-to-openvino_ir", saved_model, tmp_path, signature="same")
    with pytest.raises(OptionError, match="no signature 'nothing'"):
        convert("saved_model-to-openvino_ir", saved_model, tmp_path, signature="nothing")


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
def test_a_saved_model_that_keeps_state_is_refused(target: str, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")

    class Counter(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.count = tf.Variable(0.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])  # type: ignore[untyped-decorator]
        def add(self, x: Any) -> Any:
            return {"y": x + self.count.assign_add(1.0)}

    net = Counter()
    tf.saved_model.save(net, str(tmp_path / "net"), signatures=net.add)
    with pytest.raises(UnsupportedModel, match="change the model"):
        convert(f"saved_model-to-{target}", tmp_path / "net", tmp_path)


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")

    class Net(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])  # type: ignore[untyped-decorator]
        def zeta(self, x: Any) -> Any:
            return {"y": tf.math.zeta(x, x)}

    net = Net()
    tf.saved_model.save(net, str(tmp_path / "net"), signatures=net.zeta)
    with pytest.raises(ConversionError, match="cannot convert the operator Zeta"):
        convert("saved_model-to-onnx", tmp_path / "net", tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("target", ["onnx", "openvino_ir"])
def test_an_operator_of_torch_that_nobody_converts_is_named(target: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.special.zeta(x + 2, x + 1)

    torch.export.save(torch.export.export(Net(), (torch.ones(2),)), tmp_path / "net.pt2")
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    with pytest.raises(ConversionError, match="cannot convert the operator aten.+special_zeta"):
        convert(f"exported_program-to-{target}", tmp_path / "net.pt2", tmp_path)
    assert (root.level, root.filters, root.handlers) == before


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_keras_goes_on_from_its_saved_model(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,), name="rows"), keras.layers.Dense(2)])
    model.save(tmp_path / "net.keras")
    x = np.ones((3, 4), np.float32)
    with bridge.load(tmp_path / "net.keras") as predictor:
        names, right = predictor.signature.input_names, predictor.predict({"rows": x})
    made = convert("keras-to-saved_model", tmp_path / "net.keras", tmp_path)
    last = convert("saved_model-to-onnx", made, tmp_path)
    with bridge.load(last) as predictor:
        assert predictor.signature.input_names == names
        found = predictor.predict({"rows": x})
    np.testing.assert_allclose(found["output_0"], right["output_0"], rtol=1e-5)


def test_keras_models_of_named_inputs_and_outputs(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    one, two = keras.Input((3,), name="zeta"), keras.Input((3,), name="alpha")
    outputs = {"less": keras.layers.Subtract()([one, two]), "twice": keras.layers.Add()([one, one])}
    keras.Model({"zeta": one, "alpha": two}, outputs).save(tmp_path / "net.keras")
    made = convert("keras-to-saved_model", tmp_path / "net.keras", tmp_path)
    given = {
        name: np.full((2, 3), value, np.float32) for name, value in (("zeta", 5), ("alpha", 2))
    }
    with bridge.load(made) as predictor:
        found = predictor.predict(given)
    assert {name: array[0, 0] for name, array in found.items()} == {"less": 3, "twice": 10}


def test_onnx(onnx_model: Path, check: Callable[..., bridge.Signature], tmp_path: Path) -> None:
    assert dims(check(convert("onnx-to-openvino_ir", onnx_model, tmp_path))) == FREE
    slim = convert("onnx-slim", onnx_model, tmp_path)
    assert dims(check(slim)) == NAMED
    assert open_model(slim).facts.operators.get("Identity", 0) == 0


def test_the_network_of_an_ir_cannot_be_where_its_weights_go(
    onnx_model: Path, tmp_path: Path
) -> None:
    adapter = registry().adapters.get("onnx-to-openvino_ir")
    with pytest.raises(ConversionError, match="'net.bin' is where the weights"):
        adapter.convert(open_model(onnx_model), tmp_path / "net.bin")
    assert not list(tmp_path.iterdir())


def test_precision_is_kept(onnx_model: Path, tmp_path: Path) -> None:
    made = convert("onnx-to-openvino_ir", onnx_model, tmp_path)
    assert "FP16" not in made.read_text(encoding="utf-8")


def test_a_converter_that_is_missing_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *given: None)
    for name in ("saved_model-to-onnx", "onnx-slim", "exported_program-to-onnx"):
        found = registry().adapters.get(name).probe()
        assert not found.installed
        assert found.fix


def test_a_real_model_whose_objects_cannot_be_restored(nmp: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = convert("saved_model-to-onnx", nmp, tmp_path)
    sound = np.random.default_rng(0).normal(size=(2, 43844, 1)).astype(np.float32)
    with bridge.load(nmp) as source, bridge.load(made) as result:
        right = source.predict({"input_2": sound})
        found = result.predict({"input_2": sound})
        assert source.signature.output_names == result.signature.output_names
    for name, array in right.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
