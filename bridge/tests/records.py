"""A hand-made selection record over tiny models, for the tests of the core."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bridge
from bridge import machine, recording
from bridge.record import (
    SCHEMA,
    ArmRecord,
    BucketRecord,
    Canary,
    Confirmation,
    Decision,
    GateRecord,
    Interval,
    Limits,
    Measurement,
    MetricRecord,
    ModelRecord,
    OutputRecord,
    Protocol,
    Route,
    SelectionRecord,
    Verdict,
)

_fingerprint = functools.cache(machine.fingerprint)


def model_record(model: bridge.ModelRef, index: int = 0, **more: Any) -> ModelRecord:
    path, _ = recording.model_files(model, index)
    return ModelRecord(
        name=model.name,
        format=model.format.name,
        path=path,
        digest=model.digest or "",
        size_bytes=model.size_bytes,
        **more,
    )


def arm_record(id: str, **more: Any) -> ArmRecord:
    fields: dict[str, Any] = {
        "model": 0,
        "backend": "tiny",
        "device": "cpu",
        "options": {},
        "tier": "strict",
        "status": "eliminated",
    }
    return ArmRecord(id=id, **{**fields, **more})


def make_record(
    models: Sequence[bridge.ModelRef],
    arms: Sequence[ArmRecord],
    routes: Sequence[Route],
    signature: bridge.Signature,
    **more: Any,
) -> SelectionRecord:
    """A record with a bucket for each route; every field has a value somewhere."""
    limits = [route.to_rows for route in routes]
    sizes = [rows if rows is not None else 512 for rows in limits]
    buckets = tuple(
        BucketRecord(rows=size, to_rows=limit, weight=1 / len(routes))
        for size, limit in zip(sizes, limits, strict=True)
    )
    half = Interval(value=1.5, low=1.4, high=1.6)
    ran = tuple(
        Measurement(
            rows=size,
            status="eliminated",
            reason="50 % slower.",
            look=6,
            slower=half,
            median_s=0.001,
            median_low_s=0.0009,
            median_high_s=0.0011,
            calls=300,
            blocks=(0.001, None, 0.0012),
            is_stable=True,
        )
        for size in sizes
    )
    gate = OutputRecord(output=signature.output_names[0], passes=True, max_abs=0.0, excess=0.0)
    metric = MetricRecord(
        metric="auc",
        output=signature.output_names[0],
        reference=0.8,
        value=0.8,
        limit=0.7995,
        passes=True,
    )
    measured = tuple(
        dataclasses.replace(arm, buckets=ran, agreement=(gate,), metrics=(metric,)) for arm in arms
    )
    ids = tuple(arm.id for arm in arms)
    axes = signature.batch_axes()
    verdicts = tuple(
        Verdict(
            rows=size,
            status="proven",
            winner=route.arm,
            regret=0.0,
            default_ratio=half,
            ranking=(route.arm, *(one for one in ids if one != route.arm)),
            reason="Every other arm is slower.",
        )
        for size, route in zip(sizes, routes, strict=True)
    )
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "created": "2026-01-02T03:04:05Z",
        "bridge_version": bridge.__version__,
        "command": ("bridge", "select", models[0].name),
        "seed": 7,
        "models": tuple(model_record(model, index) for index, model in enumerate(models)),
        "signature": signature.to_dict(),
        "batch_axes": axes,
        "output_batch_axes": {spec.name: 0 for spec in signature.outputs},
        "profile": {"seed": 7, "dims": {}},
        "limits": Limits(sla_percentile=0.99, sla_s=0.005),
        "gate": GateRecord(
            tier="strict",
            reference=ids[0],
            tolerances={"strict": {"atol": 1e-5, "rtol": 1e-4, "min_cosine": None}},
            metrics=({"metric": "auc", "max_drop": 0.0005},),
        ),
        "protocol": Protocol(),
        "machine": _fingerprint(),
        "versions": machine.versions({arm.backend for arm in arms}),
        "variables": machine.variables(),
        "buckets": buckets,
        "arms": measured,
        "canary": Canary(median_s=0.005, times_s=(0.005, 0.0051), redone=1, is_noisy=False),
        "floor_s": 1e-7,
        "elapsed_s": 20.5,
        "warnings": ("Noisy.",),
        "decision": Decision(
            status="decided",
            summary="One is faster.",
            verdicts=verdicts,
            routes=tuple(routes),
            confirmations=(Confirmation(rows=sizes[0], arm=ids[0], launches=(0.1,), ratio=half),),
        ),
    }
    return SelectionRecord(**{**fields, **more})


def write_record(
    record: SelectionRecord,
    models: Sequence[bridge.ModelRef],
    folder: Path,
    attachments: Mapping[str, bytes] | None = None,
) -> Path:
    files: dict[str, Path | bytes] = {}
    for index, model in enumerate(models):
        if record.models[index].path is not None:
            files.update(recording.model_files(model, index)[1])
    return recording.write(record, folder, files=files, attachments=attachments)
