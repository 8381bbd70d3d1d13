"""The report of ``bridge compare`` for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.signature import Signature
from bridge_bench.agreement import Agreement
from bridge_bench.comparison import Arm, Comparison
from bridge_bench.stats import MIN_P99_SAMPLES
from bridge_cli import units
from bridge_cli.render import clean, facts, print_code, print_line, print_table

__all__ = ["load_code", "show"]

_OUTPUTS_SHOWN = 20


def show(found: Comparison, *, inputs: str, signature: str | Signature | None, trust: bool) -> None:
    """Prints who agrees, how fast each is, what failed, and how to load the fastest."""
    names = _short_names([arm.model for arm in found.arms])
    models = list(dict.fromkeys(arm.model for arm in found.arms))
    facts(
        {
            "model" if len(models) == 1 else "models": ", ".join(names[path] for path in models),
            "inputs": inputs,
            "rounds": found.rounds,
            "tolerance": f"{found.tolerance:g}",
        }
    )
    labels = {id(arm): _label(arm, names) for arm in found.arms}
    _show_arms(found, labels)
    _show_outputs(found, labels)
    for arm in found.arms:
        if arm.error is not None:
            print_line()
            print_line(f"{labels[id(arm)]} failed: {arm.error.message}", "red")
            if arm.error.fix:
                print_line(arm.error.fix, indent=2)
    _show_fastest(found, labels, signature, trust=trust)


def load_code(arm: Arm, *, signature: str | Signature | None, trust: bool) -> list[str]:
    """Three lines of Python that load this arm and call it."""
    words = [repr(str(arm.model)), f"backend={arm.backend!r}"]
    if arm.info.get("device") not in (None, "cpu"):
        words.append(f"device={arm.info['device']!r}")
    if arm.info.get("options"):
        words.append(f"options={dict(arm.info['options'])!r}")
    if isinstance(signature, Signature):
        words.append(f"signature=bridge.Signature.from_dict({signature.to_dict()!r})")
    elif signature is not None:
        words.append(f"signature={signature!r}")
    if trust:
        words.append("trust=True")
    return [
        "import bridge",
        f"predictor = bridge.load({', '.join(words)})",
        "outputs = predictor.predict(inputs)",
    ]


def _show_arms(found: Comparison, labels: dict[int, str]) -> None:
    rows = []
    for arm in found.arms:
        if arm.error is not None:
            verdict, needs = "failed", "-"
        elif arm.is_reference:
            verdict, needs = "ref", "-"
        else:
            verdict = "yes" if arm.agrees(found.tolerance) else "NO"
            needs = _needed(arm)
        rows.append(
            (
                labels[id(arm)],
                verdict,
                needs,
                units.duration(arm.load_s),
                units.duration(arm.first_call_s),
                units.size(arm.peak_rss_bytes),
                units.duration(arm.median_s),
                units.duration(arm.p99_s),
                units.ratio(arm.relative),
            )
        )
    columns = (
        _heading(found),
        "agrees",
        "needs",
        "load",
        "first\ncall",
        "peak\nmemory",
        "median",
        "p99",
        "rel.",
    )
    print_table(
        columns,
        rows,
        right=columns[2:],
        styles={"yes": "green", "NO": "bold red", "failed": "bold red"},
    )
    legend = (
        "ref: the reference; needs: the smallest tolerance that would pass; rel.: median relative "
        "to the fastest arm that agrees"
    )
    few = [arm for arm in found.arms if arm.calls and arm.p99_s is None]
    print_line(f"{legend}; p99 takes {MIN_P99_SAMPLES} calls" if few else legend, "dim")


def _needed(arm: Arm) -> str:
    if any(one.problem is not None or one.tolerance is None for one in arm.agreement):
        return "none"
    return f"{max((one.tolerance or 0.0 for one in arm.agreement), default=0.0):.2g}"


def _show_outputs(found: Comparison, labels: dict[int, str]) -> None:
    rows = [
        (arm, one)
        for arm in found.arms
        for one in arm.agreement
        if arm.error is None and not arm.is_reference
    ]
    if not rows:
        return
    left_out = len(rows) - _OUTPUTS_SHOWN
    if left_out > 0:
        rows = sorted(rows, key=lambda row: _badness(row[1]), reverse=True)[:_OUTPUTS_SHOWN]
    print_table(
        (_heading(found), "output", "max abs", "max rel", "cosine", "needs"),
        [
            (
                labels[id(arm)],
                one.output if one.other in (None, one.output) else f"{one.output} = {one.other}",
                one.problem or units.number(one.max_abs),
                units.number(one.max_rel),
                "-" if one.cosine is None else f"{one.cosine:.7f}",
                units.number(one.tolerance),
            )
            for arm, one in rows
        ],
        title="Agreement with the reference, by output",
        right=("max abs", "max rel", "cosine", "needs"),
    )
    if left_out > 0:
        print_line(f"and {left_out} more, no worse than these; --json shows all")


def _badness(one: Agreement) -> tuple[bool, float]:
    return one.problem is not None, one.tolerance or 0.0


def _show_fastest(
    found: Comparison, labels: dict[int, str], signature: str | Signature | None, *, trust: bool
) -> None:
    ran = [arm for arm in found.arms if arm.error is None]
    best = found.fastest
    print_line()
    if not ran:
        print_line("No arm ran.", "bold red")
        return
    if len(ran) == 1:
        print_line("Only one arm ran, so there was nothing to compare it with.", "yellow")
    if best is None:
        print_line("No arm was timed.")
        return
    print_line(
        f"Fastest that agrees: {labels[id(best)]}, {units.duration(best.median_s)} a call. "
        "To load it:",
        "bold green",
    )
    print_code(f"    {line}" for line in load_code(best, signature=signature, trust=trust))


def _heading(found: Comparison) -> str:
    return "backend" if len({arm.model for arm in found.arms}) == 1 else "backend · model"


def _label(arm: Arm, names: dict[Path, str]) -> str:
    if len(names) == 1:
        return arm.backend
    return f"{arm.backend} · {names[arm.model]}"


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path's last parts, as many as it takes to tell them all apart."""
    distinct = list(dict.fromkeys(paths))
    longest = max((len(path.parts) for path in distinct), default=1)
    for count in range(1, longest + 1):
        names = {path: clean("/".join(path.parts[-count:])) for path in distinct}
        if len(set(names.values())) == len(distinct):
            return names
    return {path: clean(path) for path in distinct}
