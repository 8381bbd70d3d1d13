"""The predictor of the ``torch`` backend."""

from __future__ import annotations

import dataclasses
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import bridge
from bridge.binding import Bound
from bridge.check import Arrays
from bridge.device import CPU
from bridge.dlpack import DeviceArray
from bridge.errors import PredictError
from bridge.formats.torch.structure import named_leaves
from bridge_torch.program import Program
from bridge_torch.tensors import (
    SMALL_ELEMENTS,
    on_device,
    on_host,
    small_arrays,
    to_arrays,
    to_number,
    to_tensor,
)

__all__ = ["TorchPredictor"]

_ON = True
"""What an inference-mode guard is entered with; positional in C++."""

_Answers = tuple[Callable[[Mapping[str, Any]], Arrays], Callable[[Sequence[Any]], Arrays]]


class TorchPredictor(bridge.Predictor):
    """Runs a ``Program`` on numpy arrays.

    Inputs are seen by torch without a copy, except those that the model writes to and
    those of a device other than the CPU. Calls run in inference mode. A model that keeps
    state is called by one thread at a time.

    A live module's ``forward`` says neither what it returns nor what it writes to: the
    first call, which works on copies of the inputs, finds out, and completes
    ``signature.outputs`` and ``info.stateful``. A module that writes to an input, or to
    its buffers, only in some later call is not noticed.
    """

    # torch has no read-only tensors; the bridge copies arrays that must not be written to.
    layout = bridge.Layout.WRITABLE
    device_inputs = True

    def __init__(self, program: Program, info: bridge.PredictorInfo) -> None:
        import torch

        super().__init__(program.signature, info)
        self._program: Program | None = program
        self._program_call = program.call
        self._from_numpy = torch.from_numpy
        self._tensor_type = torch.Tensor
        # What torch.inference_mode enters, without the Python object around it (1 µs a call).
        self._inference = getattr(torch._C, "_InferenceMode", torch.inference_mode)
        self._input_names = program.signature.input_names
        self._native_names = {
            spec.name: spec.native_name or spec.name for spec in program.signature.inputs
        }
        self._leaves = program.leaves
        self._positional = program.positional
        self._only_output: str | None = None
        self._exclusive = threading.Lock() if program.exclusive else None
        self._first = threading.Lock()
        self._is_learning = program.is_learning
        self._written = program.written
        self._find_readers()
        self._find_only_output()
        self._choose()

    def _find_readers(self) -> None:
        """How each input becomes what the model takes; ``None`` if one way does for all."""
        program = self._program
        assert program is not None
        where = None if self.info.device == CPU else str(self.info.device)
        self._readers: dict[str, Callable[[Any], Any]] | None = None
        if where is None and not program.numbers and not self._written:
            return
        self._readers = {
            name: _reader(
                name, name in program.numbers, name in self._written, where, pinned=program.pinned
            )
            for name in self._input_names
        }

    def _find_only_output(self) -> None:
        names = self.signature.output_names
        self._only_output = names[0] if len(names) == 1 else None
        self._known_outputs = frozenset(names)

    def _choose(self) -> None:
        """Decides how calls are answered from now on; again after a live module's first."""
        self._on_tensors: Callable[[Sequence[Any]], Arrays] | None = None
        self._answer: Callable[[Mapping[str, Any]], Arrays] = self._first_answer
        if self._is_learning:
            return
        self._answer = self._run
        if self.info.device == CPU and self._input_names and self._positional is None:
            self._answer, self._on_tensors = self._direct()
            if self._readers is not None:  # bound tensors would be written to, or are numbers
                self._on_tensors = None
        if self._exclusive is not None:
            self._answer = _locked(self._answer, self._exclusive)
            self._on_tensors = self._on_tensors and _locked(self._on_tensors, self._exclusive)

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return self._answer(inputs)

    def _bind(self, inputs: Arrays) -> Bound:
        return _TorchBound(self, inputs)

    def _first_answer(self, inputs: Mapping[str, Any]) -> Arrays:
        with self._first:
            if self._is_learning:
                return self._learn(inputs)
        return self._answer(inputs)

    def _direct(self) -> _Answers:
        """Functions for calls with all inputs, from arrays and from tensors.

        They have all they need at hand: attributes looked up and functions called in each
        call would cost a small model as much as its arithmetic.
        """
        names = self._input_names
        pick = operator.itemgetter(*names)
        is_single = len(names) == 1
        readers = self._readers
        numbers = self._program.numbers if self._program is not None else frozenset()
        apply: Any = operator.call
        make, guard, call = self._from_numpy, self._inference, self._program_call
        makers = None
        if readers is not None:
            # C functions where they do, because Python code is slow to run anew after a model
            # has had the caches: it takes five times as long as in a loop (7 of 340 µs, seen).
            found = [np.ndarray.item if name in numbers else readers[name] for name in names]
            makers = [make if reader is to_tensor else reader for reader in found]
        tensor_type, ordinary, named = self._tensor_type, self._run, self._outputs
        only, known, leaves = self._only_output, self._known_outputs, self._leaves
        is_flat = leaves is not None and None not in leaves
        count = len(leaves) if leaves is not None else 0

        def finish(result: Any) -> Arrays:
            kind = type(result)
            pairs: Any = ()
            if kind is dict:
                if result.keys() == known:
                    pairs = result.items()
            elif kind is tensor_type:
                if only is not None and result.numel() <= SMALL_ELEMENTS:
                    try:
                        return {only: result.numpy().copy()}
                    except (RuntimeError, TypeError):  # as in small_arrays
                        pass
            elif is_flat and kind in (tuple, list) and len(result) == count:
                pairs = zip(leaves, result, strict=True)  # type: ignore[arg-type]
            arrays = small_arrays(pairs, tensor_type)
            if arrays is not None:
                return arrays
            box = [result]
            del result, pairs
            return named(box)

        def on_tensors(tensors: Sequence[Any]) -> Arrays:
            with guard(_ON):
                return finish(call(*tensors))

        def answer(inputs: Mapping[str, Any]) -> Arrays:
            with guard(_ON):
                try:
                    picked = pick(inputs)
                    items = (picked,) if is_single else picked
                    if makers is None:
                        tensors = [*map(make, items)]
                    else:
                        tensors = [*map(apply, makers, items)]
                # Left out, of a dtype that numpy lacks, or several elements where a number goes.
                except (KeyError, TypeError, ValueError):
                    return ordinary(inputs)
                return finish(call(*tensors))

        return answer, on_tensors

    def _run(self, inputs: Mapping[str, Any]) -> Arrays:
        with self._inference(_ON):
            tensors, keywords = self._read(inputs)
            box = [self._program_call(*tensors, **keywords)]
            return self._outputs(box)

    def _read(self, inputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The inputs as the model takes them: by position as far as all are there."""
        tensors: list[Any] = []
        keywords: dict[str, Any] = {}
        is_complete = True
        for index, name in enumerate(self._input_names):
            if index == self._positional:
                is_complete = False
            if name not in inputs:
                is_complete = False
                continue
            make = to_tensor if self._readers is None else self._readers[name]
            if is_complete:
                tensors.append(make(inputs[name]))
            else:
                keywords[self._native_names[name]] = make(inputs[name])
        return tensors, keywords

    def _outputs(self, box: list[Any]) -> dict[str, Any]:
        """The arrays by name, for what the model returned.

        Args:
            box: Holds the result, alone: memory that nobody else refers to is handed on
                without a copy, so no reference may be left behind.
        """
        result = box.pop()
        if type(result) is dict and result.keys() == self._known_outputs:
            # A flat dict of the signature's outputs, by far the commonest, needs no walk.
            names, values = list(result), list(result.values())
            if all(type(value) is self._tensor_type for value in values):
                del result
                return dict(zip(names, to_arrays(values), strict=True))
            del names, values
        if self._leaves is not None and isinstance(result, (tuple, list)):
            pairs = [
                (name, value)
                for name, value in zip(self._leaves, result, strict=True)
                if name is not None
            ]
        else:
            pairs = self._named(result)
        names = [name for name, _ in pairs]
        values = [value for _, value in pairs]
        del result, pairs
        return dict(zip(names, to_arrays(values), strict=True))

    def _named(self, result: Any) -> list[tuple[str, Any]]:
        found = [(name, value) for name, value in named_leaves(result) if value is not None]
        known = self.signature.output_names
        if not known or {name for name, _ in found} >= set(known):
            return found
        if len(found) != len(known):
            raise PredictError(
                f"the model returned {len(found)} outputs; the signature has {len(known)}.",
                fix="Declare the outputs that this model returns with signature= when loading.",
                got=[name for name, _ in found],
                wanted=list(known),
            )
        return [(name, value) for name, (_, value) in zip(known, found, strict=True)]

    def _learn(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The first call of a live module: on copies, and with a look at what changes."""
        program = self._program
        assert program is not None
        before = _contents(program.buffers())
        inputs = {name: on_host(item) for name, item in inputs.items()}
        copies = {name: item.copy() for name, item in inputs.items()}
        tensors, keywords = self._read(copies)
        with self._inference(_ON):
            result = (program.first or self._program_call)(*tensors, **keywords)
            given = [name for name in self._input_names if name in inputs]
            tried = [*tensors, *keywords.values()]
            self._written = program.written | {
                name
                for name, tensor in zip(given, tried, strict=True)
                if isinstance(tensor, self._tensor_type)
                # Batch normalization writes to its statistics without counting it.
                and (tensor._version or copies[name].tobytes() != inputs[name].tobytes())
            }
            box = [result]
            del result
            results = self._outputs(box)
        if _is_changed(before, program.buffers()):
            self.info = dataclasses.replace(self.info, stateful=True)
            self._exclusive = threading.Lock()
        self._find_readers()
        if not self.signature.outputs:
            specs = tuple(bridge.TensorSpec(name, None, None) for name in results)
            self.signature = bridge.Signature(self.signature.inputs, specs)
            self._output_names = self.signature.output_names
        self._find_only_output()
        self._is_learning = False
        self._choose()
        if program.first is not None and not self.info.stateful:
            return self._answer(inputs)  # compiles, which is expected of a first call
        return results

    def _close(self) -> None:
        self._program = None
        self._program_call = self._answer = _gone
        self._on_tensors = None


def _gone(*_: Any) -> Any:
    raise PredictError("the predictor is closed.")


def _locked(call: Callable[[Any], Arrays], lock: threading.Lock) -> Callable[[Any], Arrays]:
    def locked(given: Any) -> Arrays:
        with lock:
            return call(given)

    return locked


class _TorchBound(Bound):
    """A bound call whose input tensors, which share the buffers' memory, are made once."""

    _predictor: TorchPredictor
    _tensors: tuple[Any, ...] | None = None

    def _run(self) -> None:
        predictor = self._predictor
        call = predictor._on_tensors
        if call is None or len(self.inputs) != len(predictor._input_names):
            super()._run()
            return
        if self._tensors is None:
            self._tensors = tuple(to_tensor(self.inputs[name]) for name in predictor._input_names)
        held = self.outputs
        for name, result in call(self._tensors).items():
            kept = held.get(name)
            if kept is not None and kept.shape == result.shape and kept.dtype == result.dtype:
                np.copyto(kept, result)
            else:
                held[name] = result


class _Content(NamedTuple):
    """What changes when a module writes to a buffer.

    That is torch's count of writes; and, because batch normalization does not count, the
    values of vectors, which running statistics are.

    Attributes:
        identity: Tells a tensor that was put in the place of another.
        writes: Torch's count of writes; inference tensors have none.
        values: Bytes of a vector; ``None`` for other shapes, and where they cannot be had.
    """

    identity: int
    writes: int
    values: Any


def _contents(tensors: list[Any]) -> list[_Content]:
    """What these buffers hold now, in copies that later writes leave alone."""
    found = [_content(tensor) for tensor in tensors]
    return [
        item if item.values is None else item._replace(values=item.values.clone()) for item in found
    ]


def _is_changed(before: list[_Content], tensors: list[Any]) -> bool:
    """Whether these buffers are others than before, or hold anything else."""
    import torch

    if len(before) != len(tensors):
        return True
    for old, tensor in zip(before, tensors, strict=True):
        new = _content(tensor)
        if new[:2] != old[:2] or (new.values is None) != (old.values is None):
            return True
        if old.values is not None and not torch.equal(old.values, new.values):
            return True
    return False


def _content(tensor: Any) -> _Content:
    """The content of one buffer; ``values`` may be the buffer's own memory."""
    writes = 0 if tensor.is_inference() else tensor._version
    return _Content(id(tensor), writes, _bytes(tensor) if tensor.dim() == 1 else None)


def _bytes(tensor: Any) -> Any:
    """A vector's bytes, as a tensor: unlike its values, they compare equal where NaN is.

    Returns:
        ``None`` for a tensor without memory of its own to look at, such as a sparse one,
        and for a quantized one, of which torch cannot give the bytes (it crashes).
    """
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        return plain.contiguous().view(torch.uint8)
    except RuntimeError:  # a subclass that is made of other tensors, or has no data
        return None


def _reader(
    name: str, is_number: bool, is_written: bool, device: str | None, *, pinned: bool
) -> Callable[[Any], Any]:
    if is_number and device is not None:
        return lambda array: to_number(on_host(array), name)
    if is_number:
        return lambda array: to_number(array, name)
    if device is not None:

        def moved(array: Any) -> Any:
            if type(array) is DeviceArray:
                return on_device(array, copy=is_written)
            tensor = to_tensor(array)
            if pinned:  # so that copying to the device need not wait
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)  # always a copy

        return moved
    if is_written:
        return lambda array: to_tensor(array.copy())
    return to_tensor
