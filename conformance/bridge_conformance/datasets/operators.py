"""One exported program for each operator of torch, from torch's own database of operators.

The database (``torch.testing._internal.common_methods_invocations``) is what torch tests
itself with. For each operator the first sample whose results say something is taken: its tensors
become named inputs, everything else becomes part of the program. What came out when
torch ran the operator eagerly is what has to come out of the program.

Only operators that compute the same each time are taken. They are run with two seeds,
and once with fresh memory filled with NaN, so that reading it shows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge_conformance.datasets.cases import CaseSet, write_arrays, write_index

__all__ = ["OPERATORS", "main"]

OPERATORS = CaseSet("operators of torch", "operators", "model.pt2", ("torch", "expecttest"))

_FEWEST = 400
"""So many have to be exported, or building has failed."""

_TRIED = 30
"""So many samples of an operator are tried."""

Arrays = dict[str, npt.NDArray[Any]]


class _LeftOut(Exception):
    """An operator is not for this set; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports every operator that is for this set, and writes the index."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_conformance.datasets.operators",
        description="Export torch's operators, each with a sample and its result.",
    )
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    folder: Path = parser.parse_args(arguments).folder
    # Operators that torch deprecates, and exports that fail: what matters is in the index.
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.testing._internal.common_methods_invocations import op_db

    cases: list[str] = []
    left_out: dict[str, str] = {}
    for number, operator in enumerate(op_db, start=1):
        try:
            model, inputs, outputs = _case(operator)
        except _LeftOut as reason:
            left_out[operator.full_name] = str(reason)
        else:
            own = folder / operator.full_name
            own.mkdir(parents=True)
            (own / OPERATORS.model).write_bytes(model)
            write_arrays(own / "inputs.npz", inputs)
            write_arrays(own / "outputs.npz", outputs)
            cases.append(operator.full_name)
        if number % 100 == 0 or number == len(op_db):
            print(f"operators of torch: {number} of {len(op_db)}", file=sys.stderr)  # noqa: T201
    if len(cases) < _FEWEST:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise SystemExit(f"{len(cases)} operators were exported; wanted {_FEWEST}.\n{reasons}")
    write_index(folder, cases, left_out)
    return 0


def _case(operator: Any) -> tuple[bytes, Arrays, Arrays]:
    """A saved program, its inputs, and what it has to return."""
    import torch

    module, tensors, results = _chosen(operator)
    saved = io.BytesIO()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where torch prints graphs that fail
            exported = torch.export.export(module, (), dict(tensors))
            torch.export.save(exported, saved)
    except Exception as error:
        raise _LeftOut(f"torch.export does not export or save it: {_first(error)}") from error
    # Some entries of the database seed the generator themselves, so that only the exported
    # graph, in which that is lost, shows that they are random.
    _results(exported.module(), tensors, "does not run once exported")
    outputs = {f"output_{index}": _array(item) for index, item in enumerate(results)}
    return saved.getvalue(), {name: _array(item) for name, item in tensors.items()}, outputs


def _chosen(operator: Any) -> tuple[Any, dict[str, Any], list[Any]]:
    """A module, inputs and results: of the first sample whose results say something."""
    chosen = reason = None
    for sample in _samples(operator):
        try:
            module, tensors = _module(operator, sample)
            results = _results(module, tensors, "does not run on the CPU")
        except _LeftOut as error:
            reason = reason or error
            continue
        if chosen is None or _says_something(results):
            chosen = module, tensors, results
        if _says_something(results):
            break
    if chosen is None:
        raise reason or _LeftOut("it takes no tensor.")
    return chosen


def _samples(operator: Any) -> list[Any]:
    """Samples of float32, or of the first dtype there is; those with larger tensors first."""
    import torch

    if not operator.dtypes:
        raise _LeftOut("torch has it for no dtype on the CPU.")
    wanted = torch.float32
    dtype = wanted if wanted in operator.dtypes else min(operator.dtypes, key=str)
    _seed(0)
    # All of them: a generator left half-way leaves the gradient mode that it has changed.
    samples = list(operator.sample_inputs("cpu", dtype, requires_grad=False))
    sized = [(min(item.numel() for item in _tensors(one)), one) for one in samples if _tensors(one)]
    ranked = sorted(sized, key=lambda item: -min(item[0], 2))  # none of 0, better none of 1
    return [one for _, one in ranked[:_TRIED]]


