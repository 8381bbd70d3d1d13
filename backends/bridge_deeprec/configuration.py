"""What DeepRec's serving library is told: the text for ``initialize``, and its environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bridge.cpus import default_threads
from bridge.errors import OptionError
from bridge_deeprec.options import REDIS, STORAGE, DeeprecOptions

__all__ = ["environment", "model_config"]

_AS_THEY_ARE = (
    "feature_store_type",
    "model_store_type",
    "session_num",
    "select_session_policy",
    "use_per_session_threads",
    "cpusets",
    "gpu_ids_list",
    "use_multi_stream",
    "enable_device_placement_optimization",
    "enable_inline_execute",
    "model_update_inter_threads",
    "model_update_intra_threads",
    "omp_num_threads",
    "kmp_blocktime",
    "init_timeout_minutes",
    "timeline_start_step",
    "timeline_interval_step",
    "timeline_trace_count",
    "timeline_path",
)


def model_config(options: DeeprecOptions, model: str, signature: str) -> dict[str, Any]:
    """The JSON object that ``initialize`` gets.

    Args:
        options: What was chosen.
        model: Folder of the SavedModel.
        signature: Key of its signature to serve.

    Returns:
        The keys that are set, in JSON types, secrets included.

    Raises:
        OptionError: A variable that should hold a secret is not set.
    """
    found: dict[str, Any] = {
        "signature_name": signature,
        "savedmodel_dir": options.savedmodel_url or model,
        "checkpoint_dir": options.checkpoint_url or _text(options.checkpoint_dir),
        "serialize_protocol": "protobuf",  # the parser of the other one, flatbuffer, is empty
        **{name: getattr(options, name) for name in _AS_THEY_ARE},
        "inter_op_parallelism_threads": options.inter_op_parallelism_threads or default_threads(),
        "intra_op_parallelism_threads": options.intra_op_parallelism_threads or default_threads(),
        "warmup_file_name": _text(options.warmup_file_name),
        "ev_storage_type": STORAGE[options.ev_storage_type],
    }
    if options.feature_store_type in REDIS:
        found |= {
            "redis_url": options.redis_url,
            "redis_password": _secret("redis_password_variable", options.redis_password_variable),
            "read_thread_num": options.read_thread_num,
            "update_thread_num": options.update_thread_num,
            "lock_timeout": options.lock_timeout,
        }
    if options.model_store_type == "oss":
        found |= {
            "oss_endpoint": options.oss_endpoint,
            "oss_access_id": options.oss_access_id,
            "oss_access_key": _secret("oss_access_key_variable", options.oss_access_key_variable),
        }
    if options.shard_embedding:
        found |= {
            "shard_embedding": True,
            "embedding_names": ";".join(options.embedding_names),
            "shard_instance_count": options.shard_instance_count,
            "id_type": options.id_type,
        }
    if options.ev_storage_type == "dram_ssdhash":
        found |= {
            "ev_storage_path": _text(options.ev_storage_path),
            "ev_storage_size": [int(size) for size in options.ev_storage_size],
        }
    return {name: value for name, value in found.items() if value is not None and value != ""}


def environment(options: DeeprecOptions) -> dict[str, str]:
    """Variables for the library's process, which it reads once, when it is loaded."""
    numbers = {
        "START_NODE_STATS_STEP": options.start_node_stats_step,
        "STOP_NODE_STATS_STEP": options.stop_node_stats_step,
        "START_STATISTIC_STEP": options.planner_start_step,
        "STABLE_STATISTIC_STEP": options.planner_stable_steps,
        "MAX_STATISTIC_STEP": options.planner_max_steps,
        "TF_MKL_NUM_INTRAOP": options.onednn_threads,
        "OMP_NUM_THREADS": options.omp_num_threads,
        "KMP_BLOCKTIME": options.kmp_blocktime,
    }
    found = {
        "INFERENCE_MODE": "1",  # the library sets it itself, later
        "TF_DISABLE_MKL": _switch(not options.onednn),
        "TF_MKL_PRIMITIVE_ONLY_FOR_RECO": _switch(options.onednn_reco_only),
        "TF_MKL_OPTIMIZE_PRIMITIVE_MEMUSE": _switch(options.onednn_small_memory),
        "ENABLE_MEMORY_OPTIMIZATION": _switch(options.memory_planner),
        **{name: str(value) for name, value in numbers.items() if value is not None},
    }
    if options.jemalloc is None:
        # glibc would give the memory of a request back, and fault it in again in the next call:
        # 0.3 ms of 1.0 for 512 rows of 40 ids, measured.
        found |= {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(16 << 20)}
    if options.onednn_max_isa != "ALL":
        found["ONEDNN_MAX_CPU_ISA"] = options.onednn_max_isa
    if options.enable_inline_execute:
        found["RUN_ALL_KERNELS_INLINE"] = "1"
    if options.thread_affinity:
        found["SET_SESSION_THREAD_POOL_AFFINITY"] = "1"
    if options.jemalloc is not None:
        preload = str(options.jemalloc.absolute())
        found |= {"LD_PRELOAD": preload, "MALLOC_CONF": options.malloc_conf}
    if options.library is not None:
        found["DEEPREC_PROCESSOR"] = str(options.library.absolute())
    return found


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _switch(is_on: bool) -> str:
    return "1" if is_on else "0"


def _secret(name: str, variable: str) -> str:
    found = os.environ.get(variable)
    if found is None:
        raise OptionError(
            f"option '{name}' names the variable '{variable}', which is not set.",
            fix="Set it in the environment of this process.",
            option=name,
            value=variable,
        )
    return found
