"""What was measured, where and how: model, inputs, machine, versions, protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.record import SelectionRecord
from bridge_bench.report import wording
from bridge_bench.report.markup import Element, facts, folded, section, tag
from bridge_bench.units import count, duration, percent, size

__all__ = ["environment", "models", "protocol"]

_FLOOR_LIMIT = 0.02
"""Share of the fastest median above which the harness itself counts.

Source: shared practice with LoadGen's null SUT, as ``docs/selection.md`` says.
"""


def models(record: SelectionRecord) -> Element:
    """The model files, the inputs they got, and the signature."""
    parts = []
    for index, model in enumerate(record.models):
        told = {
            "format": model.format,
            "size": size(model.size_bytes),
            "SHA-256": model.digest,
            "signature": model.signature_key or "",
            "in the record": model.path or "not copied: nothing that serves needs it",
        }
        title = model.name if len(record.models) == 1 else f"{index}: {model.name}"
        parts += [tag("h3", tag("code", title)), facts(told)]
    shape = {
        "inputs": _tensors(record.signature.get("inputs")),
        "outputs": _tensors(record.signature.get("outputs")),
    }
    profile = {
        key.replace("_", " "): _listed(value)
        for key, value in record.profile.items()
        if value not in (None, {}, [], ())
    }
    return section(
        "Model and inputs",
        *parts,
        tag("h3", "Signature"),
        facts(shape, class_="wide"),
        tag("h3", "Inputs that were made") if profile else None,
        facts(profile, class_="wide") if profile else None,
    )


def environment(record: SelectionRecord) -> Element:
    """The machine, versions and variables."""
    machine = dict(_flat(record.machine))
    return section(
        "Machine and versions",
        facts(machine) if machine else tag("p", "The machine was not recorded."),
        tag("h3", "Versions"),
        facts(record.versions),
        tag("h3", "Environment variables that matter"),
        facts({name: text or "(empty)" for name, text in record.variables.items()})
        if record.variables
        else tag("p", "None was set."),
    )


def protocol(record: SelectionRecord) -> Element:
    """The numbers of the measurement, and what the harness itself cost."""
    used = record.protocol
    blocks = [len(one.blocks) for arm in record.arms for one in arm.buckets]
    calls = sum(one.calls for arm in record.arms for one in arm.buckets)
    told = {
        "harness floor": floor(record),
        "canary": wording.canary(record),
        "calls timed": f"{calls:,}" if calls else "none",
        "blocks": str(max(blocks, default=0)),
        "arms count as equal within": percent(used.epsilon),
        "chance of a wrong elimination": f"at most {percent(used.delta)} in each bucket",
        "looks, after blocks": ", ".join(map(str, used.looks)),
        "out after two blocks": f"more than {used.cut_ratio:g} times slower than the best",
        "a slice": f"{duration(used.slice_s)}, {used.min_calls} to {used.max_calls} calls",
        "thrown away after a switch": count(used.discarded_calls, "call"),
        "different inputs in turn": str(used.variants),
        "bootstrap": f"{used.bootstrap:,} resamples of blocks",
        "patience": f"{duration(used.load_timeout_s)} to load, {duration(used.call_timeout_s)} "
        "for a call",
        "budget": f"{duration(used.budget_s)}, and {duration(used.prepare_budget_s)} to prepare",
        "seed": str(record.seed),
    }
    return section(
        "How it was measured",
        facts(told),
        folded(
            "Files of the record, with their SHA-256",
            facts(record.attachments),
        )
        if record.attachments
        else None,
    )


def floor(record: SelectionRecord) -> str:
    """Time of the loop around a call, as a share of the fastest median."""
    if record.floor_s is None:
        return "not measured"
    told = f"{duration(record.floor_s)} a call"
    medians = [
        one.median_s
        for arm in record.arms
        for one in arm.buckets
        if one.median_s is not None and one.median_s > 0
    ]
    if not medians:
        return told
    share = record.floor_s / min(medians)
    told += f", {percent(share)} of the fastest median"
    return f"{told}: too much to compare arms this fast" if share > _FLOOR_LIMIT else told


def _tensors(found: object) -> str:
    """Tensors as text; whatever does not look like some is shown as it stands."""
    if not isinstance(found, (list, tuple)):
        return "" if found is None else str(found)
    texts = []
    for one in found:
        if not isinstance(one, Mapping):
            texts.append(str(one))
            continue
        shape = one.get("shape")
        dims = (
            "?" if shape is None else ", ".join("?" if dim is None else str(dim) for dim in shape)
        )
        texts.append(f"{one.get('name')}: {one.get('dtype') or 'any'} ({dims})")
    shown = texts[:40]
    if len(texts) > len(shown):
        shown.append(f"and {len(texts) - len(shown)} more")
    return "; ".join(shown)


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a nested document; what is empty or unknown is left out."""
    for key, value in found.items():
        # Names further in, such as those of tensors, are shown as they are written.
        name = f"{above}{key}" if above else key.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            if value:
                yield name, ", ".join(_text(one) for one in value)
        elif value is not None:
            is_size = key.endswith("_bytes") and isinstance(value, int)
            yield name, size(value) if is_size else _text(value)


def _listed(value: object) -> str:
    """A value of the profile; for values by tensor, all of them in a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return _text(value)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(one)}" for key, one in value.items())
    return str(value)
