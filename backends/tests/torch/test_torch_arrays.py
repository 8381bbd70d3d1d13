"""The torch backend: whose memory inputs and outputs are, and every dtype."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.device import CPU
from bridge.errors import PredictError
from bridge_torch.backend import TorchBackend
from bridge_torch.tensors import dtype_of

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")

SIZES = (4, 40_000)
"""Elements of a small output, which is always copied, and of a large one."""


def load(module: torch.nn.Module, form: str, folder: Path, *examples: Any) -> bridge.Predictor:
    if form == "module":
        return bridge.load(module.eval())
    if form == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(module.eval()).save(str(folder / "net.pt"))
        return bridge.load(folder / "net.pt")
    program = torch.export.export(module.eval(), examples)
    torch.export.save(program, folder / "net.pt2")
    return bridge.load(folder / "net.pt2")


FORMS = pytest.mark.parametrize("form", ["module", "script", "program"])


@FORMS
@pytest.mark.parametrize("size", SIZES)
def test_outputs_that_are_inputs_parameters_or_views_are_copied(
    form: str, size: int, tmp_path: Path
) -> None:
    class Aliases(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(size))

        def forward(
            self, x: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
            y = x * 2
            return x, self.weight, x.view(-1, 2), y, y[1:]

    x = np.arange(size, dtype=np.float32)
    with load(Aliases(), form, tmp_path, torch.zeros(size)) as predictor:
        for _ in range(2):
            first = list(predictor.predict({"x": x}).values())
            for array in first:
                assert array.flags.writeable
                assert array.flags.c_contiguous
                assert not np.shares_memory(array, x)
            for index, array in enumerate(first):
                for other in first[index + 1 :]:
                    assert not np.shares_memory(array, other)
            for array in first:
                array[...] = -1  # they are the caller's: nothing else may notice
            assert x[1] == 1
        again = list(predictor.predict({"x": x}).values())
        np.testing.assert_array_equal(again[0], x)
        np.testing.assert_array_equal(again[1], 1)
        np.testing.assert_array_equal(again[4], x[1:] * 2)


@pytest.mark.parametrize("size", SIZES)
def test_what_a_module_keeps_is_copied(size: int) -> None:
    class Keeps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept: Any = None
            self.array = np.zeros(size, np.float32)

        def forward(self, x: torch.Tensor) -> Any:
            if self.kept is not None:
                self.kept[0].add_(1000)
                self.array += 1000
            self.kept = [x + 1]
            return self.kept[0], torch.from_numpy(self.array)

    x = np.zeros(size, np.float32)
    with bridge.load(Keeps().eval()) as predictor:
        results = [list(predictor.predict({"x": x}).values()) for _ in range(3)]
        for count, (kept, shared) in enumerate(results):
            assert kept[0] == 1
            assert shared[0] == 1000 * count


def test_large_outputs_are_not_copied() -> None:
    places = []

    class Fresh(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            y, z = x + 1, x + 2
            places.append((y.data_ptr(), z.data_ptr()))
            return y, {"z": z}

    class Single(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x + 1
            places.append((y.data_ptr(),))
            return y

    x = np.zeros(40_000, np.float32)
    for module in (Fresh(), Single()):
        with bridge.load(module.eval()) as predictor:
            for _ in range(2):
                results = predictor.predict({"x": x})
                assert tuple(array.ctypes.data for array in results.values()) == places[-1]


def test_outputs_are_in_c_order_without_overlap() -> None:
    class Strided(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.t(), x.sum().expand(3), x[:, ::2] * 1, (x + 1).flip(0)

    for side in (2, 200):
        x = np.random.default_rng(0).random((side, side), np.float32)
        with bridge.load(Strided().eval()) as predictor:
            for _ in range(2):
                first, second, third, fourth = predictor.predict({"x": x}).values()
                np.testing.assert_array_equal(first, x.T)
                np.testing.assert_array_equal(third, x[:, ::2])
                np.testing.assert_array_equal(fourth, (x + 1)[::-1])
                for array in (first, second, third, fourth):
                    assert array.flags.c_contiguous
                second[0] = 7
                assert second[1] != 7


@FORMS
def test_inputs_are_never_changed(form: str, tmp_path: Path) -> None:
    class Writes(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x.view(-1).add_(1.0)
            return x + y

    x, y = np.zeros(6, np.float32), np.ones(6, np.float32)
    with load(Writes(), form, tmp_path, torch.zeros(6), torch.zeros(6)) as predictor:
        for _ in range(3):
            np.testing.assert_array_equal(predictor.predict({"x": x, "y": y})["output_0"], 2)
        assert not x.any()


def test_inputs_are_seen_without_a_copy() -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.data_ptr())
            return x + 1

    x = np.zeros(8, np.float32)
    with bridge.load(Spy().eval()) as predictor:
        predictor.predict({"x": x})  # the first call works on copies
        predictor.predict({"x": x})
        assert seen[-1] == x.ctypes.data
        predictor.predict({"x": torch.from_numpy(x)})
        assert seen[-1] == x.ctypes.data


def test_unusual_arrays() -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    misaligned = np.frombuffer(bytearray(25), np.uint8)[1:].view(np.float32)
    odd = [base[::-1], base[:, ::2], base.T, np.asfortranarray(base), frozen, misaligned]
    odd += [np.broadcast_to(base[0], (3, 6)), base[:0], np.float32(3), np.array(3.0, np.float32)]
    with bridge.load(Double().eval()) as predictor:
        for array in odd:
            result = predictor.predict({"x": array})["output_0"]
            np.testing.assert_array_equal(result, np.asarray(array) * 2)
            assert result.shape == np.shape(array)


DTYPES = sorted(TorchBackend().capabilities(CPU).dtypes, key=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_goes_in_and_out(dtype: bridge.DType) -> None:
    class Identity(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.dtype)
            return x.clone()

    seen: list[Any] = []
    declared = bridge.Signature(
        (bridge.TensorSpec("x", dtype, ("rows",)),), (bridge.TensorSpec("y", dtype, ("rows",)),)
    )
    for size in (3, 10_000):
        x = np.resize(np.array([0, 1, 2]), size).astype(dtype.numpy)
        for signature in (declared, None):
            with bridge.load(Identity().eval(), signature=signature) as predictor:
                for _ in range(2):
                    (result,) = predictor.predict({"x": x}).values()
                    assert result.dtype == dtype.numpy
                    np.testing.assert_array_equal(result.view(np.uint8), x.view(np.uint8))
    assert {dtype_of(item) for item in seen} == {dtype}


def test_lazy_conjugates_gradients_and_scalars() -> None:
    class Lazy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> Any:
            return x.conj(), x.conj().imag, self.weight, 3, 2.5, True, None

    x = np.array([1 + 2j, 3 - 1j], np.complex64)
    with bridge.load(Lazy().eval()) as predictor:
        results = predictor.predict({"x": x})
        assert list(results) == [f"output_{index}" for index in range(6)]
        np.testing.assert_array_equal(results["output_0"], x.conj())
        np.testing.assert_array_equal(results["output_1"], -x.imag)
        assert [results[f"output_{index}"].item() for index in (3, 4, 5)] == [3, 2.5, True]


def test_what_has_no_array_is_refused() -> None:
    class Sparse(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to_sparse()

    class Text(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return "text"

    for module, said in ((Sparse(), "layout"), (Text(), "class str")):
        with (
            bridge.load(module.eval()) as predictor,
            pytest.raises(PredictError, match=said),
        ):
            predictor.predict({"x": np.eye(3, dtype=np.float32)})


@FORMS
def test_threads_get_their_own_answers(form: str, tmp_path: Path) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, x.sum(1)

    wrong = []
    with load(Scale(), form, tmp_path, torch.zeros(50, 60)) as predictor:

        def work(seed: int) -> None:
            x = np.full((50, 60), seed, np.float32)
            for _ in range(50):
                first, second = predictor.predict({"x": x}).values()
                if (first != 2 * seed).any() or (second != 60 * seed).any():
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@FORMS
def test_threads_may_load_at_once(form: str, tmp_path: Path) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    load(Scale(), form, tmp_path, torch.zeros(3)).close()
    path = next(tmp_path.iterdir(), None)
    start = threading.Barrier(4)

    def work(_: int) -> None:
        start.wait(60)
        for _ in range(5):
            with bridge.load(path or Scale().eval()) as predictor:
                (result,) = predictor.predict({"x": np.ones(3, np.float32)}).values()
                assert (result == 2).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@FORMS
def test_state_is_changed_by_one_thread_at_a_time(form: str, tmp_path: Path) -> None:
    class Count(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x + self.count

    with load(Count(), form, tmp_path, torch.zeros(1)) as predictor:
        seen: list[float] = []

        def work() -> None:
            for _ in range(50):
                results = predictor.predict({"x": np.zeros(1, np.float32)})
                seen.append(float(results["output_0"][0]))

        work()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(1, 251))
        assert predictor.info.stateful


def test_bind_and_warmup() -> None:
    class Add(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    spec = bridge.TensorSpec("x", bridge.DType.FLOAT32, ("rows", 2))
    declared = bridge.Signature((spec,), (bridge.TensorSpec("y", None, None),))
    with bridge.load(Add().eval(), signature=declared) as predictor:
        predictor.warmup(batches=(1, 3))
        bound = predictor.bind({"x": (3, 2)})
        for value in (1, 2):
            bound.inputs["x"][...] = value
            bound.predict()
            np.testing.assert_array_equal(bound.outputs["y"], value + 1)


@pytest.mark.gpu
@FORMS
def test_on_a_gpu(form: str, tmp_path: Path) -> None:
    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(256, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    with load(Product(), form, tmp_path, torch.zeros(64, 256)) as predictor:
        want = predictor.predict({"x": x})["output_0"]
    model = Product().eval() if form == "module" else next(tmp_path.iterdir())
    before = torch.backends.cudnn.allow_tf32
    with bridge.load(model, device="cuda") as predictor:
        assert str(predictor.info.device) == "cuda:0"
        np.testing.assert_allclose(predictor.predict({"x": x})["output_0"], want, atol=1e-5)
    assert torch.backends.cudnn.allow_tf32 == before
