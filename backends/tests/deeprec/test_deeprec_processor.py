"""Models in the ABI stub: what is answered, and what becomes of every fault."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.cpus import default_threads
from bridge.device import CPU, Device
from bridge.errors import (
    BackendUnavailable,
    InvalidModel,
    ModelLoadFailed,
    ModelNotFound,
    OptionError,
    PredictError,
    PredictTimeout,
    ShapeMismatch,
    UnexpectedInput,
    UnknownOutput,
    UnsupportedModel,
    WorkerDied,
)
from bridge.isolated import IsolatedPredictor
from bridge.isolation import Worker
from bridge.loading import open_model
from bridge.memory import resident_bytes
from bridge_deeprec.backend import (
    WARM_CALLS,
    check_agreement,
    check_folders,
    check_preload,
    served_signature,
)
from bridge_deeprec.configuration import environment, model_config
from bridge_deeprec.library import NAME, VARIABLE, Library, ServedModel, find
from bridge_deeprec.options import DeeprecOptions
from bridge_deeprec.predictor import ProcessorPredictor

Load = Callable[..., bridge.Predictor]


def check(predictor: bridge.Predictor, model: Any, rows: int = 5) -> None:
    """The predictor computes what numpy does."""
    inputs = model.batch(rows)
    found, wanted = predictor.predict(inputs), model.answer(inputs)
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def test_answers_are_those_of_numpy(load: Load, ranker: Any) -> None:
    predictor = load(ranker)
    assert isinstance(predictor, IsolatedPredictor)
    assert predictor.info.format == "deeprec"
    for rows in (1, 5, 300):
        check(predictor, ranker, rows)
    inputs = ranker.batch(3)
    assert list(predictor.predict(inputs, ["score"])) == ["score"]
    info = predictor.info
    assert info.provider == NAME
    assert info.details["pid"] != os.getpid()
    assert info.details["names"] == "alias"
    assert info.details["model_path"] == str(ranker.folder)
    assert not info.details["atomic_delta_update"]
    assert predictor._capabilities.warm_calls == WARM_CALLS

    # Nothing of this reaches the stub, which would end its process.
    with pytest.raises(UnexpectedInput):
        predictor.predict({**inputs, "other": inputs["user"]})
    with pytest.raises(UnknownOutput):
        predictor.predict(inputs, ["other"])
    with pytest.raises(ShapeMismatch):
        predictor.predict({**inputs, "items": inputs["items"][:, :2]})
    with pytest.raises(ShapeMismatch):
        predictor.predict({name: array[:0] for name, array in inputs.items()})
    with pytest.raises(PredictError, match="Incompatible shapes"):
        predictor.predict({**inputs, "user": inputs["user"][:2]})
    assert predictor.info.details["pid"] == info.details["pid"]


def test_older_builds_strings_and_calls_side_by_side(
    load: Load, tmp_path: Path, ranker: Any
) -> None:
    model = type(ranker)(tmp_path / "texts", [("text", "string", ()), ("ids", "long", (2,))])
    model.op = "Placeholder"  # a plain SavedModel, which the library serves as well
    # What Isolation says of a variable wins over what an option says.
    more = {"omp_num_threads": 2, "environment": {"OMP_NUM_THREADS": "1"}}
    predictor = load(model.write(), "tensor", "info-fails", "no-json", **more)
    assert predictor.info.format == "saved_model"
    assert predictor.info.details["names"] == "tensor"
    assert predictor.info.details["full_version"] is None
    with pytest.raises(PredictError, match="status 500"):
        predictor.refresh_info()

    def call(seed: int) -> None:
        for turn in range(20):
            inputs = model.batch(4, seed * 100 + turn)
            found = predictor.predict(inputs)["score"]
            np.testing.assert_allclose(found, model.answer(inputs)["score"], rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))


def test_a_model_is_updated_while_it_serves(load: Load, tmp_path: Path, ranker: Any) -> None:
    parent = tmp_path / "checkpoints"
    old = ranker.checkpoint(parent, "1", 10, seed=1)
    predictor = load(ranker, checkpoint_dir=str(parent))
    assert predictor.info.details["full_version"] == 10
    inputs = ranker.batch(6)
    before, after = ranker.answer(inputs, old), None
    np.testing.assert_allclose(predictor.predict(inputs)["score"], before["score"], rtol=1e-5)

    new = ranker.checkpoint(parent, "2", 20, seed=2)
    after = ranker.answer(inputs, new)
    until = time.monotonic() + 20
    while predictor.refresh_info().details["full_version"] == 10:
        found = predictor.predict(inputs)["score"]
        # Whichever serves, one call is of one version.
        assert any(np.allclose(found, one["score"], rtol=1e-5) for one in (before, after))
        assert time.monotonic() < until
    assert predictor.info.details["full_version"] == 20
    assert predictor.info.details["model_path"].endswith("2/model.ckpt-20")
    np.testing.assert_allclose(predictor.predict(inputs)["score"], after["score"], rtol=1e-5)

    rows = {row: np.full(4, 0.5, np.float32) for row in range(50)}
    ranker.delta(parent, "2", 21, rows)
    new["table"][:] = 0.5
    wanted = ranker.answer(inputs, new)["score"]
    while not np.allclose(predictor.predict(inputs)["score"], wanted, rtol=1e-5):
        assert time.monotonic() < until
    # The library does not tell of deltas.
    assert predictor.refresh_info().details["full_version"] == 20


def test_a_crash_or_a_hang_is_an_error_of_its_call_alone(load: Load, ranker: Any) -> None:
    crashing = load(ranker, "abort")
    hanging = load(ranker, "hang", timeout_s=0.5)
    inputs = ranker.batch(2)
    for _ in range(3):  # the self-test was the first call
        crashing.predict(inputs)
        hanging.predict(inputs)
    with pytest.raises(WorkerDied, match="SIGABRT"):
        crashing.predict(inputs)
    with pytest.raises(PredictTimeout):  # the crash of the other one was none of its business
        hanging.predict(inputs)
    for predictor in (crashing, hanging):  # in new processes
        check(predictor, ranker)


def test_a_build_that_cannot_read_requests_is_refused(load: Load, ranker: Any) -> None:
    with pytest.raises(BackendUnavailable, match="does not answer a made-up row") as caught:
        load(ranker, "misread")
    assert "shape size VS input size" in caught.value.detail["native_error"]


def test_initialize_has_a_deadline(load: Load, ranker: Any) -> None:
    with pytest.raises(PredictTimeout, match="'load' within 0.6 s"):
        load(ranker, "init-hangs", load_timeout_s=0.6)


# What needs no process: the library itself does no harm here.


@pytest.fixture
def served(stub: Any, ranker: Any, monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    config = model_config(DeeprecOptions(), str(ranker.folder), "serving_default")
    return ServedModel(Library(stub.path), json.dumps(config))


def local(model: Any, served: ServedModel) -> ProcessorPredictor:
    found = open_model(model.folder).facts.signatures["serving_default"]
    info = bridge.PredictorInfo(model="ranker", backend="deeprec")
    return ProcessorPredictor(served, found, "serving_default", "alias", info)


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("error", "status 500: .*the stub was told to fail"),
        ("garbage", "cannot be read"),
        ("short", "cannot be read"),
        ("empty", "output '(score|embedding)' is missing; it holds nothing"),
        ("negative", "buffer of -5 bytes"),
        ("null", "buffer of 64 bytes at 0x0"),
    ],
)
def test_broken_answers_are_errors(
    served: ServedModel, ranker: Any, monkeypatch: pytest.MonkeyPatch, word: str, match: str
) -> None:
    predictor, inputs = local(ranker, served), ranker.batch(3)
    monkeypatch.setenv("ABI_STUB", word)
    for _ in range(4):
        predictor.predict(inputs)
    with pytest.raises(PredictError, match=match) as caught:
        predictor.predict(inputs)
    assert caught.value.model == "ranker"
    if word == "error":
        assert caught.value.detail["status"] == 500
    check(predictor, ranker)


def test_what_the_library_hands_out_is_given_back(served: ServedModel, ranker: Any) -> None:
    predictor, inputs = local(ranker, served), ranker.batch(2000)
    size = sum(array.nbytes for array in predictor.predict(inputs).values())
    before = resident_bytes()
    for _ in range(300):
        predictor.predict(inputs)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before < 100 * size


@pytest.mark.parametrize(
    ("word", "error", "match"),
    [
        ("other-json", InvalidModel, "serves inputs other_"),
        ("odd-json", BackendUnavailable, "cannot be read"),
    ],
)
def test_signatures_that_do_not_fit_are_refused(
    served: ServedModel,
    ranker: Any,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    error: type[Exception],
    match: str,
) -> None:
    signature = open_model(ranker.folder).facts.signatures["serving_default"]
    check_agreement(signature, served, Path("stub.so"))
    monkeypatch.setenv("ABI_STUB", word)
    with pytest.raises(error, match=match):
        check_agreement(signature, served, Path("stub.so"))


def test_initialize_that_fails(stub: Any, ranker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(DeeprecOptions(), str(ranker.folder), "serving_default")
    monkeypatch.setenv("ABI_STUB", "init-fails")
    with pytest.raises(ModelLoadFailed, match="state is -1"):
        ServedModel(Library(stub.path), json.dumps(config))


def test_answers_of_another_model_are_errors(
    served: ServedModel, ranker: Any, tmp_path: Path
) -> None:
    wrong = type(ranker)(tmp_path / "wrong", ranker.inputs, [("score", "embedding")]).write()
    with pytest.raises(PredictError, match=r"output 'score' has shape \(3,\); the model says"):
        local(wrong, served).predict(ranker.batch(3))


def test_what_is_no_processor_is_refused(stub: Any, tmp_path: Path) -> None:
    lacking = stub.build(tmp_path / NAME, "-DWITHOUT_BATCH")
    with pytest.raises(BackendUnavailable, match="it lacks batch_process") as caught:
        Library(lacking)
    assert caught.value.detail["missing"] == ["batch_process"]
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        Library(tmp_path / "text.so")


def test_where_the_library_is_looked_for(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bridge.backends()["deeprec"]
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path}")
    assert find() is None
    assert not backend.probe().installed
    assert VARIABLE in (backend.probe().fix or "")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:{stub.path.parent}")
    assert find() == stub.path
    assert backend.probe().installed
    monkeypatch.chdir(stub.path.parent)
    monkeypatch.setenv(VARIABLE, stub.path.name)
    assert find() == stub.path
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    assert "No such file" in (backend.probe().reason or "")
    (tmp_path / "text.so").write_text("no library at all")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "text.so"))
    assert "no shared library" in (backend.probe().reason or "")
    head = bytearray(stub.path.read_bytes()[:64])
    head[18] ^= 0xFF
    (tmp_path / "other.so").write_bytes(head)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other.so"))
    assert "another kind of processor" in (backend.probe().reason or "")


def test_it_runs_in_no_process_but_its_own(
    stub: Any, ranker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bridge.backends()["deeprec"]
    monkeypatch.setenv(VARIABLE, str(stub.path))
    with pytest.raises(BackendUnavailable, match="process that was started for it"):
        backend.load(open_model(ranker.folder))
    assert backend.always_isolated
    wanted = backend.worker_environment(CPU, DeeprecOptions())
    assert wanted["CUDA_VISIBLE_DEVICES"] == ""
    assert wanted["INFERENCE_MODE"] == "1"
    there = backend.worker_environment(Device("cuda", 1), DeeprecOptions())
    assert there["CUDA_VISIBLE_DEVICES"] == "1"


def test_tensors_that_are_no_arrays_are_refused(
    ranker: Any, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (ranker.folder / "saved_model.pb").read_bytes()
    dtype = b"user_tensor:0\x10\x09"  # TensorInfo.dtype: DT_INT64
    assert dtype in data
    (ranker.folder / "saved_model.pb").write_bytes(data.replace(dtype, dtype[:-1] + b"\x14"))
    with pytest.raises(UnsupportedModel, match="'user' of signature 'serving_default'"):
        served_signature(open_model(ranker.folder))
    with pytest.raises(OptionError, match="no signature 'other'"):
        served_signature(open_model(ranker.folder, signature="other"))


def test_whole_signatures_are_refused(stub: Any, ranker: Any) -> None:
    signature = open_model(ranker.folder).facts.signatures["serving_default"]
    backend = bridge.backends()["deeprec"]
    refusal = backend.refuse(open_model(ranker.folder, signature=signature), CPU)
    assert refusal is not None
    assert "holds its own" in refusal.reason


def test_what_is_measured_has_learnt_before(stub: Any, ranker: Any) -> None:
    with Worker(environment={VARIABLE: str(stub.path)}) as worker:
        loaded = worker.load(ranker.folder, backend="deeprec")
        assert loaded.info["details"]["isolated"]  # a process below the worker's
        assert loaded.info["details"]["pid"] != worker.pid
        assert loaded.warm_calls == WARM_CALLS
        # A process of its own counts, Python and all.
        assert loaded.rss_growth_bytes > 10_000_000
        held = worker.memory(reset_peak=True)
        assert held["peak_rss_bytes"] >= held["rss_bytes"] > loaded.rss_growth_bytes
        worker.keep_inputs("2", [ranker.batch(2)])
        assert [worker.measure(3, key="2").warmed for _ in range(2)] == [WARM_CALLS, 0]


def test_warming_up_makes_the_calls_that_are_needed() -> None:
    calls = []

    class Counting(bridge.Predictor):
        def _predict(self, inputs: Any, outputs: Any) -> Any:
            calls.append(1)
            return {"y": inputs["x"]}

        def _close(self) -> None: ...

    spec = bridge.TensorSpec("x", bridge.DType.FLOAT32, (None,))
    signature = bridge.Signature((spec,), (bridge.TensorSpec("y", bridge.DType.FLOAT32, (None,)),))
    predictor = Counting(signature, bridge.PredictorInfo())
    predictor.warmup()
    assert len(calls) == 2
    claims = bridge.Capabilities(warm_calls=7)
    predictor._attach(predictor.info, claims, (), None)
    predictor.warmup(batches=(1, 2))
    assert len(calls) == 16


def test_a_checkpoint_that_is_not_there_is_not_waited_for(ranker: Any, tmp_path: Path) -> None:
    parent = tmp_path / "checkpoints"
    with pytest.raises(ModelNotFound, match="there is no folder"):
        check_folders(DeeprecOptions(checkpoint_dir=parent))
    (parent / "1").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="holds a file 'checkpoint'"):
        check_folders(DeeprecOptions(checkpoint_dir=parent))
    ranker.checkpoint(parent, "1", 1, seed=1)
    check_folders(DeeprecOptions(checkpoint_dir=parent))


def test_an_allocator_that_was_not_preloaded_is_an_error(tmp_path: Path) -> None:
    check_preload(DeeprecOptions())
    with pytest.raises(OptionError, match=r"none\.so' could not be preloaded"):
        check_preload(DeeprecOptions(jemalloc=tmp_path / "none.so"))
    lines = Path("/proc/self/maps").read_text().splitlines()
    there = next(line.split(maxsplit=5)[5] for line in lines if ".so" in line)
    (tmp_path / "link.so").symlink_to(there)
    check_preload(DeeprecOptions(jemalloc=tmp_path / "link.so"))


# Options.


def test_the_configuration_has_the_keys_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = model_config(DeeprecOptions(), "/models/a", "serving_default")
    assert plain["savedmodel_dir"] == "/models/a"
    assert plain["signature_name"] == "serving_default"
    assert plain["serialize_protocol"] == "protobuf"
    assert plain["feature_store_type"] == "memory"
    assert "checkpoint_dir" not in plain
    assert plain["intra_op_parallelism_threads"] == default_threads()

    monkeypatch.setenv("REDIS_SECRET", "s3cret")
    options = DeeprecOptions.make(
        [
            "feature_store_type=redis",
            "redis_url=redis:6379",
            "redis_password_variable=REDIS_SECRET",
            "ev_storage_type=dram_ssdhash",
            "ev_storage_path=/fast",
            "ev_storage_size=1024,2048",
            "session_num=3",
        ]
    )
    found = model_config(options, "/models/a", "k")
    assert found["redis_password"] == "s3cret"
    assert "s3cret" not in str(options)
    assert found["ev_storage_type"] == 12
    assert found["ev_storage_size"] == [1024, 2048]
    assert found["session_num"] == 3
    monkeypatch.delenv("REDIS_SECRET")
    with pytest.raises(OptionError, match="REDIS_SECRET"):
        model_config(options, "/models/a", "k")


def test_the_environment_of_the_library() -> None:
    assert "OMP_NUM_THREADS" not in environment(DeeprecOptions())
    found = environment(
        DeeprecOptions(
            library=Path("/opt/x.so"),
            onednn=False,
            memory_planner=False,
            omp_num_threads=3,
            enable_inline_execute=True,
            planner_start_step=5,
            jemalloc=Path("/usr/lib/libjemalloc.so"),
        )
    )
    assert found[VARIABLE] == "/opt/x.so"
    assert found["TF_DISABLE_MKL"] == "1"
    assert found["ENABLE_MEMORY_OPTIMIZATION"] == "0"
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["RUN_ALL_KERNELS_INLINE"] == "1"
    assert found["START_STATISTIC_STEP"] == "5"
    assert found["LD_PRELOAD"] == "/usr/lib/libjemalloc.so"
    assert "dirty_decay_ms" in found["MALLOC_CONF"]
    assert "MALLOC_TRIM_THRESHOLD_" not in found  # a setting of the allocator it replaces


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"feature_store_type": "redis"}, "redis-without-address"),
        ({"model_store_type": "oss"}, "remote-without-address"),
        (
            {
                "model_store_type": "oss",
                "savedmodel_url": "oss://b/m",
                "checkpoint_url": "oss://b/c",
            },
            "oss-without-access",
        ),
        ({"checkpoint_url": "hdfs://c", "checkpoint_dir": "/c"}, "two-checkpoint-folders"),
        ({"shard_embedding": True}, "shards-without-local"),
        ({"shard_embedding": True, "feature_store_type": "local"}, "shards-incomplete"),
        ({"ev_storage_type": "dram_ssdhash"}, "tiers-without-folder"),
        ({"ev_storage_size": ("1 GiB",)}, "sizes-are-no-numbers"),
        ({"timeline_start_step": 1}, "timeline-incomplete"),
        (
            {
                "timeline_start_step": 1,
                "timeline_interval_step": 1,
                "timeline_trace_count": 1,
                "timeline_path": "here",
            },
            "timeline-elsewhere",
        ),
        ({"start_node_stats_step": 300}, "statistics-never-end"),
    ],
)
def test_what_the_library_would_abort_on_or_ignore(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(OptionError) as caught:
        DeeprecOptions.make(given)
    assert caught.value.detail["rule"] == rule


def test_options_worth_measuring(ranker: Any) -> None:
    model = open_model(ranker.folder)
    found = bridge.backends()["deeprec"].search_space(model, CPU)
    assert found[0] == DeeprecOptions()
    assert all(isinstance(one, DeeprecOptions) for one in found)
