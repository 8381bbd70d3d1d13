"""The torch backend: each format, its signature, its state, its options."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import bridge
from bridge.errors import (
    DTypeMismatch,
    OptionError,
    PredictError,
    ShapeMismatch,
    UnsupportedModel,
)

torch = pytest.importorskip("torch")

F32 = bridge.DType.FLOAT32


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.dropout = torch.nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.norm(self.layer(x)))


class Fields(NamedTuple):
    scores: torch.Tensor
    boxes: torch.Tensor


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor, times: int = 2, bias: float = 0.0) -> Fields:
        return Fields(x * times, x + bias)


class Mapped(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"double": x * 2, "half": x / 2}


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


def quietly(make: Callable[..., Any], *args: Any) -> Any:
    """torch.jit warns that it is deprecated; the tests' own use of it is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args)


def scripted(module: torch.nn.Module, path: Path) -> Path:
    quietly(lambda: torch.jit.script(module.eval()).save(str(path)))
    return path


def exported(module: torch.nn.Module, path: Path, *args: Any, **options: Any) -> Path:
    torch.export.save(torch.export.export(module.eval(), args, **options), path)
    return path


X = np.arange(8, dtype=np.float32).reshape(2, 4)


def expected(module: torch.nn.Module) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(X)).numpy()


BATCH = torch.export.Dim("batch")


# Formats


def test_torchscript_file(tmp_path: Path) -> None:
    with bridge.load(scripted(Linear(), tmp_path / "net.pt")) as predictor:
        assert predictor.signature.input_names == ("x",)
        assert predictor.signature.output_names == ("output_0",)
        assert predictor.signature.inputs[0].dtype is None
        np.testing.assert_allclose(predictor.predict({"x": X})["output_0"], expected(Linear()))
        assert predictor.info.provider == "TorchScript"
        assert predictor.info.threads == torch.get_num_threads()
        assert predictor.info.versions["torch"] == torch.__version__
        assert not predictor.info.stateful  # batch norm writes in training mode only


def test_text_and_torch_agree_on_the_signature(tmp_path: Path) -> None:
    traced = quietly(torch.jit.trace, Linear().eval(), torch.zeros(2, 4))
    quietly(traced.save, str(tmp_path / "traced.pt"))
    kinds = (Linear, Named)
    paths = [scripted(kind(), tmp_path / f"{kind.__name__}.pt") for kind in kinds]
    paths.append(tmp_path / "traced.pt")
    for path in paths:
        with bridge.load(path) as predictor:
            told = bridge.loading.open_model(path).facts.signatures[""]
            assert told == predictor.signature
            assert not any("." in name for name in predictor.signature.input_names)


def test_a_script_saved_in_training_mode_runs_in_evaluation_mode(tmp_path: Path) -> None:
    quietly(lambda: torch.jit.script(Linear().train()).save(str(tmp_path / "net.pt")))
    with bridge.load(tmp_path / "net.pt") as predictor:
        for _ in range(3):
            np.testing.assert_allclose(predictor.predict({"x": X})["output_0"], expected(Linear()))


def test_arguments_with_defaults_and_numbers(tmp_path: Path) -> None:
    for model in (scripted(Named(), tmp_path / "net.pt"), Named().eval()):
        with bridge.load(model) as predictor:
            plain = predictor.predict({"x": X})
            np.testing.assert_array_equal(plain["scores"], X * 2)
            given = predictor.predict({"x": X, "bias": np.array(1.0), "times": np.array([3])})
            np.testing.assert_array_equal(given["scores"], X * 3)
            np.testing.assert_array_equal(given["boxes"], X + 1)
            skipped = predictor.predict({"x": X, "bias": np.array(1.0)})
            np.testing.assert_array_equal(skipped["boxes"], X + 1)
            with pytest.raises(ShapeMismatch, match="one number"):
                predictor.predict({"x": X, "times": np.array([1, 2])})
            with pytest.raises(DTypeMismatch):
                predictor.predict({"x": X, "times": np.array(2.0)})


