"""What a backend can do on a device: the facts that choose tests and arms."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bridge.dtypes import DType

__all__ = ["Capabilities", "ThreadSafety"]


class ThreadSafety(enum.Enum):
    """How a predictor's native code may be called from threads.

    The bridge makes every predictor callable from many threads; this says at what
    price. ``NONE``: only the thread that loaded it, so the bridge runs all calls on
    one thread of its own. ``EXCLUSIVE``: any thread, one call at a time. ``SHARED``:
    calls run side by side. The ladder follows PEP 249's ``threadsafety``.
    """

    NONE = "none"
    EXCLUSIVE = "exclusive"
    SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Facts about one backend on one device; every default is "no".

    Attributes:
        formats: Names of the formats it loads.
        dtypes: Element types it takes as inputs and gives as outputs.
        dynamic_dims: Dims that change from call to call; a model that has some is refused
            with ``UnsupportedModel`` otherwise, where its bytes tell.
        zero_rows: Tensors with a dim of size 0; refused with ``ShapeMismatch`` otherwise.
        bind: ``bind()`` gives the backend's own kind of bound call: the runtime reads the
            bound inputs and writes the bound outputs in place. Once settled (shapes as in
            the call before), the bridge makes no array of the size of an input or output.
        dlpack: An input with ``__dlpack__`` in host memory goes to the runtime's input
            memory directly. Once settled, the bridge makes no array of the input's size on
            the way.
        deterministic: Equal inputs give equal bytes on one machine.
        predicts: It can run models here; ``False`` for a builder without its device.
        thread_safety: What the bridge must do for calls from several threads.
        warm_calls: Calls that a predictor needs before its times mean anything, because the
            runtime learns from them; whoever measures makes them first.
    """

    formats: frozenset[str] = frozenset()
    dtypes: frozenset[DType] = frozenset()
    dynamic_dims: bool = False
    zero_rows: bool = False
    bind: bool = False
    dlpack: bool = False
    deterministic: bool = False
    predicts: bool = True
    thread_safety: ThreadSafety = ThreadSafety.EXCLUSIVE
    warm_calls: int = 0
