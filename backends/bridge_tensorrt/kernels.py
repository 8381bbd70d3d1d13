"""Execution contexts, and the kernels that tensorrt_rtx compiles while it runs.

``tensorrt`` has its kernels in the engine. ``tensorrt_rtx`` compiles them for the GPU and
for the shapes that it meets, and can keep them from process to process in a runtime cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.logs import logger
from bridge_tensorrt.blob import Blob
from bridge_tensorrt.engine import Engine

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

__all__ = ["Kernels"]

_log = logger("tensorrt")


class Kernels:
    """Makes the execution contexts of one engine.

    Args:
        engine: The engine.
        specialization: The option of that name, for tensorrt_rtx.
        kept: Where compiled kernels are kept; ``None`` for nowhere.
    """

    def __init__(self, engine: Engine, specialization: str | None, kept: Blob | None) -> None:
        self._engine = engine
        self._specialization = specialization
        self._kept = kept
        self._cache: rtx.IRuntimeCache | None = None

    def context(self, *, recorded: bool = False) -> rtx.IExecutionContext | None:
        """A new context; ``None`` where TensorRT makes none.

        Args:
            recorded: Its work will be recorded in a CUDA graph, so that each kernel has to
                be the right one from the start.
        """
        trt = self._engine.trt
        native = self._engine.native
        strategies = trt.ExecutionContextAllocationStrategy
        # A lane keeps its profile: memory for the largest of all profiles would be wasted.
        has_several = len(self._engine.profiles) > 1
        strategy = strategies.ON_PROFILE_CHANGE if has_several else strategies.STATIC
        if trt.__name__ == "tensorrt":
            built_in: rtx.IExecutionContext | None = native.create_execution_context(strategy)
            return built_in
        return self._compiling(strategy, recorded=recorded)

    def save(self) -> None:
        """Keeps the kernels that were compiled so far for the next process."""
        if self._cache is not None and self._kept is not None:
            made: rtx.IHostMemory | None = self._cache.serialize()
            if made is not None:
                self._kept.write(bytes(made))

    def _compiling(
        self, strategy: rtx.ExecutionContextAllocationStrategy, *, recorded: bool
    ) -> rtx.IExecutionContext | None:
        trt = self._engine.trt
        native = self._engine.native
        config: rtx.IRuntimeConfig = native.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        name = self._specialization or ("eager" if recorded else None)
        if name is not None:
            known = trt.DynamicShapesKernelSpecializationStrategy
            member = {"lazy": known.LAZY, "eager": known.EAGER, "never": known.NONE}[name]
            config.dynamic_shapes_kernel_specialization_strategy = member
        if self._kept is not None:
            if self._cache is None:
                self._cache = self._filled(config, self._kept.read())
            config.set_runtime_cache(self._cache)
        context: rtx.IExecutionContext | None = native.create_execution_context(config)
        return context

    def _filled(self, config: rtx.IRuntimeConfig, data: bytes) -> rtx.IRuntimeCache:
        made: rtx.IRuntimeCache = config.create_runtime_cache()
        if data and not made.deserialize(data):
            _log.warning(
                "the kernels kept for this GPU are of another driver or version, and are "
                "compiled again"
            )
        return made