class Computed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = {}
        for name in ("double", "half"):
            result[name] = x * 2 if name == "double" else x / 2
        return result


def test_keys_of_a_dict_name_the_outputs(tmp_path: Path) -> None:
    path = scripted(Mapped(), tmp_path / "net.pt")
    with bridge.load(path) as predictor:
        assert predictor.signature.output_names == ("double", "half")
        assert predictor.signature == bridge.loading.open_model(path).facts.signatures[""]
        np.testing.assert_array_equal(predictor.predict({"x": X})["half"], X / 2)


def test_outputs_known_only_after_a_call_have_to_be_named(tmp_path: Path) -> None:
    path = scripted(Computed(), tmp_path / "net.pt")
    with pytest.raises(UnsupportedModel, match="known only after a call"):
        bridge.load(path)
    declared = bridge.Signature(
        (bridge.TensorSpec("x", F32, ("rows", 4)),),
        (bridge.TensorSpec("half", F32, None), bridge.TensorSpec("double", F32, None)),
    )
    with bridge.load(path, signature=declared) as predictor:
        result = predictor.predict({"x": X})
        np.testing.assert_array_equal(result["half"], X / 2)
        np.testing.assert_array_equal(result["double"], X * 2)
        with pytest.raises(DTypeMismatch):
            predictor.predict({"x": X.astype(np.float64)})


def test_a_declared_signature_has_to_fit(tmp_path: Path) -> None:
    path = scripted(Linear(), tmp_path / "net.pt")
    x, y = bridge.TensorSpec("x", F32, None), bridge.TensorSpec("y", F32, None)
    with bridge.load(path, signature=bridge.Signature((x,), (y,))) as predictor:
        assert list(predictor.predict({"x": X})) == ["y"]
    other = bridge.TensorSpec("xx", F32, None)
    for inputs, outputs, said in (
        ((other,), (y,), "Did you mean 'x'"),
        ((), (y,), "leaves out"),
        ((x,), (y, other), "2 outputs"),
        ((x,), (), "0 outputs"),
    ):
        with pytest.raises(OptionError, match=said):
            bridge.load(path, signature=bridge.Signature(inputs, outputs))


def test_nested_inputs_of_a_script_are_refused(tmp_path: Path) -> None:
    class Listed(torch.nn.Module):
        def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat(parts)

    with pytest.raises(UnsupportedModel, match="'parts'"):
        bridge.load(scripted(Listed(), tmp_path / "net.pt"))


def test_exported_program_file_and_live(tmp_path: Path) -> None:
    program = torch.export.export(
        Linear().eval(), (torch.zeros(3, 4),), dynamic_shapes={"x": {0: BATCH}}
    )
    torch.export.save(program, tmp_path / "net.pt2")
    for model in (tmp_path / "net.pt2", program):
        with bridge.load(model) as predictor:
            assert str(predictor.signature) == (
                "(x: float32 (batch, 4)) -> (output_0: float32 (batch, 3))"
            )
            got = predictor.predict({"x": X})["output_0"]
            np.testing.assert_allclose(got, expected(Linear()), rtol=1e-6)
            assert predictor.predict({"x": X[:1]})["output_0"].shape == (1, 3)
    told = bridge.loading.open_model(tmp_path / "net.pt2").facts.signatures[""]
    assert str(told) == str(predictor.signature)


