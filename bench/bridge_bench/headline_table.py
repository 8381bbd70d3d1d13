"""The headline table in Markdown, from what ``bridge_bench.headline`` has kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import OptionError
from bridge_bench.conditions import heading, sentence

__all__ = ["GOALS", "Goal", "render", "table"]

BEGIN, END = "<!-- headline: begin -->", "<!-- headline: end -->"
_NONE = "-"
_PRECISIONS = {"strict": "float32", "half": "bfloat16", "int8": "int8"}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a ratio has to reach.

    Attributes:
        model: Name in the zoo.
        rows: Candidates.
        what: ``latency`` or ``throughput``.
        side: Whose ratio.
        least: The smallest ratio that is good enough.
    """

    model: str
    rows: int
    what: str
    side: str
    least: float

    def verdict(self, ratio: Mapping[str, float]) -> str:
        """``met``, ``missed``, or ``open`` where only more blocks could tell."""
        if ratio["value"] >= self.least:
            return "met"
        return "open" if ratio["high"] >= self.least else "missed"


GOALS = (
    *(
        Goal(model=model, rows=512, what="latency", side=side, least=least)
        for model, side, least in (
            ("ranker", "AUC gate", 3.0),
            ("ranker", "strict, user once", 1.9),
            ("ranker", "strict", 1.2),
            ("cold_dnn", "AUC gate", 2.5),
            ("dual_tower", "AUC gate", 2.0),
        )
    ),
    *(
        Goal(model="ranker", rows=512, what="throughput", side=side, least=least)
        for side, least in (("strict", 1.15), ("strict, user once", 1.5), ("AUC gate", 2.5))
    ),
    *(
        Goal(model=model, rows=1, what="latency", side="AUC gate", least=10.0)
        for model in ("ranker", "cold_dnn", "dual_tower")
    ),
)
"""What is aimed at."""

_TITLES = {
    "ranker": "fine ranking (`ranker`)",
    "cold_dnn": "cold DNN (`cold_dnn`)",
    "dual_tower": "dual tower (`dual_tower`)",
}
# Source: the figures published for the system that this project is modelled on.
_PUBLISHED = {
    "ranker": ("-50 %", "+30 %"),
    "cold_dnn": ("-10 to -20 %", "+20 to +30 %"),
    "dual_tower": ("-10 to -20 %", "+20 to +30 %"),
}


