"""The runtime itself: its import, and the libraries that its GPU builds need."""

from __future__ import annotations

import functools
from typing import Any

from bridge.logs import logger, native_output

__all__ = ["load_cuda_libraries", "onnxruntime"]


@functools.cache
def onnxruntime() -> Any:
    """The module ``onnxruntime``; what its import prints goes to the log.

    Raises:
        ImportError: It is not installed, or its libraries cannot be loaded.
    """
    with native_output(logger("onnxruntime")):
        import onnxruntime
    return onnxruntime


@functools.cache
def load_cuda_libraries() -> None:
    """Loads CUDA and cuDNN from their packages, which the loader would not find.

    ``preload_dlls`` exists since onnxruntime 1.21 and looks in the site-packages of
    NVIDIA's wheels; before that, the libraries have to be on the loader's path. What
    fails is printed, not raised: the session will say that its provider is missing.
    """
    preload = getattr(onnxruntime(), "preload_dlls", None)
    if preload is not None:
        preload()
