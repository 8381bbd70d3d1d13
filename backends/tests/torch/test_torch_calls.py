"""What a call has around it: precision, layout, threads, graphs, and guards on compiling."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.cpus import usable_cpus
from bridge.errors import OptionError, PredictError

torch = pytest.importorskip("torch")

from bridge_torch.options import TorchOptions  # noqa: E402
from bridge_torch.threads import import_torch  # noqa: E402


class Images(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.layer = torch.nn.Linear(8, 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.conv(image))
        return features, self.layer(features.mean((2, 3)))


IMAGE = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)


def scripted(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, which is not what is tested
        torch.jit.script(module.eval()).save(str(path))
    return path


@pytest.mark.parametrize("form", ["module", "script", "program"])
def test_channels_last_changes_the_layout_and_nothing_else(form: str, tmp_path: Path) -> None:
    net: Any = Images().eval()
    before = net.conv.weight.stride()
    with torch.inference_mode():
        want = net(torch.from_numpy(IMAGE))
    model = net
    if form == "script":
        model = scripted(net, tmp_path / "net.pt")
    elif form == "program":
        model = tmp_path / "net.pt2"
        torch.export.save(torch.export.export(net, (torch.from_numpy(IMAGE),)), model)
    for more in ({}, {"execution": "frozen"}) if form == "script" else ({},):
        with bridge.load(model, options={"channels_last": True, **more}) as predictor:
            for _ in range(2):
                results = predictor.predict({"image": IMAGE}).values()
                for result, wanted in zip(results, want, strict=True):
                    assert result.flags.c_contiguous
                    np.testing.assert_allclose(result, wanted.numpy(), atol=1e-5)
    assert net.conv.weight.stride() == before
    with bridge.load(model) as plain:
        (features, _) = plain.predict({"image": IMAGE}).values()
        np.testing.assert_allclose(features, want[0].numpy(), atol=1e-5)


def test_a_convolution_sees_its_operands_in_that_layout() -> None:
    seen = []

    class Spy(Images):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            last = torch.channels_last
            seen.append(
                [item.is_contiguous(memory_format=last) for item in (image, self.conv.weight)]
            )
            return self.conv(image)

    with bridge.load(Spy().eval(), options={"channels_last": True}) as predictor:
        predictor.predict({"image": IMAGE})
        predictor.predict({"image": IMAGE})
    assert seen == [[True, True], [True, True]]


@pytest.mark.parametrize("form", ["module", "script"])
def test_autocast_holds_for_the_call_and_shows(form: str, tmp_path: Path) -> None:
    net: Any = torch.nn.Linear(64, 8).eval()
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    with torch.inference_mode():
        exact = net(torch.from_numpy(x)).numpy()
    model = scripted(net, tmp_path / "net.pt") if form == "script" else net
    with bridge.load(model, options={"autocast": "bf16"}) as predictor:
        assert predictor.info.precision == "bfloat16"
        for _ in range(3):
            (result,) = predictor.predict({"input": x}).values()
            assert result.dtype == np.float32
            error = np.abs(result - exact).max()
            assert 1e-5 < error < 0.1
            assert not torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        np.testing.assert_array_equal(net(torch.from_numpy(x)).numpy(), exact)


def test_a_thread_budget_holds_where_options_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge_torch.options._cores_are_shared", lambda: False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x + 1

    own = torch.get_num_threads()
    x = np.zeros(2, np.float32)
    bridge.set_thread_budget(1)
    try:
        for options, threads in (({}, 1), ({"threads": own + 1}, own + 1)):
            with bridge.load(Spy().eval(), options=options) as predictor:
                assert predictor.info.threads == threads
                predictor.predict({"x": x})
                assert seen[-1] == threads
        assert TorchOptions(threads=1).effective() == TorchOptions()
    finally:
        bridge.set_thread_budget(None)
    assert torch.get_num_threads() == own
    with bridge.load(Spy().eval()) as predictor:
        assert predictor.info.threads == min(own, usable_cpus())


@pytest.mark.parametrize("budget", [None, 1])
def test_idle_threads_sleep_under_a_budget(
    budget: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(
        "import os\npolicy = os.environ.get('OMP_WAIT_POLICY')\n", encoding="utf-8"
    )
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    bridge.set_thread_budget(budget)
    try:
        assert import_torch().policy == (None if budget is None else "passive")
        assert "OMP_WAIT_POLICY" not in os.environ
    finally:
        bridge.set_thread_budget(None)


@pytest.fixture
def _without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and run as they are, which takes no C++ compiler and no time."""
    inductor = pytest.importorskip("torch._inductor")
    monkeypatch.setattr(inductor, "compile", lambda graph, _, options: graph.forward)


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.mark.usefixtures("_without_code")
def test_compiling_again_is_said_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    options = {"execution": "compiled", "dynamic": False, "recompiles": 2}
    with bridge.load(Twice().eval(), options=options) as predictor:

        def call(rows: int) -> None:
            x = np.full(rows, 3, np.float32)
            np.testing.assert_array_equal(predictor.predict({"x": x})["output_0"], 6)

        with caplog.at_level(logging.WARNING, "bridge.torch"):
            call(2)
            assert not caplog.records
            for rows in (3, 4, 3, 2):
                call(rows)
        assert [record.getMessage() for record in caplog.records] == [
            f"torch.compile compiles the model again ({count} of 2) for inputs of [({rows},)]"
            for count, rows in ((1, 3), (2, 4))
        ]
        for _ in range(2):
            with pytest.raises(PredictError, match=r"inputs of \[\(5,\)\]; recompiles=2") as caught:
                call(5)
            assert caught.value.detail["rule"] == "recompile-limit"
        for rows in (2, 3, 4):
            call(rows)
    # What one predictor has used up is not counted against another of the same class.
    with bridge.load(Twice().eval(), options=options) as predictor:
        for rows in (5, 6, 7):
            assert predictor.predict({"x": np.zeros(rows, np.float32)})["output_0"].size == rows


