"""``torch.compile`` with an eye on how often it compiles."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from bridge.errors import BackendUnavailable, BridgeError, PredictError
from bridge.logs import logger
from bridge_torch.options import TorchOptions
from bridge_torch.program import quiet

__all__ = ["compiled", "mode_settings"]

_log = logger("torch")


def compiled(module: Any, options: TorchOptions) -> Callable[..., Any]:
    """The module as compiled code, which is made in the first call; for one caller at a time.

    Code holds for what the compiler has assumed, such as sizes. A call that does not fit
    has it compile anew, which stops that call for seconds. torch counts that for all of
    the process together, and goes back to eager silently after some; here each predictor
    counts for itself, warns, and refuses in the end.

    Raises:
        BackendUnavailable: torch cannot compile on this system.
    """
    import torch

    guard = _Guard(options)
    keywords: dict[str, Any] = {}
    known = inspect.signature(torch.compile).parameters
    if "isolate_recompiles" in known:  # otherwise code of a class is shared and counted together
        keywords = {"isolate_recompiles": True, "recompile_limit": options.recompiles + 2}
    try:
        with quiet(r"`torch\.jit\.\w+` is (deprecated|not supported)"):  # its own, on import
            run: Callable[..., Any] = torch.compile(
                module, dynamic=options.dynamic, backend=guard.compile, **keywords
            )
    except RuntimeError as error:
        raise BackendUnavailable(
            f"torch.compile does not work here: {error}.", fix="Use execution=eager."
        ) from error
    return guard.watched(run)


def mode_settings(mode: str, *, graphs: bool) -> dict[str, Any]:
    """What a mode means in the compiler's settings.

    Args:
        mode: In the words of ``torch.compile``.
        graphs: Whether calls may be replayed as CUDA graphs, where that is part of the mode.
    """
    import torch._inductor

    if mode == "default":
        return {}
    name = mode if graphs else f"{mode}-no-cudagraphs"
    # Without the tables that it prints of all it has measured.
    return {**torch._inductor.list_mode_options(name), "autotune_num_choices_displayed": 0}


class _Guard:
    """Counts the calls of one predictor in which something is compiled."""

    def __init__(self, options: TorchOptions) -> None:
        self._mode = options.mode
        self._allowed = options.recompiles
        self._calls = 0  # calls in which something was compiled
        self._is_compiling = False  # this call has compiled something
        self._shapes: list[tuple[int, ...]] = []

    def compile(self, graph: Any, examples: list[Any]) -> Any:
        """What torch calls for each graph of the module; several graphs make one call."""
        import torch._inductor

        if not self._is_compiling and self._calls > self._allowed:
            raise self._refusal()
        if not self._is_compiling and self._calls:
            _log.warning(
                "torch.compile compiles the model again (%d of %d) for inputs of %s",
                self._calls,
                self._allowed,
                self._shapes,
            )
        settings = mode_settings(self._mode, graphs=True)
        code = torch._inductor.compile(graph, examples, options=settings)
        if not self._is_compiling:
            self._is_compiling = True
            self._calls += 1
        return code

    def watched(self, run: Callable[..., Any]) -> Callable[..., Any]:
        from torch._dynamo.exc import TorchDynamoException

        def call(*args: Any, **keywords: Any) -> Any:
            self._is_compiling = False
            self._shapes = [
                tuple(item.shape) for item in (*args, *keywords.values()) if hasattr(item, "shape")
            ]
            try:
                return run(*args, **keywords)
            except TorchDynamoException as error:
                own = getattr(error, "inner_exception", None)
                if isinstance(own, BridgeError):
                    raise own from None
                first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                raise PredictError(
                    f"torch.compile could not compile the model: {first}",
                    fix="Use execution=eager; compiling needs a C++ compiler.",
                ) from error

        return call

    def _refusal(self) -> BridgeError:
        return PredictError(
            f"torch.compile would compile the model again, for inputs of {self._shapes}; "
            f"recompiles={self._allowed} is used up.",
            fix="Pass sizes that were passed before, set dynamic=true, or allow more recompiles.",
            rule="recompile-limit",
            shapes=[list(shape) for shape in self._shapes],
        )
