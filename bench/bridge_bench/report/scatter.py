"""Error against speed: is there a faster arm that would be less exact, and by how much?"""

from __future__ import annotations

import math

from bridge.record import ArmRecord, SelectionRecord
from bridge_bench.report import wording
from bridge_bench.report.axis import Axis, logarithmic
from bridge_bench.report.markup import Element, section, tag
from bridge_bench.report.palette import Look, legend, marker
from bridge_bench.report.plot import frame, label, shortened, spread
from bridge_bench.units import count, number, ratio

__all__ = ["scatter"]

_HEIGHT = 300
_STRIP = 26  # pixels at the top for arms that were refused before they were timed


def scatter(record: SelectionRecord, looks: dict[str, Look]) -> Element | None:
    """The plot; ``None`` where no arm was compared with a reference, or none was timed."""
    errors = {arm.id: error for arm in record.arms if (error := _error(arm)) is not None}
    if not any(arm.agreement for arm in record.arms):
        return None
    arms = {arm.id: arm for arm in record.arms if arm.id in errors}
    speeds = {name: _relative(record, arm) for name, arm in arms.items()}
    if all(speed is None for speed in speeds.values()):
        return None
    above = [error for error in errors.values() if error > 0 and math.isfinite(error)]
    span = logarithmic([1.0, *above], number, margin=2.0, ticks=5)
    x = Axis(
        low=span.low / 3,
        high=span.high * 1.5,
        is_log=True,
        ticks=tuple(value for value in span.ticks),
        text=number,
        title="largest error, as a share of what the gate allows",
    )
    grey = len(errors) - len(set(errors) & set(looks))
    timed = [value for value in speeds.values() if value is not None]
    y = logarithmic([1.0, *timed], ratio, "time relative to the winner", margin=1.1, ticks=6)
    gate = f"{100 * x.place(1.0):.2f}%"
    shown: list[Element] = [
        tag(
            "rect",
            x=gate,
            width=f"{100 * (1 - x.place(1.0)):.2f}%",
            y="0",
            height=_HEIGHT,
            class_="refused",
        ),
        tag("line", x1=gate, x2=gate, y1="0", y2=_HEIGHT, class_="gate"),
        tag("text", "gate", x=gate, y=_HEIGHT, dx="5", dy="-8", class_="tick gate"),
    ]
    spots: list[tuple[str, float, float]] = []
    for name, error in errors.items():
        speed = speeds[name]
        across = x.place(error) if math.isfinite(error) else 1.0
        down = _STRIP / 2 if speed is None else _HEIGHT * (1 - y.place(speed))
        spots.append((name, across, down))
        pace = "not timed" if speed is None else ratio(speed)
        told = f"{name}: error {_told(error)} of the gate, {pace}"
        look = looks.get(name)
        if look is not None:
            shown.append(marker(look, across, down, told))
        else:
            class_ = "grey" if error <= 1 else "missed"
            shown.append(
                tag(
                    "circle",
                    tag("title", told),
                    cx=f"{100 * across:.2f}%",
                    cy=f"{down:.1f}",
                    r="4",
                    class_=class_,
                )
            )
    named = [spot for spot in spots if spot[0] in looks or errors[spot[0]] > 1][:12]
    for (name, _, _), height in zip(
        named, spread([spot[2] for spot in named], low=6, high=_HEIGHT - 6), strict=True
    ):
        text = name if speeds[name] is not None else f"{shortened(name, 24)}, not timed"
        shown.append(label(text, height, looks.get(name)))
    default = next((arm.id for arm in record.arms if arm.is_default), None)
    drawn = {name: look for name, look in looks.items() if name in errors}
    return section(
        "Error against speed",
        tag(
            "div",
            frame(
                x,
                y,
                shown,
                title="Largest error of each arm against its time relative to the winner's",
                height=_HEIGHT,
                class_="labelled",
            ),
            legend(drawn, default, others=grey),
            class_="card",
        ),
        lead="Arms to the right of the gate cannot win, however fast. Those refused before they "
        "were timed are at the top. Speed is the geometric mean over the measured sizes. "
        f"{count(grey, 'other arm')} in grey, those that missed the gate in red.",
    )


def _error(arm: ArmRecord) -> float | None:
    """Worst share of the gate's tolerance; infinite where outputs cannot be compared."""
    if not arm.agreement:
        return 0.0 if arm.is_reference else None
    found = wording.worst_excess(arm)
    return math.inf if found is None else found


def _relative(record: SelectionRecord, arm: ArmRecord) -> float | None:
    """Geometric mean over buckets of its time over the winner's; ``None`` if never timed."""
    logs = []
    winners = {one.rows: one.winner for one in record.decision.verdicts}
    for one in arm.buckets:
        if winners.get(one.rows) == arm.id:
            logs.append(0.0)
        elif one.slower is not None and one.slower.value > 0:
            logs.append(math.log(one.slower.value))
    return math.exp(sum(logs) / len(logs)) if logs else None


def _told(error: float) -> str:
    return number(error) if math.isfinite(error) else "too large to compare"
