"""A model in one format turned into the same model in another."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bridge import calibration
from bridge.backend import Availability, Refusal
from bridge.check import Arrays
from bridge.errors import (
    BackendUnavailable,
    BridgeError,
    ConversionError,
    ErrorRule,
    OptionError,
    UnsupportedModel,
    UntrustedModel,
    translate,
)
from bridge.logs import logger, native_output
from bridge.model import ModelRef
from bridge.options import Options

__all__ = ["PRECISIONS", "Adapter", "CalibratedAdapter", "copy_model", "require_place"]

PRECISIONS: Mapping[str, str] = {"float16": "half", "bfloat16": "half", "int8": "int8"}
"""What an adapter may reduce numbers to, with the tier that this belongs to."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Adapter(ABC):
    """One conversion. Instances are cheap, stateless and import nothing heavy.

    Attributes:
        name: Unique name, such as ``onnx-to-engine``.
        sources: Names of the formats it reads.
        target: Name of the format it writes; may be one that it reads, for optimisers.
        options_type: Its typed options.
        distributions: Those that do the work; a kept result depends on their versions.
        needs_trust: Converting a model may run code that is in it.
        makes_code: The result is native code, which is loaded only where it is trusted.
        reads_live: It takes live objects, in the process that holds them, and writes them down.
        timeout_s: How long a conversion may take where the caller does not say.
        precision: What the result holds or computes numbers in, one of ``PRECISIONS``, where
            that is less than in the source; ``None`` where results are the source's. No route
            takes an adapter that has one unless it is named, or its tier is admitted.
        only_named: No route takes it unless it is named: it makes a model that is called in
            another way.
        pays_on: Kinds of device on which a reduced precision may be worth measuring;
            ``None`` for all.
    """

    name: ClassVar[str]
    sources: ClassVar[frozenset[str]]
    target: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    distributions: ClassVar[tuple[str, ...]] = ()
    needs_trust: ClassVar[bool] = False
    makes_code: ClassVar[bool] = False
    reads_live: ClassVar[bool] = False
    timeout_s: ClassVar[float] = 600.0
    precision: ClassVar[str | None] = None
    only_named: ClassVar[bool] = False
    pays_on: ClassVar[frozenset[str] | None] = None

    @property
    def tier(self) -> str:
        """Precision tier of what it makes: ``strict``, ``half`` or ``int8``."""
        return "strict" if self.precision is None else PRECISIONS[self.precision]

    @abstractmethod
    def probe(self) -> Availability:
        """Whether the converter can be used; imports nothing heavy, never raises."""

    @abstractmethod
    def _convert(self, model: ModelRef, target: Path, options: Any) -> Mapping[str, Any]:
        """Writes the converted model to ``target``; written by the author.

        The result keeps the names, dtypes and dims of inputs and outputs. What it cannot
        keep is told in the facts: ``renamed`` maps old names to new ones, ``broadcast`` lists
        inputs of which it takes one row for all.

        Args:
            model: A model that is not refused, already checked.
            target: Path to write to. Files that belong to it go beside it, with names that
                begin with its stem: the folder is empty.
            options: An instance of ``options_type``.

        Returns:
            Facts about the result, JSON types, shown by ``bridge convert``.
        """

    def versions(self) -> dict[str, str]:
        """Versions of ``distributions``, those that are installed; imports nothing heavy."""
        found = {}
        for name in self.distributions:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def code_digest(self) -> str:
        """SHA-256 over the package or module that it is in: a kept result depends on that too."""
        module = sys.modules[type(self).__module__.partition(".")[0]]
        places = [Path(one) for one in getattr(module, "__path__", ())]
        files = [file for place in places for file in place.rglob("*.py")]
        if not places and module.__file__:
            files = [Path(module.__file__)]
        found = hashlib.sha256()
        for file in sorted(files):
            if file.is_file():
                found.update(file.name.encode() + b"\0" + file.read_bytes())
        return found.hexdigest()

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """Table of the converter's exceptions, special ones first."""
        return ()

    def refuse(self, model: ModelRef) -> Refusal | None:
        """Why it cannot take this model; ``None`` if it may."""
        if model.format.name in self.sources:
            if self.needs_trust and not model.trust:
                return Refusal(
                    f"adapter '{self.name}' may run code that is in the model.",
                    "Pass trust=True (--trust) if you know who made the file.",
                    {"trust": "needed"},
                )
            return None
        return Refusal(
            f"adapter '{self.name}' reads {', '.join(sorted(self.sources))}, "
            f"not {model.format.name}."
        )

    def convert(
        self,
        model: ModelRef,
        target: Path,
        *,
        options: Options | Mapping[str, Any] | Sequence[str] | None = None,
        samples: Arrays | None = None,
    ) -> Mapping[str, Any]:
        """Converts a model; final. The target appears whole or not at all.

        Args:
            model: The model.
            target: Path to write to.
            options: As ``options_type.make`` takes them.
            samples: Recorded inputs, for a ``CalibratedAdapter``; others take none.

        Raises:
            OptionError: An option is wrong, or samples are missing or not wanted.
            InputError: The samples do not fit the model; see ``bridge.calibration``.
            BackendUnavailable: The converter is not installed.
            UnsupportedModel: It does not read this format, or an operator.
            UntrustedModel: Converting may run code of the model, which is not trusted.
            ConversionError: The converter failed, the target exists already, or the disk
                is full.
        """
        found = self.probe()
        if not found.installed:
            raise BackendUnavailable(
                f"adapter '{self.name}' is not available: {found.reason}.", fix=found.fix
            )
        refusal = self.refuse(model)
        if refusal is not None:
            kind = UntrustedModel if "trust" in refusal.detail else UnsupportedModel
            raise kind(refusal.reason, fix=refusal.fix or None, model=model.name)
        chosen = self.options_type.make(options)
        require_place(target)
        model.format.check(model)
        work = _workplace(target, model.name)
        try:
            with native_output(logger(self.name)):
                facts = self._run(model, work / target.name, chosen, samples)
            _move(work, target)
            return facts
        except BridgeError as error:
            error.model = error.model or model.name
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise _no_room(target, model.name) from error
            frame = f"{self.name} could not convert {model.name}"
            raise translate(
                error, self.error_rules(), ConversionError, frame=frame, model=model.name
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _run(
        self, model: ModelRef, target: Path, options: Any, samples: Arrays | None
    ) -> Mapping[str, Any]:
        if samples is not None:
            raise OptionError(
                f"adapter '{self.name}' looks at no samples.",
                fix="Leave them out.",
                option="samples",
            )
        return self._convert(model, target, options)


class CalibratedAdapter(Adapter):
    """A conversion that looks at recorded inputs, such as for the ranges of numbers."""

    @abstractmethod
    def _calibrate(
        self, model: ModelRef, target: Path, options: Any, samples: Arrays
    ) -> Mapping[str, Any]:
        """As ``_convert``, which is not written then; written by the author.

        The samples are arrays of all required inputs, of equally many rows where they have
        rows, and finite.
        """

    def _convert(self, model: ModelRef, target: Path, options: Any) -> Mapping[str, Any]:
        raise self.missing_samples()

    def missing_samples(self) -> OptionError:
        """What to raise where there are none."""
        return OptionError(
            f"adapter '{self.name}' is calibrated by recorded inputs, and there are none.",
            fix="Pass some hundred typical rows: samples=, or --samples rows.npz.",
            option="samples",
        )

    def _run(
        self, model: ModelRef, target: Path, options: Any, samples: Arrays | None
    ) -> Mapping[str, Any]:
        if samples is None:
            raise self.missing_samples()
        calibration.check(model, samples)
        return self._calibrate(model, target, options, samples)


def require_place(target: Path) -> None:
    """Raises ``ConversionError`` if a path is taken, or has no folder to be in."""
    if target.exists():
        raise ConversionError(
            f"'{target}' exists already.", fix="Remove it, or choose another path."
        )
    if not target.parent.is_dir():
        raise ConversionError(
            f"there is no folder '{target.parent}'.", fix="Create it, or choose another path."
        )


def copy_model(source: Path, target: Path) -> None:
    """Copies a folder that holds one converted model and nothing else to its place.

    Args:
        source: The model; it and what is beside it is copied.
        target: Path of the copy, of the same name; it appears whole or not at all.

    Raises:
        ConversionError: The target exists already, has another name, or cannot be written.
    """
    if target.name != source.name:  # files beside it are called after it
        raise ConversionError(
            f"the model '{source.name}' cannot be copied as '{target.name}'.",
            fix=f"Keep its name, or convert with name='{target.name}'.",
            name=source.name,
        )
    require_place(target)
    work = _workplace(target, source.name)
    try:
        shutil.copytree(source.parent, work, dirs_exist_ok=True, copy_function=shutil.copyfile)
        _move(work, target)
    except OSError as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise ConversionError(
            f"the converted model cannot be copied to '{target.parent}': {reason}.",
            fix="Make room, or choose another path.",
            model=source.name,
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _workplace(target: Path, name: str) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent))
    except OSError as error:
        raise ConversionError(
            f"the folder '{target.parent}' cannot be written to: {error.strerror}.",
            fix="Choose another path.",
            model=name,
        ) from error


def _no_room(target: Path, name: str) -> ConversionError:
    return ConversionError(
        f"there is no room in '{target.parent}' for the converted model.",
        fix="Make room, or choose another path.",
        model=name,
        full=True,
    )


def _move(work: Path, target: Path) -> None:
    """Everything that was written goes to its place, the target last: then all of it is there."""
    beside = [target.parent / item.name for item in work.iterdir() if item.name != target.name]
    for place in beside:
        if place.exists():
            raise ConversionError(
                f"'{place}', which belongs to the converted model, exists already.",
                fix="Remove it, or choose another path.",
            )
    moved: list[Path] = []
    try:
        for place in beside:
            (work / place.name).replace(place)
            moved.append(place)
        (work / target.name).replace(target)
    except BaseException:
        for place in moved:
            place.unlink(missing_ok=True)
        raise
