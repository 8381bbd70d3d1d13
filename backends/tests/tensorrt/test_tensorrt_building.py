"""ONNX models parsed, and engines built and saved, by the real module, without a GPU."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.loading import open_model
from bridge.registry import registry
from bridge_tensorrt import module
from bridge_tensorrt.backend import TensorrtBackend
from bridge_tensorrt.network import parse

pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")

MODELS = Path(sys.prefix) / "models"
NMP = MODELS / "basic_pitch" / "saved_models" / "icassp_2022" / "nmp.onnx"
MAGIKA = MODELS / "magika" / "models" / "standard_v3_3" / "model.onnx"
OPTIONS = {"module": "tensorrt_rtx"}
# TensorRT says so where there is neither a driver nor a GPU.
HAS_GPU = bool(TensorrtBackend().devices())
without_gpu = pytest.mark.skipif(HAS_GPU, reason="about machines without a CUDA device")


def graph(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any] | None = None
) -> Any:
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    made = onnx.helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my.domain", 1)]
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=9)


info = onnx.helper.make_tensor_value_info
node = onnx.helper.make_node


def linear() -> Any:
    return graph(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])],
        [info("x", 1, ["rows", 4])],
        [info("y", 1, ["rows", 3])],
        {"w": np.ones((4, 3), np.float32)},
    )


def embedding() -> Any:
    return graph(
        [node("Gather", ["table", "ids"], ["vectors"]), node("Identity", ["ids"], ["again"])],
        [info("ids", 7, ["rows"])],
        [info("vectors", 1, ["rows", 8]), info("again", 7, ["rows"])],
        {"table": np.ones((100, 8), np.float32)},
    )


def strange() -> Any:
    return graph(
        [
            node("Frobnicate", ["x"], ["h"], domain="my.domain"),
            node("Grumble", ["h"], ["y"], domain="my.domain"),
        ],
        [info("x", 1, ["rows", 4])],
        [info("y", 1, ["rows", 4])],
    )


def saved(model: Any, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(model, path)
    return path


def convert(model: object, target: Path, **options: Any) -> dict[str, Any]:
    adapter = registry().adapters.get("onnx-to-engine")
    return dict(adapter.convert(open_model(model), target, options={**OPTIONS, **options}))


def signature(facts: dict[str, Any]) -> str:
    return str(bridge.Signature.from_dict(facts["signature"]))


def test_a_model_becomes_an_engine(tmp_path: Path) -> None:
    target = tmp_path / "model.engine"
    facts = convert(saved(linear(), tmp_path), target, batch="1,8,64")
    assert signature(facts) == "(x: float32 (rows, 4)) -> (y: float32 (rows, 3))"
    assert facts["profiles"] == [{"x": {"min": [1, 4], "opt": [8, 4], "max": [64, 4]}}]
    assert facts["precision"] == "float32"
    assert facts["layers"] >= 2
    assert facts["size_bytes"] == target.stat().st_size > 1000
    assert facts["module"] == "tensorrt_rtx"
    found = open_model(target)
    assert found.format.name == "engine"
    assert found.facts.versions == {"tensorrt_rtx": facts["version"]}
    assert facts["options"] == {"module": "tensorrt_rtx", "batch": "1,8,64"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.onnx"]


def test_several_ranges_are_several_profiles(tmp_path: Path) -> None:
    model = saved(linear(), tmp_path)
    facts = convert(model, tmp_path / "two.engine", batch="1:1:1,2:64:512", targets="SM86,SM89")
    assert [one["x"]["max"] for one in facts["profiles"]] == [[1, 4], [512, 4]]


def test_int64_ids_stay_int64(tmp_path: Path) -> None:
    path = saved(embedding(), tmp_path)
    facts = convert(path, tmp_path / "model.engine")
    assert signature(facts) == (
        "(ids: int64 (rows,)) -> (vectors: float32 (rows, 8), again: int64 (rows,))"
    )
    # What TensorRT itself says, not the model's own bytes.
    network = parse(module.load("tensorrt_rtx"), open_model(path))
    assert network.definition.get_input(0).dtype.name == "INT64"
    names = {
        network.definition.get_output(index).name: network.definition.get_output(index).dtype.name
        for index in range(network.definition.num_outputs)
    }
    assert names == {"vectors": "FLOAT", "again": "INT64"}


def test_tf32_is_off_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge_tensorrt import building

    trt = module.load("tensorrt_rtx")
    seen: list[bool] = []
    configure = building._configure

    def watched(*args: Any) -> Any:
        config = configure(*args)
        seen.append(config.get_flag(trt.BuilderFlag.TF32))
        return config

    monkeypatch.setattr(building, "_configure", watched)
    model = saved(linear(), tmp_path)
    assert convert(model, tmp_path / "a.engine")["precision"] == "float32"
    assert convert(model, tmp_path / "b.engine", tf32=True)["precision"] == "tf32"
    assert seen == [False, True]


def test_reduced_precision_is_told(tmp_path: Path) -> None:
    half = graph(
        [
            node("Cast", ["x"], ["h"], to=10),
            node("Relu", ["h"], ["r"]),
            node("Cast", ["r"], ["y"], to=1),
        ],
        [info("x", 1, [2, 4])],
        [info("y", 1, [2, 4])],
    )
    facts = convert(saved(half, tmp_path), tmp_path / "half.engine")
    assert facts["precision"] == "float16+float32"
    assert facts["profiles"] == []


def test_bytes_and_external_data(tmp_path: Path) -> None:
    assert convert(linear().SerializeToString(), tmp_path / "bytes.engine")["size_bytes"] > 1000
    path = tmp_path / "model.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()
    assert convert(path, tmp_path / "external.engine")["size_bytes"] > 1000
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(errors.ModelNotFound, match=r"weights\.bin"):
        convert(path, tmp_path / "missing.engine")


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = saved(linear(), tmp_path, "model.bin")
    assert convert(path, tmp_path / "model.trt")["layers"] >= 2


NMP_SIGNATURE = (
    "(serving_default_input_2:0: float32 (?, 43844, 1)) -> "
    "(StatefulPartitionedCall:2: float32 (?, 172, 88), "
    "StatefulPartitionedCall:1: float32 (?, 172, 88), "
    "StatefulPartitionedCall:0: float32 (?, 172, 264))"
)
MAGIKA_SIGNATURE = "(bytes: int32 (?, 2048)) -> (target_label: float32 (?, 214))"


@pytest.mark.parametrize(
    ("path", "expected"),
    [(NMP, NMP_SIGNATURE), (MAGIKA, MAGIKA_SIGNATURE)],
    ids=["basic-pitch", "magika"],
)
def test_real_models(path: Path, expected: str, tmp_path: Path) -> None:
    target = tmp_path / "model.engine"
    facts = convert(path, target, batch="1,8,64")
    assert signature(facts) == expected
    assert facts["precision"] == "float32"
    assert facts["size_bytes"] == target.stat().st_size > 1_000_000


@pytest.mark.parametrize(
    "path", sorted((MODELS / "silero_vad" / "data").glob("*.onnx")), ids=lambda path: path.stem
)
def test_models_with_control_flow_are_parsed(path: Path) -> None:
    network = parse(module.load("tensorrt_rtx"), open_model(path))
    assert network.signature.inputs[0].name == "input"
    if "sr" in network.signature.input_names:
        assert str(network.signature.input("sr")) == "sr: int64 ()"


def test_operators_that_are_unknown_are_named(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedModel, match="'Frobnicate', 'Grumble'") as caught:
        convert(saved(strange(), tmp_path), tmp_path / "model.engine")
    assert caught.value.detail["operators"] == ["Frobnicate", "Grumble"]
    assert "no plugin of that name" in str(caught.value)
    assert not (tmp_path / "model.engine").exists()


def test_a_broken_model_is_told_from_an_unsupported_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear().SerializeToString()[:-20])
    with pytest.raises(errors.InvalidModel):
        convert(path, tmp_path / "model.engine")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": "9,8,7"}, "min <= opt <= max"),
        ({"dims": "T=1:2:3"}, "neither an input nor a named dim"),
        ({"targets": "SM68"}, "targets"),
        ({"targets": "CURRENT,SM89"}, "CURRENT alone"),
        ({"hardware": "ampere_plus"}, "for module tensorrt"),
        ({"version_compatible": True}, "lean runtime"),
        ({"module": "tensort"}, "tensorrt"),
        ({"bacth": "1"}, "Did you mean 'batch'"),
        ({"workspace_bytes": 0}, "at least 1"),
        ({"optimization_level": 6}, "at most 5"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(errors.OptionError, match=text):
        convert(saved(linear(), tmp_path), tmp_path / "model.engine", **options)
    assert not (tmp_path / "model.engine").exists()


def test_a_builder_that_gives_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(errors.ConversionError, match=r"workspace limit.* Raise workspace_bytes"):
        convert(saved(linear(), tmp_path), tmp_path / "model.engine", workspace_bytes=1024)


def test_an_existing_target_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.engine"
    target.write_text("mine")
    with pytest.raises(errors.ConversionError, match="exists already"):
        convert(saved(linear(), tmp_path), target)
    assert target.read_text() == "mine"


def test_only_onnx_is_read(tmp_path: Path) -> None:
    convert(saved(linear(), tmp_path), tmp_path / "model.engine")
    with pytest.raises(errors.UnsupportedModel, match="reads onnx, not engine"):
        convert(tmp_path / "model.engine", tmp_path / "again.engine")


def test_what_tensorrt_says_goes_to_logging(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "bridge.tensorrt"):
        convert(saved(linear(), tmp_path), tmp_path / "model.engine")
        with pytest.raises(errors.UnsupportedModel):
            convert(saved(strange(), tmp_path), tmp_path / "strange.engine")
    levels = {record.levelno for record in caplog.records if record.name == "bridge.tensorrt"}
    assert levels >= {logging.DEBUG, logging.INFO, logging.ERROR}
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert all(
        "Frobnicate" in one.message
        or "plugin" in one.message.lower()
        or "node" in one.message.lower()
        for one in told
    )
    caught = capfd.readouterr()
    assert caught.out == caught.err == ""


@without_gpu
def test_loading_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    model = saved(linear(), tmp_path)
    convert(model, tmp_path / "model.engine")
    for given, trust in ((model, False), (tmp_path / "model.engine", True)):
        with pytest.raises(errors.DeviceUnavailable, match="CUDA driver|no GPU") as caught:
            bridge.load(given, backend="tensorrt", trust=trust)
        assert caught.value.device == "cuda:0"
        assert "bridge convert" in str(caught.value)
    with pytest.raises(errors.DeviceUnavailable, match="CUDA devices only, not on cpu"):
        bridge.load(model, backend="tensorrt", device="cpu")
    with pytest.raises(errors.UntrustedModel, match="trust=True"):
        bridge.load(tmp_path / "model.engine")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="module tensorrt is installed"
)
def test_a_module_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(errors.BackendUnavailable, match=r"inference-bridge\[tensorrt\]"):
        convert(saved(linear(), tmp_path), tmp_path / "model.engine", module="tensorrt")


def test_buckets_make_an_engine_with_a_profile_each(tmp_path: Path) -> None:
    facts = convert(saved(linear(), tmp_path), tmp_path / "model.engine", buckets="1,16,128")
    sizes = [(one["x"]["min"][0], one["x"]["opt"][0]) for one in facts["profiles"]]
    assert sizes == [(1, 1), (2, 16), (17, 128)]


@without_gpu
def test_a_refittable_engine_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceUnavailable, match="on a machine with a GPU"):
        convert(saved(linear(), tmp_path), tmp_path / "model.engine", refittable=True)


def test_options_become_flags_of_the_builder(tmp_path: Path) -> None:
    """What tensorrt_rtx cannot build here: its configuration at least is the right one."""
    from bridge_tensorrt import building
    from bridge_tensorrt.options import EngineOptions

    trt = module.load("tensorrt_rtx")
    flags = trt.BuilderFlag
    network = parse(trt, open_model(linear().SerializeToString()))
    for options, flag in (
        (EngineOptions(refittable=True), flags.REFIT),
        (EngineOptions(version_compatible=True), flags.VERSION_COMPATIBLE),
    ):
        assert building._configure(trt, network, options, ()).get_flag(flag)
        assert not building._configure(trt, network, EngineOptions(), ()).get_flag(flag)


@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
def test_a_timing_cache_is_attached_and_serialized() -> None:
    """The calls that tensorrt needs, on the bindings of tensorrt_rtx, which have them still."""
    from bridge_tensorrt import building

    network = parse(module.load("tensorrt_rtx"), open_model(linear().SerializeToString()))
    config = network.builder.create_builder_config()
    made = building._attach(config, b"")
    assert made is not None
    data = bytes(made.serialize())
    assert data
    again = building._attach(network.builder.create_builder_config(), data)
    assert again is not None
