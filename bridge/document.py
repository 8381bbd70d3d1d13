"""Dataclasses as JSON documents, and back, checked field by field.

The type hints of the dataclasses are the schema. Hints may be ``str``, ``bool``, ``int``,
``float``, ``None``, ``Any`` (JSON types), other dataclasses, ``tuple[X, ...]``,
``Mapping[str, X]`` and unions of these. A field whose metadata says ``stored=False`` is
not part of the document.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from bridge.errors import InvalidRecord

__all__ = ["canonical", "decode", "encode", "parse"]

_Kind = TypeVar("_Kind")
_MOST_DEPTH = 64

_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
    Any: "JSON value",
}
_FIX = "The record may be damaged or written by other software; take it from its origin again."


def encode(value: object) -> dict[str, Any]:
    """A dataclass as JSON types; tuples become lists, whole numbers in float fields floats.

    Raises:
        InvalidRecord: A value is not of its field's type, or not finite; the message
            names the field.
    """
    document = _converted(value, type(value), "", store=True)
    assert isinstance(document, dict)
    return document


def decode(kind: type[_Kind], document: object) -> _Kind:
    """The dataclass that ``encode`` made a document of.

    Raises:
        InvalidRecord: A field is missing, unknown or of another type; the message names it.
    """
    found = _converted(document, kind, "", store=False)
    assert isinstance(found, kind)
    return found


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one JSON text of a document: sorted keys, no spaces, ASCII; for checksums.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse(text: bytes | str) -> Any:
    """JSON as the standard has it: no NaN, no infinity, no key twice in one object.

    Raises:
        ValueError: It is not; also for nesting that nothing here writes, which would only
            exhaust the stack of whoever looks at it.
    """
    too_deep = "it is nested too deeply"
    try:
        found = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [found]
    for _ in range(_MOST_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return found
    raise ValueError(too_deep)


def _converted(value: Any, hint: Any, where: str, *, store: bool) -> Any:
    if hint is Any:
        return _plain(value, where)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _of_union(value, hint, where, store=store)
    if dataclasses.is_dataclass(hint):
        return _of_class(value, typing.cast("type[Any]", hint), where, store=store)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        # A document has lists; a dataclass under construction may hold either.
        if not isinstance(value, (list, tuple) if store else list):
            raise _mismatch(where, "list", value)
        items = (
            _converted(one, item, f"{where}[{index}]", store=store)
            for index, one in enumerate(value)
        )
        return list(items) if store else tuple(items)
    if origin is Mapping:
        item = typing.get_args(hint)[1]
        if not isinstance(value, Mapping):
            raise _mismatch(where, "object", value)
        return {
            _key(key, where): _converted(one, item, f"{where}[{key!r}]", store=store)
            for key, one in value.items()
        }
    if hint is float and type(value) is int:
        value = _as_float(value, where)
    if type(value) is not hint:
        raise _mismatch(where, _WORDS[hint], value)
    if hint is float and not math.isfinite(value):
        raise _mismatch(where, "finite number", value)
    return value


def _of_union(value: Any, hint: Any, where: str, *, store: bool) -> Any:
    """Unions here are of one type and null, so that the error can be that of the type."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    assert len(kinds) == 1, hint
    return None if value is None else _converted(value, kinds[0], where, store=store)


def _of_class(value: Any, kind: type[Any], where: str, *, store: bool) -> Any:
    hints: dict[str, tuple[Any, bool]] = _hints(kind)  # type: ignore[arg-type]
    if store:
        if not isinstance(value, kind):
            raise _mismatch(where, kind.__name__, value)
        return {
            name: _converted(getattr(value, name), hint, _inside(where, name), store=True)
            for name, (hint, _) in hints.items()
        }
    if not isinstance(value, Mapping):
        raise _mismatch(where, "object", value)
    for name in value:
        if name not in hints:
            raise InvalidRecord(
                f"{_inside(where, str(name))[:200]}: no such field is known.",
                fix=_FIX,
                field=_inside(where, str(name)),
            )
    fields = {}
    for name, (hint, is_required) in hints.items():
        inner = _inside(where, name)
        if name in value:
            fields[name] = _converted(value[name], hint, inner, store=False)
        elif is_required:
            raise InvalidRecord(f"{inner}: the field is missing.", fix=_FIX, field=inner)
    return kind(**fields)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """For each stored field, its type and whether it has to be there."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        item.name: (hints[item.name], item.default is missing and item.default_factory is missing)
        for item in dataclasses.fields(kind)
        if item.metadata.get("stored", True)
    }


def _plain(value: Any, where: str) -> Any:
    """JSON types as they are, tuples as lists."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise _mismatch(where, "finite number", value)
        return value
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(one, f"{where}[{key!r}]") for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, f"{where}[{index}]") for index, one in enumerate(value)]
    raise _mismatch(where, "JSON value", value)


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise _mismatch(f"a key of {where}", "text", key)
    return key


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _mismatch(where, "finite number", math.inf) from None


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _mismatch(where: str, wanted: str, value: object) -> InvalidRecord:
    if isinstance(value, float) and not math.isfinite(value):
        got = str(value)
    elif isinstance(value, Mapping):
        got = "object"
    elif isinstance(value, (list, tuple)):
        got = "list"
    else:
        got = _WORDS.get(type(value), type(value).__name__)
    where = where or "the document"
    return InvalidRecord(
        f"{where[:200]}: wanted {wanted}, got {got}.", fix=_FIX, field=where, wanted=wanted, got=got
    )


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return found
