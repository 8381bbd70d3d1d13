"""Tensors of other libraries, in and out: their memory stays where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bridge
from bridge import DType, TensorSpec
from bridge.check import Layout, as_array
from bridge.dlpack import DeviceArray
from bridge.errors import DeviceUnavailable, DTypeMismatch, InputError
from bridge_conformance.network import Network, Node
from bridge_conformance.writing import writers

Array = npt.NDArray[Any]

BACKENDS = {
    "onnxruntime": "onnx",
    "openvino": "onnx",
    "reference": "onnx",
    "tensorflow": "saved_model",
    "torch": "torchscript",
}
HALVES = {"onnxruntime": "onnx", "openvino": "onnx", "torch": "exported_program"}
WIDTH, ROWS = 512, 8  # more than torch copies because it is quicker
VALUES = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) / 64


def network(dtype: DType) -> Network:
    """Three times the input; halves are passed on, since not all runtimes compute in them."""
    is_passed = dtype is DType.BFLOAT16
    return Network(
        f"tripled_{dtype}",
        (TensorSpec("x", dtype, ("N", WIDTH)),),
        (TensorSpec("y", dtype, ("N", WIDTH)),),
        (Node("Identity", ("x",), "y") if is_passed else Node("Mul", ("x", "three"), "y"),),
        {} if is_passed else {"three": np.array(3, dtype.numpy)},
    )


# Each makes a tensor of another library, and says where its memory is.


def of_numpy(values: Array) -> tuple[Any, int]:
    roomy = np.zeros(values.size + 16, values.dtype)
    view = roomy[16:].reshape(values.shape)
    view[...] = values
    return view, view.ctypes.data


def of_torch(values: Array) -> tuple[Any, int]:
    import torch

    tensor = torch.tensor(values.tolist(), dtype=torch.float32)
    return tensor, tensor.data_ptr()


def of_tensorflow(values: Array) -> tuple[Any, int]:
    import tensorflow as tf

    tensor = tf.constant(values) + 0
    return tensor, np.frombuffer(memoryview(tensor), np.uint8).ctypes.data


def of_jax(values: Array) -> tuple[Any, int]:
    import jax

    tensor = jax.numpy.asarray(values) + 0
    return tensor, tensor.unsafe_buffer_pointer()


LIBRARIES: dict[str, Callable[[Array], tuple[Any, int]]] = {
    name: make
    for name, make in {
        "numpy": of_numpy,
        "torch": of_torch,
        "tensorflow": of_tensorflow,
        "jax": of_jax,
    }.items()
    if importlib.util.find_spec(name) is not None
}


def opened(name: str, format: str, dtype: DType, folder: Path, **said: Any) -> bridge.Predictor:
    found = bridge.backends()[name].probe()
    writer = writers()[format]
    if not found.installed or importlib.util.find_spec(writer.library) is None:
        pytest.skip(f"{name}, or what writes {format}, is not installed")
    one = network(dtype)
    signature = one.signature if format == "torchscript" else None
    return bridge.load(writer.write(one, folder), backend=name, signature=signature, **said)


@pytest.fixture(scope="module", params=BACKENDS)
def predictor(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("models")
    with opened(request.param, BACKENDS[request.param], DType.FLOAT32, folder) as made:
        yield made


def received(
    predictor: bridge.Predictor, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Array, Array]:
    """What ``_predict`` of the backend gets for ``x``, and its answer."""
    seen: list[Array] = []
    call = predictor._call

    def spy(arrays: Any, outputs: Any) -> Any:
        seen.append(arrays["x"])
        return call(arrays, outputs)

    monkeypatch.setattr(predictor, "_call", spy)
    answer = predictor.predict(inputs)["y"]
    return seen[0], answer


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_input_reaches_the_backend_where_it_lies(
    predictor: bridge.Predictor, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor, address = LIBRARIES[library](VALUES)
    array, answer = received(predictor, {"x": tensor}, monkeypatch)
    # torch has no read-only tensors: what others declare unchangeable is copied for it.
    is_copied = predictor.layout is Layout.WRITABLE and library in ("tensorflow", "jax")
    assert (array.ctypes.data == address) is not is_copied
    np.testing.assert_array_equal(answer, VALUES * 3)
    np.testing.assert_array_equal(np.asarray(tensor), VALUES)


def test_a_torch_module_computes_on_the_callers_tensor() -> None:
    torch = pytest.importorskip("torch")
    seen = []

    class Watching(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            seen.append(x.data_ptr())
            return x + 1

    with bridge.load(Watching(), signature=network(DType.FLOAT32).signature) as predictor:
        tensor = torch.zeros(ROWS, WIDTH)
        for _ in range(2):
            predictor.predict({"x": tensor})
    # The first call of a live module works on copies, to find out what it writes to.
    assert seen[1] == tensor.data_ptr()


def test_an_output_is_taken_where_it_lies(predictor: bridge.Predictor) -> None:
    answer = predictor.predict({"x": VALUES})["y"]
    again = np.from_dlpack(answer)
    assert again.ctypes.data == answer.ctypes.data
    assert again.flags.writeable
    if importlib.util.find_spec("torch") is not None:
        import torch

        tensor = torch.from_dlpack(answer)
        assert tensor.data_ptr() == answer.ctypes.data
        tensor.fill_(7)
        np.testing.assert_array_equal(answer, np.full_like(VALUES, 7))
        del again, answer  # the tensor alone keeps the memory
        predictor.predict({"x": VALUES})
        assert float(tensor.sum()) == 7 * VALUES.size


def test_bound_buffers_are_filled_and_read_through_dlpack(predictor: bridge.Predictor) -> None:
    torch = pytest.importorskip("torch")
    bound = predictor.bind({"x": VALUES.shape})
    source = torch.from_dlpack(bound.inputs["x"])
    assert source.data_ptr() == bound.inputs["x"].ctypes.data
    source.fill_(1)
    bound.predict()
    bound.predict()  # from here on every call writes to the same memory
    result = torch.from_dlpack(bound.outputs["y"])
    for value in (2.0, 5.0):
        source.fill_(value)
        bound.predict()
        assert result.data_ptr() == bound.outputs["y"].ctypes.data
        assert float(result.min()) == float(result.max()) == 3 * value


@pytest.mark.parametrize("name", HALVES)
def test_bfloat16_goes_in_and_out_without_a_copy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    with opened(name, HALVES[name], DType.BFLOAT16, tmp_path) as predictor:
        tensor = torch.full((ROWS, WIDTH), 1.5, dtype=torch.bfloat16)
        array, answer = received(predictor, {"x": tensor}, monkeypatch)
        assert array.ctypes.data == tensor.data_ptr()
        assert array.dtype == answer.dtype == DType.BFLOAT16.numpy
        np.testing.assert_array_equal(answer, np.full_like(answer, 1.5))
    # numpy exports no such type, but integers of its size.
    result = torch.from_dlpack(answer.view(np.int16)).view(torch.bfloat16)
    assert result.data_ptr() == answer.ctypes.data
    assert float(result[0, 0]) == 1.5


@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "numpy"])
def test_nothing_is_cast_on_the_way(predictor: bridge.Predictor, library: str) -> None:
    tensor, _ = LIBRARIES[library](VALUES)
    with pytest.raises(DTypeMismatch):
        predictor.predict({"x": tensor > 0})


def test_a_tensor_that_needs_gradients_is_refused(predictor: bridge.Predictor) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(ROWS, WIDTH, requires_grad=True)
    with pytest.raises(InputError, match="Detach it"):
        predictor.predict({"x": tensor})


def test_a_tensor_of_strings_is_no_number(predictor: bridge.Predictor) -> None:
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(InputError):
        predictor.predict({"x": tf.constant([["a"] * WIDTH])})


class OnDevice:
    """What a library with memory on a GPU shows of itself."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("its memory must not be asked for")


