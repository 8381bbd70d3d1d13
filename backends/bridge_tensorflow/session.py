"""One graph session with thread pools of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.cpus import default_threads
from bridge.device import Device
from bridge.errors import OptionError
from bridge_tensorflow.options import REWRITES, TensorflowOptions

__all__ = ["OpenSession", "own_pools", "session_config"]

_OWN_POOLS = "TF_OVERRIDE_GLOBAL_THREADPOOL"
_TASKS = Path("/proc/self/task")
_MAX_CALLS = 64
_deciding = threading.Lock()
_has_own_pools: bool | None = None


class OpenSession:
    """A session with a SavedModel in it: graph, variables, tables.

    Args:
        folder: The SavedModel.
        tags: Which of its graphs.
        device: Where its operators are pinned.
        config: A ``ConfigProto``, of ``session_config``.
        is_inline: Calls run their operators on the thread that calls.

    Attributes:
        native: The ``tf.compat.v1.Session``.
        defaults: Values of the inputs that may be left out, by signature and input.
        threads: Size of the session's own pool for operators; ``None`` where it has to
            share a pool that other code of this process has made.
    """

    def __init__(
        self, folder: Path, tags: frozenset[str], device: Device, config: Any, *, is_inline: bool
    ) -> None:
        import tensorflow as tf

        # What tf.compat.v1.saved_model.load calls, without its warning that it is deprecated
        # and without parsing the graph a second time.
        from tensorflow.python.saved_model.loader_impl import SavedModelLoader

        self.threads = config.intra_op_parallelism_threads if own_pools() else None
        self._is_inline = is_inline
        self._making = threading.Lock()
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Callable[..., list[Any]]] = {}
        if config.graph_options.optimizer_options.cpu_global_jit:
            _wake_xla(config)
        graph = tf.Graph()
        self.native = tf.compat.v1.Session(graph=graph, config=config)
        where = f"/device:{'GPU' if device.kind == 'cuda' else 'CPU'}:{device.index}"
        wanted = sorted(tags)
        try:
            loader = SavedModelLoader(str(folder))
            with graph.as_default(), graph.device(where):
                saver, _ = loader.load_graph(graph, wanted)
                loader.restore_variables(self.native, saver)
                loader.run_init_ops(self.native, wanted)
            self.defaults = _defaults(loader.get_meta_graph_def_from_tags(wanted))
        except BaseException:
            self.native.close()
            raise

    def call(self, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., list[Any]]:
        """A call that takes the fed tensors' arrays in order and computes what is fetched.

        Its results are TensorFlow's own buffers. Equal calls are one, because each has
        executors, and with them copies of the graph's constants.
        """
        key = (tuple(feeds), tuple(fetches))
        with self._making:
            call = self._calls.get(key)
            if call is None:
                call = self._new_call(*key)
                if len(self._calls) < _MAX_CALLS:
                    self._calls[key] = call
            return call

    def close(self) -> None:
        """Lets go of the model; calls that were handed out cannot be used any more."""
        self._calls.clear()
        self.native.close()

    def _new_call(
        self, feeds: tuple[str, ...], fetches: tuple[str, ...]
    ) -> Callable[..., list[Any]]:
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        options = CallableOptions(feed=feeds, fetch=fetches)
        if self._is_inline:
            # The only way onto the calling thread for a session that has its own threads: a
            # negative inter_op_parallelism_threads counts only for sessions that share theirs.
            # Source: ``direct_session.cc`` of TensorFlow.
            options.run_options.inter_op_thread_pool = -1
        # The underscore method is the Python face of C++'s Session::MakeCallable. The
        # public make_callable prepares every feed in Python, which takes ten times as long.
        call: Callable[..., list[Any]] = self.native._make_callable_from_options(options)
        return call


def session_config(device: Device, options: TensorflowOptions) -> Any:
    """The ``ConfigProto`` of a session with these options.

    Raises:
        OptionError: ``threads`` was asked for and cannot be had, or an option is not for
            this kind of device.
    """
    import tensorflow as tf

    _check_device(device, options)
    if options.threads is not None and not own_pools():
        raise OptionError(
            f"threads={options.threads} cannot be had: TensorFlow already runs in this process "
            "with one pool of threads for everybody.",
            fix="Load the model before TensorFlow is used otherwise, or start Python with "
            f"{_OWN_POOLS}=1 in the environment, or leave threads out.",
            option="threads",
        )
    is_cuda = device.kind == "cuda"
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=options.threads or default_threads(),
        # Where calls run inline, only loading uses these. A graph over two devices cannot
        # run inline: there 0 means "as many as CPUs".
        inter_op_parallelism_threads=options.inter_threads or (0 if is_cuda else 1),
        use_per_session_threads=True,
        # Operators without a kernel for the device run on the CPU, as strings must.
        allow_soft_placement=is_cuda,
    )
    config.experimental.disable_thread_spinning = not options.spinning
    if is_cuda:
        config.gpu_options.allow_growth = options.gpu_growth
        config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction or 0
    else:
        config.device_count["GPU"] = 0
    if options.executor == "single_threaded":
        config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
    _set_rewrites(config.graph_options.rewrite_options, options)
    if options.xla:
        optimizer = config.graph_options.optimizer_options
        optimizer.global_jit_level = tf.compat.v1.OptimizerOptions.ON_2
        optimizer.cpu_global_jit = True
    return config


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


def _check_device(device: Device, options: TensorflowOptions) -> None:
    """Refuses options that do nothing on this kind of device."""
    given = options.to_dict()
    for item in options.describe():
        if item.name in given and item.devices is not None and device.kind not in item.devices:
            raise OptionError(
                f"option '{item.name}' acts on {' and '.join(item.devices)} only; the device is "
                f"{device}.",
                fix="Leave it out.",
                option=item.name,
                rule="other-device",
            )


def _set_rewrites(config: Any, options: TensorflowOptions) -> None:
    if not options.graph_optimizer:
        config.disable_meta_optimizer = True
    for name in REWRITES:
        if name in options.rewrites_off:
            off = config.NO_MEM_OPT if name == "memory_optimization" else config.OFF
            setattr(config, name, off)
    if options.precision == "bf16":
        config.auto_mixed_precision_onednn_bfloat16 = config.ON
        config.min_graph_nodes = -1  # Grappler leaves graphs of less than 4 operators alone


def _defaults(meta_graph: Any) -> dict[str, Mapping[str, npt.NDArray[Any]]]:
    import tensorflow as tf

    return {
        key: {name: np.asarray(tf.make_ndarray(proto)) for name, proto in item.defaults.items()}
        for key, item in meta_graph.signature_def.items()
    }


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
        with contextlib.suppress(OSError):  # it ended meanwhile
            name = (task / "comm").read_text(encoding="utf-8", errors="replace")
            if not name.startswith("tf_"):
                found.add(task.name)
    return found