def _says_something(results: list[Any]) -> bool:
    """Whether two values differ, so that a constant would not pass for the result."""
    return any(
        len({value for value in item.flatten().tolist() if value == value}) > 1  # NaN is no value
        for item in results
    )


def _module(operator: Any, sample: Any) -> tuple[Any, dict[str, Any]]:
    """A module that takes the sample's tensors by name, and these tensors."""
    import torch
    from torch.utils import _pytree as pytree

    whole = ((sample.input, *sample.args), sample.kwargs)
    placed, spec = pytree.tree_flatten_with_path(whole)
    names = [_name(path) if isinstance(leaf, torch.Tensor) else None for path, leaf in placed]
    tensors = {
        name: _plain(leaf, "takes")
        for name, (_, leaf) in zip(names, placed, strict=True)
        if name is not None
    }
    if len(tensors) != sum(name is not None for name in names):
        raise _LeftOut("two of its tensors would have one name.")

    class Operator(torch.nn.Module):
        def forward(self, **given: Any) -> Any:
            leaves = [
                leaf if name is None else given[name]
                for name, (_, leaf) in zip(names, placed, strict=True)
            ]
            args, keywords = pytree.tree_unflatten(leaves, spec)
            result = operator.op(*args, **keywords)
            if isinstance(result, torch.Tensor):
                return result
            # torch.export cannot save the named tuples of torch.return_types.
            return tuple(
                item for item in pytree.tree_leaves(result) if isinstance(item, torch.Tensor)
            )

    return Operator(), tensors


def _tensors(sample: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _name(path: Sequence[Any]) -> str:
    """A tensor's name from its place: ``input``, ``argument_1``, ``weight``, ``input_0``."""
    side, first, *rest = [str(getattr(key, "idx", getattr(key, "key", ""))) for key in path]
    if side == "0":
        first = "input" if first == "0" else f"argument_{first}"
    return "_".join([first, *rest])


def _plain(tensor: Any, verb: str) -> Any:
    """The tensor's values in memory of their own, in C order."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise _LeftOut(f"it {verb} a tensor that is not dense.")
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.clone(memory_format=torch.contiguous_format)


def _results(call: Callable[..., Any], tensors: dict[str, Any], what: str) -> list[Any]:
    """What comes out, if that is the same each time."""
    import torch

    runs: list[list[Any]] = []
    for seed, is_filled in ((1, False), (2, False), (3, True)):
        _seed(seed)
        torch.use_deterministic_algorithms(is_filled, warn_only=True)  # fills fresh memory
        try:
            with torch.no_grad():
                result = call(**{name: item.clone() for name, item in tensors.items()})
        except Exception as error:
            raise _LeftOut(f"it {what}: {_first(error)}") from error
        finally:
            torch.use_deterministic_algorithms(False)  # noqa: FBT003 - positional in torch
        found = [result] if isinstance(result, torch.Tensor) else list(result)
        runs.append([_plain(item, "returns") for item in found])
    if not runs[0]:
        raise _LeftOut("it returns no tensor.")
    if not any(item.numel() for item in runs[0]):
        raise _LeftOut("it returns no value.")
    # Filling fresh memory goes with other algorithms for some operators, which round otherwise.
    for other, limit in ((runs[1], 0.0), (runs[2], None)):
        try:
            torch.testing.assert_close(other, runs[0], rtol=limit, atol=limit, equal_nan=True)
        except AssertionError as error:
            raise _LeftOut("its result is random, or memory that nobody has set.") from error
    return runs[0]


def _array(tensor: Any) -> npt.NDArray[Any]:
    """The array of a dense tensor."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = DType(name).numpy
    except ValueError:
        raise _LeftOut(f"numpy has nothing for its dtype {name}.") from None
    if dtype.isbuiltin == 1:
        array: npt.NDArray[Any] = tensor.numpy()
        return array
    carrier = getattr(torch, f"uint{8 * dtype.itemsize}")
    reduced: npt.NDArray[Any] = tensor.view(carrier).numpy().view(dtype)
    return reduced


def _seed(number: int) -> None:
    import torch

    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 - the database draws from the global generator
    random.seed(number)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".strip(": ")


if __name__ == "__main__":
    raise SystemExit(main())
