"""An AOTInductor package, opened for several calls side by side.

torch's own binding holds Python's interpreter lock until a call is done, so that one runs
at a time, whatever the number of runners, and all other Python code waits (pytorch issue
197516). The compiled library has functions of its own for C, which ctypes calls without
that lock, for some 0.3 µs a tensor; its runners share the weights.

Source: torch/csrc/inductor/aoti_runtime/interface.h and model_container.h of torch 2.13.
"""

from __future__ import annotations

import ctypes
import json
import queue
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_torch.program import quiet

__all__ = ["Package", "open_package"]

_FOLDER = "data/aotinductor/model/"


@dataclass(frozen=True)
class Package:
    """A package that is loaded.

    Attributes:
        run: The call, from a list of tensors to a list of tensors.
        metadata: What torch says of how it was built.
        call_spec: The structures of arguments and results, as ``pytree`` writes them.
        runners: Calls that run side by side.
    """

    run: Callable[[list[Any]], list[Any]]
    metadata: dict[str, str]
    call_spec: Sequence[str]
    runners: int


def open_package(path: Path, runners: int, device_index: int = -1) -> Package:
    """Loads a package.

    Args:
        path: The file, which is trusted: it is native code.
        runners: Calls that may run side by side. On the CPU, packages with operators that
            only torch can call for them run one at a time for all that.
        device_index: The CUDA device; -1 for the CPU.
    """
    with quiet(r"`torch\.jit\.\w+` is (deprecated|not supported)"):
        from torch._inductor.package.package import load_package

    if device_index < 0 and _is_self_contained(path):
        return _opened(path, runners)
    opened = load_package(str(path), num_runners=runners, device_index=device_index)
    loader: Any = opened.loader
    side_by_side = runners if device_index >= 0 else 1
    return Package(loader.run, loader.get_metadata(), loader.get_call_spec(), side_by_side)


def _is_self_contained(path: Path) -> bool:
    """Whether all is in one library: no weights beside it, and no calls back into torch's Python.

    Older layouts of the archive do not tell, and count as not self-contained.
    """
    with zipfile.ZipFile(path) as archive:
        names = _members(archive)
        if len([name for name in names if name.endswith(".so")]) != 1:
            return False
        for name in names:
            if name.endswith(".blob"):
                return False
            if name.endswith(".json") and not name.endswith("_metadata.json"):
                content = json.loads(archive.read(names[name]))
                if name.endswith("custom_objs_config.json") and content:
                    return False
                if isinstance(content, dict) and content.get("nodes"):
                    return False
    return True


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Members of the model's folder, from their base name to the whole one."""
    found = {}
    for name in archive.namelist():
        _, folder, base = name.partition(_FOLDER)
        if folder and base:
            found[base] = name
    return found


def _opened(path: Path, runners: int) -> Package:
    with tempfile.TemporaryDirectory(prefix="bridge-") as folder, zipfile.ZipFile(path) as archive:
        metadata: dict[str, str] = {}
        library = ""
        for base, name in _members(archive).items():
            if base.endswith("_metadata.json"):
                metadata = json.loads(archive.read(name))
            elif base.endswith(".so"):
                library = archive.extract(name, folder)
        # The file may go once it is mapped, as torch's own loader has it.
        container = _Container(library, runners)
    return Package(container.run, metadata, container.call_spec(), runners)


class _Container:
    """The runners of one compiled library, over one set of weights.

    Calls wait here for a free runner, not inside the library, which tells those that wait
    of runners that have finished but not of runners that have failed.
    """

    def __init__(self, path: str, runners: int) -> None:
        import torch

        bindings: Any = torch._C._aoti
        self._to_handles = bindings.unsafe_alloc_void_ptrs_from_tensors
        self._to_tensors = bindings.alloc_tensors_by_stealing_from_void_ptrs
        # Of our own, because argument types belong to a library object that others may share.
        python = ctypes.PyDLL(None)
        # Those two functions pass handles in capsules without a name.
        self._address: Any = python.PyCapsule_GetPointer
        self._address.argtypes = [ctypes.py_object, ctypes.c_char_p]
        self._address.restype = ctypes.c_void_p
        self._capsule: Any = python.PyCapsule_New
        self._capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self._capsule.restype = ctypes.py_object
        self._library = library = ctypes.CDLL(path)
        handle = ctypes.c_void_p()
        create = library.AOTInductorModelContainerCreateWithDevice
        self._demand(create(ctypes.byref(handle), ctypes.c_size_t(runners), b"cpu", None))
        self._handle = handle
        # Left to the system when the process ends, and never done in a forked child.
        weakref.finalize(self, _release, library, handle).atexit = False
        count = ctypes.c_size_t()
        self._demand(library.AOTInductorModelContainerGetNumOutputs(handle, ctypes.byref(count)))
        self._outputs_type = ctypes.c_void_p * count.value
        count = ctypes.c_size_t()
        self._demand(library.AOTInductorModelContainerGetNumInputs(handle, ctypes.byref(count)))
        self._count = count.value
        self._inputs_type = ctypes.c_void_p * count.value
        # Filling an array of ctypes takes it three times as long.
        self._pack = struct.Struct(f"{count.value}P").pack_into
        self._run: Any = library.AOTInductorModelContainerRun
        self._run.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(runners):
            self._free.put(None)

    def call_spec(self) -> tuple[str, ...]:
        """The structures of arguments and results."""
        texts = (ctypes.c_char_p(), ctypes.c_char_p())
        read = self._library.AOTInductorModelContainerGetCallSpec
        self._demand(read(self._handle, *(ctypes.byref(text) for text in texts)))
        return tuple((text.value or b"").decode() for text in texts)

    def run(self, tensors: list[Any]) -> list[Any]:
        """One call, which lets go of the interpreter lock.

        Raises:
            RuntimeError: The code failed.
        """
        address, capsule = self._address, self._capsule
        inputs, outputs = self._inputs_type(), self._outputs_type()
        pack = self._pack
        if len(tensors) != self._count:  # the code would read null pointers
            raise RuntimeError(f"the code takes {self._count} tensors; got {len(tensors)}")
        self._free.get()
        try:
            # Each handle is a reference to a tensor that the library takes over.
            handles = [address(handle, None) for handle in self._to_handles(tensors)]
            pack(inputs, 0, *handles)
            failed = self._run(self._handle, inputs, len(inputs), outputs, len(outputs), None, None)
        finally:
            self._free.put(None)
        if failed:
            self._demand(failed)
        results: list[Any] = self._to_tensors([capsule(item, None, None) for item in outputs])
        return results

    def _demand(self, failed: int) -> None:
        """Raises for what a function of the library returned, with its own words if it has any."""
        if not failed:
            return
        text = ctypes.c_char_p()
        read = getattr(self._library, "AOTInductorGetLastError", None)
        if read is not None:
            read(ctypes.byref(text))
        said = (text.value or b"").decode(errors="replace")
        # It names the function of torch that failed; torch, which it is linked to, knows why.
        ask = getattr(self._library, "torch_exception_get_what_without_backtrace", None)
        if "API call failed" in said and ask is not None:
            ask.restype = ctypes.c_char_p
            said = f"{(ask() or b'').decode(errors='replace').strip()}\n{said}"
        raise RuntimeError(said.strip() or "the compiled code failed, and did not say why")


def _release(library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
    """Frees the runners and their weights, then takes the code out of the process."""
    library.AOTInductorModelContainerDelete(handle)
    close = ctypes.CDLL(None).dlclose
    close.argtypes = [ctypes.c_void_p]
    close(library._handle)
