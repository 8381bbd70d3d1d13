"""Arrays on the GPU: DLPack both ways against other libraries, and the run path with them.

The GPU of the fakes has its memory on the host, so that numpy and torch can be asked what
they make of a capsule: DLPack's word for the CPU takes the place of that for CUDA.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.dtypes import DType
from bridge_tensorrt import arrays
from bridge_tensorrt.arrays import GpuArray

pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def as_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_CUDA", 1)


class Foreign:
    """A tensor of another library, by numpy's own capsule; what was asked of it is kept."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


def lent(array: np.ndarray[Any, Any], index: int = 0) -> GpuArray:
    kind = DType.of(array.dtype)
    return GpuArray(array.ctypes.data, array.shape, kind, index, owner=array)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 4)])
def test_numpy_reads_our_capsule_without_a_copy(
    as_cpu: None, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    view = np.from_dlpack(lent(array))
    assert view.dtype == array.dtype
    assert view.shape == array.shape
    np.testing.assert_array_equal(view, array)
    if array.size:
        assert view.ctypes.data == array.ctypes.data


def test_torch_reads_our_capsule_without_a_copy(as_cpu: None) -> None:
    torch = pytest.importorskip("torch")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    view = torch.from_dlpack(lent(array))
    assert view.data_ptr() == array.ctypes.data
    view[1, 2] = 9
    assert array[1, 2] == 9


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_types_that_numpy_lacks_keep_their_name(as_cpu: None, name: str) -> None:
    torch = pytest.importorskip("torch")
    array = np.array([[1.5, -2]], DType(name).numpy)
    view = torch.from_dlpack(lent(array))
    assert view.dtype is getattr(torch, name)
    assert view.data_ptr() == array.ctypes.data
    assert view.float().tolist() == [[1.5, -2]]


def test_memory_lives_until_the_last_view_is_gone(as_cpu: None) -> None:
    class Owner:
        gone = 0

        def __del__(self) -> None:
            Owner.gone += 1

    data = np.ones(3, np.float32)
    made = GpuArray(data.ctypes.data, (3,), DType.FLOAT32, 0, Owner())
    view = np.from_dlpack(made)
    del made
    gc.collect()
    assert Owner.gone == 0
    del view
    gc.collect()
    assert Owner.gone == 1
    unused = GpuArray(data.ctypes.data, (3,), DType.FLOAT32, 0, Owner()).__dlpack__()
    del unused  # nobody took the capsule
    gc.collect()
    assert Owner.gone == 2


def test_a_taker_that_refuses_leaves_nothing_behind() -> None:
    """numpy destroys the capsule while its own exception is on the way."""
    array = np.arange(4, dtype=np.float32)
    made = lent(array)
    gone = weakref.ref(made)
    with pytest.raises((BufferError, RuntimeError), match="device"):
        np.from_dlpack(made)
    del made
    gc.collect()
    assert gone() is None


def test_copies_and_other_devices_are_refused(as_cpu: None) -> None:
    made = lent(np.arange(4, dtype=np.float32), index=1)
    for wanted in ({"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}):
        with pytest.raises(BufferError, match="its own memory only"):
            made.__dlpack__(**wanted)
    made.__dlpack__(copy=False, dl_device=(1, 1))


LATE = """
import sys
import numpy as np
from bridge.dtypes import DType
from bridge_tensorrt import arrays

arrays._CUDA = 1
data = np.ones(3, np.float32)
made = arrays.GpuArray(data.ctypes.data, (3,), DType.FLOAT32, 0, data)
sys.kept = [np.from_dlpack(made), made.__dlpack__()]  # longer than any module
"""


def test_views_may_outlive_the_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_interfaces() -> None:
    array = np.arange(4, dtype=np.float32)
    made = lent(array)
    assert made.__dlpack_device__() == (2, 0)
    assert made.__cuda_array_interface__["data"] == (array.ctypes.data, False)
    assert made.__cuda_array_interface__["typestr"] == "<f4"
    assert repr(made) == "<GpuArray float32 (4,) on cuda:0>"
    with pytest.raises(ValueError, match="without a copy"):
        np.array(made, copy=False)


def inputs_of(gpu: Any, rows: int, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs on the host, and the same with ``x`` and ``ids`` on the GPU."""
    generator = np.random.default_rng(seed)
    host = {
        "x": generator.standard_normal((rows, 4)).astype(np.float32),
        "ids": generator.integers(0, 2**40, rows),
        "size": np.array(3, np.int64),
    }
    there = {name: host[name].copy() for name in ("x", "ids")}
    for array in there.values():
        gpu.adopt(array)
    return host, {**host, **{name: Foreign(array) for name, array in there.items()}}


def wanted(host: dict[str, Any]) -> dict[str, Any]:
    x = host["x"]
    return {
        "y": (2 * x + host["ids"][:, None]).astype(np.float32),
        "rows": np.int64(len(x)),
        "positive": x[x > 0],
        "steps": np.arange(3, dtype=np.float32),
    }


def test_inputs_on_the_gpu_are_copied_inside_it(trt: Any, gpu: Any, engine_file: Path) -> None:
    with bridge.load(engine_file, trust=True) as predictor:
        for seed, rows in enumerate((4, 4, 6)):
            host, given = inputs_of(gpu, rows, seed)
            outputs = predictor.predict(given)
            for name, right in wanted(host).items():
                assert type(outputs[name]) is np.ndarray
                np.testing.assert_array_equal(outputs[name], right)
            assert given["x"].streams == given["ids"].streams  # looked at, then waited for
            assert given["x"].streams[0] == -1
            assert given["x"].streams[1] in gpu.streams
        host, given = inputs_of(gpu, 5)
        with pytest.raises(errors.ShapeMismatch, match=r"'x' has shape \(5, 2\)"):
            predictor.predict({**given, "x": Foreign(np.zeros((5, 2), np.float32))})
        with pytest.raises(errors.DTypeMismatch, match="'ids'"):
            predictor.predict({**given, "ids": Foreign(np.zeros(5, np.int32))})
        with pytest.raises(errors.MissingInput, match="'size'"):
            predictor.predict({"x": given["x"], "ids": given["ids"]})
        np.testing.assert_array_equal(predictor.predict(given)["y"], wanted(host)["y"])


def test_a_value_that_the_host_needs_is_fetched(trt: Any, gpu: Any, engine_file: Path) -> None:
    size = np.array(7, np.int64)
    gpu.adopt(size)
    _, given = inputs_of(gpu, 2)
    with bridge.load(engine_file, trust=True) as predictor:
        outputs = predictor.predict({**given, "size": Foreign(size)})
        np.testing.assert_array_equal(outputs["steps"], np.arange(7, dtype=np.float32))


def test_results_stay_on_the_gpu(trt: Any, gpu: Any, engine_file: Path) -> None:
    with bridge.load(engine_file, trust=True, options={"io": "device"}) as predictor:
        kept = []
        for seed, rows in enumerate((4, 4, 60)):
            host, given = inputs_of(gpu, rows, seed)
            kept.append((predictor.predict(given if seed else host), wanted(host)))
        for outputs, right in kept:  # no later call wrote into them
            for name, array in outputs.items():
                assert isinstance(array, GpuArray)
                assert gpu.holds("device", array.address, max(array.nbytes, 1))
                np.testing.assert_array_equal(np.asarray(array), right[name])
        again = predictor.predict({**host, "x": GpuArray(*_doubled(gpu, host["x"]))})
        np.testing.assert_array_equal(np.asarray(again["positive"]), right["positive"] * 2)
    outputs, right = kept[0]
    np.testing.assert_array_equal(np.asarray(outputs["y"]), right["y"])  # outlives it
    del kept, outputs, array, again
    gc.collect()
    held = [word for word, owner, _ in gpu.blocks.values() if not isinstance(owner, np.ndarray)]
    assert "device" not in held


def _doubled(gpu: Any, x: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    array = 2 * x
    gpu.adopt(array)
    return array.ctypes.data, array.shape, DType.FLOAT32, 0, array


def test_bound_calls_on_the_gpu(as_cpu: None, trt: Any, gpu: Any, engine_file: Path) -> None:
    with bridge.load(engine_file, trust=True, options={"io": "device"}) as predictor:
        bound = predictor.bind({"x": (5, 4), "ids": (5,), "size": ()})
        assert isinstance(bound.inputs["x"], GpuArray)
        assert isinstance(bound.inputs["size"], np.ndarray)  # TensorRT reads it on the host
        assert not np.asarray(bound.inputs["x"]).any()
        x, ids = (np.from_dlpack(bound.inputs[name]) for name in ("x", "ids"))
        copies = gpu.copies
        for seed in range(3):
            host, _ = inputs_of(gpu, 5, seed)
            x[...], ids[...] = host["x"], host["ids"]
            bound.inputs["size"][...] = 3
            bound.predict()
            for name, right in wanted(host).items():
                np.testing.assert_array_equal(np.asarray(bound.outputs[name]), right)
        assert gpu.copies == copies  # nothing was copied by any of these calls
        assert len(gpu.followed) == 3  # each waited for the default stream
        host, _ = inputs_of(gpu, 50)  # the predictor's own calls do not disturb it
        predictor.predict(host)
        np.testing.assert_array_equal(np.asarray(bound.outputs["y"]), wanted_of(x, ids))
        y = np.from_dlpack(bound.outputs["y"])
    np.testing.assert_array_equal(y, wanted_of(x, ids))  # the memory outlives the predictor
    assert gpu.events == set()


def wanted_of(x: Any, ids: Any) -> Any:
    return (2 * x + ids[:, None]).astype(np.float32)
