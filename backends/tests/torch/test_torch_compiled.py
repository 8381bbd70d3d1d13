"""AOTInductor packages and torch.compile; both need a C++ compiler."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.cache import default_cache
from bridge.errors import (
    DTypeMismatch,
    ModelLoadFailed,
    OptionError,
    ShapeMismatch,
    UnsupportedModel,
    UntrustedModel,
)
from bridge.loading import open_model
from bridge.model import ModelRef

torch = pytest.importorskip("torch")

from bridge_torch.exported import of_exported  # noqa: E402
from bridge_torch.package import _checks, _without_texts  # noqa: E402
from bridge_torch.runners import open_package  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch's compiler needs g++, which is not installed"
)

F32 = bridge.DType.FLOAT32


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return {"out": torch.relu(self.layer(x)) + y, "weight": self.layer.weight, "same": x}


DECLARED = bridge.Signature(
    (bridge.TensorSpec("x", F32, ("rows", 4)), bridge.TensorSpec("y", F32, (3,))),
    (
        bridge.TensorSpec("out", F32, ("rows", 3)),
        bridge.TensorSpec("weight", F32, (3, 4)),
        bridge.TensorSpec("same", F32, ("rows", 4)),
    ),
)
Y = np.ones(3, np.float32)


def rows(count: int) -> dict[str, Any]:
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4) - 5
    return {"x": x, "y": Y}


def expected(count: int) -> Any:
    with torch.inference_mode():
        result = Net().eval()(*(torch.from_numpy(array) for array in rows(count).values()))
    return {name: tensor.numpy(force=True) for name, tensor in result.items()}


def program() -> Any:
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "y": None}
    return torch.export.export(
        Net().eval(), (torch.zeros(5, 4), torch.zeros(3)), dynamic_shapes=shapes
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bridge.Predictor]]:
    """A program on disk and its package, built once by the bridge: some 10 s of g++."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRIDGE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        path = tmp_path_factory.mktemp("program") / "net.pt2"
        torch.export.save(program(), path)
        with bridge.load(path, options={"execution": "aot_inductor"}) as predictor:
            yield path, predictor


