"""Typed load settings: one frozen dataclass per backend, rendered by the CLI."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from bridge.errors import OptionError, nearest

__all__ = ["TIERS", "OptionField", "Options", "option"]

TIERS = ("strict", "half", "int8")
"""Tiers of precision, the most exact first: float32 as it is; 16 bits, TF32 included; 8 bits."""


def option(
    default: Any,
    *,
    help: str,
    unit: str | None = None,
    choices: Iterable[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    process_wide: bool = False,
    when: str = "",
    devices: Iterable[str] | None = None,
) -> Any:
    """A field of an ``Options`` class, with what a reader and the checks need.

    Args:
        default: Value when nothing is said; ``None`` means "the bridge decides", and the
            help says how.
        help: What it does, in one sentence.
        unit: Unit of a number, such as ``"bytes"`` or ``"s"``.
        choices: The valid texts, for a ``str`` field.
        minimum: Smallest valid number.
        maximum: Largest valid number.
        process_wide: It takes hold of the whole process, so that predictors that differ in
            it disturb each other there; see ``Options.process_key``.
        when: When another value than the default helps, in one sentence.
        devices: Kinds of device where it acts, such as ``("cuda",)``; ``None`` for all.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "unit": unit,
            "choices": None if choices is None else tuple(choices),
            "minimum": minimum,
            "maximum": maximum,
            "process_wide": process_wide,
            "when": when,
            "devices": None if devices is None else tuple(devices),
        },
    )


@dataclasses.dataclass(frozen=True, slots=True)
class OptionField:
    """One option as the CLI and the docs show it."""

    name: str
    type: str
    default: Any
    help: str
    unit: str | None
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    process_wide: bool = False
    when: str = ""
    devices: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every backend's options; subclass it as a frozen, keyword-only dataclass.

    Fields are made with ``option()``; their types are ``bool``, ``int``, ``float``,
    ``str``, ``Path``, a tuple of ``str``, or one of these ``| None``. Values are
    checked on construction. A subclass that has illegal combinations overrides
    ``check``.

    Raises:
        OptionError: A value is of the wrong type, out of range or not a valid choice.
    """

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = _checked(item, kinds[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        try:
            self.check()
        except OptionError as error:
            error.detail.setdefault("rule", "illegal")
            raise

    def check(self) -> None:
        """Raises ``OptionError`` for values that are legal alone but not together.

        Pass ``rule=``, the rule's name in a few words such as ``streams-over-threads``:
        plans and reports show it. It is ``illegal`` where nothing is said.
        """

    @property
    def tier(self) -> str:
        """``strict`` for float32 as it is, ``half`` or ``int8`` for less; see ``TIERS``."""
        return "strict"

    @property
    def prepares(self) -> bool:
        """Whether something is converted, compiled or built, in ``load`` or the first calls.

        It may take minutes, so that a selection gives it a budget of its own.
        """
        return False

    def effective(self) -> Self:
        """The plainest options that mean the same on this machine.

        ``threads=2`` says nothing on a machine with two CPUs where none means "all":
        subclasses say so here, and nothing is measured twice.
        """
        return self

    def process_key(self) -> str:
        """Equal for options whose predictors may live in one process; empty by default.

        It names the process-wide options that differ from their defaults.
        """
        fields = {item.name: item for item in dataclasses.fields(self)}
        return ",".join(
            f"{name}={value}"
            for name, value in self.effective().to_dict().items()
            if fields[name].metadata["process_wide"]
        )

    @classmethod
    def make(cls, given: Options | Mapping[str, Any] | Iterable[str] | None) -> Self:
        """Options from an instance, a mapping, or texts of the form ``key=value``.

        Raises:
            OptionError: A key is unknown (the nearest valid one is offered), a value is
                bad, or the instance belongs to another backend.
        """
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if isinstance(given, Options):
            raise OptionError(
                f"options are of class {type(given).__name__}; this backend wants {cls.__name__}.",
                fix=f"Build them with {cls.__module__}.{cls.__name__}(...), or pass a dict.",
            )
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, Iterable):
            raise OptionError(
                f"options are of class {type(given).__name__}; wanted a dict or key=value texts.",
                fix="Pass for example {'threads': 2}.",
            )
        pairs = given if isinstance(given, Mapping) else dict(_split(text) for text in given)
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for key in pairs:
            if key not in fields:
                raise OptionError(
                    f"option '{key}' is unknown to {cls.__name__}; "
                    f"it has: {', '.join(sorted(fields)) or 'none'}.",
                    fix=nearest(key, fields) if fields else "Leave it out.",
                    option=key,
                    valid=sorted(fields),
                )
        kinds = typing.get_type_hints(cls)
        return cls(
            **{
                key: _parsed(fields[key], kinds[key], value) if isinstance(value, str) else value
                for key, value in pairs.items()
            }
        )

    @classmethod
    def describe(cls) -> tuple[OptionField, ...]:
        """All options with default, unit and help, in declaration order."""
        kinds = typing.get_type_hints(cls)
        return tuple(
            OptionField(
                name=item.name,
                type=_type_text(kinds[item.name]),
                default=item.default,
                help=item.metadata["help"],
                unit=item.metadata["unit"],
                choices=item.metadata["choices"],
                minimum=item.metadata["minimum"],
                maximum=item.metadata["maximum"],
                process_wide=item.metadata["process_wide"],
                when=item.metadata["when"],
                devices=item.metadata["devices"],
            )
            for item in dataclasses.fields(cls)
        )

    def to_dict(self) -> dict[str, Any]:
        """Options that differ from their defaults, in JSON types; ``make`` reads them back."""
        changed = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                is_plain = isinstance(value, (bool, int, float, str, type(None)))
                if isinstance(value, tuple):
                    changed[item.name] = ",".join(value)
                else:
                    changed[item.name] = value if is_plain else str(value)
        return changed

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.to_dict().items()) or "default"


def _split(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not sign or not key.strip():
        raise OptionError(
            f"option '{text}' has no value; wanted key=value.",
            fix="Write for example threads=2.",
            option=text,
        )
    return key.strip(), value.strip()


def _members(kind: Any) -> tuple[tuple[Any, ...], bool]:
    """The alternatives of a type other than None, and whether None is one."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        parts = typing.get_args(kind)
        return tuple(part for part in parts if part is not types.NoneType), types.NoneType in parts
    return (kind,), False


