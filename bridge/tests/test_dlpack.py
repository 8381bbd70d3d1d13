from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import Device, DType, PredictorInfo, Signature, TensorSpec
from bridge.check import as_array
from bridge.dlpack import DeviceArray, Tensor, _Versioned, device_array, shared_view
from bridge.errors import DTypeMismatch, InputError, ShapeMismatch

BFLOAT, E4M3FN, FLOAT = (4, 16), (10, 8), (2, 32)
GPU = (2, 0)
KEPT: list[Any] = []

_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Exporter:
    """Memory behind DLPack, described by hand; kept, because its capsules do not keep it."""

    def __init__(
        self,
        memory: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        kind: tuple[int, int] = BFLOAT,
        *,
        strides: tuple[int, ...] | None = None,
        offset: int = 0,
        flags: int | None = 0,
        major: int = 1,
        lanes: int = 1,
        device: tuple[int, int] = (1, 0),
    ) -> None:
        KEPT.append((self, memory))
        self.device = device
        self.streams: list[int] = []
        self._sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        self._steps = (ctypes.c_int64 * max(len(shape), 1))(*(strides or ()))
        tensor = Tensor(
            data=memory.ctypes.data,
            device_type=1,
            ndim=len(shape),
            type_code=kind[0],
            type_bits=kind[1],
            lanes=lanes,
            byte_offset=offset,
        )
        tensor.shape = ctypes.cast(self._sizes, ctypes.POINTER(ctypes.c_int64))
        if strides is not None:
            tensor.strides = ctypes.cast(self._steps, ctypes.POINTER(ctypes.c_int64))
        self._is_old = flags is None
        self._managed: Any = (
            tensor if flags is None else _Versioned(major=major, flags=flags, tensor=tensor)
        )

    def _tensor_address(self) -> int:
        held = self._managed if self._is_old else self._managed.tensor
        return int(held.data)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: Any = None, **said: Any) -> Any:
        self.streams.append(stream)
        if self._is_old and said:
            raise TypeError("unexpected keyword argument")
        name = b"dltensor" if self._is_old else b"dltensor_versioned"
        return _new(ctypes.addressof(self._managed), name, None)


def halves(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, DType.BFLOAT16.numpy)


pytest.importorskip("ml_dtypes")


def test_memory_is_shared_and_writable() -> None:
    memory = halves(1, 2, 3, 4, 5, 6)
    view = shared_view(Exporter(memory, (2, 3)))
    assert view is not None
    assert (view.shape, view.dtype, view.ctypes.data) == ((2, 3), memory.dtype, memory.ctypes.data)
    view[1, 2] = 9
    assert memory[5] == 9


@pytest.mark.parametrize(
    ("flags", "is_writable"), [(0, True), (1, False), (2, True), (None, False)]
)
def test_what_does_not_say_that_it_may_be_written_to_is_read_only(
    flags: int | None, is_writable: bool
) -> None:
    view = shared_view(Exporter(halves(1, 2), (2,), flags=flags))
    assert view is not None
    assert view.flags.writeable is is_writable
    np.testing.assert_array_equal(view, halves(1, 2))


def test_strides_offsets_and_scalars() -> None:
    memory = halves(0, 1, 2, 3, 4, 5)
    view = shared_view(Exporter(memory, (2, 2), strides=(1, 3), offset=2))
    np.testing.assert_array_equal(view, np.array([[1, 4], [2, 5]], memory.dtype))
    backwards = shared_view(Exporter(memory, (3,), strides=(-2,), offset=10))
    np.testing.assert_array_equal(backwards, halves(5, 3, 1))
    scalar = shared_view(Exporter(memory, (), offset=6))
    assert scalar is not None
    assert (scalar.shape, float(scalar)) == ((), 3.0)
    empty = shared_view(Exporter(memory, (0, 4)))
    assert empty is not None
    assert (empty.shape, empty.dtype) == ((0, 4), memory.dtype)


def test_types_of_one_byte() -> None:
    memory = np.array([1.5, -2], DType.FLOAT8_E4M3FN.numpy)
    view = shared_view(Exporter(memory, (2,), E4M3FN))
    assert view is not None
    np.testing.assert_array_equal(view, memory)


def test_types_that_numpy_has_are_left_to_it() -> None:
    assert shared_view(Exporter(np.zeros(2, np.float32), (2,), FLOAT)) is None
    assert shared_view(Exporter(halves(1, 2), (1,), lanes=2)) is None


