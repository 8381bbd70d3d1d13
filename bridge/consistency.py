"""What has to hold between the fields of a selection record, beyond their types."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from bridge.errors import InvalidRecord
from bridge.formats.containment import outside
from bridge.record import Measurement, SelectionRecord, Verdict
from bridge.signature import Signature, TensorSpec

__all__ = ["check", "check_path"]

_ENDED = frozenset({"not_conformant", "failed", "timed_out", "crashed"})
_RAN = _ENDED | {"won", "tied", "eliminated", "undecided", "infeasible"}
_ARM = _RAN | {"skipped", "planned"}
_VERDICT = frozenset({"proven", "tied", "undecided", "default", "interrupted", "none"})
_DECISION = frozenset({"decided", "undecided", "interrupted", "none", "planned"})
_TIERS = frozenset({"strict", "half", "int8"})
_OBJECTIVES = frozenset({"p50", "p99", "throughput", "memory", "cost"})


def check(record: SelectionRecord) -> None:
    """Refuses a record that names what it does not have, or would lead out of its folder.

    Raises:
        InvalidRecord: The message names the field.
    """
    _check_files(record)
    signature = _signature(record.signature, "signature")
    _check_axes(record.batch_axes, signature.inputs, "batch_axes")
    _check_axes(record.output_batch_axes, signature.outputs, "output_batch_axes")
    _among(record.limits.objective, _OBJECTIVES, "limits.objective")
    _among(record.gate.tier, _TIERS, "gate.tier")
    _check_arms(record, signature)
    if record.gate.reference not in ("", "arrays"):  # there is none where no arm could load
        _among(record.gate.reference, {arm.id for arm in record.arms}, "gate.reference")
    _check_ranges([bucket.to_rows for bucket in record.buckets], "buckets")
    for index, bucket in enumerate(record.buckets):
        if bucket.rows < 0 or not 0 <= bucket.weight <= 1:
            _fail(f"buckets[{index}]", "rows are negative, or the weight is not in 0..1")
    _check_decision(record, signature)


def _check_files(record: SelectionRecord) -> None:
    if not record.models:
        _fail("models", "there is none")
    for index, model in enumerate(record.models):
        where = f"models[{index}]"
        if model.path is not None:
            check_path(model.path, f"{where}.path")
            if not model.path.startswith("models/"):
                _fail(f"{where}.path", f"{model.path[:200]!r} does not lie in 'models/'")
        if model.path is not None or model.digest:  # a live object has none
            _check_digest(model.digest, f"{where}.digest")
        if model.declared is not None:
            _signature(model.declared, f"{where}.declared")
            if model.signature_key is not None:
                _fail(f"{where}.declared", "there is a signature_key as well")
    for path, digest in record.attachments.items():
        where = f"attachments[{path[:200]!r}]"
        check_path(path, where)
        if path.partition("/")[0] in ("models", "record.json"):
            _fail(where, "the name is taken")
        _check_digest(digest, where)


def _check_arms(record: SelectionRecord, signature: Signature) -> None:
    repeated = [name for name, count in Counter(arm.id for arm in record.arms).items() if count > 1]
    if repeated:
        _fail("arms", f"the id {repeated[0]!r} stands for several arms")
    rows = {bucket.rows for bucket in record.buckets}
    for index, arm in enumerate(record.arms):
        where = f"arms[{index}]"
        if not 0 <= arm.model < len(record.models):
            _fail(f"{where}.model", f"{arm.model} is no index of models")
        _among(arm.status, _ARM, f"{where}.status")
        _among(arm.tier, _TIERS, f"{where}.tier")
        for name in arm.inputs.values():
            _among(name, signature.input_names, f"{where}.inputs")
        for name in arm.outputs:
            _among(name, signature.output_names, f"{where}.outputs")
        for names in (arm.inputs, arm.outputs):
            if len(set(names.values())) != len(names):
                _fail(f"{where}.{'inputs' if names is arm.inputs else 'outputs'}", "names repeat")
        _check_measurements(arm.buckets, rows, f"{where}.buckets")


def _check_measurements(found: Iterable[Measurement], rows: set[int], where: str) -> None:
    for index, one in enumerate(found):
        if one.rows not in rows:
            _fail(f"{where}[{index}].rows", f"{one.rows} is no bucket")
        _among(one.status, _RAN, f"{where}[{index}].status")


def _check_decision(record: SelectionRecord, signature: Signature) -> None:
    decision = record.decision
    known = {arm.id for arm in record.arms}
    _among(decision.status, _DECISION, "decision.status")
    for index, verdict in enumerate(decision.verdicts):
        _check_verdict(verdict, known, f"decision.verdicts[{index}]")
    for index, confirmation in enumerate(decision.confirmations):
        _among(confirmation.arm, known, f"decision.confirmations[{index}].arm")
    for index, loaded in enumerate(decision.under_load):
        _among(loaded.arm, known, f"decision.under_load[{index}].arm")
    _check_ranges([route.to_rows for route in decision.routes], "decision.routes")
    for index, route in enumerate(decision.routes):
        where = f"decision.routes[{index}]"
        _among(route.arm, known, f"{where}.arm")
        if record.models[record.arm(route.arm).model].path is None:
            _fail(f"{where}.arm", f"the model of {route.arm!r} is not in the record")
        if route.split_rows is not None:
            if route.split_rows < 1:
                _fail(f"{where}.split_rows", f"{route.split_rows} is less than 1")
            if not record.batch_axes or set(record.output_batch_axes) != {*signature.output_names}:
                _fail(f"{where}.split_rows", "an output, or every input, has no rows to split")
    if len(decision.routes) > 1 and not record.batch_axes:
        _fail("decision.routes", "there are several, but no input has rows")


def _check_verdict(verdict: Verdict, known: set[str], where: str) -> None:
    _among(verdict.status, _VERDICT, f"{where}.status")
    if verdict.winner is not None:
        _among(verdict.winner, known, f"{where}.winner")
    for name in (*verdict.ties, *verdict.ranking):
        _among(name, known, where)


def _check_ranges(limits: list[int | None], where: str) -> None:
    """Upper ends of ranges of rows: rising, and only the last is open."""
    last = -1
    for index, limit in enumerate(limits):
        if (limit is None) != (index == len(limits) - 1):
            _fail(f"{where}[{index}].to_rows", "wanted a number in all but the last, null there")
        if limit is not None and limit <= last:
            _fail(f"{where}[{index}].to_rows", f"{limit} is not more than in the one before")
        last = limit if limit is not None else last


def _check_axes(axes: Mapping[str, int], specs: Iterable[TensorSpec], where: str) -> None:
    known = {spec.name: spec for spec in specs}
    for name, axis in axes.items():
        _among(name, known, where)
        shape = known[name].shape
        if axis < 0 or (shape is not None and axis >= len(shape)):
            _fail(f"{where}[{name!r}]", f"{axis} is no axis of {known[name].shape_text}")


def _signature(data: Mapping[str, Any], where: str) -> Signature:
    try:
        return Signature.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRecord(
            f"{where}: it is no signature: {type(error).__name__}: {error}.",
            fix="Write the record again with the software that made it.",
            field=where,
        ) from error


def check_path(path: str, where: str) -> None:
    """Refuses a path that is not plainly inside of the folder that it is relative to."""
    reason = outside(path)
    if reason is None and any(part in ("", ".") for part in path.split("/")):
        reason = "holds an empty part or '.'"
    if reason is not None:
        _fail(where, f"the path {path[:200]!r} {reason}")


def _check_digest(digest: str, where: str) -> None:
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        _fail(where, f"{digest[:80]!r} is no SHA-256")


def _among(value: str, known: Iterable[str], where: str) -> None:
    known = list(known)
    if value not in known:
        shown = ", ".join(sorted(known)[:12]) or "nothing"
        _fail(where, f"{value[:200]!r} is unknown; known are {shown}")


def _fail(where: str, problem: str) -> NoReturn:
    raise InvalidRecord(
        f"{where}: {problem}.",
        fix="The record may be damaged or written by other software; "
        "take it from its origin again.",
        field=where,
    )
