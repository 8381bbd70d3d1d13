"""Threads of the tensorflow backend; each test has a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

NMP = Path(sys.prefix) / "models/basic_pitch/saved_models/icassp_2022/nmp"


def run(script: str, *, model: Path = NMP, is_quiet: bool = True, **environment: str) -> str:
    """What the script prints; the test fails if it fails, or writes to stderr."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)],
        capture_output=True,
        text=True,
        env=inherited | environment,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr or not is_quiet
    return done.stdout


def test_each_predictor_has_its_own_threads_and_the_process_keeps_its_settings() -> None:
    printed = run(
        """
import os, sys
from pathlib import Path
import bridge

def threads():
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(not name.startswith("tf_") for name in names)

first = bridge.load(sys.argv[1], options={"threads": 1})
before = threads()
three = bridge.load(sys.argv[1], options={"threads": 3})
assert threads() - before == 3, (before, threads())
assert (first.info.threads, three.info.threads) == (1, 3)
import tensorflow as tf
assert tf.config.threading.get_intra_op_parallelism_threads() == 0
assert tf.config.threading.get_inter_op_parallelism_threads() == 0
assert "TF_OVERRIDE_GLOBAL_THREADPOOL" not in os.environ
assert tf.executing_eagerly()
usual = bridge.load(sys.argv[1])
from bridge.cpus import usable_cpus
assert usual.info.threads == usable_cpus()
three.close()
assert threads() - before == usual.info.threads
print("done")
"""
    )
    assert printed == "done\n"


def test_threads_are_refused_where_tensorflow_has_one_pool_already() -> None:
    printed = run(
        """
import sys
import threading
import tensorflow as tf
tf.constant(1) + 1
import bridge
try:
    bridge.load(sys.argv[1], options={"threads": 2})
except bridge.errors.OptionError as error:
    print(error.detail["option"])
usual = bridge.load(sys.argv[1])
print(usual.info.threads, usual.info.details["own_thread_pool"])
""",
        is_quiet=False,  # TensorFlow is imported before the bridge can listen
    )
    assert printed == "threads\nNone False\n"


def test_keras_that_computes_with_another_framework_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    printed = run(
        f"""
import json, zipfile
import bridge
path = {str(tmp_path / "model.keras")!r}
with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("metadata.json", json.dumps({{"keras_version": "3.0.0"}}))
    archive.writestr("config.json", json.dumps({{"class_name": "Sequential"}}))
try:
    bridge.load(path)
except bridge.errors.BackendUnavailable as error:
    print(error.detail["framework"], error.fix)
""",
        KERAS_BACKEND="torch",
    )
    assert printed.startswith("torch Set KERAS_BACKEND=tensorflow")


def test_fork_is_noticed() -> None:
    printed = run(
        """
import os, sys
import numpy as np
import bridge
predictor = bridge.load(sys.argv[1])
inputs = predictor.signature.zeros()
predictor.predict(inputs)
child = os.fork()
if child == 0:
    try:
        predictor.predict(inputs)
    except bridge.errors.ForkedPredictor:
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
predictor.predict(inputs)
"""
    )
    assert printed == "7\n"


def test_operators_run_on_the_calling_thread(tmp_path: Path) -> None:
    """Only then do calls of several threads run side by side without waking others."""
    import numpy as np
    import tensorflow as tf

    import bridge

    ran_on: list[int] = []

    class Traced(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")], autograph=False)
        def call(self, x):
            y = tf.numpy_function(
                lambda value: ran_on.append(threading.get_native_id()) or value, [x], tf.float32
            )
            return {"y": tf.ensure_shape(y, (None,)) * 2.0}

    module = Traced()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.call)
    x = np.float32([1, 2])
    here = threading.get_native_id()
    for options in ({}, {"executor": "single_threaded"}, {"inter_threads": 2}):
        ran_on.clear()
        with bridge.load(tmp_path / "model", trust=True, options=options) as predictor:
            assert predictor.predict({"x": x})["y"].tolist() == [2, 4]
            assert predictor.info.details["calling_thread"] == (ran_on == [here])
            assert predictor.info.details["calling_thread"] == ("inter_threads" not in options)


def test_out_of_memory_leaves_the_predictor_usable(affine: Path) -> None:
    """With a limit on the process's memory, as in a container that has no swap."""
    printed = run(
        """
import resource, sys
import numpy as np
import bridge

predictor = bridge.load(sys.argv[1])
small = np.ones((1, 4), np.float32)
predictor.predict({"x": small})
large = np.ones((1 << 23, 4), np.float32)
for share in (0.5, 1.5):  # of the input: there is no memory for a copy, or for the output
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + int(share * large.nbytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        predictor.predict({"x": large})
    except bridge.errors.OutOfMemory as error:
        print(isinstance(error.__cause__, MemoryError))
print(predictor.predict({"x": small})["y"].tolist())
""",
        model=affine,
        is_quiet=False,  # TensorFlow prints what it could not allocate
        TF_ENABLE_ONEDNN_OPTS="0",  # its allocator waits 10 s before it gives up
    )
    assert printed == "True\nFalse\n[[1.0, 2.0, 3.0, 4.0]]\n"
