"""Memory: what calls leave behind, and what outputs hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import errors
from bridge.check import Arrays
from bridge_conformance.claims import full, requires
from bridge_conformance.subject import Subject
from bridge_conformance.usage import Growth, Held, growths, held

_Load = Callable[..., bridge.Predictor]
_Record = Callable[[str, object], None]

_CALLS = 1000
_MANY_CALLS = 10_000
_ROWS = 64
_FAILED_CALLS = 2000
_WINDOWS = 3
# A leak is what every call leaves behind; without one, next to nothing grows. The resident
# memory is coarser, because it is taken in blocks, but sees more than `malloc`.
_SLACK = {"small_objects": 250, "allocated_bytes": 32 << 10, "resident_bytes": 1 << 20}
_SLACK_A_CALL = {"small_objects": 0, "allocated_bytes": 64, "resident_bytes": 256}

_BIG_ROWS = 128  # 32 MiB of network `large`, more than allocators keep for small ones
_BIG_CALLS = 10


def _assert_no_leak(call: Callable[[], object], times: int, record: _Record) -> None:
    """Nothing grows; what grows once, as when a thread of a pool begins, is no leak."""
    __tracebackhide__ = True
    too_much = ""
    for found in itertools.islice(growths(call, times), _WINDOWS):
        too_much = _too_much(found)
        if not too_much:
            for name in _SLACK:
                record(f"{name}_a_call", round(getattr(found, name) / found.calls, 2))
            return
    pytest.fail(f"grew again and again: {too_much}")


def _too_much(found: Growth) -> str:
    for name, slack in _SLACK.items():
        grown: int = getattr(found, name)
        allowed = slack + found.calls * _SLACK_A_CALL[name]
        if grown > allowed:
            return (
                f"{name} by {grown} over {found.calls} calls, which is "
                f"{grown / found.calls:.1f} a call; allowed are {allowed}"
            )
    return ""


def _refused(predictor: bridge.Predictor, inputs: Mapping[str, Any]) -> Callable[[], object]:
    def call() -> None:
        with pytest.raises(errors.InputError):
            predictor.predict(inputs)

    return call


def _size_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


class TestMemory:
    """Calls leave no memory behind, and outputs hold no more than themselves."""

    def test_calls(self, subject: Subject, load: _Load, record_property: _Record) -> None:
        """1,000 calls leave nothing behind, neither in Python nor in native code."""
        predictor = load("fixed")
        inputs = subject.network("fixed").inputs_for()
        _assert_no_leak(lambda: predictor.predict(inputs), _CALLS, record_property)

    @full
    def test_many_calls(self, subject: Subject, load: _Load, record_property: _Record) -> None:
        """10,000 calls leave nothing behind, neither in Python nor in native code."""
        predictor = load("fixed")
        inputs = subject.network("fixed").inputs_for()
        _assert_no_leak(lambda: predictor.predict(inputs), _MANY_CALLS, record_property)

    def test_bound_calls(self, subject: Subject, load: _Load, record_property: _Record) -> None:
        """1,000 bound calls leave nothing behind."""
        predictor = load("fixed")
        inputs = subject.network("fixed").inputs_for()
        bound = predictor.bind({name: array.shape for name, array in inputs.items()})
        _assert_no_leak(bound.predict, _CALLS, record_property)

    def test_binding(self, subject: Subject, load: _Load, record_property: _Record) -> None:
        """Binding, calling and forgetting 1,000 times leaves nothing behind."""
        predictor = load("fixed")
        inputs = subject.network("fixed").inputs_for()
        shapes = {name: array.shape for name, array in inputs.items()}
        _assert_no_leak(lambda: predictor.bind(shapes).predict(), _CALLS, record_property)

    @pytest.mark.parametrize("wrong", ["missing", "dtype", "shape"])
    def test_refused_calls(
        self, subject: Subject, load: _Load, record_property: _Record, wrong: str
    ) -> None:
        """1,000 calls that end in an InputError leave nothing behind."""
        inputs = subject.network("fixed").inputs_for()
        misfits: dict[str, Mapping[str, Any]] = {
            "missing": {},
            "dtype": {name: array.astype(np.complex128) for name, array in inputs.items()},
            "shape": {name: array[np.newaxis] for name, array in inputs.items()},
        }
        _assert_no_leak(_refused(load("fixed"), misfits[wrong]), _CALLS, record_property)

    @requires("dynamic_dims")
    def test_failed_calls(self, subject: Subject, load: _Load, record_property: _Record) -> None:
        """2,000 calls that fail inside the runtime leave nothing behind."""
        predictor = load("reshape")
        inputs = subject.network("reshape").inputs_for(5)

        def call() -> None:
            with pytest.raises(errors.BridgeError):
                predictor.predict(inputs)

        _assert_no_leak(call, _FAILED_CALLS, record_property)

    @requires("dynamic_dims")
    def test_shapes_that_vary(
        self, subject: Subject, load: _Load, record_property: _Record
    ) -> None:
        """Calls of 64 shapes in turn need no more memory from round to round."""
        predictor = load("affine")
        every = [subject.network("affine").inputs_for(rows) for rows in range(1, _ROWS + 1)]
        turns = itertools.cycle(every)
        _assert_no_leak(lambda: predictor.predict(next(turns)), 20 * _ROWS, record_property)

    @requires("dynamic_dims")
    def test_big_outputs_are_freed(
        self, subject: Subject, load: _Load, record_property: _Record
    ) -> None:
        """Big outputs that the caller drops are freed: the next ones need no more memory."""
        predictor = load("large")
        inputs = subject.network("large").inputs_for(_BIG_ROWS)
        for _ in range(3):
            predictor.predict(inputs)
        before = held().resident_bytes
        for _ in range(_BIG_CALLS):
            predictor.predict(inputs)
        grown = held().resident_bytes - before
        size = _size_bytes(predictor.predict(inputs))
        record_property("outputs_held", round(grown / size, 2))
        assert grown < size

    @requires("dynamic_dims")
    def test_kept_outputs_hold_only_themselves(
        self, subject: Subject, load: _Load, record_property: _Record
    ) -> None:
        """A small output that the caller keeps does not keep the big input it came from."""
        predictor = load("wide")
        inputs = subject.network("wide").inputs_for(_BIG_ROWS)
        size = _size_bytes(inputs)
        kept = [predictor.predict(inputs) for _ in range(3)]
        before = held().resident_bytes
        for _ in range(_BIG_CALLS):
            fresh = {name: array.copy() for name, array in inputs.items()}
            kept.append(predictor.predict(fresh))
        del fresh
        grown = held().resident_bytes - before
        record_property("inputs_held", round(grown / size, 2))
        assert grown < 2 * size
        assert all(np.array_equal(one["total"], kept[0]["total"]) for one in kept)

    @requires("dynamic_dims")
    def test_kept_outputs_are_freed_later(
        self, subject: Subject, load: _Load, record_property: _Record
    ) -> None:
        """Big outputs that the caller kept for long are freed when it drops them all."""
        predictor = load("large")
        inputs = subject.network("large").inputs_for(_BIG_ROWS)
        size = _size_bytes(predictor.predict(inputs))
        kept = [predictor.predict(inputs) for _ in range(_BIG_CALLS)]
        before = held()
        kept.clear()
        record_property("outputs_freed", round(_freed_bytes(before) / size, 2))
        kept.extend(predictor.predict(inputs) for _ in range(_BIG_CALLS))
        assert held().resident_bytes - before.resident_bytes < 2 * size
        kept.clear()
        predictor.close()
        assert _freed_bytes(before) > (_BIG_CALLS - 2) * size


def _freed_bytes(before: Held) -> int:
    """What has been given back since, to the system or at least to the allocator."""
    now = held()
    return max(
        before.resident_bytes - now.resident_bytes, before.allocated_bytes - now.allocated_bytes
    )
