"""The readers against the runtimes: real models, and files that onnx and OpenVINO wrote."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.dtypes import DType
from bridge.errors import BridgeError, InvalidModel
from bridge.formats import BUILT_IN
from bridge.model import ModelRef
from bridge.signature import Dim, dim
from bridge.wire import Span, WireError, opened

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

MODELS = Path(sys.prefix) / "models"
# What `make test` fetches; a glob would call an empty folder a success.
ONNX_FILES = [
    "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "magika/models/standard_v3_3/model.onnx",
    "silero_vad/data/silero_vad.onnx",
    "silero_vad/data/silero_vad_16k_op15.onnx",
    "silero_vad/data/silero_vad_16k_sequence.onnx",
    "silero_vad/data/silero_vad_half.onnx",
    "silero_vad/data/silero_vad_op18_ifless.onnx",
    "silero_vad/data/silero_vad_openvino_16k.onnx",
]


def real(name: str) -> Path:
    if not MODELS.is_dir() and "CI" not in os.environ:
        pytest.skip(f"{MODELS} is missing; `make test` fetches the real models into it")
    path = MODELS / name
    assert path.exists(), f"{path} is missing; `make test` fetches it"
    return path


def read(path: Path) -> ModelRef:
    model = ModelRef.open(path, [kind() for kind in BUILT_IN])
    model.format.check(model)
    return model


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


NATIVE = {
    "tensor(float)": DType.FLOAT32,
    "tensor(double)": DType.FLOAT64,
    "tensor(string)": DType.STRING,
    **{f"tensor({name})": DType(name) for name in ("bool", "float16", "bfloat16")},
    **{f"tensor({u}int{n})": DType(f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64)},
}


def shape_of(argument: Any) -> tuple[Dim, ...]:
    return tuple(dim(item) for item in argument.shape)


@pytest.mark.parametrize("name", ONNX_FILES)
def test_signatures_are_those_of_onnxruntime(name: str) -> None:
    path = real(name)
    signature = read(path).facts.signatures[""]
    session = session_of(path)
    for specs, arguments in (
        (signature.required, session.get_inputs()),
        (signature.outputs, session.get_outputs()),
    ):
        assert [spec.name for spec in specs] == [one.name for one in arguments]
        assert [spec.dtype for spec in specs] == [NATIVE[one.type] for one in arguments]
        assert [spec.shape for spec in specs] == [shape_of(one) for one in arguments]


def operators_of(graph: Any) -> list[str]:
    found = []
    for node in graph.node:
        plain = node.domain in {"", "ai.onnx"}
        found.append(node.op_type if plain else f"{node.domain}.{node.op_type}")
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += operators_of(inner)
    return found


@pytest.mark.parametrize("name", ONNX_FILES)
def test_operators_and_versions_are_those_that_onnx_reads(name: str) -> None:
    proto = onnx.load(real(name), load_external_data=False)
    facts = read(real(name)).facts
    wanted = operators_of(proto.graph)
    for function in proto.functions:
        wanted += operators_of(function)
    assert facts.operators == {op: wanted.count(op) for op in wanted}
    assert facts.versions["ir_version"] == str(proto.ir_version)
    assert facts.versions["producer"].startswith(proto.producer_name)
    opsets = {one.domain or "ai.onnx": one.version for one in proto.opset_import}
    assert facts.versions["opset"] == str(opsets["ai.onnx"])


@pytest.mark.parametrize("name", ONNX_FILES)
def test_each_real_file_is_of_one_format_and_whole(name: str) -> None:
    path = real(name)
    model = read(path)
    assert model.format.name == "onnx"
    assert model.format.files(model) == (path,)
    data = path.read_bytes()
    for size in (5000, len(data) // 2, len(data) - 1000):
        cut = ModelRef(format=model.format, data=data[:size])
        with pytest.raises(InvalidModel, match="truncated"):
            model.format.check(cut)


def test_bit_flips_in_a_real_file_raise_nothing_but_our_errors() -> None:
    path = real("silero_vad/data/silero_vad_16k_sequence.onnx")
    kind, data = read(path).format, bytearray(path.read_bytes())
    outcomes = set()
    for seed in range(200):
        choose = random.Random(seed)
        # Half of them where the structure is dense: the beginning.
        place = choose.randrange(20_000 if seed % 2 else len(data))
        bit = 1 << choose.randrange(8)
        data[place] ^= bit
        model = ModelRef(format=kind, data=bytes(data))
        try:
            kind.describe(model)
            kind.check(model)
            outcomes.add("sound")
        except BridgeError:
            outcomes.add("refused")
        data[place] ^= bit
    assert outcomes == {"sound", "refused"}


def test_a_real_saved_model_is_read_and_not_called_onnx() -> None:
    path = real("basic_pitch/saved_models/icassp_2022/nmp/saved_model.pb")
    with opened(path) as root:
        assert root.ints(1) == [1]
        (meta_graph,) = root.spans(2)
        (graph,) = meta_graph.spans(2)
        assert sum(1 for _ in graph.spans(1)) > 100
    with pytest.raises(BridgeError, match="whole folder"):
        read(path)
    data = path.read_bytes()
    for power in [0, *range(2, len(data).bit_length())]:  # its first field has two bytes
        with pytest.raises(WireError) as caught:
            list(Span(data[: 1 << power]).fields())
        assert caught.value.truncated


def tiny(**options: Any) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    w = numpy_helper.from_array(np.ones(4, np.float32), "w")
    v = numpy_helper.from_array(np.ones(4, np.float32), "v")
    inputs = [x, helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])]
    nodes = [helper.make_node("Add", ["x", "w"], ["s"]), helper.make_node("Add", ["s", "v"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, [y], [w, v])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, **options)


def test_overridable_initializers_are_those_of_onnxruntime(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny(), path)
    signature, session = read(path).facts.signatures[""], session_of(path)
    defaults = [spec.name for spec in signature.inputs if spec.has_default]
    assert defaults == [one.name for one in session.get_overridable_initializers()] == ["w"]
    assert [spec.name for spec in signature.required] == [one.name for one in session.get_inputs()]


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_as_onnx_writes_it(tmp_path: Path, one_file: bool) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        tiny(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="m.data" if one_file else None,
        size_threshold=0,
    )
    model = read(path)
    files = model.format.files(model)
    assert len(files) == (2 if one_file else 3)
    assert set(files) == set(tmp_path.iterdir())
    session_of(path)
    weights = files[-1]
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InvalidModel, match="truncated"):
        read(path)


def test_types_are_those_of_onnx(tmp_path: Path) -> None:
    """Each TensorProto type, against onnx's own table; those without one are open."""
    for name, code in TensorProto.DataType.items():
        if name == "UNDEFINED":
            continue
        x = helper.make_tensor_value_info("x", code, [2])
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["x2"])], "g", [x], [])
        (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        spec = read(tmp_path / "m.onnx").facts.signatures[""].inputs[0]
        wanted = np.dtype(helper.tensor_dtype_to_np_dtype(code))
        if wanted.name in {member.value for member in DType}:
            assert spec.dtype is DType(wanted.name), name
        else:
            assert spec.dtype is (DType.STRING if name == "STRING" else None), name


def test_a_model_of_many_nodes_and_weights_is_read(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("v5000", TensorProto.FLOAT, ["N", 4])
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    weights = [numpy_helper.from_array(np.zeros(1 << 20, np.float32), f"w{i}") for i in range(4)]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert read(path).facts.operators == {"Relu": 5000}


IR_SOURCES = [
    "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "basic_pitch/saved_models/icassp_2022/nmp.tflite",
    "magika/models/standard_v3_3/model.onnx",
    "silero_vad/data/silero_vad_openvino_16k.onnx",
]


@pytest.mark.parametrize("name", IR_SOURCES)
def test_ir_that_openvino_writes(name: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "m.xml"
    openvino.save_model(openvino.Core().read_model(real(name)), path)
    model = read(path)
    assert model.format.files(model) == (path, tmp_path / "m.bin")
    network = openvino.Core().read_model(path)
    signature = model.facts.signatures[""]
    for specs, ports in (
        (signature.inputs, network.inputs),
        (signature.outputs, network.outputs),
    ):
        assert len(specs) == len(ports)
        for spec, node in zip(specs, ports, strict=True):
            assert spec.name in node.names
            shape = [None if one.is_dynamic else one.get_length() for one in node.partial_shape]
            assert spec.shape == tuple(shape)
            assert spec.dtype is DType.of(node.element_type.to_dtype())
    # The file has its own names for two of them.
    renamed = {"Constant": "Const", "Relu": "ReLU"}
    kinds = [one.get_type_name() for one in network.get_ops()]
    assert model.facts.operators == Counter(renamed.get(kind, kind) for kind in kinds)
    (tmp_path / "m.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:-1])
    with pytest.raises(InvalidModel, match="truncated"):
        read(path)


def test_a_real_tflite_file_has_the_names_of_its_saved_model() -> None:
    path = real("basic_pitch/saved_models/icassp_2022/nmp.tflite")
    model = read(path)
    signature = model.facts.signatures["serving_default"]
    assert str(signature) == (
        "(input_2: float32 (?, 43844, 1)) -> (contour: float32 (?, 172, 264), "
        "note: float32 (?, 172, 88), onset: float32 (?, 172, 88))"
    )
    natives = [spec.native_name for spec in signature.outputs]
    assert natives == [f"StatefulPartitionedCall:{n}" for n in range(3)]
    cut = ModelRef(format=model.format, data=path.read_bytes()[:100_000])
    with pytest.raises(InvalidModel, match="truncated"):
        model.format.check(cut)