def test_device_memory_is_refused_on_the_host(predictor: bridge.Predictor) -> None:
    with pytest.raises(InputError, match=r"lives in device memory \(DLPack device \(2, 0\)\)"):
        predictor.predict({"x": OnDevice()})


def test_types_that_the_other_library_does_not_export_are_copied() -> None:
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("ml_dtypes")
    spec = TensorSpec("x", DType.FLOAT8_E5M2, ("n",))
    tensor = tf.cast(tf.constant([1.5, -2.0]), tf.dtypes.experimental.float8_e5m2)
    array = as_array(spec, tensor)
    np.testing.assert_array_equal(array, np.array([1.5, -2], DType.FLOAT8_E5M2.numpy))


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_a_tensor_on_a_gpu_is_not_copied_behind_the_callers_back(
    predictor: bridge.Predictor, library: str
) -> None:
    module = pytest.importorskip(library)
    if library == "torch" and not module.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    tensor = module.zeros((ROWS, WIDTH), dtype=module.float32)
    if library == "torch":
        tensor = tensor.to("cuda")
    with pytest.raises(InputError, match="lives in device memory") as caught:
        predictor.predict({"x": tensor})
    assert caught.value.fix


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_a_tensor_on_the_predictors_own_gpu_stays_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    try:
        predictor = opened(name, BACKENDS[name], DType.FLOAT32, tmp_path, device="cuda")
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    with predictor:
        tensor = torch.from_numpy(VALUES).to("cuda")
        array, answer = received(predictor, {"x": tensor}, monkeypatch)
        assert type(array) is DeviceArray
        assert array.pointer == tensor.data_ptr()
        np.testing.assert_array_equal(answer, VALUES * 3)
