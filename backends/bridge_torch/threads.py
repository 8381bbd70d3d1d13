"""The number of threads of one call, without touching the process's.

``torch.set_num_threads`` changes a process-wide default that other threads pick up. On
Linux torch runs its parallel loops with OpenMP, whose number of threads belongs to the
calling thread, and its matrix products with MKL, which has a number per thread too; both
libraries' own functions are exported by ``libtorch_cpu``. Measured with torch 2.13 on two
cores: with both set to 1 no other thread computes, in eager operators, matrix products and
convolutions alike; OpenMP's number alone is not enough once ``torch.set_num_threads`` was
called, because that fixes MKL's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.cpus import default_threads, thread_budget
from bridge.errors import OptionError

__all__ = ["call_threads", "import_torch", "limited"]


def import_torch() -> Any:
    """The module; where the process has a thread budget, OpenMP's idle threads are to sleep.

    They wait actively for a few milliseconds otherwise, at the cost of whoever else could
    run. OpenMP reads that setting once, when torch is imported, from the environment, which
    is as it was afterwards. A torch imported before, or what the user has set, stays.
    """
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    is_told = any(name in os.environ for name in names)
    if "torch" in sys.modules or thread_budget() is None or is_told:
        import torch

        return torch
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        import torch
    finally:
        del os.environ["OMP_WAIT_POLICY"]
    return torch


def call_threads(threads: int | None) -> int:
    """Threads of one call: those asked for, else torch's own, within what is there.

    Raises:
        OptionError: ``BRIDGE_THREADS`` is not a whole number of at least 1.
    """
    if threads is not None:
        return threads
    import torch

    return min(torch.get_num_threads(), default_threads())


def limited(call: Callable[..., Any], threads: int) -> Callable[..., Any]:
    """``call`` with at most so many threads, whichever thread calls it.

    Raises:
        OptionError: This build of torch does not use OpenMP.
    """
    import torch

    set_loops, set_products = _setters()
    current = torch.get_num_threads

    def run(*args: Any, **kwargs: Any) -> Any:
        before = current()  # also makes torch initialise this thread, which would undo ours
        if before == threads:  # and MKL's number with it, which torch keeps the same
            return call(*args, **kwargs)
        set_loops(threads)
        products_before = set_products(threads)
        try:
            return call(*args, **kwargs)
        finally:
            set_products(products_before)
            set_loops(before)

    return run


@functools.cache
def _setters() -> tuple[Callable[[int], Any], Callable[[int], int]]:
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Held under the interpreter lock: each takes some 100 ns, less than letting go of it.
        functions = ctypes.PyDLL(str(library))
        set_loops = functions.omp_set_num_threads
    except (OSError, AttributeError) as error:
        raise OptionError(
            "option 'threads' needs a torch that is built with OpenMP.",
            fix="Leave it out, and set OMP_NUM_THREADS for the process.",
            option="threads",
        ) from error
    set_loops.argtypes = [ctypes.c_int]
    set_loops.restype = None
    set_products = getattr(functions, "MKL_Set_Num_Threads_Local", None)
    if set_products is None:  # another library for products, which follows OpenMP
        return set_loops, lambda _: 0
    set_products.argtypes = [ctypes.c_int]
    set_products.restype = ctypes.c_int
    return set_loops, set_products
