"""The JSON schema of ``record.json``, made from the dataclasses and their docstrings.

``python bridge/tests/record_schema.py`` writes it anew after a change of ``bridge.record``;
a test compares.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge import consistency
from bridge.record import SCHEMA, SelectionRecord

SHA256 = "^[0-9a-f]{64}$"
ENUMS = {
    ("Measurement", "status"): consistency._RAN,
    ("ArmRecord", "status"): consistency._ARM,
    ("ArmRecord", "tier"): consistency._TIERS,
    ("GateRecord", "tier"): consistency._TIERS,
    ("Verdict", "status"): consistency._VERDICT,
    ("Decision", "status"): consistency._DECISION,
    ("Limits", "objective"): consistency._OBJECTIVES,
}
COUNTS = frozenset(
    {"rows", "to_rows", "model", "calls", "look", "redone", "warmup_calls", "queries"}
    | {"mild_outliers", "severe_outliers"}
)
# What docstrings leave to the name.
TEXTS = {
    ("SelectionRecord", "schema"): "Name and version of the format.",
    ("Interval", "value"): "The estimate.",
    ("Interval", "low"): "Lower end.",
    ("Interval", "high"): "Upper end.",
    ("Limits", "sla_s"): "The latency that sla_percentile may not exceed.",
    ("Measurement", "median_low_s"): "Lower end of the interval of median_s.",
    ("Measurement", "median_high_s"): "Upper end of the interval of median_s.",
    ("Protocol", "epsilon"): "Arms that differ by less than this share are as good as equal.",
    ("Protocol", "delta"): "Chance of a wrong elimination that is accepted.",
    ("Protocol", "looks"): "Numbers of blocks after which arms may be eliminated.",
    ("Protocol", "cut_ratio"): "After two blocks an arm slower by this factor is out.",
    ("Protocol", "margin"): "Only an arm slower than the leader by more than this share is out.",
    ("Protocol", "slice_s"): "Time of one arm in one block.",
    ("Protocol", "min_calls"): "Fewest calls of a slice.",
    ("Protocol", "max_calls"): "Most calls of a slice.",
    ("Protocol", "discarded_calls"): "Calls at the beginning of a slice that are not counted.",
    ("Protocol", "variants"): "Sets of inputs in rotation.",
    ("Protocol", "budget_s"): "Time for the race.",
    ("Protocol", "prepare_budget_s"): "Time to prepare arms before the race.",
    ("Protocol", "load_timeout_s"): "Most time to load one arm.",
    ("Protocol", "call_timeout_s"): "Most time for one call.",
    ("Protocol", "bootstrap"): "Resamples of an interval.",
    ("Protocol", "canary_tolerance"): "Share by which the canary may be off in a block.",
    ("Protocol", "canary_redo_share"): "Largest share of blocks that are measured again.",
}


def make() -> dict[str, Any]:
    """The whole schema."""
    definitions: dict[str, Any] = {}
    top = _of_class(SelectionRecord, definitions)
    top["properties"]["checksum"] = {
        "description": "SHA-256 over the canonical JSON of all other fields.",
        "type": "string",
        "pattern": SHA256,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "record.json of a selection record, and bridge select --json",
        **top,
        "description": "Which arm won, for which batch, and with what evidence. Times are "
        "seconds, sizes are bytes, ratios are plain factors.",
        "required": [*top["required"], "checksum"],
        "$defs": definitions,
    }


def place() -> Path:
    """Where the command-line package keeps it."""
    spec = importlib.util.find_spec("bridge_cli")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "schemas/select.schema.json"


def _of_class(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    properties = {}
    for item in dataclasses.fields(kind):
        if not item.metadata.get("stored", True):
            continue
        key = (kind.__name__, item.name)
        found = _of_hint(hints[item.name], definitions)
        types_of = str(found.get("type"))
        if key in ENUMS:
            found = {"enum": sorted(ENUMS[key])}
        elif key == ("SelectionRecord", "schema"):
            found = {"const": SCHEMA}
        elif key == ("SelectionRecord", "attachments"):
            found["additionalProperties"]["pattern"] = SHA256
        elif item.name == "digest":
            found["pattern"] = f"^({SHA256[1:-1]})?$"
        elif item.name == "weight":
            found.update(minimum=0, maximum=1)
        elif (item.name in COUNTS and "integer" in types_of) or (
            item.name.endswith(("_s", "_bytes")) and ("number" in types_of or "integer" in types_of)
        ):
            found["minimum"] = 0
        description = TEXTS.get(key) or texts[item.name]
        properties[item.name] = {"description": description, **found}
    return {
        "description": _plain((kind.__doc__ or "").split("\n\n")[0]),
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _of_hint(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = typing.get_origin(hint)
    if hint is Any:
        return {}
    if origin in (types.UnionType, typing.Union):
        (kind,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        inner = _of_hint(kind, definitions)
        if set(inner) == {"type"}:
            return {"type": [inner["type"], "null"]}
        return {"oneOf": [{"type": "null"}, inner]}
    if dataclasses.is_dataclass(hint):
        name = hint.__name__  # type: ignore[union-attr]
        key = name[0].lower() + name[1:]
        if key not in definitions:
            definitions[key] = _of_class(hint, definitions)  # type: ignore[arg-type]
        return {"$ref": f"#/$defs/{key}"}
    if origin is tuple:
        return {"type": "array", "items": _of_hint(typing.get_args(hint)[0], definitions)}
    if origin is Mapping:
        inner = _of_hint(typing.get_args(hint)[1], definitions)
        return {"type": "object", "additionalProperties": inner or True}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[hint]}


def _texts(kind: type[Any]) -> dict[str, str]:
    """Descriptions of the attributes, from the docstring."""
    part = (kind.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"\n {8}(\w[\w, ]*): (.*?)(?=\n {8}\w|\n\s*$|\Z)", part, re.DOTALL)
    return {name: _plain(text) for names, text in entries for name in names.split(", ")}


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``None``", "null").replace("``", "'")


if __name__ == "__main__":
    place().write_text(json.dumps(make(), indent=2) + "\n", encoding="utf-8")
