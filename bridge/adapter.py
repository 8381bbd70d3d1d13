"""A model in one format turned into the same model in another."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bridge.backend import Availability, Refusal
from bridge.errors import (
    BackendUnavailable,
    BridgeError,
    ConversionError,
    ErrorRule,
    UnsupportedModel,
    translate,
)
from bridge.logs import logger, native_output
from bridge.model import ModelRef
from bridge.options import Options

__all__ = ["Adapter"]


class Adapter(ABC):
    """One conversion. Instances are cheap, stateless and import nothing heavy.

    Attributes:
        name: Unique name, such as ``onnx-to-engine``.
        sources: Names of the formats it reads.
        target: Name of the format it writes.
        options_type: Its typed options.
    """

    name: ClassVar[str]
    sources: ClassVar[frozenset[str]]
    target: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options

    @abstractmethod
    def probe(self) -> Availability:
        """Whether the converter can be used; imports nothing heavy, never raises."""

    @abstractmethod
    def _convert(self, model: ModelRef, target: Path, options: Any) -> Mapping[str, Any]:
        """Writes the converted model to ``target``; written by the author.

        Returns:
            Facts about the result, JSON types, shown by ``bridge convert``.
        """

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """Table of the converter's exceptions, special ones first."""
        return ()

    def refuse(self, model: ModelRef) -> Refusal | None:
        """Why it cannot take this model; ``None`` if it may."""
        if model.format.name in self.sources:
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
    ) -> Mapping[str, Any]:
        """Converts a model; final. The target appears whole or not at all.

        Raises:
            BackendUnavailable: The converter is not installed.
            UnsupportedModel: It does not read this format, or an operator.
            ConversionError: The converter failed, or the target exists already.
        """
        found = self.probe()
        if not found.installed:
            raise BackendUnavailable(
                f"adapter '{self.name}' is not available: {found.reason}.", fix=found.fix
            )
        refusal = self.refuse(model)
        if refusal is not None:
            raise UnsupportedModel(refusal.reason, fix=refusal.fix or None, model=model.name)
        chosen = self.options_type.make(options)
        if target.exists():
            raise ConversionError(
                f"'{target}' exists already.", fix="Remove it, or choose another path."
            )
        if not target.parent.is_dir():
            raise ConversionError(
                f"there is no folder '{target.parent}'.", fix="Create it, or choose another path."
            )
        model.format.check(model)
        try:
            work = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent))
        except OSError as error:
            raise ConversionError(
                f"the folder '{target.parent}' cannot be written to: {error.strerror}.",
                fix="Choose another path.",
                model=model.name,
            ) from error
        try:
            made = work / target.name
            with native_output(logger(self.name)):
                facts = self._convert(model, made, chosen)
            made.replace(target)
            return facts
        except BridgeError as error:
            error.model = error.model or model.name
            raise
        except Exception as error:
            frame = f"{self.name} could not convert {model.name}"
            raise translate(
                error, self.error_rules(), ConversionError, frame=frame, model=model.name
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
