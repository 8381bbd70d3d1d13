"""Options of DeepRec's serving library: its ``model_config`` keys and its environment.

The names of ``model_config`` keys are the library's own. What is a variable of its
environment has a name of its own here, and the variable in its help. All of it holds for
one predictor only, since each has a process of its own.

Source of keys, defaults and effects: ``model_config.cc`` and the pages ``Processor``,
``SessionGroup``, ``oneDNN``, ``CPU-Memory-Optimization`` and ``Executor-Optimization`` of
DeepRec's documentation. Where page and code differ, the code is followed. None of the
effects was measured here: the library could not be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridge import Options, option
from bridge.errors import OptionError

__all__ = ["REDIS", "STORAGE", "DeeprecOptions"]

REDIS = ("redis", "cluster_redis")
"""Kinds of feature store that are a server of redis."""

STORAGE = {"default": 0, "dram": 1, "dram_ssdhash": 12}
"""The library's numbers of the kinds of storage."""


@dataclass(frozen=True, kw_only=True)
class DeeprecOptions(Options):
    """Settings of ``libserving_processor.so``; none was measured: it was not to be had here.

    ``signature_name``, ``savedmodel_dir`` and ``serialize_protocol`` are not among them: the
    bridge sets these keys from the model, and to the one protocol that works.
    """

    library: Path | None = option(
        None,
        help="Path of libserving_processor.so; none means the variable DEEPREC_PROCESSOR, else "
        "where the loader looks for libraries.",
        when="Where several builds of the library are installed.",
    )
    names: str = option(
        "auto",
        choices=("auto", "alias", "tensor"),
        help="What requests call inputs and outputs: keys of the signature (alias, newer "
        "builds) or names of tensors (older ones); auto tries the keys, then the tensors.",
        when="tensor for an older build that answers unknown names in an unknown way.",
    )
    self_test: bool = option(
        True,
        help="Send a made-up request of one row while loading, and refuse a library that does "
        "not answer it as its signature says.",
        when="false for models that cannot answer a row of ones or of empty strings.",
    )
    checkpoint_dir: Path | None = option(
        None,
        help="Folder whose subfolders are checkpoints; the newest is loaded, and looked for anew "
        "every 60 s. None means the SavedModel's own variables, with no updates.",
        when="For models that are trained on; builds before 2023 do not start without it.",
    )
    feature_store_type: str = option(
        "memory",
        choices=("memory", "local", "redis", "cluster_redis"),
        help="Where embeddings are. DeepRec's page calls the first one local, which the code "
        "that was read answers with a null pointer.",
        when="redis or cluster_redis where several instances share embeddings; local only for a "
        "build that is known to take it.",
    )
    redis_url: str = option(
        "",
        help="Address of redis.",
        when="Needed with feature_store_type=redis or cluster_redis.",
    )
    redis_password_variable: str = option(
        "",
        help="Name of the variable of this process's environment that holds redis_password, "
        "which so stays out of records and logs.",
        when="Needed with feature_store_type=redis or cluster_redis.",
    )
    read_thread_num: int = option(
        4, minimum=1, help="Threads that read redis.", when="With redis, for many lookups a call."
    )
    update_thread_num: int = option(
        2, minimum=1, help="Threads that update redis.", when="With redis, for large checkpoints."
    )
    lock_timeout: int = option(
        900,
        minimum=1,
        unit="s",
        help="How long an instance may hold the lock while it loads redis.",
        when="With redis, where loading takes longer.",
    )
    model_store_type: str = option(
        "local",
        choices=("local", "oss", "hdfs"),
        help="Kind of storage that the library reads the model and its checkpoints from.",
        when="oss or hdfs, together with savedmodel_url and checkpoint_url.",
    )
    savedmodel_url: str = option(
        "",
        help="savedmodel_dir as the library is given it; empty means the model's own folder. The "
        "bridge reads the signature from the folder all the same.",
        when="Needed with model_store_type=oss or hdfs.",
    )
    checkpoint_url: str = option(
        "",
        help="checkpoint_dir as the library is given it, where it is no folder of this machine.",
        when="With model_store_type=oss or hdfs.",
    )
    oss_endpoint: str = option(
        "", help="Address of the object store.", when="Needed with model_store_type=oss."
    )
    oss_access_id: str = option(
        "", help="Identity for the object store.", when="Needed with model_store_type=oss."
    )
    oss_access_key_variable: str = option(
        "",
        help="Name of the variable of this process's environment that holds oss_access_key.",
        when="Needed with model_store_type=oss.",
    )
    session_num: int = option(
        1,
        minimum=1,
        help="Sessions in the SessionGroup, over one set of variables.",
        when="Where one session does not use all cores: DeepRec's rule is 5 for a session that "
        "stops at 20 % of the CPU.",
    )
    select_session_policy: str = option(
        "MOD",
        choices=("MOD", "RR"),
        help="Which session answers a call: MOD ties each thread to one, RR takes turns.",
        when="RR where there are fewer calling threads than sessions.",
    )
    use_per_session_threads: bool = option(
        False,
        help="Give each session thread pools of its own.",
        when="With session_num above 1, so that sessions do not wait for each other.",
    )
    cpusets: str = option(
        "",
        help="Cores of each session, such as 0-10;11-20.",
        when="With session_num above 1 on machines of several NUMA nodes.",
    )
    thread_affinity: bool = option(
        False,
        help="Split cores over sessions by NUMA node (SET_SESSION_THREAD_POOL_AFFINITY).",
        when="Instead of cpusets, to have them chosen.",
    )
    gpu_ids_list: str = option(
        "",
        devices=("cuda",),
        help="Numbers of the GPUs to use, separated by commas, counted from the device's own.",
        when="For session groups over several GPUs.",
    )
    use_multi_stream: bool = option(
        False,
        devices=("cuda",),
        help="One CUDA stream for each session.",
        when="With session_num above 1 on a GPU.",
    )
    enable_device_placement_optimization: bool = option(
        False,
        devices=("cuda",),
        help="Keep the lookup of embeddings on the CPU; not in every build.",
        when="On a GPU, for models with large tables.",
    )
    enable_inline_execute: bool = option(
        False,
        help="Run all operators of a call on one thread (RUN_ALL_KERNELS_INLINE).",
        when="For many calls at once: no switching between threads.",
    )
    start_node_stats_step: int | None = option(
        None,
        minimum=1,
        help="First call whose operators the cost-model executor times (START_NODE_STATS_STEP); "
        "none leaves it at 100. Nothing in model_config chooses that executor.",
        when="In builds whose default is the cost-model executor.",
    )
    stop_node_stats_step: int | None = option(
        None,
        minimum=2,
        help="Last call whose operators it times (STOP_NODE_STATS_STEP); none leaves it at 200.",
        when="With start_node_stats_step, and above it.",
    )
    inter_op_parallelism_threads: int | None = option(
        None,
        minimum=1,
        help="Threads that run operators side by side; none means the CPUs this process may use, "
        "or its thread budget. The library's own default is 4, whatever the machine.",
        when="1 to 2 for models of few, large operators.",
    )
    intra_op_parallelism_threads: int | None = option(
        None,
        minimum=1,
        help="Threads that one operator may use; none means the CPUs this process may use, or "
        "its thread budget. The library's own default is 4, whatever the machine.",
        when="1 where many threads call at once.",
    )
    model_update_inter_threads: int = option(
        0,
        minimum=0,
        help="Threads that run operators of an update; 0 shares those of the calls.",
        when="1 or more for less jitter while a model is updated.",
    )
    model_update_intra_threads: int = option(
        0,
        minimum=0,
        help="Threads of one operator of an update; 0 shares those of the calls.",
        when="1 or more for less jitter while a model is updated.",
    )
    omp_num_threads: int | None = option(
        None,
        minimum=1,
        help="OMP_NUM_THREADS of the process; none leaves it alone.",
        when="For builds whose oneDNN uses OpenMP; DeepRec's page shows 4.",
    )
    kmp_blocktime: int | None = option(
        None,
        minimum=0,
        unit="ms",
        help="How long OpenMP's threads wait actively (KMP_BLOCKTIME); none leaves it alone.",
        when="0 where cores are shared; DeepRec's page shows 0.",
    )
    init_timeout_minutes: int | None = option(
        None,
        minimum=0,
        unit="min",
        help="Reserved by the library, which ignores it. What bounds loading is load_timeout_s "
        "of bridge.Isolation.",
        when="Never.",
    )
    warmup_file_name: Path | None = option(
        None,
        help="File with one serialized PredictRequest that the library runs 5 times before a "
        "model serves; none makes rows of ones, where no input is a string.",
        when="For models with string inputs, so that an updated model is warm when it serves.",
    )
    shard_embedding: bool = option(
        False,
        help="Load only one shard of the embeddings.",
        when="For tables that do not fit one machine; needs feature_store_type=local.",
    )
    embedding_names: tuple[str, ...] = option(
        (), help="Names of the sharded embeddings.", when="Needed with shard_embedding."
    )
    shard_instance_count: int | None = option(
        None, minimum=1, help="Number of shards.", when="Needed with shard_embedding."
    )
    id_type: str | None = option(
        None,
        choices=("int64", "string"),
        help="Type of the ids of sharded embeddings.",
        when="Needed with shard_embedding.",
    )
    ev_storage_type: str = option(
        "default",
        choices=tuple(STORAGE),
        help="Where embedding rows are kept: dram (1), or dram_ssdhash (12), hot rows in memory "
        "and the others on disk.",
        when="dram_ssdhash for tables larger than the memory.",
    )
    ev_storage_path: Path | None = option(
        None, help="Folder of the rows on disk.", when="Needed with ev_storage_type=dram_ssdhash."
    )
    ev_storage_size: tuple[str, ...] = option(
        (),
        unit="bytes",
        help="Size of each tier, at most 4; the library fills up with 1 GiB.",
        when="With ev_storage_type=dram_ssdhash.",
    )
    timeline_start_step: int | None = option(
        None, minimum=0, help="First call to trace.", when="All four of timeline_* to get traces."
    )
    timeline_interval_step: int | None = option(
        None, minimum=1, help="Calls between traces.", when="With the other timeline_*."
    )
    timeline_trace_count: int | None = option(
        None, minimum=1, help="Number of traces.", when="With the other timeline_*."
    )
    timeline_path: str = option(
        "",
        help="Where traces go: an absolute path or oss://.",
        when="With the other timeline_*.",
    )
    onednn: bool = option(
        True,
        help="Use oneDNN's kernels, in builds that have them (TF_DISABLE_MKL). DeepRec publishes "
        "1.5x to 1.9x for training of its model zoo on 8 cores.",
        when="false to find out whether they pay off.",
    )
    onednn_reco_only: bool = option(
        True,
        help="Use oneDNN only for operators where that pays off in recommendation models "
        "(TF_MKL_PRIMITIVE_ONLY_FOR_RECO).",
        when="false for models that are mostly matrix products.",
    )
    onednn_small_memory: bool = option(
        True,
        help="Keep fewer of oneDNN's primitives (TF_MKL_OPTIMIZE_PRIMITIVE_MEMUSE).",
        when="false for speed, with few input shapes.",
    )
    onednn_threads: int | None = option(
        None,
        minimum=1,
        help="Threads of oneDNN's kernels (TF_MKL_NUM_INTRAOP); none leaves it to the library.",
        when="Where oneDNN must use fewer threads than other operators.",
    )
    onednn_max_isa: str = option(
        "ALL",
        help="Newest instructions that oneDNN may use (ONEDNN_MAX_CPU_ISA), such as AVX512_CORE.",
        when="To compare machines, or where a clock falls with wide instructions.",
    )
    memory_planner: bool = option(
        True,
        help="Learn the sizes of allocations in the first calls, then serve them from bins "
        "(ENABLE_MEMORY_OPTIMIZATION).",
        when="false for calls whose numbers of rows never settle.",
    )
    planner_start_step: int | None = option(
        None,
        minimum=0,
        help="First call that the planner learns from (START_STATISTIC_STEP); none leaves it at "
        "100.",
        when="Sooner, to have it settled after fewer warm-up calls.",
    )
    planner_stable_steps: int | None = option(
        None,
        minimum=1,
        help="Calls without a change after which it has learnt (STABLE_STATISTIC_STEP); none "
        "leaves it at 10.",
        when="Higher for requests of many sizes.",
    )
    planner_max_steps: int | None = option(
        None,
        minimum=1,
        help="Calls after which it stops learning (MAX_STATISTIC_STEP); none leaves it at 100.",
        when="Higher for requests of many sizes.",
    )
    jemalloc: Path | None = option(
        None,
        help="libjemalloc.so to preload into the library's process (LD_PRELOAD); none means the "
        "allocator of the system.",
        when="For fewer page faults; DeepRec recommends it for the CPU.",
    )
    malloc_conf: str = option(
        "background_thread:true,metadata_thp:auto,dirty_decay_ms:20000,muzzy_decay_ms:20000",
        help="Settings of jemalloc (MALLOC_CONF); the default is what DeepRec publishes.",
        when="With jemalloc.",
    )

    def check(self) -> None:
        """Raises ``OptionError`` for what the library would abort on, or would ignore."""
        for rule, is_broken, name, what, fix in self._conflicts():
            if is_broken:
                raise OptionError(what, fix=fix, option=name, rule=rule)

    def _conflicts(self) -> tuple[tuple[str, bool, str, str, str], ...]:
        """Rule, whether it is broken, the option to blame, what is wrong, and what to do."""
        is_redis = self.feature_store_type in REDIS
        is_remote = self.model_store_type != "local"
        remote = (self.savedmodel_url, self.checkpoint_url)
        timeline = (
            self.timeline_start_step,
            self.timeline_interval_step,
            self.timeline_trace_count,
            self.timeline_path or None,
        )
        begin, end = self.start_node_stats_step or 100, self.stop_node_stats_step or 200
        return (
            (
                "redis-without-address",
                is_redis and not (self.redis_url and self.redis_password_variable),
                "redis_url",
                (
                    f"feature_store_type={self.feature_store_type} needs redis_url and "
                    "redis_password_variable."
                ),
                "Give both.",
            ),
            (
                "remote-without-address",
                is_remote and not all(self.model_store_type in url for url in remote),
                "savedmodel_url",
                (
                    f"model_store_type={self.model_store_type} needs savedmodel_url and "
                    f"checkpoint_url, both with {self.model_store_type} in them."
                ),
                f"Give for example savedmodel_url={self.model_store_type}://bucket/model.",
            ),
            (
                "oss-without-access",
                self.model_store_type == "oss"
                and not (self.oss_endpoint and self.oss_access_id and self.oss_access_key_variable),
                "oss_endpoint",
                (
                    "model_store_type=oss needs oss_endpoint, oss_access_id and "
                    "oss_access_key_variable."
                ),
                "Give all three.",
            ),
            (
                "two-checkpoint-folders",
                bool(self.checkpoint_url) and self.checkpoint_dir is not None,
                "checkpoint_url",
                "checkpoint_dir and checkpoint_url were both given.",
                "Leave one of the two out.",
            ),
            (
                "shards-without-local",
                self.shard_embedding and self.feature_store_type != "local",
                "shard_embedding",
                "shard_embedding=true needs feature_store_type=local.",
                "Give both, with a build that is known to take local.",
            ),
            (
                "shards-incomplete",
                self.shard_embedding
                and not (self.embedding_names and self.shard_instance_count and self.id_type),
                "shard_embedding",
                "shard_embedding=true needs embedding_names, shard_instance_count and id_type.",
                "Give all three.",
            ),
            (
                "tiers-without-folder",
                self.ev_storage_type == "dram_ssdhash" and self.ev_storage_path is None,
                "ev_storage_path",
                "ev_storage_type=dram_ssdhash needs ev_storage_path.",
                "Give a folder on a fast disk.",
            ),
            (
                "sizes-are-no-numbers",
                len(self.ev_storage_size) > 4
                or not all(size.isdecimal() for size in self.ev_storage_size),
                "ev_storage_size",
                "ev_storage_size wants at most 4 numbers of bytes.",
                "Write for example ev_storage_size=1073741824,8589934592.",
            ),
            (
                "timeline-incomplete",
                any(one is not None for one in timeline) and None in timeline,
                "timeline_path",
                (
                    "of timeline_start_step, timeline_interval_step, timeline_trace_count and "
                    "timeline_path some are missing; the library then traces nothing."
                ),
                "Give all four.",
            ),
            (
                "timeline-elsewhere",
                bool(self.timeline_path)
                and not self.timeline_path.startswith("/")
                and "oss://" not in self.timeline_path,
                "timeline_path",
                f"timeline_path is '{self.timeline_path}'; wanted an absolute path or oss://.",
                "Give the whole path.",
            ),
            (
                "statistics-never-end",
                end <= begin,
                "stop_node_stats_step",
                (
                    f"stop_node_stats_step={end} is not above start_node_stats_step={begin}, so "
                    "that nothing is timed."
                ),
                "Give a higher number.",
            ),
        )
