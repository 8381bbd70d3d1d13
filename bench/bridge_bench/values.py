"""What the values of one input are like: kinds, their text form, and how they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dtypes import DType
from bridge.errors import InputError, nearest

__all__ = ["KINDS", "Values"]

_REQUIRED = None
KINDS: Mapping[str, Mapping[str, float | None]] = {
    "normal": {"mean": 0.0, "std": 1.0},
    "uniform": {"low": _REQUIRED, "high": _REQUIRED},
    "zipf": {"vocab": _REQUIRED, "exponent": 1.0},
    "ids": {"vocab": _REQUIRED},
    "constant": {"value": _REQUIRED},
    "choice": {},
    "bernoulli": {"p": 0.5},
}
"""Parameters of each kind and their defaults; ``None`` where there is no default."""

_BROADCAST = "broadcast"
_EXAMPLES = {
    "normal": "normal:mean=0,std=1",
    "uniform": "uniform:low=0,high=1",
    "zipf": "zipf:vocab=200000",
    "ids": "ids:vocab=200000",
    "constant": "constant:value=16000",
    "choice": "choice:a|b|c",
    "bernoulli": "bernoulli:p=0.5",
}


@dataclass(frozen=True, slots=True)
class Values:
    """Values of one input, as a text such as ``zipf:vocab=1000,broadcast`` says.

    ``normal`` and ``bernoulli`` are what their names say. ``uniform`` numbers lie in
    ``[low, high)``, whole ones in ``[low, high]``. ``ids`` are uniform in ``[0, vocab)``;
    ``zipf`` ids follow Zipf's law with that exponent, small ids being the frequent ones.
    ``choice`` takes one of the texts, read as numbers where the input holds numbers.

    Attributes:
        kind: One of ``KINDS``; ``None`` leaves the kind as it is otherwise.
        parameters: Every parameter of the kind with its value, in the order of ``KINDS``.
        choices: The texts of ``choice``; none holds a comma or ``|``.
        broadcast: One row, repeated along the batch axis.

    Raises:
        InputError: The kind, a parameter or its value is none.
    """

    kind: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)
    choices: tuple[str, ...] = ()
    broadcast: bool = False

    def __post_init__(self) -> None:
        kind = self.kind
        if kind is None:
            if self.parameters or self.choices or not self.broadcast:
                raise _bad(str(self), "values that name no kind can only be broadcast.")
            return
        if kind not in KINDS:
            raise InputError(
                f"there is no kind of values '{kind}'.",
                fix=nearest(kind, [*KINDS, _BROADCAST]),
                kind=kind,
            )
        for name in self.parameters:
            if name not in KINDS[kind]:
                raise InputError(
                    f"{kind} values have no parameter '{name}'.",
                    fix=nearest(name, KINDS[kind])
                    if KINDS[kind]
                    else f"Write it like {_EXAMPLES[kind]}.",
                    kind=kind,
                    parameter=name,
                )
        full: dict[str, float] = {}
        for name, default in KINDS[kind].items():
            value = self.parameters.get(name, default)
            if value is None:
                raise _bad(kind, f"{kind} values need the parameter '{name}'.")
            full[name] = _sound(kind, name, value)
        if kind == "uniform" and full["low"] > full["high"]:
            raise _bad(kind, f"low={full['low']:g} is above high={full['high']:g}.")
        if (kind == "choice") != bool(self.choices):
            raise _bad(kind, "choice values, and no others, list what to choose from.")
        odd = [text for text in self.choices if "," in text or "|" in text]
        if odd:
            raise _bad(kind, f"the choice {odd[0]!r} holds a comma or '|', which divide choices.")
        object.__setattr__(self, "parameters", full)

    def __str__(self) -> str:
        shown = "|".join(self.choices)
        if self.kind is not None:
            shown += ",".join(
                f"{name}={_number(value)}"
                for name, value in self.parameters.items()
                if value != KINDS[self.kind][name]
            )
            shown = f"{self.kind}:{shown}" if shown or self.choices else self.kind
        if not self.broadcast:
            return shown
        return f"{shown},{_BROADCAST}" if self.kind is not None else _BROADCAST

    @classmethod
    def parse(cls, text: str) -> Values:
        """Reads ``KIND[:NAME=VALUE,...][,broadcast]`` or ``broadcast``.

        Raises:
            InputError: The text is not of that form.
        """
        kind, _, rest = text.strip().partition(":")
        kind, *before = (piece.strip() for piece in kind.split(","))
        pieces = rest.split(",") if rest else []
        choices: tuple[str, ...] = ()
        if kind == "choice" and pieces:
            choices = tuple(pieces.pop(0).split("|"))
        if before and rest:
            raise _bad(kind, f"{text!r} has a comma before the colon.")
        parameters: dict[str, float] = {}
        broadcast = kind == _BROADCAST
        for piece in (*before, *(one.strip() for one in pieces)):
            name, sign, value = piece.partition("=")
            if piece == _BROADCAST and not broadcast:
                broadcast = True
            elif not sign or name in parameters:
                raise _bad(kind, f"{piece!r} in {text!r} is no NAME=VALUE, or the second of it.")
            else:
                parameters[name.strip()] = _parsed(kind, name, value)
        return cls(None if kind == _BROADCAST else kind, parameters, choices, broadcast)

    def over(self, other: Values | None) -> Values:
        """These values where they say something, else the other's; broadcast if one is."""
        if other is None:
            return self
        source = other if self.kind is None else self
        return Values(
            source.kind, source.parameters, source.choices, self.broadcast or other.broadcast
        )

    def make(
        self, name: str, dtype: DType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> npt.NDArray[Any]:
        """An array of such values; ``broadcast`` is the caller's business.

        Args:
            name: The input's name, for errors.
            dtype: Element type wanted.
            shape: Shape wanted.
            generator: Where randomness comes from.

        Raises:
            InputError: Values of this kind cannot be of that dtype.
        """
        if self.kind == "choice":
            return self._chosen(name, dtype, shape, generator)
        given = self.parameters
        is_whole = dtype.is_integer
        fits = True
        if self.kind in ("zipf", "ids"):
            fits = dtype is not DType.BOOL and not _is_complex(dtype)
            last = given["vocab"] - 1
            if is_whole and last > dtype.bounds[1]:
                raise self._unfit(name, dtype, f"its ids go up to {int(last)}")
            numbers = _ids(int(given["vocab"]), given.get("exponent", 0.0), shape, generator)
            if dtype is DType.STRING:
                return _strings(numbers)
        elif self.kind == "uniform":
            fits = dtype not in (DType.BOOL, DType.STRING)
            numbers = self._uniform(name, dtype, shape, generator)
        elif self.kind == "normal":
            fits = not is_whole and dtype not in (DType.BOOL, DType.STRING)
            numbers = generator.normal(given["mean"], given["std"], shape)
            if fits and _is_complex(dtype):
                imaginary = generator.normal(given["mean"], given["std"], shape)
                numbers = numbers + 1j * imaginary
        elif self.kind == "bernoulli":
            fits = dtype is not DType.STRING
            numbers = generator.random(shape) < given["p"]
        else:
            numbers = self._constant(name, dtype, shape)
        if not fits:
            raise self._unfit(name, dtype, "that kind is none of it")
        if dtype.is_float and dtype.itemsize_bytes < 4:
            numbers = np.asarray(numbers, np.float32)  # ml_dtypes knows no way from bool or int64
        return np.asarray(numbers).astype(dtype.numpy)

    def _uniform(
        self, name: str, dtype: DType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> npt.NDArray[Any]:
        low, high = self.parameters["low"], self.parameters["high"]
        if not dtype.is_integer:
            numbers = generator.uniform(low, high, shape)
            if _is_complex(dtype):
                return numbers + 1j * generator.uniform(low, high, shape)
            return numbers
        lowest, highest = dtype.bounds
        if low != int(low) or high != int(high) or low < lowest or high > highest:
            raise self._unfit(name, dtype, f"it takes whole numbers from {lowest} to {highest}")
        kind = np.uint64 if lowest == 0 else np.int64
        return generator.integers(int(low), int(high), shape, dtype=kind, endpoint=True)

    def _constant(self, name: str, dtype: DType, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        value = self.parameters["value"]
        if dtype is DType.STRING:
            raise self._unfit(name, dtype, "a constant is a number; use choice:TEXT")
        if dtype.is_integer:
            low, high = dtype.bounds
            if value != int(value) or not low <= value <= high:
                raise InputError(
                    f"the constant {_number(value)} for input '{name}' is no {dtype}.",
                    fix=f"Give a whole number from {low} to {high}.",
                    input=name,
                )
            kind = np.uint64 if low == 0 else np.int64
            return np.full(shape, int(value), kind)
        return np.full(shape, value)

    def _chosen(
        self, name: str, dtype: DType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> npt.NDArray[Any]:
        picks = generator.integers(0, len(self.choices), shape)
        if dtype is DType.STRING:
            return np.asarray(np.array(self.choices, object)[picks], object).reshape(shape)
        numbers = []
        for text in self.choices:
            one = Values("constant", {"value": _parsed("choice", name, text)})
            numbers.append(one.make(name, dtype, (), generator))
        return np.array(numbers, dtype.numpy)[picks].reshape(shape)

    def _unfit(self, name: str, dtype: DType, why: str) -> InputError:
        return InputError(
            f"input '{name}' is of dtype {dtype} and cannot hold '{self}': {why}.",
            fix="Give values that suit the dtype, such as "
            + (_EXAMPLES["choice"] if dtype is DType.STRING else _EXAMPLES["constant"])
            + ".",
            input=name,
            wanted=str(dtype),
            got=str(self),
        )


def _ids(
    vocabulary: int, exponent: float, shape: tuple[int, ...], generator: np.random.Generator
) -> npt.NDArray[Any]:
    """Ids by the inverse of the continuous law on ``[1, vocabulary + 1)``.

    With exponent 1, id ``k`` comes up with probability ``log((k + 2) / (k + 1)) /
    log(vocabulary + 1)``, as in ``bridge_zoo.inputs``; with 0 they are uniform.
    """
    if exponent == 0:
        return generator.integers(0, vocabulary, shape, dtype=np.int64)
    uniform = generator.random(shape)
    rest = 1.0 - exponent
    if abs(rest) * math.log(vocabulary + 1) < 1e-6:  # the limit, where the formula cancels
        ranks = (vocabulary + 1.0) ** uniform
    else:
        ranks = (((vocabulary + 1.0) ** rest - 1) * uniform + 1) ** (1 / rest)
    ids: npt.NDArray[np.int64] = np.floor(ranks).astype(np.int64) - 1
    return np.clip(ids, 0, vocabulary - 1)  # the power may round to either open end


def _strings(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    texts = np.empty(numbers.shape, object)
    texts.ravel()[:] = [str(one) for one in numbers.ravel()]
    return texts


def _is_complex(dtype: DType) -> bool:
    return dtype in (DType.COMPLEX64, DType.COMPLEX128)


def _parsed(kind: str, name: str, text: str) -> float:
    if text.strip().lower() in ("true", "false"):
        return float(text.strip().lower() == "true")
    try:
        return int(text)  # exact beyond the 53 bits of a float
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise _bad(kind, f"the value {text!r} of '{name}' is no number.") from None


def _sound(kind: str, name: str, value: float) -> float:
    is_sound = isinstance(value, int) or math.isfinite(value)
    wanted = "a finite number"
    if name == "vocab":
        is_sound, wanted = is_sound and value == int(value) and value >= 1, "a whole number above 0"
        value = int(value) if is_sound else value
        if is_sound and value > 2**62:
            is_sound, wanted = False, "at most 2**62"
    elif name in ("std", "exponent"):
        is_sound, wanted = is_sound and value >= 0, "a number from 0 on"
    elif name == "p":
        is_sound, wanted = is_sound and 0 <= value <= 1, "a number from 0 to 1"
    if not is_sound:
        raise _bad(kind, f"{name}={value} is not {wanted}.")
    return value


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _bad(kind: str, what: str) -> InputError:
    example = _EXAMPLES.get(kind, "zipf:vocab=200000, normal, or broadcast")
    return InputError(what, fix=f"Write it like {example}.", kind=kind)