def _type_text(kind: Any) -> str:
    parts, optional = _members(kind)
    names = ["list" if typing.get_origin(part) is tuple else part.__name__ for part in parts]
    return " | ".join(names + (["none"] if optional else []))


def _parsed(item: dataclasses.Field[Any], kind: Any, text: str) -> Any:
    parts, optional = _members(kind)
    if optional and text.lower() in ("none", ""):
        return None
    for part in parts:
        if part is bool and text.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return text.lower() in ("true", "yes", "on", "1")
        if part in (int, float):
            try:
                return part(text)
            except ValueError:
                continue
        if part is Path:
            return Path(text)
        if typing.get_origin(part) is tuple:
            return tuple(piece.strip() for piece in text.split(",") if piece.strip())
        if part is str:
            return text
    raise OptionError(
        f"option '{item.name}' wants {_type_text(kind)}; got '{text}'.",
        fix=_hint(item),
        option=item.name,
        value=text,
    )


def _checked(item: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    parts, optional = _members(kind)
    if value is None and optional:
        return None
    fits = False
    for part in parts:
        if part is float and isinstance(value, int) and not isinstance(value, bool):
            value, fits = float(value), True
        elif part is Path and isinstance(value, str):
            value, fits = Path(value), True
        elif typing.get_origin(part) is tuple:
            if isinstance(value, list):
                value = tuple(value)
            fits = isinstance(value, tuple) and all(isinstance(piece, str) for piece in value)
        elif isinstance(value, part) and not (isinstance(value, bool) and part is not bool):
            fits = True
        if fits:
            break
    meta = item.metadata
    wrong = None
    if not fits:
        wrong = f"wants {_type_text(kind)}"
    elif value != value:  # NaN, which no bound below would catch
        wrong = "wants a number"
    elif meta["choices"] is not None and value not in meta["choices"]:
        wrong = f"wants one of {', '.join(meta['choices'])}"
    elif meta["minimum"] is not None and value < meta["minimum"]:
        wrong = f"wants at least {meta['minimum']}"
    elif meta["maximum"] is not None and value > meta["maximum"]:
        wrong = f"wants at most {meta['maximum']}"
    if wrong is not None:
        fix = nearest(str(value), meta["choices"]) if meta["choices"] else _hint(item)
        raise OptionError(
            f"option '{item.name}' {wrong}; got {value!r}.",
            fix=fix,
            option=item.name,
            value=value,
        )
    return value


def _hint(item: dataclasses.Field[Any]) -> str:
    return f"Its default is {item.default!r}: {item.metadata['help']}"