@pytest.mark.usefixtures("_without_code")
def test_one_code_for_all_sizes_is_not_compiled_again() -> None:
    options = {"execution": "compiled", "recompiles": 0}
    with bridge.load(Twice().eval(), options=options) as predictor:
        for rows in (2, 3, 9, 40):
            assert predictor.predict({"x": np.ones(rows, np.float32)})["output_0"].sum() == 2 * rows


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"recompiles": 3}, "recompiles-without-compiled"),
        ({"mode": "max-autotune"}, "mode-without-compiler"),
        ({"mode": "reduce-overhead", "execution": "aot_inductor"}, "mode-without-compiler"),
        ({"freezing": True}, "freezing-without-aot-inductor"),
        ({"runners": 2, "execution": "frozen"}, "runners-elsewhere"),
        ({"channels_last": True, "execution": "aot_inductor"}, "channels-last-with-aot-inductor"),
        ({"autocast": "bf16", "execution": "frozen"}, "autocast-of-fixed-code"),
        (
            {"execution": "compiled", "mode": "max-autotune", "cuda_graphs": True},
            "cuda-graphs-twice",
        ),
        ({"runners": 2}, "runners-out-of-place"),
        ({"channels_last": True}, "channels-last-without-images"),
        ({"tf32": True}, "tf32-without-cuda"),
        ({"cuda_graphs": True}, "cuda-graphs-without-cuda"),
        ({"pinned": True}, "pinned-without-cuda"),
        ({"execution": "compiled", "mode": "reduce-overhead"}, "mode-without-cuda"),
    ],
    ids=str,
)
def test_options_without_effect_are_refused(options: dict[str, Any], rule: str) -> None:
    spec = bridge.TensorSpec("x", bridge.DType.FLOAT32, ("rows",))
    declared = bridge.Signature((spec,), (bridge.TensorSpec("y", None, None),))
    with pytest.raises(OptionError) as caught:
        bridge.load(Twice().eval(), signature=declared, device="cpu", options=options)
    assert caught.value.detail["rule"] == rule


def test_every_option_says_when_it_helps() -> None:
    assert all(item.when.endswith(".") for item in TorchOptions.describe())
    assert TorchOptions(autocast="bf16").tier == "half"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {"cuda_graphs": True},
        {"pinned": True},
        {"cuda_graphs": True, "pinned": True, "tf32": True},
        {"autocast": "f16"},
        {"channels_last": True, "autocast": "bf16"},
    ],
    ids=str,
)
def test_options_of_a_gpu(options: dict[str, Any]) -> None:
    net = Images().eval()
    images = [IMAGE, IMAGE[:1], IMAGE * 2]
    exact = "autocast" not in options and "tf32" not in options
    with bridge.load(net) as reference:
        wants = [list(reference.predict({"image": image}).values()) for image in images]
    with bridge.load(net, device="cuda", options=options) as predictor:
        for _ in range(4):  # as it is, recorded, replayed
            kept = [list(predictor.predict({"image": image}).values()) for image in images]
        for results, want in zip(kept, wants, strict=True):
            for result, wanted in zip(results, want, strict=True):
                np.testing.assert_allclose(result, wanted, atol=1e-5 if exact else 0.1)


@pytest.mark.gpu
def test_inputs_on_a_gpu_stay_there() -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.data_ptr())
            return x + 1

    x = torch.ones(1000, device="cuda:0")
    with bridge.load(Spy().eval(), device="cuda") as predictor:
        for _ in range(2):  # the first call works on copies
            assert (predictor.predict({"x": x})["output_0"] == 2).all()
    assert seen[-1] == x.data_ptr()


class _Plus(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.one


class _Called(_Plus):
    def __call__(self, x: torch.Tensor) -> Any:
        return super().__call__(x) + 100


def _compiled() -> torch.nn.Module:
    module = _Plus()
    module.compile(backend=lambda *_: lambda *_: (torch.full((3,), 7.0),))
    return module


def _hooked() -> torch.nn.Module:
    module = _Plus()
    module.register_forward_hook(lambda *_: torch.full((3,), 9.0))
    return module


@pytest.mark.parametrize(("make", "want"), [(_Called, 101), (_compiled, 7), (_hooked, 9)])
def test_what_a_module_does_besides_forward_is_done(make: Any, want: float) -> None:
    with bridge.load(make().eval(), device="cpu") as predictor:
        for _ in range(2):
            (result,) = predictor.predict({"x": np.zeros(3, np.float32)}).values()
            np.testing.assert_array_equal(result, np.full(3, want))
