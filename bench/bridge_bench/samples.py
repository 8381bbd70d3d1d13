"""Real inputs and labels from files: ``.npz``, ``.npy`` or ``.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from bridge.check import Arrays, check_inputs
from bridge.dtypes import DType
from bridge.errors import DTypeMismatch, InputError, ModelNotFound, ShapeMismatch
from bridge.signature import Signature, TensorSpec

__all__ = ["Samples", "read_inputs", "read_labels"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Recorded rows, from which batches are drawn; equal content makes equal samples.

    Attributes:
        name: Name of the file, without folders; ``arrays`` for what never was a file.
        sha256: Digest of the file, or of names, dtypes, shapes and bytes.
        arrays: Values by input name; not modified by anyone.
    """

    name: str = field(compare=False)
    sha256: str
    arrays: Mapping[str, npt.NDArray[Any]] = field(compare=False, repr=False)

    @classmethod
    def read(cls, path: str | Path, signature: Signature, batch_dim: str | None = None) -> Samples:
        """Samples from a file as ``read_inputs`` takes it; inputs may be missing.

        Args:
            path: The file.
            signature: What the arrays have to fit.
            batch_dim: Name of the batch dim, where it is not dim 0.

        Raises:
            ModelNotFound: There is no such file.
            InputError: The file is broken, or an array does not fit the signature.
        """
        path = Path(path)
        arrays = _loaded(path, signature)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        samples = cls(path.name, digest, arrays)
        samples.check(signature, batch_dim)
        return samples

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Samples:
        """Samples from arrays at hand; they are not copied."""
        digest = hashlib.sha256()
        for name in sorted(arrays):
            array = arrays[name]
            digest.update(repr((name, str(array.dtype), array.shape)).encode())
            plain = np.ascontiguousarray(array)
            is_text = array.dtype.kind in "OUT"
            digest.update(repr(plain.tolist()).encode() if is_text else plain.tobytes())
        return cls("arrays", digest.hexdigest(), {k: _stringless(v) for k, v in arrays.items()})

    def check(self, signature: Signature, batch_dim: str | None = None) -> None:
        """Whether all arrays fit the signature and hold the same number of rows.

        Raises:
            InputError: An array does not; the text names it, what was wanted, what is there.
        """
        specs = [
            TensorSpec(one.name, one.dtype, one.shape, one.native_name)
            for one in signature.inputs
            if one.name in self.arrays
        ]
        try:
            # The whole signature where names are wrong, so that the error knows all names.
            has_strangers = len(specs) < len(self.arrays)
            check_inputs(signature if has_strangers else Signature(tuple(specs), ()), self.arrays)
        except InputError as error:
            error.message = f"the samples '{self.name}' do not fit: {error.message}"
            if isinstance(error, (DTypeMismatch, ShapeMismatch)):
                error.fix = "Write the samples as the signature wants them; nothing is cast."
            raise
        self.rows(signature, batch_dim)

    def rows(self, signature: Signature, batch_dim: str | None = None) -> int | None:
        """Number of rows; ``None`` if no array has a batch axis.

        Raises:
            InputError: Arrays have different numbers of rows, or none.
        """
        axes = signature.batch_axes(batch_dim)
        counts = {
            name: array.shape[axes[name]] for name, array in self.arrays.items() if name in axes
        }
        if len(set(counts.values())) > 1:
            few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise InputError(
                f"the samples '{self.name}' do not fit together: input '{few}' has "
                f"{counts[few]} rows and input '{many}' has {counts[many]}.",
                fix="Give every input the same number of rows.",
                input=few,
                wanted=counts[many],
                got=counts[few],
            )
        count = next(iter(counts.values()), None)
        if count == 0:
            raise InputError(
                f"the samples '{self.name}' hold no rows.", fix="Write at least one row."
            )
        return count


