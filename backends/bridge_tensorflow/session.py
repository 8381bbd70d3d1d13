"""One graph session per predictor, with thread pools of its own."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.cpus import usable_cpus
from bridge.device import Device
from bridge.errors import OptionError
from bridge_tensorflow.options import TensorflowOptions

__all__ = ["OpenSession", "open_session", "own_pools"]

_OWN_POOLS = "TF_OVERRIDE_GLOBAL_THREADPOOL"
_TASKS = Path("/proc/self/task")
_deciding = threading.Lock()
_has_own_pools: bool | None = None


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session with a SavedModel in it.

    Attributes:
        native: The ``tf.compat.v1.Session``; its variables hold their values.
        meta_graph: The ``MetaGraphDef`` as loaded.
        threads: Size of the session's own pool for operators; ``None`` where it has to
            share a pool that other code of this process has made.
    """

    native: Any
    meta_graph: Any
    threads: int | None


def open_session(
    folder: Path, tags: frozenset[str], device: Device, options: TensorflowOptions
) -> OpenSession:
    """Opens a session and loads a SavedModel: graph, variables, tables.

    Raises:
        OptionError: ``threads`` was asked for and cannot be had.
    """
    import tensorflow as tf

    # What tf.compat.v1.saved_model.load calls, without its warning that it is deprecated.
    from tensorflow.python.saved_model.loader_impl import SavedModelLoader

    is_own = own_pools()
    if options.threads is not None and not is_own:
        raise OptionError(
            f"threads={options.threads} cannot be had: TensorFlow already runs in this process "
            "with one pool of threads for everybody.",
            fix="Load the model before TensorFlow is used otherwise, or start Python with "
            f"{_OWN_POOLS}=1 in the environment, or leave threads out.",
            option="threads",
        )
    threads = options.threads or usable_cpus()
    config = _config(threads, device, options)
    if options.xla:
        _wake_xla(config)
    graph = tf.Graph()
    native = tf.compat.v1.Session(graph=graph, config=config)
    where = f"/device:{'GPU' if device.kind == 'cuda' else 'CPU'}:{device.index}"
    try:
        with graph.as_default(), graph.device(where):
            meta_graph = SavedModelLoader(str(folder)).load(native, sorted(tags))
    except BaseException:
        native.close()
        raise
    return OpenSession(native, meta_graph, threads if is_own else None)


def own_pools() -> bool:
    """Sees to it that each session of this process has its own threads; whether it does.

    TensorFlow keeps one pool of operator threads for the whole process, of the size that
    the first session or eager call happens to ask for, unless the environment variable
    ``TF_OVERRIDE_GLOBAL_THREADPOOL`` is set when that one is made; then all have their
    own. It is set here just for that moment, so that neither a model's setting becomes
    everybody's, nor the other way round. If TensorFlow has computed anything before in
    this process, that moment has passed.

    Source: ``core/common_runtime/local_device.cc`` of TensorFlow 2.21.
    """
    global _has_own_pools  # noqa: PLW0603 - TensorFlow decides it once for the process too
    with _deciding:
        if _has_own_pools is None:
            _has_own_pools = _decide_pools()
        return _has_own_pools


def _decide_pools() -> bool:
    import tensorflow as tf

    before = os.environ.get(_OWN_POOLS)
    threads = _operator_threads()
    os.environ[_OWN_POOLS] = before if before is not None else "1"
    try:
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1)
        config.device_count["GPU"] = 0
        with tf.compat.v1.Session(graph=tf.Graph(), config=config):
            return bool(_operator_threads() - threads)
    finally:
        if before is None:
            os.environ.pop(_OWN_POOLS, None)


def _config(threads: int, device: Device, options: TensorflowOptions) -> Any:
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        # A negative number means: on the thread that calls. 0 would mean "as many as CPUs".
        inter_op_parallelism_threads=options.inter_threads or -1,
        use_per_session_threads=True,
        # Operators without a kernel for the device run on the CPU, as strings must.
        allow_soft_placement=device.kind == "cuda",
    )
    if device.kind == "cuda":
        config.gpu_options.allow_growth = True
    else:
        config.device_count["GPU"] = 0
    if options.executor == "single_threaded":
        config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
    if not options.graph_optimizer:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
    if options.xla:
        optimizer = config.graph_options.optimizer_options
        optimizer.global_jit_level = tf.compat.v1.OptimizerOptions.ON_2
        optimizer.cpu_global_jit = True
    return config


def _wake_xla(config: Any) -> None:
    """Makes XLA print now what it prints on its first cluster, while loading is listened to."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(config=config) as session:
        start = tf.compat.v1.placeholder(tf.float32, (2,))
        end = start
        for _ in range(8):  # clusters have 4 operators at least
            end = tf.tanh(end * start + start)
        for _ in range(3):  # compiled on the second call
            session.run(end, {start: (0.0, 1.0)})


def _operator_threads() -> set[str]:
    """Threads of this process that may be operator threads.

    TensorFlow names its other threads ``tf_...``, but leaves these without a name of
    their own (seen in 2.21).
    """
    found = set()
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            name = (task / "comm").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if not name.startswith("tf_"):
            found.add(task.name)
    return found
