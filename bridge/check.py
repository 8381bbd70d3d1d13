"""Input checks, compiled once per signature.

``compile_check`` writes a small function for one signature: for each input one
dictionary look-up and a few comparisons, no loop. If everything fits, the caller's
own dict is handed on. If anything is unusual (another array type, an odd stride,
something wrong) the explicit ``check_inputs`` looks again and either converts or
raises the right error. Names from a model never become part of the source.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.dlpack import DeviceArray, device_array, shared_view
from bridge.dtypes import DType
from bridge.errors import (
    DTypeMismatch,
    InputError,
    MissingInput,
    ShapeMismatch,
    UnexpectedInput,
    nearest,
)
from bridge.signature import Signature, TensorSpec

__all__ = ["Arrays", "Layout", "check_inputs", "compile_check"]

Arrays = dict[str, npt.NDArray[Any]]

# What an input of unknown dtype may be without a second look.
_NUMBERS = frozenset(np.dtype(kind) for kind in "?bhilqBHILQefdFD")
_HOST = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost (dlpack.h)


class Layout(enum.Enum):
    """Which arrays a runtime takes as they are; the bridge copies others first.

    ``ANY``: the runtime deals with every stride and alignment. ``CONTIGUOUS``: C order
    and aligned, may be read-only. ``WRITABLE``: besides, the runtime's API wants a
    writable buffer (it still must not write to it).
    """

    ANY = "any"
    CONTIGUOUS = "contiguous"
    WRITABLE = "writable"


def compile_check(
    signature: Signature,
    layout: Layout,
    *,
    zero_rows: bool,
    device: tuple[int, int] | None = None,
) -> Callable[[Mapping[str, Any]], Mapping[str, npt.NDArray[Any]]]:
    """A function that turns a call's inputs into arrays that the runtime takes.

    Args:
        signature: What the inputs must fit.
        layout: What the runtime takes.
        zero_rows: Whether dims of size 0 are allowed.
        device: DLPack's name of a device whose memory the predictor takes as it is.

    Returns:
        A function of the caller's mapping. It returns that mapping itself where nothing
        had to be changed, so its result must not be modified.
    """
    space: dict[str, Any] = {"ndarray": np.ndarray}

    def explicit(inputs: Mapping[str, Any]) -> Arrays:
        return check_inputs(signature, inputs, layout, zero_rows=zero_rows, device=device)

    space["explicit"] = explicit
    wanted = signature.required
    lines = [
        "def check(inputs):",
        f" if type(inputs) is not dict or len(inputs) != {len(wanted)}: return explicit(inputs)",
        " try:",
        "  pass",
    ]
    dims: dict[str, str] = {}  # named dim -> the expression that holds its size in this call
    shapes: dict[tuple[Any, ...], str] = {}  # fully determined shape -> variable of an equal one
    for index, spec in enumerate(wanted):
        space[f"name{index}"] = spec.name
        lines.append(f"  a = inputs[name{index}]")
        tests = ["type(a) is not ndarray"]
        if spec.dtype is DType.STRING:
            lines.append("  return explicit(inputs)")
            break
        if spec.dtype is not None:
            space[f"dtype{index}"] = spec.dtype.numpy
            # Identity is the common case; equality costs as much again and settles the rest.
            tests.append(f"(a.dtype is not dtype{index} and a.dtype != dtype{index})")
        else:
            space["numbers"] = _NUMBERS
            tests.append("a.dtype not in numbers")
        lines.append(f"  if {' or '.join(tests)}: return explicit(inputs)")
        tests = []
        if spec.shape is not None and spec.shape in shapes:
            tests.append(f"a.shape != {shapes[spec.shape]}")
        elif spec.shape is not None:
            lines.append(f"  s{index} = a.shape")
            lines.append(f"  if len(s{index}) != {len(spec.shape)}: return explicit(inputs)")
            for axis, item in enumerate(spec.shape):
                here = f"s{index}[{axis}]"
                if isinstance(item, int):
                    tests.append(f"{here} != {item}")
                elif isinstance(item, str) and item in dims:
                    tests.append(f"{here} != {dims[item]}")
                elif isinstance(item, str):
                    dims[item] = here
            if None not in spec.shape:
                shapes[spec.shape] = f"s{index}"
        if not zero_rows:
            tests.append("not a.size")
        if layout is Layout.WRITABLE:
            tests.append("not a.flags.carray")
        elif layout is Layout.CONTIGUOUS:
            tests.append("not ((f := a.flags).carray or (f.c_contiguous and f.aligned))")
        if tests:
            lines.append(f"  if {' or '.join(tests)}: return explicit(inputs)")
    lines += [" except KeyError: return explicit(inputs)", " return inputs"]
    exec("\n".join(lines), space)  # noqa: S102 - the source holds only numbers made above
    compiled: Callable[[Mapping[str, Any]], Mapping[str, npt.NDArray[Any]]] = space["check"]
    return compiled


def check_inputs(
    signature: Signature,
    inputs: Mapping[str, Any],
    layout: Layout = Layout.CONTIGUOUS,
    *,
    zero_rows: bool = True,
    device: tuple[int, int] | None = None,
) -> Arrays:
    """Arrays that fit the signature, in its order; converted only where nothing is lost.

    Objects with ``__dlpack__`` (host memory) or ``__array__`` become numpy arrays;
    arrays that the layout excludes are copied. What lies in the memory of ``device`` (as
    DLPack names it) becomes a ``DeviceArray``. No dtype is ever cast.

    Raises:
        InputError: ``inputs`` is no mapping, an object cannot become an array, or an
            element of an array is masked.
        MissingInput, UnexpectedInput: Names do not fit.
        DTypeMismatch, ShapeMismatch: An array does not fit.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs are of class {type(inputs).__name__}; wanted a dict from names to arrays.",
            fix=f"Pass {{{', '.join(repr(name) + ': ...' for name in signature.input_names)}}}.",
        )
    _check_names(signature, inputs)
    arrays: dict[str, Any] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in signature.inputs:
        if spec.name not in inputs:
            continue
        array = as_array(spec, inputs[spec.name], device)
        _check_dtype(spec, array)
        _check_shape(spec, array, sizes)
        if not zero_rows and array.size == 0:
            raise ShapeMismatch(
                f"input '{spec.name}' has shape {array.shape}, which holds no element; "
                "this backend does not take empty batches.",
                fix="Answer empty batches without calling predict.",
                input=spec.name,
                wanted=spec.shape_text,
                got=array.shape,
            )
        arrays[spec.name] = array if type(array) is DeviceArray else _laid_out(array, layout)
    return arrays