def test_exported_program_with_keywords_nesting_and_constants(tmp_path: Path) -> None:
    class Nested(torch.nn.Module):
        def forward(self, x: Any, parts: Any, times: int, *, shift: Any = None) -> Any:
            y = x + parts["a"] + parts["b"][0]
            return (y * times, {"k": y.sum(), "z": [y + shift]}), None

    args = (
        torch.zeros(2, 4),
        {"a": torch.zeros(2, 4), "b": (torch.zeros(2, 4),)},
        3,
    )
    path = exported(Nested(), tmp_path / "net.pt2", *args, kwargs={"shift": torch.zeros(4)})
    with bridge.load(path) as predictor:
        assert predictor.signature.input_names == ("x", "parts_a", "parts_b_0", "shift")
        assert predictor.signature.output_names == ("output_0", "k", "z_0")
        assert predictor.signature == bridge.loading.open_model(path).facts.signatures[""]
        inputs = {"x": X, "parts_a": X, "parts_b_0": X, "shift": np.ones(4, np.float32)}
        result = predictor.predict(inputs)
        np.testing.assert_array_equal(result["output_0"], X * 9)
        np.testing.assert_array_equal(result["z_0"], X * 3 + 1)
        assert result["k"].shape == ()
        assert list(predictor.predict(inputs, ["k"])) == ["k"]


def test_exported_programs_keep_their_conditions(tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=5)
    path = exported(
        Linear(), tmp_path / "net.pt2", torch.zeros(3, 4), dynamic_shapes={"x": {0: rows}}
    )
    with bridge.load(path) as predictor:
        predictor.predict({"x": np.zeros((5, 4), np.float32)})
        with pytest.raises(ShapeMismatch, match="condition"):
            predictor.predict({"x": np.zeros((6, 4), np.float32)})
        with pytest.raises(ShapeMismatch):
            predictor.predict({"x": np.zeros((2, 5), np.float32)})


def test_live_module_learns_its_outputs() -> None:
    class Both(torch.nn.Module):
        def forward(self, x, scale=None):  # type: ignore[no-untyped-def]
            return {"a": x + 1, "b": (x, x if scale is None else x * scale)}

    with bridge.load(Both().eval()) as predictor:
        assert predictor.signature.input_names == ("x", "scale")
        assert predictor.signature.outputs == ()
        result = predictor.predict({"x": X})
        assert list(result) == ["a", "b_0", "b_1"]
        assert predictor.signature.output_names == ("a", "b_0", "b_1")
        assert list(predictor.predict({"x": X, "scale": X}, ["b_1"])) == ["b_1"]


def test_training_module_is_not_touched() -> None:
    module = Linear()
    assert module.training
    with bridge.load(module) as predictor:
        assert predictor.signature.output_names == ("output_0",)  # from the annotation
        want = expected(Linear())
        np.testing.assert_allclose(predictor.predict({"x": X})["output_0"], want)
        assert module.training
        assert module.dropout.training
        assert module.norm.num_batches_tracked == 0
        with torch.no_grad():  # the copy shares parameters
            module.layer.weight.zero_()
            module.layer.bias.zero_()
        np.testing.assert_allclose(predictor.predict({"x": X})["output_0"], 0)


def test_open_arguments_need_a_signature() -> None:
    class Open(torch.nn.Module):
        def forward(self, *parts: torch.Tensor) -> torch.Tensor:
            return parts[0] - parts[1]

    with pytest.raises(UnsupportedModel, match="any number"):
        bridge.load(Open().eval())
    specs = tuple(bridge.TensorSpec(name, F32, None) for name in ("a", "b"))
    declared = bridge.Signature(specs, (bridge.TensorSpec("y", F32, None),))
    with bridge.load(Open().eval(), signature=declared) as predictor:
        np.testing.assert_array_equal(predictor.predict({"b": X, "a": X * 3})["y"], X * 2)


# State


