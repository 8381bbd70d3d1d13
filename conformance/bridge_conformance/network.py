"""One small network: its signature, its operators, and what numpy says it computes.

A writer turns a ``Network`` into a model of one format; the suite compares what a backend
makes of that model with ``Network.oracle``. The operators are few and are called as in
ONNX, with ``axis`` and ``shape`` as attributes.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge import DType, Signature, TensorSpec

__all__ = ["Network", "Node"]

Array = npt.NDArray[Any]

_OTHER_DIMS = 2  # with 3 rows, 6 elements: what the network ``reshape`` takes
_COMPLEX = (DType.COMPLEX64, DType.COMPLEX128)

# Empty, spaces, other scripts, a character outside of the basic plane, longer than any
# string that is kept without an allocation.
_WORDS = ("plain", "", "Zürich", " two  spaces ", "東京", "🚀", "line\nbreak", "long " * 60)


def _softmax(x: Array, axis: int) -> Array:
    raised = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis, keepdims=True))


_OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "And": np.logical_and,
    "Exp": np.exp,
    "Gather": lambda table, ids: table[ids],
    "Identity": lambda x: x,
    "MatMul": np.matmul,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "ReduceMean": lambda x, axis: x.mean(axis),
    "ReduceSum": lambda x, axis: x.sum(axis, dtype=x.dtype),
    "Reshape": lambda x, shape: x.reshape(shape),
    "Softmax": _softmax,
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Where": np.where,
}


@dataclass(frozen=True)
class Node:
    """One operator of a network.

    Attributes:
        op: Name of the operator, as in ONNX.
        inputs: Names of inputs, constants or outputs of nodes before this one.
        output: Name of what it computes.
        attributes: ``axis`` of a reduction or softmax, ``shape`` of a reshape.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A network that every format may try to say, with an oracle of its own.

    Attributes:
        name: Its name in the catalogue.
        inputs: Inputs in order, with named dims where they vary.
        outputs: Outputs in order; each is the output of a node.
        nodes: Operators, each after those that it reads.
        constants: Values that the model holds, by name.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes of inputs and outputs."""
        return Signature(self.inputs, self.outputs)

    @property
    def dtypes(self) -> frozenset[DType]:
        """Element types of all inputs and outputs."""
        return frozenset(spec.dtype for spec in (*self.inputs, *self.outputs) if spec.dtype)

    @property
    def digest(self) -> str:
        """SHA-256 over all that a writer can see of it."""
        whole = hashlib.sha256(repr((self.name, self.inputs, self.outputs)).encode())
        for node in self.nodes:
            whole.update(repr((node.op, node.inputs, node.output, dict(node.attributes))).encode())
        for name, value in self.constants.items():
            whole.update(repr((name, value.dtype.name, value.shape)).encode() + value.tobytes())
        return whole.hexdigest()

    def oracle(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the network computes, by numpy alone.

        Real floats are computed in float64 and rounded once, to the dtype of the output;
        complex numbers likewise in complex128; integers in their own dtype. Strings and
        bools are exact.

        Returns:
            New arrays, one for each output, in order.
        """
        known = {name: _widened(value) for name, value in self.constants.items()}
        known.update({spec.name: _widened(np.asarray(inputs[spec.name])) for spec in self.inputs})
        for node in self.nodes:
            values = [known[name] for name in node.inputs]
            known[node.output] = np.asarray(_OPERATORS[node.op](*values, **node.attributes))
        return {
            spec.name: np.array(known[spec.name], spec.dtype.numpy if spec.dtype else None)
            for spec in self.outputs
        }

    def inputs_for(self, rows: int = 3, seed: int = 0, **dims: int) -> dict[str, Array]:
        """Legal inputs: the same for the same arguments, other ones for every seed.

        Floats are small multiples of a power of two, so that sums and products of a few
        are exact in every dtype and ``exp`` overflows in none. ``a*b + a - b`` stays
        within 32 bits and within the dtype for integers; those that are only passed on
        reach from end to end of both. What a ``Gather`` takes stays within its table. Two
        or more bools hold both values; strings may be empty, long or not ASCII.

        Args:
            rows: Size of the dynamic dim 0.
            seed: Any whole number from 0 up.
            **dims: Sizes of other named dims; those not given are 2.

        Raises:
            ValueError: The network has no dim of that name.
        """
        signature = self.signature
        named = {item for spec in self.inputs for item in spec.shape or () if isinstance(item, str)}
        if set(dims) - named:
            raise ValueError(
                f"network '{self.name}' has no dim '{min(set(dims) - named)}'; it has: "
                f"{', '.join(sorted(named)) or 'none'}."
            )
        rowed = {self._shape(name)[axis] for name, axis in signature.batch_axes().items()}
        sizes = dict.fromkeys(named - rowed, _OTHER_DIMS)
        shapes = signature.concrete_shapes(rows, dims={**sizes, **dims})
        return {
            spec.name: self._values(spec, shapes[spec.name], [seed, zlib.crc32(spec.name.encode())])
            for spec in self.inputs
        }

    def _shape(self, name: str) -> tuple[int | str | None, ...]:
        return self.signature.input(name).shape or ()

    def _values(self, spec: TensorSpec, shape: tuple[int, ...], seed: list[int]) -> Array:
        random = np.random.default_rng(seed)
        dtype = spec.dtype
        assert dtype is not None
        size = math.prod(shape)
        values: Array
        if dtype is DType.STRING:
            first = random.integers(len(_WORDS))
            chosen = [_WORDS[(first + index) % len(_WORDS)] for index in range(size)]
            values = np.array(chosen, object)
        elif dtype is DType.BOOL:
            values = random.integers(0, 2, size) > 0
            values[1:2] = ~values[:1][: max(size - 1, 0)]
        elif dtype.is_integer:
            values = random.integers(*self._bounds(spec, dtype), size)
        elif dtype in _COMPLEX:
            values = _fractions(random, size, 64) + 1j * _fractions(random, size, 64)
        elif dtype is DType.FLOAT8_E8M0FNU:  # powers of two: no sign, no zero
            values = 2.0 ** random.integers(-8, 9, size)
        else:
            values = _fractions(random, size, 4 if dtype.itemsize_bytes <= 2 else 64)
        return values.astype(dtype.numpy).reshape(shape)

    def _bounds(self, spec: TensorSpec, dtype: DType) -> tuple[int, int]:
        """The lowest value, and the one above the highest."""
        for node in self.nodes:
            if node.op == "Gather" and node.inputs[1] == spec.name:
                return 0, len(self.constants[node.inputs[0]])
        # OpenVINO computes wide integers in 32 bits.
        lowest, highest = max(dtype.bounds[0], -(2**31)), min(dtype.bounds[1], 2**31 - 1)
        if all(node.op == "Identity" for node in self.nodes):
            return lowest, highest + 1
        most = math.isqrt(highest) - 1  # so that most * most + most + most fits
        return (1 if lowest == 0 else -most), most + 1


def _widened(value: Array) -> Array:
    dtype = DType.of(value.dtype)
    if dtype.is_float:
        return value.astype(np.float64)
    return value.astype(np.complex128) if dtype in _COMPLEX else value


def _fractions(random: np.random.Generator, size: int, parts: int) -> Array:
    """Multiples of ``1 / parts`` from -2 to 2, or from -4 to 4 where there are many."""
    most = 2 * parts if parts < 8 else 4 * parts
    return random.integers(-most, most, size, endpoint=parts < 8) / parts
