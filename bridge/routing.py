"""One predictor over several: each call goes to the one that is fastest at its number of rows."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bridge.binding import Bound
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.check import Arrays
from bridge.errors import InputError
from bridge.predictor import Predictor, PredictorInfo
from bridge.signature import Signature

__all__ = ["Branch", "RoutedPredictor", "routed_info", "split_predict"]

_Call = Callable[[Mapping[str, Any], Sequence[str] | None], Arrays]


@dataclass(frozen=True, slots=True)
class Branch:
    """What answers calls up to a number of rows.

    Attributes:
        to_rows: Largest number of rows; ``None`` in the last branch.
        predictor: What answers; several branches may share one.
        split_rows: Calls are cut into pieces of at most this many rows; ``None`` for whole.
    """

    to_rows: int | None
    predictor: Predictor
    split_rows: int | None = None


class RoutedPredictor(Predictor):
    """A predictor that hands each call to the branch of its rows.

    The rows of a call are those of one input, the first that has rows. Everything else
    is checked once, by the branch's own predictor. An input that is no array goes to the
    first branch, which converts it or says what is wrong. The branches' predictors belong
    to this one and are closed with it.

    Args:
        signature: What users see; every branch's predictor has the same names.
        info: What to tell of it; usually ``routed_info``.
        branches: In order of rows, the last without an end.
        batch_axes: Axis that counts rows, by input name; may be empty for one branch.
        output_axes: The same for outputs; needed where a branch splits.
        warm_rows: Numbers of rows that ``warmup`` runs if it is told none.
    """

    def __init__(
        self,
        signature: Signature,
        info: PredictorInfo,
        branches: Sequence[Branch],
        *,
        batch_axes: Mapping[str, int],
        output_axes: Mapping[str, int],
        warm_rows: Sequence[int] = (1,),
    ) -> None:
        super().__init__(signature, info)
        self._branches = tuple(branches)
        self._axes = dict(batch_axes)
        self._output_axes = dict(output_axes)
        self._warm_rows = tuple(warm_rows)
        self._counted = _counted(signature, batch_axes)
        self._axis = batch_axes.get(self._counted, 0)
        self._limits = [one.to_rows for one in branches if one.to_rows is not None]
        self._answers: list[_Call] = [
            one.predictor.predict if one.split_rows is None else partial(self._split, one)
            for one in branches
        ]
        # Every branch takes care of its own threads and refuses by itself what it cannot take.
        claims = Capabilities(zero_rows=True, thread_safety=ThreadSafety.SHARED)
        self._attach(info, claims, (), None)

    def predict(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Arrays:
        # As short as can be: everything here is added to every call.
        try:
            answer = self._answers[
                bisect_left(self._limits, inputs[self._counted].shape[self._axis])
            ]
        except (LookupError, TypeError, AttributeError):
            answer = self._answers[0]
        return answer(inputs, outputs)

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> Bound:
        """As ``Predictor.bind``, on the branch of these shapes; a bound call is never split."""
        return self._branch(shapes).predictor.bind(shapes)

    def warmup(
        self, inputs: Mapping[str, Any] | None = None, batches: Iterable[int] | None = None
    ) -> None:
        """As ``Predictor.warmup``; without arguments at the sizes that were measured."""
        if inputs is not None:
            super().warmup(inputs)
            return
        for rows in self._warm_rows if batches is None else batches:
            try:
                made = self.signature.zeros(rows, batch_dim=self._batch_dim())
            except ValueError:
                made = None
            # Without sizes or dtypes in the signature this says so.
            super().warmup(made, batches=(rows,))

    def _split(
        self, branch: Branch, inputs: Mapping[str, Any], outputs: Sequence[str] | None
    ) -> Arrays:
        """Several calls for one, which a ``close`` meanwhile waits for."""
        calls, call = self._calls, object()
        try:
            calls[call] = None
            if self._refusal is not None:
                raise self._refusal()
            assert branch.split_rows is not None
            return split_predict(
                branch.predictor,
                self._check(inputs),
                outputs,
                branch.split_rows,
                self._axes,
                self._output_axes,
            )
        finally:
            calls.pop(call, None)
            if self._refusal is not None:
                self._release()

    def _branch(self, shapes: Mapping[str, Sequence[int]]) -> Branch:
        try:
            index = bisect_left(self._limits, shapes[self._counted][self._axis])
        except (LookupError, TypeError):
            index = 0
        return self._branches[index]

    def _batch_dim(self) -> str | None:
        """Name of the dim that counts rows, where it is not simply the first of each input."""
        if not self._axes or self._axes == self.signature.batch_axes():
            return None
        shape = self.signature.input(self._counted).shape
        label = shape[self._axis] if shape is not None else None
        return label if isinstance(label, str) else None

    def _predict(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
        return self.predict(inputs, outputs)

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:  # closes all, whichever fails
            for predictor in {id(one.predictor): one.predictor for one in self._branches}.values():
                stack.callback(predictor.close)


def routed_info(
    arms: Mapping[str, Predictor], routes: Sequence[Mapping[str, Any]]
) -> PredictorInfo:
    """The info of a routed predictor: what its arms share, and each arm under ``details``.

    Args:
        arms: The predictors by the ids of their arms.
        routes: ``to_rows``, ``arm`` and ``split_rows`` of each branch, as JSON types.
    """
    infos = {name: predictor.info for name, predictor in arms.items()}
    first = next(iter(infos.values()))
    threads = [info.threads for info in infos.values() if info.threads is not None]
    versions: dict[str, str] = {}
    for info in infos.values():
        versions.update(info.versions)
    resident = [info.resident_bytes for info in infos.values() if info.resident_bytes is not None]

    def shared(values: Iterable[str]) -> str:
        found = sorted(set(values))
        return found[0] if len(found) == 1 else "mixed"

    return PredictorInfo(
        device=first.device,
        provider=shared(info.provider for info in infos.values()),
        precision=shared(info.precision for info in infos.values()),
        threads=max(threads, default=None),
        stateful=any(info.stateful for info in infos.values()),
        versions=versions,
        details={
            "routes": [dict(route) for route in routes],
            "arms": {name: info.to_dict() for name, info in infos.items()},
        },
        backend="routed",
        format=shared(info.format for info in infos.values()),
        model=first.model,
        resident_bytes=sum(resident) if resident else None,
    )


def split_predict(
    predictor: Predictor,
    inputs: Mapping[str, Any],
    outputs: Sequence[str] | None,
    rows: int,
    batch_axes: Mapping[str, int],
    output_axes: Mapping[str, int],
) -> Arrays:
    """Answers one call by several smaller ones.

    Args:
        predictor: What answers.
        inputs: As for ``Predictor.predict``.
        outputs: As there.
        rows: Most rows of one piece, at least 1.
        batch_axes: Axis that counts rows, by input name; other inputs go whole into each.
        output_axes: The same for outputs, of all that are wanted.

    Returns:
        The pieces' outputs, joined along their axes.

    Raises:
        InputError: An output that is wanted has no rows, or as ``Predictor.predict``.
    """
    total = max(
        (
            shape[axis]
            for name, axis in batch_axes.items()
            if len(shape := getattr(inputs.get(name), "shape", ())) > axis
        ),
        default=0,
    )
    if total <= rows:
        return predictor.predict(inputs, outputs)
    known = predictor.signature.output_names
    if isinstance(outputs, str):
        outputs = (outputs,)
    elif outputs is not None:
        try:
            outputs = list(outputs)  # an iterator would be empty for the second piece
        except TypeError:
            return predictor.predict(inputs, outputs)  # which refuses them
    wanted = known if outputs is None else outputs
    whole = [name for name in wanted if name in known and name not in output_axes]
    if whole:
        raise InputError(
            f"output '{whole[0]}' has no rows, so a call cannot be cut into pieces for it.",
            fix="Ask for other outputs, or for fewer rows at once.",
            output=whole[0],
        )
    parts = [
        predictor.predict(piece, outputs) for piece in _pieces(inputs, rows, total, batch_axes)
    ]
    return {
        name: np.concatenate([part[name] for part in parts], axis=output_axes[name])
        for name in parts[0]
    }


def _pieces(
    inputs: Mapping[str, Any], rows: int, total: int, axes: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    slices = {name: (slice(None),) * axis for name, axis in axes.items()}
    for start in range(0, total, rows):
        here = slice(start, start + rows)
        yield {
            name: value[(*slices[name], here)] if name in slices else value
            for name, value in inputs.items()
        }


def _counted(signature: Signature, axes: Mapping[str, int]) -> str:
    """The input whose rows are those of the call: one that every call has, if there is one."""
    named = [spec for spec in signature.inputs if spec.name in axes]
    chosen = next((spec for spec in named if not spec.has_default), None)
    return chosen.name if chosen is not None else named[0].name if named else ""