@pytest.fixture(scope="module")
def package(built: tuple[Path, bridge.Predictor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package as a file of a user's."""
    (found,) = Path(os.environ["BRIDGE_CACHE_DIR"]).glob("entries/*/files/model.pt2")
    return Path(shutil.copy(found, tmp_path_factory.mktemp("aoti") / "net.pt2"))


def test_a_program_is_compiled_into_the_cache(built: tuple[Path, bridge.Predictor]) -> None:
    path, predictor = built
    assert predictor.info.provider == "AOTInductor"
    assert dict(predictor.info.options) == {"execution": "aot_inductor"}
    with bridge.load(path) as eager:
        assert predictor.signature == eager.signature
    for count in (2, 7, 64):
        given = rows(count)
        results = predictor.predict(given)
        for name, want in expected(count).items():
            np.testing.assert_allclose(results[name], want, rtol=1e-5, atol=1e-6)
            results[name][...] = 99
        np.testing.assert_array_equal(given["x"], rows(count)["x"])
    for count in (1, 65):
        with pytest.raises(ShapeMismatch, match=f"size {count} in axis 0; .* for 2 to 64"):
            predictor.predict(rows(count))
    (entry,) = default_cache().ls()
    assert entry.kind == "aot-inductor"
    started = entry.used_s
    with bridge.load(path, options={"execution": "aot_inductor"}) as again:
        assert again.predict(rows(3))["out"].shape == (3, 3)
    (entry,) = default_cache().ls()
    assert entry.used_s >= started


def test_options_reach_the_compiler(
    built: tuple[Path, bridge.Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what torch is asked for: compiling is slow, and its effects are torch's to test."""
    seen = []

    def refuse(given: Any, inductor_configs: dict[str, Any], package_path: str) -> None:
        targets = [str(node.target) for node in given.graph.nodes]
        seen.append(
            {
                **inductor_configs,
                "grad": torch.is_grad_enabled(),
                "converts": "aten._to_copy.default" in targets,
            }
        )
        raise RuntimeError(f"nothing was put at {Path(package_path).name}")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", refuse)
    options = {
        "execution": "aot_inductor",
        "freezing": True,
        "mode": "max-autotune",
        "threads": 3,
        "autocast": "bf16",
    }
    with pytest.raises(ModelLoadFailed, match=r"nothing was put at model\.pt2"):
        bridge.load(built[0], options=options)
    wanted = {"freezing": True, "max_autotune": True, "cpp.threads": 3}
    assert {**wanted, "grad": False, "converts": True}.items() <= seen[0].items()
    assert "triton.cudagraphs" not in seen[0]
    with pytest.raises(ModelLoadFailed):
        bridge.load(built[0], options={"execution": "aot_inductor", "threads": 3})
    assert not seen[1]["converts"]
    assert "freezing" not in seen[1]


def test_conditions_that_ranges_do_not_hold_are_asked_in_each_call() -> None:
    class Fours(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 4).sum(1)

    shapes = {"x": {0: torch.export.Dim.AUTO}}
    exported = torch.export.export(Fours(), (torch.zeros(8),), dynamic_shapes=shapes)
    check = _checks(exported, of_exported(exported, None, ""))
    check(torch.zeros(12))
    with pytest.raises(AssertionError, match="Guard failed"):
        check(torch.zeros(13))


def test_sizes_that_are_compared_with_each_other_are_asked_in_each_call() -> None:
    class Starts(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            torch._check(x.shape[0] <= y.shape[0])
            return x + y[: x.shape[0]]

    shapes = {"x": {0: torch.export.Dim.DYNAMIC}, "y": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(
        Starts(), (torch.zeros(5, 4), torch.zeros(7, 4)), dynamic_shapes=shapes
    )
    check = _checks(exported, of_exported(exported, None, ""))
    check(torch.zeros(6, 4), torch.zeros(6, 4))
    with pytest.raises(AssertionError, match="Guard failed"):
        check(torch.zeros(9, 4), torch.zeros(3, 4))


def test_an_example_in_another_order_of_memory_is_refused() -> None:
    class Sine(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x)

    exported = torch.export.export(Sine(), (torch.zeros(3, 4).t(),))
    with pytest.raises(UnsupportedModel, match="'x' was not contiguous"):
        _checks(exported, of_exported(exported, None, ""))


def test_a_stated_signature_does_not_let_arrays_past_compiled_code(
    built: tuple[Path, bridge.Predictor],
) -> None:
    inputs = [bridge.TensorSpec(name, None, None) for name in ("x", "y")]
    stated = bridge.Signature(tuple(inputs), DECLARED.outputs)
    given = rows(5)
    with bridge.load(
        built[0], signature=stated, options={"execution": "aot_inductor"}
    ) as predictor:
        np.testing.assert_allclose(predictor.predict(given)["out"], expected(5)["out"], rtol=1e-5)
        with pytest.raises(DTypeMismatch, match="'x' has dtype int32; .* for float32"):
            predictor.predict({**given, "x": given["x"].astype(np.int32)})
        for wrong in (given["x"][:, :2], given["x"][0]):
            with pytest.raises(ShapeMismatch, match="'x' has shape"):
                predictor.predict({**given, "x": wrong})
        with pytest.raises(ShapeMismatch, match="size 65 in axis 0"):
            predictor.predict(rows(65))


def test_texts_of_a_program_do_not_get_into_code() -> None:
    exported = program()
    model = ModelRef(format=open_model(exported).format, path=Path("net.pt2"))
    _without_texts(exported, model)
    nodes = list(exported.graph.nodes)
    assert not any("stack_trace" in node.meta for node in nodes)
    node = next(node for node in nodes if node.op == "call_function")
    node.kwargs = {**node.kwargs, "mode": '"; system("id"); "'}
    with pytest.raises(UntrustedModel, match="might get into the code"):
        _without_texts(exported, model)
    _without_texts(exported, dataclasses.replace(model, trust=True))


def test_programs_that_compiled_code_would_not_check_are_refused() -> None:
    class Adds(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.add_(1)
            return x * 2

    exported = torch.export.export(Adds(), (torch.zeros(8),))
    with pytest.raises(UnsupportedModel, match="writes to its inputs"):
        _checks(exported, of_exported(exported, None, ""))
    with pytest.raises(OptionError, match="on disk"):
        bridge.load(program(), options={"execution": "aot_inductor"})


def test_a_package_needs_trust_and_a_signature(package: Path) -> None:
    with pytest.raises(UntrustedModel, match="native code"):
        bridge.load(package, signature=DECLARED)
    with pytest.raises(UnsupportedModel, match="does not check its inputs"):
        bridge.load(package, trust=True)
    shapeless = bridge.Signature(
        (bridge.TensorSpec("x", F32, None), DECLARED.inputs[1]), DECLARED.outputs
    )
    with pytest.raises(UnsupportedModel):
        bridge.load(package, trust=True, signature=shapeless)
    short = bridge.Signature(DECLARED.inputs, DECLARED.outputs[:1])
    with pytest.raises(OptionError, match="1 outputs; the package has 3"):
        bridge.load(package, trust=True, signature=short)
    with pytest.raises(OptionError, match="execution"):
        bridge.load(package, trust=True, signature=DECLARED, options={"execution": "frozen"})


def test_a_package_runs(package: Path) -> None:
    with bridge.load(package, trust=True, signature=DECLARED) as predictor:
        assert predictor.info.provider == "AOTInductor"
        assert predictor.info.details["package"]["device_key"] == "cpu"
        for count in (2, 7, 64):
            given = rows(count)
            results = predictor.predict(given)
            for name, want in expected(count).items():
                np.testing.assert_allclose(results[name], want, rtol=1e-5, atol=1e-6)
                assert not np.shares_memory(results[name], given["x"])
                results[name][...] = 99
            np.testing.assert_array_equal(given["x"], rows(count)["x"])
        with pytest.raises(ShapeMismatch):
            predictor.predict({"x": np.zeros((2, 5), np.float32), "y": Y})


def test_a_package_may_be_called_from_threads(package: Path) -> None:
    wants = {count: expected(count)["out"] for count in (2, 3, 8, 33)}
    wrong: list[int] = []
    with bridge.load(package, trust=True, signature=DECLARED) as predictor:

        def work(count: int) -> None:
            results = [predictor.predict(rows(count))["out"] for _ in range(100)]
            wrong.extend(
                count for result in results if not np.allclose(result, wants[count], atol=1e-5)
            )

        threads = [threading.Thread(target=work, args=(count,)) for count in wants]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("runners", [1, 3])
def test_runners_share_weights_and_answer_side_by_side(
    built: tuple[Path, bridge.Predictor], package: Path, runners: int
) -> None:
    path, _ = built
    options = {"execution": "aot_inductor", "runners": runners}
    loads: list[dict[str, Any]] = [
        {"model": path, "options": options},
        {"model": package, "trust": True, "signature": DECLARED, "options": {"runners": runners}},
    ]
    wants = {count: expected(count)["out"] for count in (2, 3, 8, 33)}
    for load in loads:
        with bridge.load(**load) as predictor:
            assert predictor.info.details["runners"] == runners

            def work(count: int, predictor: bridge.Predictor = predictor) -> None:
                for _ in range(50):
                    results = predictor.predict(rows(count))
                    np.testing.assert_allclose(results["out"], wants[count], atol=1e-5)
                    for result in results.values():
                        result[...] = 99

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(work, wants))
    with bridge.load(**loads[0]) as first, bridge.load(**loads[0]) as second:
        assert first._program.source is second._program.source  # type: ignore[attr-defined]


def test_a_runner_that_fails_serves_the_next_call(package: Path) -> None:
    opened = open_package(package, 2)
    with pytest.raises(RuntimeError, match="takes 2 tensors"):
        opened.run([torch.zeros(2, 4)])
    for _ in range(5):  # more often than there are runners
        with pytest.raises(RuntimeError):
            opened.run([torch.zeros(4, 7)[:, :0], torch.zeros(3)])
    results = opened.run([torch.ones(2, 4), torch.zeros(3)])
    assert results[0].shape == (2, 3)


def test_torch_compile() -> None:
    for model in (Net().eval(), program()):
        with bridge.load(model, options={"execution": "compiled"}) as predictor:
            assert predictor.info.provider == "torch.compile"
            for count in (3, 9):
                results = predictor.predict(rows(count))
                for name, want in expected(count).items():
                    np.testing.assert_allclose(results[name], want, rtol=1e-5, atol=1e-6)
                    results[name][...] = 99