def test_capsules_of_another_kind_are_refused() -> None:
    with pytest.raises(BufferError, match="version 2"):
        shared_view(Exporter(halves(1), (1,), major=2))

    class Odd:
        def __dlpack__(self, **_: Any) -> Any:
            return object()

    with pytest.raises(BufferError, match="no unused DLPack capsule"):
        shared_view(Odd())


def test_the_memory_lives_as_long_as_the_array() -> None:
    kept: list[Any] = []

    class Counted(Exporter):
        def __dlpack__(self, **said: Any) -> Any:
            capsule = super().__dlpack__(**said)
            kept.append(capsule)
            return capsule

    view = shared_view(Counted(halves(1, 2), (2,)))
    assert view is not None
    base: Any = view
    while isinstance(base, np.ndarray):
        base = base.base
    assert base.owner is kept[0]


def test_an_input_that_nobody_can_read_says_why() -> None:
    spec = TensorSpec("x", DType.BFLOAT16, ("n",))
    with pytest.raises(InputError, match="'x' cannot be read through DLPack"):
        as_array(spec, Exporter(halves(1), (1,), major=2))
    array = as_array(spec, Exporter(halves(1, 2), (2,)))
    np.testing.assert_array_equal(array, halves(1, 2))


def floats(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count, dtype=np.float32)


def on_gpu(shape: tuple[int, ...], kind: tuple[int, int] = FLOAT, **said: Any) -> Exporter:
    return Exporter(floats(64), shape, kind, **{"device": GPU, **said})


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ((0, 64), "int64"),
        ((1, 8), "uint8"),
        (FLOAT, "float32"),
        ((5, 64), "complex64"),
        ((6, 8), "bool"),
        (BFLOAT, "bfloat16"),
    ],
)
@pytest.mark.parametrize("flags", [0, None])
def test_device_memory_is_described_and_not_waited_for(
    kind: tuple[int, int], dtype: str, flags: int | None
) -> None:
    value = on_gpu((2, 1, 3), kind, offset=8, strides=(3, 99, 1), flags=flags)
    found = device_array(value)
    assert (found.shape, found.ndim, found.size) == ((2, 1, 3), 3, 6)
    assert DType.of(found.dtype) is DType(dtype)
    assert found.nbytes == 6 * found.dtype.itemsize
    assert found.pointer == value._tensor_address() + 8
    assert found.owner is value
    assert set(value.streams) == {-1}
    found.wait(1)
    assert value.streams[-1] == 1


def test_device_memory_has_to_lie_in_order() -> None:
    for strides in ((1, 2), (6, 1), (3, 2)):
        with pytest.raises(BufferError, match="C order"):
            device_array(on_gpu((2, 3), strides=strides))
    assert device_array(on_gpu((0, 3), strides=(7, 7))).size == 0
    assert device_array(on_gpu(())).shape == ()
    with pytest.raises(BufferError, match="type"):
        device_array(on_gpu((2,), (3, 64)))
    with pytest.raises(BufferError, match="side by side"):
        device_array(on_gpu((2,), lanes=4))


class OnGpu(bridge.Predictor):
    device_inputs = True

    def __init__(self) -> None:
        spec = TensorSpec("x", DType.FLOAT32, ("n", 4))
        super().__init__(Signature((spec,), (spec,)), PredictorInfo(device=Device("cuda")))

    def _predict(self, inputs: Any, outputs: Any) -> Any:
        return dict(inputs)

    def _close(self) -> None: ...


class OnHost(OnGpu):
    device_inputs = False


def test_a_predictor_may_take_the_memory_of_its_own_device() -> None:
    value = on_gpu((2, 4))
    found = OnGpu().predict({"x": value})["x"]
    assert type(found) is DeviceArray
    assert found.owner is value
    array = floats(8).reshape(2, 4)
    assert OnGpu().predict({"x": array})["x"] is array
    with pytest.raises(DTypeMismatch):
        OnGpu().predict({"x": on_gpu((2, 4), (2, 64))})
    with pytest.raises(ShapeMismatch, match="must be 4, got 3"):
        OnGpu().predict({"x": on_gpu((2, 3))})
    with pytest.raises(InputError, match="cannot be taken where it lies: its elements"):
        OnGpu().predict({"x": on_gpu((2, 4), strides=(1, 2))})
    with pytest.raises(InputError, match=r"host memory and that of device \(2, 0\)"):
        OnGpu().predict({"x": on_gpu((2, 4), device=(2, 1))})
    with pytest.raises(InputError, match=r"takes host memory\."):
        OnHost().predict({"x": value})