def as_array(spec: TensorSpec, value: Any, device: tuple[int, int] | None = None) -> Any:
    """A numpy array for what the caller gave, sharing memory where that is possible.

    A ``DeviceArray`` for what lies in the memory of ``device``.

    Raises:
        InputError: The object is no array, its memory is on another device, or an element of
            it is masked.
    """
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray and np.ma.is_masked(value):
            raise InputError(
                f"input '{spec.name}' has masked elements; a model would take what is under "
                "the mask for values.",
                fix="Say what they are worth: array.filled(value).",
                input=spec.name,
            )
        array = value
    elif isinstance(value, np.generic) or not (
        hasattr(value, "__dlpack__") or hasattr(value, "__array__")
    ):
        if not isinstance(value, np.generic):
            kind = type(value)
            where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            wanted = "object" if spec.dtype is DType.STRING else f"numpy.{spec.dtype or 'float32'}"
            raise InputError(
                f"input '{spec.name}' is of class {where}{kind.__qualname__}; "
                "wanted a numpy array.",
                fix="Leave it out, or pass an array."
                if value is None
                else f"Pass numpy.asarray(value, {wanted}).",
                input=spec.name,
            )
        array = np.asarray(value)
    else:
        array = _imported(spec, value, device)
    if spec.dtype is DType.STRING and array.dtype.kind in "UT":
        array = array.astype(object)
    return array


def _imported(spec: TensorSpec, value: Any, taken: tuple[int, int] | None) -> Any:
    if hasattr(value, "__dlpack__") and not _is_opaque(value):
        try:
            kind, index = getattr(value, "__dlpack_device__", lambda: (1, 0))()
        except Exception as error:
            raise _unreadable(spec, value, error) from error
        place = (int(kind), int(index))
        if place == taken:
            return _left_there(spec, value)
        if place[0] not in _HOST:
            also = "" if taken is None else f" and that of device {taken}"
            raise InputError(
                f"input '{spec.name}' lives in device memory (DLPack device {place}); "
                f"this predictor takes host memory{also}.",
                fix="Copy it to the host first.",
                input=spec.name,
            )
        try:
            array: npt.NDArray[Any] = np.from_dlpack(value)
            return array
        except Exception as error:  # libraries raise errors of their own
            reduced = _reduced(value)
            if reduced is not None:
                return reduced
            # __array__ may still know a way.
            if not hasattr(value, "__array__"):
                raise InputError(
                    f"input '{spec.name}' cannot be read through DLPack: {error}.",
                    fix="Pass a numpy array.",
                    input=spec.name,
                ) from error
    try:
        return np.asarray(value)
    except Exception as error:
        raise _unreadable(spec, value, error) from error


def _is_opaque(value: Any) -> bool:
    """Whether its elements are no numbers, going by its own word for them.

    TensorFlow 2.21 ends the process when a tensor of strings is asked for its memory.
    """
    kind = str(getattr(value, "dtype", ""))
    return "string" in kind or "variant" in kind or "resource" in kind


def _left_there(spec: TensorSpec, value: Any) -> DeviceArray:
    """A description of what stays on its device."""
    try:
        return device_array(value)
    except Exception as error:
        raise InputError(
            f"input '{spec.name}' cannot be taken where it lies: {str(error).rstrip('.')}.",
            fix="Detach it and make it contiguous first.",
            input=spec.name,
        ) from error


