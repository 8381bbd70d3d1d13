"""Arrays as they come, and who owns what afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bridge_conformance.claims import refuses, requires
from bridge_conformance.comparison import assert_equal, assert_outputs
from bridge_conformance.subject import Subject
from bridge_conformance.tracing import traced_peak_bytes

Array = npt.NDArray[Any]


def _strided(array: Array) -> Array:
    roomy = np.zeros((array.shape[0] * 2, array.shape[1] * 3), array.dtype)
    roomy[::2, ::3] = array
    return roomy[::2, ::3]


def _reversed(array: Array) -> Array:
    return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]


def _read_only(array: Array) -> Array:
    kept = array.copy()
    kept.flags.writeable = False
    return kept


def _misaligned(array: Array) -> Array:
    block = np.zeros(array.nbytes + 1, np.uint8)
    moved = block[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def _one_row_repeated(array: Array) -> Array:
    return np.broadcast_to(array[:1], array.shape)


_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "non-contiguous": _strided,
    "fortran": np.asfortranarray,
    "negative-stride": _reversed,
    "read-only": _read_only,
    "misaligned": _misaligned,
    "zero-stride": _one_row_repeated,
    "transposed": lambda array: array.T.copy().T,
}


class Exporter:
    """An array behind the DLPack protocol and nothing else."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.exports = 0

    def __dlpack__(self, **arguments: Any) -> Any:
        """The capsule; counted."""
        self.exports += 1
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Host memory."""
        return self.array.__dlpack_device__()


class TestArrays:
    """Inputs of any layout are read right and left alone; outputs belong to the caller."""

    @pytest.mark.parametrize("layout", list(_LAYOUTS))
    def test_layout(self, subject: Subject, load: Any, layout: str) -> None:
        """Strides, order, alignment and read-only memory change nothing."""
        network = subject.network("affine")
        plain = network.inputs_for(rows=6)
        odd = {name: _LAYOUTS[layout](array) for name, array in plain.items()}
        wanted = network.oracle(odd)
        predictor = load("affine")
        for _ in range(2):
            assert_outputs(predictor.predict(odd), wanted)

    def test_memory_mapped(self, subject: Subject, load: Any, tmp_path: Path) -> None:
        """A memory-mapped file is an input like any other, also a read-only one."""
        network = subject.network("affine")
        inputs = network.inputs_for(rows=6)
        np.save(tmp_path / "x.npy", inputs["x"])
        for mode in ("r", "c", "r+"):
            mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
            assert isinstance(mapped, np.memmap)
            assert_outputs(load("affine").predict({"x": mapped}), network.oracle(inputs))

    def test_dlpack(self, subject: Subject, load: Any) -> None:
        """An object that only speaks DLPack is an input like any other."""
        network = subject.network("affine")
        inputs = network.inputs_for(rows=6)
        exporter = Exporter(inputs["x"])
        assert_outputs(load("affine").predict({"x": exporter}), network.oracle(inputs))
        assert exporter.exports > 0

    @requires("dlpack")
    def test_dlpack_is_not_copied(self, subject: Subject, load: Any) -> None:
        """On its way to the runtime, an input with DLPack is not copied into another array."""
        exporter = Exporter(subject.network("wide").inputs_for(rows=16)["x"])
        predictor = load("wide")
        peak = traced_peak_bytes(lambda: predictor.predict({"x": exporter}))
        assert peak < exporter.array.nbytes // 2, f"{peak} bytes were allocated for arrays"

    @refuses("dlpack")
    def test_dlpack_is_copied(self, subject: Subject, load: Any) -> None:
        """Where DLPack without a copy is not claimed, a copy is indeed made."""
        exporter = Exporter(subject.network("wide").inputs_for(rows=16)["x"])
        predictor = load("wide")
        peak = traced_peak_bytes(lambda: predictor.predict({"x": exporter}))
        assert peak >= exporter.array.nbytes // 2, "no copy was made: dlpack can be claimed"

    @pytest.mark.parametrize("network", ["affine", "aliasing", "large", "mixed", "two"])
    def test_inputs_are_untouched(self, subject: Subject, load: Any, network: str) -> None:
        """A call changes neither the arrays nor the dict that it is given."""
        one = subject.network(network)
        predictor = load(network)
        inputs = one.inputs_for(rows=4)
        kept = {name: array.copy() for name, array in inputs.items()}
        arrays = dict(inputs)
        for _ in range(2):
            predictor.predict(inputs)
        assert list(inputs) == list(kept)
        for name, array in kept.items():
            assert inputs[name] is arrays[name]
            assert_equal(inputs[name], array, name)

    @pytest.mark.parametrize("network", ["affine", "aliasing", "large", "two"])
    def test_outputs_stay(self, subject: Subject, load: Any, network: str) -> None:
        """An output is never written to by a later call, nor when the predictor is closed."""
        one = subject.network(network)
        predictor = load(network)
        calls = [one.inputs_for(rows=4, seed=seed) for seed in range(6)]
        held = [predictor.predict(inputs) for inputs in calls]
        copies = [{name: array.copy() for name, array in results.items()} for results in held]
        for seed in range(6, 12):
            predictor.predict(one.inputs_for(rows=4, seed=seed))
        predictor.close()
        for results, copy, inputs in zip(held, copies, calls, strict=True):
            for name, array in copy.items():
                assert_equal(results[name], array, name)
            assert_outputs(results, one.oracle(inputs))

    @pytest.mark.parametrize("network", ["affine", "aliasing", "two"])
    def test_outputs_are_the_callers(self, subject: Subject, load: Any, network: str) -> None:
        """Outputs can be written to, and share memory with nothing else."""
        one = subject.network(network)
        predictor = load(network)
        inputs = one.inputs_for(rows=4)
        wanted = one.oracle(inputs)
        results = predictor.predict(inputs)
        later = predictor.predict(inputs)
        arrays = [*results.values(), *later.values(), *inputs.values()]
        for index, array in enumerate(arrays[: len(results)]):
            assert array.flags.writeable
            for other in arrays[index + 1 :]:
                assert not np.shares_memory(array, other)
            array[...] = 77
        assert_outputs(predictor.predict(inputs), wanted)
        assert_outputs(later, wanted)

    def test_input_may_be_reused(self, subject: Subject, load: Any) -> None:
        """Once a call is over, its inputs may be overwritten without harm to its outputs."""
        network = subject.network("aliasing")
        predictor = load("aliasing")
        inputs = network.inputs_for(rows=4)
        wanted = network.oracle(inputs)
        results = predictor.predict(inputs)
        inputs["x"][...] = -1
        assert_outputs(results, wanted)
        assert_outputs(predictor.predict(inputs), network.oracle(inputs))

    def test_subclass(self, subject: Subject, load: Any) -> None:
        """A subclass of ndarray goes in; plain arrays come out."""
        network = subject.network("affine")
        inputs = network.inputs_for()

        class Tagged(np.ndarray):
            pass

        tagged = {name: array.view(Tagged) for name, array in inputs.items()}
        assert_outputs(load("affine").predict(tagged), network.oracle(inputs))