def test_state_is_seen_and_kept(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    for model in (
        scripted(Counter(), tmp_path / "net.pt"),
        exported(Counter(), tmp_path / "net.pt2", torch.zeros(2)),
        Counter().eval(),
    ):
        with bridge.load(model) as predictor:
            values = [predictor.predict({"x": ones})["output_0"][0] for _ in range(3)]
            assert values == [2, 3, 4]
            assert predictor.info.stateful


def test_nothing_is_called_stateful_that_is_not(tmp_path: Path) -> None:
    for model in (
        scripted(Linear(), tmp_path / "net.pt"),
        exported(Linear(), tmp_path / "net.pt2", torch.zeros(2, 4)),
        Linear().eval(),
    ):
        with bridge.load(model) as predictor:
            predictor.predict({"x": X})
            assert not predictor.info.stateful


# Options


@pytest.mark.parametrize("execution", ["eager", "frozen"])
def test_execution_of_scripts(tmp_path: Path, execution: str) -> None:
    for model in (scripted(Linear(), tmp_path / "net.pt"), Linear()):
        with bridge.load(model, options={"execution": execution}) as predictor:
            assert ("frozen" in predictor.info.provider) == (execution == "frozen")
            for _ in range(3):  # the executor optimises in the second call
                got = predictor.predict({"x": X})["output_0"]
                np.testing.assert_allclose(got, expected(Linear()), rtol=1e-5, atol=1e-6)


def test_illegal_executions(tmp_path: Path) -> None:
    script = scripted(Linear(), tmp_path / "net.pt")
    program = exported(Linear(), tmp_path / "net.pt2", torch.zeros(2, 4))
    for model, execution in ((script, "compiled"), (program, "frozen")):
        with pytest.raises(OptionError, match="execution"):
            bridge.load(model, options={"execution": execution})
    with pytest.raises(OptionError, match="wants one of"):
        bridge.load(script, options={"execution": "fast"})
    with pytest.raises(OptionError, match="at least 1"):
        bridge.load(script, options={"threads": 0})


def test_a_module_that_cannot_be_scripted() -> None:
    class Dynamic(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + len(globals())

    with pytest.raises(UnsupportedModel, match="cannot be turned into TorchScript"):
        bridge.load(Dynamic().eval(), options={"execution": "frozen"})


def test_threads_hold_for_the_call_only() -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            if x.numel() == 0:
                raise ValueError("empty")
            return x + 1

    before = torch.get_num_threads()
    with bridge.load(Spy().eval(), options={"threads": before + 3}) as predictor:
        assert predictor.info.threads == before + 3
        predictor.predict({"x": X})
        assert seen == [before + 3]
        assert torch.get_num_threads() == before
        with pytest.raises(PredictError, match="empty"):
            predictor.predict({"x": X[:0]})
        assert torch.get_num_threads() == before


def test_nothing_is_printed_or_warned(tmp_path: Path, capfd: Any) -> None:
    scripted(Linear(), tmp_path / "net.pt")
    exported(Linear(), tmp_path / "net.pt2", torch.zeros(2, 4))
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("net.pt", "net.pt2"):
            with bridge.load(tmp_path / name) as predictor:
                predictor.predict({"x": X})
    assert not caught
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["script", "live"])
def test_an_input_after_one_that_is_not_declared_keeps_its_place(form: str, tmp_path: Path) -> None:
    class Optionals(torch.nn.Module):
        def forward(
            self,
            a: torch.Tensor,
            b: torch.Tensor | None = None,
            c: torch.Tensor | None = None,
        ) -> torch.Tensor:
            if b is not None:
                a = a + 10 * b
            if c is not None:
                a = a + 100 * c
            return a

    spec = bridge.TensorSpec("a", bridge.DType.FLOAT32, (1,))
    declared = bridge.Signature(
        (spec, bridge.TensorSpec("c", bridge.DType.FLOAT32, (1,))),
        (bridge.TensorSpec("y", bridge.DType.FLOAT32, (1,)),),
    )
    module = Optionals().eval()
    model: Any = scripted(module, tmp_path / "model.pt") if form == "script" else module
    one = np.ones(1, np.float32)
    with bridge.load(model, signature=declared) as predictor:
        assert predictor.predict({"a": one, "c": one})["y"] == 101
        bound = predictor.bind({"a": (1,), "c": (1,)})
        bound.inputs["a"][...] = bound.inputs["c"][...] = 1
        bound.predict()
        assert bound.outputs["y"] == 101
