"""What OpenVINO's errors become."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

from bridge_openvino.failures import error_rules  # noqa: E402
from bridge_openvino.runtime import core, openvino  # noqa: E402

BASIC_PITCH = Path(sys.prefix) / "models/basic_pitch/saved_models/icassp_2022"
FLOAT = onnx.TensorProto.FLOAT


def proto(operator: str = "Add", domain: str = "", dtype: int = FLOAT) -> Any:
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x", "w"], ["y"], domain=domain)],
        "g",
        [make("x", dtype, ["N", 300])],
        [make("y", dtype, ["N", 300])],
        [onnx.helper.make_tensor("w", FLOAT, [300], np.ones(300, np.float32).tobytes(), raw=True)],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(domain or "own", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def changed(change: Callable[[Any], None]) -> bytes:
    model = proto()
    change(model.graph)
    data: bytes = model.SerializeToString()
    return data


def read(model: Any) -> bridge.BridgeError:
    """The bridge's error for what OpenVINO itself says, without the bridge's own checks."""
    with pytest.raises(RuntimeError) as caught:
        core().compile_model(core().read_model(model), "CPU")
    return errors.translate(caught.value, error_rules(), errors.BridgeError)


def says(error: bridge.BridgeError, kind: type[bridge.BridgeError], *parts: str) -> None:
    assert type(error) is kind, error
    for part in parts:
        assert part in str(error)
    assert "src/" not in str(error)
    assert not re.search(r"\.\.|\.:|\n", error.message)


def test_operators_without_a_conversion_are_named() -> None:
    error = read(proto("NoSuchOp").SerializeToString())
    says(error, errors.UnsupportedModel, "NoSuchOp")
    says(
        read(proto("Thing", "my.domain").SerializeToString()), errors.UnsupportedModel, "my.domain"
    )


def test_operators_whose_conversion_fails_are_named_with_the_reason() -> None:
    error = read(proto("Conv").SerializeToString())
    says(error, errors.UnsupportedModel, "Conv", "rank do not match")
    assert error.detail["operators"].startswith("Conv")


def test_data_types() -> None:
    error = read(proto(dtype=onnx.TensorProto.COMPLEX64).SerializeToString())
    says(error, errors.UnsupportedModel, "COMPLEX64")


def test_broken_graphs() -> None:
    def dangling(graph: Any) -> None:
        graph.node[0].input[1] = "nowhere"

    def short(graph: Any) -> None:
        graph.initializer[0].raw_data = b"abc"

    says(read(changed(dangling)), errors.InvalidModel, "'nowhere'")
    says(read(changed(short)), errors.InvalidModel, "'w'")


def test_truncated_onnx(tmp_path: Path) -> None:
    data = proto().SerializeToString()[:500]
    says(read(data), errors.InvalidModel, "truncated")
    (tmp_path / "m.onnx").write_bytes(data)
    says(read(tmp_path / "m.onnx"), errors.InvalidModel, "truncated")


def test_external_data(tmp_path: Path) -> None:
    for folder in ("there", "linked"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "there" / "m.onnx"
    onnx.save_model(
        proto(), str(path), save_as_external_data=True, location="m.data", size_threshold=0
    )
    (tmp_path / "linked" / "m.onnx").symlink_to(path)
    (tmp_path / "linked" / "m.data").symlink_to(path.with_suffix(".data"))
    says(read(tmp_path / "linked" / "m.onnx"), errors.UntrustedModel, "'m.data'")
    path.with_suffix(".data").unlink()
    says(read(path), errors.ModelNotFound, "'m.data'")


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    network = core().read_model(proto().SerializeToString())
    openvino().save_model(network, str(tmp_path / "m.xml"), compress_to_fp16=False)
    return tmp_path / "m.xml"


def test_ir_without_its_weights(ir: Path) -> None:
    ir.with_suffix(".bin").write_bytes(b"abc")
    says(read(ir), errors.InvalidModel, ".bin")
    ir.with_suffix(".bin").unlink()
    says(read(ir), errors.ModelNotFound, ".bin")
    with pytest.raises(errors.ModelNotFound, match=r"\.bin"):
        bridge.load(ir, backend="openvino")


@pytest.mark.parametrize(
    ("old", "new", "kind", "part"),
    [
        ('type="Add"', 'type="Foo"', errors.UnsupportedModel, "Foo"),
        ("opset1", "opset99", errors.UnsupportedModel, "opset99"),
        ('version="11"', 'version="99"', errors.InvalidModel, "version"),
        ("</net>", "", errors.InvalidModel, "well-formed"),
    ],
)
def test_broken_ir(ir: Path, old: str, new: str, kind: type[bridge.BridgeError], part: str) -> None:
    text = ir.read_text(encoding="utf-8")
    assert old in text
    ir.write_text(text.replace(old, new), encoding="utf-8")
    says(read(ir), kind, part)


def test_broken_saved_models(tmp_path: Path) -> None:
    folder = shutil.copytree(BASIC_PITCH / "nmp", tmp_path / "model")
    index = folder / "variables" / "variables.index"
    index.write_bytes(index.read_bytes()[:1000])
    says(read(folder), errors.InvalidModel, "truncated")
    shutil.rmtree(folder / "variables")
    says(read(folder), errors.InvalidModel, "variables")
    graph = folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:100_000])
    says(read(folder), errors.InvalidModel, "truncated")


def test_truncated_tflite(tmp_path: Path) -> None:
    data = (BASIC_PITCH / "nmp.tflite").read_bytes()
    (tmp_path / "m.tflite").write_bytes(data[: len(data) // 2])
    says(read(tmp_path / "m.tflite"), errors.InvalidModel, "truncated")


def test_devices_without_a_driver() -> None:
    if any(place.startswith("GPU") for place in core().available_devices):
        pytest.skip("this machine has what the test needs to be missing")
    network = core().read_model(proto().SerializeToString())
    with pytest.raises(RuntimeError) as caught:
        core().compile_model(network, "GPU")
    error = errors.translate(caught.value, error_rules(), errors.BridgeError)
    assert isinstance(error, (errors.DeviceUnavailable, errors.ModelLoadFailed))
    assert "src/" not in str(error)


def test_memory_that_runs_out() -> None:
    for text in ("std::bad_alloc", "Exception from src/a.cpp:1:\nFailed to allocate 9 bytes\n"):
        error = errors.translate(RuntimeError(text), error_rules(), errors.PredictError)
        says(error, errors.OutOfMemory, "memory")


def test_what_no_rule_names_keeps_the_line_that_says_something() -> None:
    text = (
        "Exception from src/inference/src/cpp/core.cpp:84:\n"
        "Check 'x' failed at src/frontends/a.cpp:1:\nsomething {new} is wrong.\n\n"
    )
    error = errors.translate(RuntimeError(text), error_rules(), errors.BridgeError)
    says(error, errors.ModelLoadFailed, "something {new} is wrong.")
    assert error.detail["native_error"] == text.strip()
    error = errors.translate(
        RuntimeError(text.replace("core.cpp", "infer_request.cpp")),
        error_rules(),
        errors.BridgeError,
    )
    says(error, errors.PredictError, "something {new} is wrong.")


def test_a_failed_load_says_model_backend_and_device() -> None:
    with pytest.raises(errors.UnsupportedModel, match="NoSuchOp") as caught:
        bridge.load(proto("NoSuchOp").SerializeToString(), backend="openvino")
    assert caught.value.backend == "openvino"
    assert caught.value.device == "cpu"
    assert caught.value.model
    assert isinstance(caught.value.__cause__, RuntimeError)


def chain(rank: int, *operators: Any, constants: Any = ()) -> bytes:
    make = onnx.helper.make_tensor_value_info
    names = ["N", "M"][:rank]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*operator) for operator in operators],
        "g",
        [make("x", FLOAT, names)],
        [make("y", FLOAT, [None] * 2)],
        list(constants),
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    data: bytes = onnx.helper.make_model(
        graph, opset_imports=opset, ir_version=9
    ).SerializeToString()
    return data


FOLDED = chain(
    1,
    ("Add", ["x", "x"], ["a"]),
    ("Reshape", ["a", "s"], ["b"]),
    ("Add", ["b", "b"], ["y"]),
    constants=[onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [2], [-1, 4])],
)
SQUARE = chain(2, ("MatMul", ["x", "x"], ["y"]))


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 2}, {"threads": 2, "streams": 2}])
@pytest.mark.parametrize("is_bound", [False, True])
def test_sizes_that_do_not_fit_are_errors_and_leave_later_calls_right(
    options: dict[str, Any], is_bound: bool
) -> None:
    # Without the bridge, OpenVINO answers the second of these with the first's result if it
    # has one thread, and refuses the third if it has two.
    predictor = bridge.load(FOLDED, backend="openvino", options=options)
    bounds: dict[int, bridge.Bound] = {}
    for size in (8, 7, 8, 7, 7, 12, 8, 5, 12):
        x = np.arange(size, dtype=np.float32)

        def call(x: Any = x, size: int = size) -> Any:
            if not is_bound:
                return predictor.predict({"x": x})["y"]
            if size not in bounds:
                bounds[size] = predictor.bind({"x": (size,)})
            bounds[size].inputs["x"][...] = x
            bounds[size].predict()
            return bounds[size].outputs["y"]

        if size % 4:
            with pytest.raises(errors.PredictError, match="Reshape"):
                call()
        else:
            np.testing.assert_array_equal(call(), 4 * x.reshape(-1, 4))


@pytest.mark.parametrize("threads", [1, 2])
def test_arrays_that_do_not_fit_each_other_are_errors(threads: int) -> None:
    predictor = bridge.load(SQUARE, backend="openvino", options={"threads": threads})
    for shape in ((2, 2), (2, 3), (2, 3), (2, 2), (3, 2), (3, 3)):
        x = np.ones(shape, np.float32)
        if shape[0] != shape[1]:
            with pytest.raises(errors.PredictError, match="MatMul"):
                predictor.predict({"x": x})
        else:
            np.testing.assert_array_equal(predictor.predict({"x": x})["y"], x @ x)


@pytest.mark.parametrize("threads", [1, 2])
def test_values_that_lead_to_sizes_that_do_not_fit_are_errors(threads: int) -> None:
    data = chain(
        1,
        ("NonZero", ["x"], ["z"]),
        ("Reshape", ["z", "s"], ["r"]),
        constants=[onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [2], [-1, 4])],
    )
    model = onnx.load_from_string(data)
    model.graph.node.append(onnx.helper.make_node("Cast", ["r"], ["y"], to=FLOAT))
    options = {"threads": threads}
    predictor = bridge.load(model.SerializeToString(), backend="openvino", options=options)
    for chosen in (4, 3, 4, 8, 5, 5, 8, 4):
        x = np.zeros(9, np.float32)
        x[:chosen] = 1
        if chosen % 4:
            with pytest.raises(errors.PredictError, match="Reshape"):
                predictor.predict({"x": x})
        else:
            wanted = np.arange(chosen).reshape(-1, 4)
            np.testing.assert_array_equal(predictor.predict({"x": x})["y"], wanted)


SCARCE = """
import resource
import sys
import numpy as np
import bridge
from bridge import errors