def _reduced(value: Any) -> npt.NDArray[Any] | None:
    """The array of a type that numpy's own DLPack import lacks, such as bfloat16."""
    try:
        return shared_view(value)
    except Exception:  # noqa: BLE001 - libraries raise errors of their own
        return None  # the caller tells why the first way failed


def _unreadable(spec: TensorSpec, value: Any, error: Exception) -> InputError:
    return InputError(
        f"input '{spec.name}' of class {type(value).__qualname__} cannot become a "
        f"numpy array: {str(error).rstrip('.')}.",
        fix="Detach it, copy it to the host, or pass a numpy array.",
        input=spec.name,
    )


def _check_names(signature: Signature, inputs: Mapping[str, Any]) -> None:
    known = {spec.name: spec for spec in signature.inputs}
    extra = [name for name in inputs if name not in known]
    missing = [spec.name for spec in signature.required if spec.name not in inputs]
    if extra:
        name = extra[0]
        left = missing or [other for other in known if other not in inputs]
        raise UnexpectedInput(
            f"input {name!r} is not in the signature, which has "
            f"{len(known)} input{'' if len(known) == 1 else 's'}.",
            fix=nearest(str(name), left or known),
            unexpected=extra,
            missing=missing,
            valid=list(known),
        )
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        spec = known[missing[0]]
        raise MissingInput(
            f"input {shown}{more} is missing; {len(signature.required)} are required, "
            f"{len(inputs)} were given.",
            fix=f"Add '{spec.name}' as {spec.dtype or 'an array'} {spec.shape_text}.",
            missing=missing,
            valid=list(known),
        )


def _check_dtype(spec: TensorSpec, array: npt.NDArray[Any]) -> None:
    if spec.dtype is None:
        if not _is_numeric(array.dtype):
            raise DTypeMismatch(
                f"input '{spec.name}' has dtype {array.dtype}; wanted native numbers.",
                fix="Convert it to a numeric dtype first.",
                input=spec.name,
                wanted=None,
                got=str(array.dtype),
            )
        return
    wanted = spec.dtype.numpy
    got = array.dtype
    if got == wanted:
        if spec.dtype is DType.STRING:
            odd = next((item for item in array.flat if not isinstance(item, (str, bytes))), None)
            if odd is not None:
                raise DTypeMismatch(
                    f"input '{spec.name}' wants strings; an element is of class "
                    f"{type(odd).__name__}.",
                    fix="Fill the object array with str only.",
                    input=spec.name,
                    wanted="string",
                    got=type(odd).__name__,
                )
        return
    if spec.dtype is DType.STRING:
        fix = "Pass an object array of str, or a numpy string array."
    elif got.kind in "OUST":
        fix = f"Build a numeric array: numpy.array(values, numpy.{spec.dtype})."
    elif got.newbyteorder() == wanted:
        fix = f"Swap the bytes first: array.astype('{wanted.str}')."
    else:
        fix = f"Convert it on purpose: array.astype('{spec.dtype}')."
    raise DTypeMismatch(
        f"input '{spec.name}' has dtype {got.str if got.newbyteorder() == wanted else got}; "
        f"the signature wants {spec.dtype}.",
        fix=fix,
        input=spec.name,
        wanted=spec.dtype.value,
        got=str(got),
    )


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    if dtype in _NUMBERS:
        return True
    try:
        # Those of ml_dtypes have the kind of a structured dtype.
        return dtype.isnative and DType.of(dtype) is not DType.STRING
    except ValueError:
        return False


def _check_shape(
    spec: TensorSpec, array: npt.NDArray[Any], sizes: dict[str, tuple[int, str]]
) -> None:
    if spec.shape is None:
        return
    facts: dict[str, Any] = {"input": spec.name, "wanted": spec.shape_text, "got": array.shape}
    said = f"input '{spec.name}' has shape {array.shape}; the signature wants {spec.shape_text}"
    if len(spec.shape) != array.ndim:
        raise ShapeMismatch(
            f"{said}: {len(spec.shape)} dims, got {array.ndim}.",
            fix="Reshape it, or add the missing dims with numpy.expand_dims.",
            **facts,
        )
    for axis, (item, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(item, int) and item != size:
            raise ShapeMismatch(
                f"{said}: dim {axis} must be {item}, got {size}.",
                fix="Fixed dims cannot change; pad or cut the array, or export the model anew.",
                axis=axis,
                **facts,
            )
        if isinstance(item, str):
            agreed, other = sizes.setdefault(item, (size, spec.name))
            if agreed != size:
                raise ShapeMismatch(
                    f"{said}: dim '{item}' is {size} here but {agreed} in input '{other}'.",
                    fix=f"All dims called '{item}' must be equal in one call.",
                    axis=axis,
                    dim=item,
                    **facts,
                )


def _laid_out(array: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    if type(array) is not np.ndarray:
        array = array.view(np.ndarray)  # a subclass such as memmap or recarray
    flags = array.flags
    if layout is Layout.ANY:
        return array
    if flags.c_contiguous and flags.aligned and (flags.writeable or layout is Layout.CONTIGUOUS):
        return array
    return np.array(array, order="C", copy=True)