def table(data: Mapping[str, Any]) -> str:
    """The whole of it: conditions, goals, then each model."""
    about = data["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    words = ["`--quick`: fewer blocks and seeded weights"] if data["quick"] else []
    lines = [sentence(about, versions, *words) + ".", ""]
    lines += [*heading(("goal", "candidates", "side", "aimed at", "got", "")), *_goals(data)]
    columns = ("model", "side", "latency", "published", "throughput", "published")
    lines += ["", *heading(columns), *_published(data)]
    for name, model in data["models"].items():
        lines += ["", f"### {_title(name)}", "", *_model(model)]
    return "\n".join(lines)


def render(data: Mapping[str, Any], page: Path) -> None:
    """Puts the table between the two marks of a page.

    Raises:
        OptionError: The page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OptionError(
            f"'{page}' has no place for the table.", fix=f"Put {BEGIN} and {END} into it."
        )
    page.write_text(f"{before}{BEGIN}\n\n{table(data)}\n\n{END}{after}", encoding="utf-8")


def _goals(data: Mapping[str, Any]) -> Iterator[str]:
    for goal in GOALS:
        model = data["models"].get(goal.model)
        if model is None:
            continue
        ratio = _ratio(model, goal)
        cells = [f"{goal.what}, {_title(goal.model)}", str(goal.rows), goal.side]
        cells += [f"≥ {goal.least:g}", _interval(ratio) if ratio else _NONE]
        cells.append(goal.verdict(ratio) if ratio else "not measured")
        yield _line(cells)


def _ratio(model: Mapping[str, Any], goal: Goal) -> Mapping[str, float] | None:
    if goal.what == "throughput":
        found = model.get("throughput")
        entries = found["entries"] if found and found["rows"] == goal.rows else []
    else:
        entries = model.get("rows", {}).get(str(goal.rows), {}).get("entries", [])
    one = next((one for one in entries if one["name"] == goal.side), None)
    is_counted = one is not None and one.get("keeps", True)
    return one.get("ratio") if one is not None and is_counted else None


def _published(data: Mapping[str, Any]) -> Iterator[str]:
    """What select gains at 512 candidates, beside what was published for another system."""
    for name, model in data["models"].items():
        for side in ("strict", "strict, user once", "AUC gate", "AUC gate, user once"):
            ratios = [
                _ratio(model, Goal(model=name, rows=512, what=what, side=side, least=1.0))
                for what in ("latency", "throughput")
            ]
            if ratios == [None, None]:
                continue
            latency, rate = ratios
            published = _PUBLISHED.get(name, (_NONE, _NONE))
            yield _line(
                [
                    _title(name),
                    side,
                    f"{100 * (1 / latency['value'] - 1):+.0f} %" if latency else _NONE,
                    published[0],
                    f"{100 * (rate['value'] - 1):+.0f} %" if rate else _NONE,
                    published[1],
                ]
            )


def _model(model: Mapping[str, Any]) -> Iterator[str]:
    aucs = ", ".join(f"{name} {value:.4f}" for name, value in model["aucs"].items())
    yield f"Weights: {model['weights']}" + (f"; AUC on rows held out: {aucs}." if aucs else ".")
    for name, choice in model.get("choices", {}).items():
        if choice["error"]:
            yield f"Nothing was chosen under '{name}': {choice['error']}"
    yield ""
    rows = list(model.get("rows", {}).values())
    sides = list(dict.fromkeys(one["name"] for row in rows for one in row["entries"]))
    yield from heading(("stock ÷ side", *(str(row["rows"]) for row in rows)))
    for side in sides:
        cells = [side]
        for row in rows:
            one = next((one for one in row["entries"] if one["name"] == side), None)
            cells.append(_NONE if one is None or "ratio" not in one else _interval(one["ratio"]))
        yield _line(cells)
    yield ""
    yield from heading(("candidates", "side", "what", "p50, µs", "p99, µs", "off by"))
    for row in rows:
        for one in row["entries"]:
            cells = [str(row["rows"]), one["name"], f"`{one['what']}`"]
            if one["error"]:
                cells += [f"failed: {one['error']}", _NONE, _NONE]
            else:
                times = (_microseconds(one[name]) for name in ("p50_us", "p99_us"))
                cells += [*times, f"{one['difference']:.1e}"]
            yield _line(cells)
    yield from _throughput(model)
    yield from _auc(model)
    yield from _peaks(model)


def _throughput(model: Mapping[str, Any]) -> Iterator[str]:
    found = model.get("throughput")
    if not found:
        return
    yield ""
    yield (
        f"Throughput at {found['rows']} candidates with a p99 of at most "
        f"{_microseconds(found['limit_us'])} µs:"
    )
    yield ""
    yield from heading(("side", "with", "rows/s", "p99, µs", "side ÷ stock"))
    for one in found["entries"]:
        words = [f"{name}={value}" for name, value in one["options"].items()]
        clients = f"{one['callers']} client{'s' * (one['callers'] > 1)}"
        p99 = _microseconds(one["p99_us"]) + ("" if one["keeps"] else " (too long)")
        cells = [one["name"], f"`{' '.join([one['backend'], *words])}`, {clients}"]
        yield _line([*cells, f"{one['rows_per_s']:.0f}", p99, _interval(one["ratio"])])


def _auc(model: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for name, found in model.get("auc", {}).items():
        if "metrics" not in found:
            lines.append(f"- {name}: {found['error']}")
            continue
        told = ", ".join(
            f"{one['output']} {one['value'] - one['reference']:+.5f} of {one['reference']:.4f}"
            for one in found["metrics"]
        )
        is_kept = all(one["passes"] for one in found["metrics"])
        lines.append(f"- {name}: {told}" + ("" if is_kept else " (**more than is allowed**)"))
    if lines:
        yield ""
        yield "AUC over requests that no selection has seen, against the stock call's:"
        yield ""
        yield from lines


def _peaks(model: Mapping[str, Any]) -> Iterator[str]:
    """How near the choices of the plain model are to what the processors can do."""
    large: dict[str, Mapping[str, Any]] = {}
    for one in model.get("peaks", []):
        rows, inner, columns = one["product"]
        is_large = rows * inner * columns >= 2**29
        if is_large and one["per_s"] > large.get(one["precision"], {"per_s": 0})["per_s"]:
            large[one["precision"]] = one
    if not large:
        return
    yield ""
    told = (
        f"{name} {one['per_s'] / 1e9:.0f} ({one['backend']})" for name, one in sorted(large.items())
    )
    yield f"Matrix products at most, measured, in 10⁹ operations a second: {', '.join(told)}."
    ideal = {name: f"{value:.0f} µs" for name, value in model.get("ideal_us", {}).items()}
    if ideal:
        words = ", ".join(f"{name} {value}" for name, value in sorted(ideal.items()))
        yield f"The model's own products of 512 rows, alone and at their best: {words}."
    yield ""
    columns = ("candidates", "side", "precision", "10⁹ operations/s", "of the peak", "of its own")
    yield from heading(columns)
    for row in model.get("rows", {}).values():
        for side in ("stock", "strict", "AUC gate"):
            one = next((one for one in row["entries"] if one["name"] == side), None)
            if one is None or "p50_us" not in one:
                continue
            per_s = model["operations_per_row"] * row["rows"] / one["p50_us"] * 1e6
            precision = _precision(model, side, one["what"])
            peak = large.get(precision)
            own = model.get("ideal_us", {}).get(precision)
            is_timed = own is not None and row["rows"] == 512
            yield _line(
                [
                    str(row["rows"]),
                    side,
                    precision,
                    f"{per_s / 1e9:.1f}",
                    f"{per_s / peak['per_s']:.0%}" if peak else _NONE,
                    f"{own / one['p50_us']:.0%}" if is_timed else _NONE,
                ]
            )


def _precision(model: Mapping[str, Any], side: str, what: str) -> str:
    tiers = model.get("choices", {}).get(side, {}).get("tiers", {})
    return _PRECISIONS[tiers.get(what.partition(", cut")[0], "strict")]


def _title(model: str) -> str:
    return _TITLES.get(model, f"`{model}`")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _microseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"