options = {"threads": int(sys.argv[2]), "streams": int(sys.argv[3])}
predictor = bridge.load(sys.argv[1], backend="openvino", options=options)
small = np.arange(8, dtype=np.float32).reshape(8, 1)
wanted = predictor.predict({"x": small})["y"]
bound = predictor.bind({"x": (8, 1)})
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, resource.RLIM_INFINITY))
# The first fails in OpenVINO, for its output; the second before it, for the input's buffer.
for rows in (2**18, 2**30):
    large = np.broadcast_to(np.ones((1, 1), np.float32), (rows, 1))
    for _ in range(2):
        try:
            predictor.predict({"x": large})
        except errors.OutOfMemory as error:
            assert "smaller" in error.fix, error.fix
            assert error.backend == "openvino"
        else:
            raise AssertionError("that much memory should not be there")
    assert np.array_equal(predictor.predict({"x": small})["y"], wanted)
    bound.inputs["x"][...] = small
    bound.predict()
    assert np.array_equal(bound.outputs["y"], wanted)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as on Linux")
@pytest.mark.parametrize(("threads", "streams"), [("1", "1"), ("2", "1"), ("2", "2")])
def test_a_call_without_enough_memory_leaves_the_predictor_usable(
    tmp_path: Path, threads: str, streams: str
) -> None:
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [make("x", FLOAT, ["N", 1])],
        [make("y", FLOAT, ["N", 1024])],
        [
            onnx.helper.make_tensor(
                "w", FLOAT, [1024], np.ones(1024, np.float32).tobytes(), raw=True
            )
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", SCARCE, str(tmp_path / "m.onnx"), threads, streams],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