def read_inputs(path: Path, signature: Signature) -> Arrays:
    """Inputs from a ``.npz``, ``.npy`` or ``.json`` file, checked against the signature.

    A ``.npy`` file serves a signature with one required input. JSON is an object from
    input names to (nested) lists; numbers take the dtype of the signature.

    Raises:
        ModelNotFound: There is no such file.
        InputError: The file is of another kind, is broken, or does not fit.
    """
    return check_inputs(signature, _loaded(path, signature))


def _loaded(path: Path, signature: Signature) -> dict[str, Any]:
    if not path.is_file():
        raise ModelNotFound(f"there is no inputs file at '{path}'.", fix="Check the path.")
    try:
        return _read(path, signature)
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise InputError(
            f"the inputs file '{path}' cannot be read: {error}.",
            fix="Write it with numpy.savez(path, name=array, ...); pickled objects are refused.",
        ) from error


def read_labels(path: str | Path, rows: int | None = None) -> Arrays:
    """Labels of recorded rows, by name; those of a ``.npy`` file under the name ``""``.

    Args:
        path: A ``.npy`` file with one array, or ``.npz`` with one for each head.
        rows: Number of rows that each array has to have.

    Raises:
        ModelNotFound: There is no such file.
        InputError: The file is broken, or an array has another number of rows.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".npz"):
        raise InputError(
            f"the labels file '{path}' has the suffix '{path.suffix}'; wanted .npy or .npz.",
            fix="Write the labels with numpy.save(path, array).",
        )
    one = Signature((TensorSpec("", None, None),), ())
    labels = _loaded(path, one)
    for name, array in labels.items():
        called = f"the labels '{name}'" if name else "the labels"
        if array.ndim == 0 or (rows is not None and len(array) != rows):
            got = "no rows" if array.ndim == 0 else f"{len(array)} rows"
            raise InputError(
                f"{called} in '{path}' have {got}; the samples have {rows}.",
                fix="Give one label for each row of the samples, in the same order.",
                labels=name,
                wanted=rows,
                got=array.shape,
            )
    return labels


def _read(path: Path, signature: Signature) -> dict[str, Any]:
    if path.suffix == ".npz":
        with path.open("rb") as stream:  # numpy leaves a damaged archive open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"'{path}' holds a single array.", fix="Call it .npy.")
            with archive:
                return {name: _stringless(archive[name]) for name in archive.files}
    if path.suffix == ".npy":
        names = [spec.name for spec in signature.required]
        if len(names) != 1:
            raise InputError(
                f"'{path}' holds one array, but the signature requires {len(names)} inputs.",
                fix="Use a .npz file with one array per input name.",
            )
        with path.open("rb") as stream:
            return {names[0]: _stringless(np.lib.format.read_array(stream, allow_pickle=False))}
    if path.suffix == ".json":
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise InputError(
                f"'{path}' holds a JSON {type(data).__name__}; wanted an object.",
                fix='Write {"input name": [values], ...}.',
            )
        known = {spec.name: spec for spec in signature.inputs}
        return {
            name: _typed(name, values, known[name].dtype if name in known else None)
            for name, values in data.items()
        }
    raise InputError(
        f"'{path}' has the suffix '{path.suffix}'; wanted .npz, .npy or .json.",
        fix="Write the inputs with numpy.savez(path, name=array, ...).",
    )


def _typed(name: str, values: Any, kind: DType | None) -> npt.NDArray[Any]:
    """JSON values in the dtype of the signature, unless that would change them."""
    if kind is None:
        return np.array(values)
    if kind is DType.STRING:
        return np.array(values, object)
    plain = np.array(values)
    numbers = "b" if kind is DType.BOOL else "iu" if kind.is_integer else "iuf"
    if plain.size and plain.dtype.kind not in numbers:
        raise InputError(
            f"the values for input '{name}' are of dtype {plain.dtype}; the signature wants "
            f"{kind}.",
            fix="Write true and false for booleans, and whole numbers for integers.",
            input=name,
        )
    return np.array(values, kind.numpy)


def _stringless(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(object) if array.dtype.kind == "U" else array
