"""The report: what the page says of a record, whatever the record holds."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bridge import recording
from bridge.errors import InvalidRecord
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
    LoadRecord,
    Measurement,
    MetricRecord,
    ModelRecord,
    OutputRecord,
    Protocol,
    Route,
    SelectionRecord,
    Verdict,
)
from bridge_bench.report import calls as calls_file
from bridge_bench.report import page, palette, render, wording
from bridge_bench.report.axis import linear, logarithmic
from bridge_bench.report.ecdf import tail
from bridge_bench.report.markup import clean, document, tag
from bridge_bench.report.plot import shortened, spread
from bridge_bench.units import duration, percent

LOOKS = (6, 9, 14, 20, 30, 45)
EVIL = "</style><script>alert('1')</script>&\"\x1b[2J\u202e\ud800"

# Time per call in µs at 1, 16, 128 and 512 rows, and largest error of the outputs.
ARMS: tuple[tuple[str, tuple[float, ...], float], ...] = (
    ("alpha", (115, 272, 1617, 6939), 2.4e-7),
    ("alpha/execution_mode=parallel,inter_threads=2", (168, 330, 1790, 7010), 2.4e-7),
    ("alpha/arena=false", (118, 279, 1660, 7120), 2.4e-7),
    ("alpha/graph_optimization=extended", (116, 274, 1626, 6951), 2.4e-7),
    ("alpha/graph_optimization=basic", (171, 395, 2010, 7900), 1.2e-7),
    ("alpha/threads=1", (96, 381, 2871, 12810), 2.4e-7),
    ("beta", (210, 353, 1550, 6443), 7.1e-7),
    ("beta/hint=throughput", (205, 349, 1560, 6390), 7.1e-7),
    ("beta/streams=1,threads=1", (190, 470, 2790, 12100), 7.1e-7),
    ("beta/pinning=false", (211, 360, 1590, 6500), 7.1e-7),
    ("gamma", (692, 889, 2534, 7201), 4.8e-7),
    ("gamma/executor=single_threaded", (610, 905, 3900, 13100), 4.8e-7),
    ("gamma/xla=true", (498, 702, 2391, 7020), 5.5e-7),
    ("delta", (458, 951, 3757, 13281), 6.0e-7),
    ("delta/execution=aot", (302, 583, 3034, 11041), 6.3e-7),
)


def sample(
    *, rows: tuple[int, ...] = (1, 16, 128, 512), arms: int = len(ARMS), seed: int = 4
) -> tuple[SelectionRecord, dict[str, npt.NDArray[np.int64]]]:
    """A record as a race would leave it, with the times of all calls, from a simulated clock."""
    generator = np.random.default_rng(seed)
    calls: dict[str, npt.NDArray[np.int64]] = {}
    known = [  # enough arms for any number: copies with a marked name, a bit slower
        (name if turn == 0 else f"{name}#{turn}", tuple(t * (1 + 0.03 * turn) for t in times), err)
        for turn in range(1 + arms // len(ARMS))
        for name, times, err in ARMS
    ][:arms]
    measured: dict[str, list[Measurement]] = {name: [] for name, _, _ in known}
    verdicts = []
    for row in rows:
        base = {name: _time(times, row) for name, times, _ in known}
        ones, verdict = _race(base, row, generator, calls)
        verdicts.append(verdict)
        for name, one in ones.items():
            measured[name].append(one)
    records = [
        _arm(name, tuple(measured[name]), error, is_default=index == 0)
        for index, (name, _, error) in enumerate(known)
    ]
    records.extend(_fallen(rows))
    routes: list[Route] = []
    buckets = []
    for index, verdict in enumerate(verdicts):
        last = index == len(rows) - 1
        to_rows = None if last else int(math.sqrt(rows[index] * rows[index + 1]))
        buckets.append(BucketRecord(rows=rows[index], to_rows=to_rows, weight=1 / len(rows)))
        assert verdict.winner is not None
        if routes and routes[-1].arm == verdict.winner:
            routes.pop()
        routes.append(Route(to_rows=to_rows, arm=verdict.winner))
    names = ", ".join(dict.fromkeys(route.arm for route in routes))
    record = SelectionRecord(
        schema=SCHEMA,
        created="2026-11-24T10:12:31Z",
        bridge_version="0.1.0",
        command=(
            "bridge",
            "select",
            "ranker.onnx",
            "--batch",
            "1,16,128,512",
            "-o",
            "ranker.bridge",
        ),
        seed=seed,
        models=(
            ModelRecord(
                name="ranker.onnx",
                format="onnx",
                path="models/0/ranker.onnx",
                digest="3f" * 32,
                size_bytes=61_203_114,
            ),
            ModelRecord(
                name="saved_model",
                format="saved_model",
                path=None,
                digest="a7" * 32,
                size_bytes=64_003_100,
            ),
        ),
        signature={
            "inputs": [
                {"name": "user_id", "dtype": "int64", "shape": ["n"]},
                {"name": "dense", "dtype": "float32", "shape": ["n", 64]},
            ],
            "outputs": [
                {"name": name, "dtype": "float32", "shape": ["n", 1]}
                for name in ("click", "like", "share")
            ],
        },
        batch_axes={"user_id": 0, "dense": 0},
        output_batch_axes={"click": 0, "like": 0, "share": 0},
        profile={"seed": 0, "highest_id": 9, "values": {"user_id": "zipf:vocab=200000"}},
        limits=Limits(),
        gate=GateRecord(
            tier="half",
            reference="alpha",
            tolerances={
                "strict": {"atol": 1e-5, "rtol": 1e-4, "min_cosine": None},
                "half": {"atol": 1e-2, "rtol": 1e-2, "min_cosine": 0.9999},
            },
            metrics=({"metric": "auc", "max_drop": 0.0005},),
        ),
        protocol=Protocol(),
        machine={
            "architecture": "x86_64",
            "cpu_vendor": "AuthenticAMD",
            "cpu_model": "AMD EPYC 9B45",
            "cpu_flags": ["avx2", "avx512f", "avx512_bf16"],
            "smt": None,
            "usable_cpus": 2,
            "memory_bytes": 25_253_000_000,
            "kernel": "6.1.0",
            "gpus": [],
        },
        versions={"python": "3.11.7", "numpy": "2.3.5", "alpha": "1.32.0", "beta": "2026.4.1"},
        variables={"OMP_NUM_THREADS": "2"},
        buckets=tuple(buckets),
        arms=tuple(records),
        decision=Decision(
            status="decided",
            summary=f"Served by {names}. The default is alpha.",
            verdicts=tuple(verdicts),
            routes=tuple(routes),
            confirmations=(
                Confirmation(
                    rows=rows[0],
                    arm=routes[0].arm,
                    launches=(97e-6, 95e-6, 96.5e-6),
                    ratio=Interval(value=1.19, low=1.15, high=1.22),
                ),
            ),
            under_load=(
                LoadRecord(
                    rows=rows[0],
                    arm=routes[0].arm,
                    scenario="single_stream",
                    issuer="loadgen",
                    status="valid",
                    queries=8120,
                    p50_s=97e-6,
                    p90_s=103e-6,
                    p99_s=121e-6,
                    p99_upper_s=126e-6,
                    sla="met",
                ),
                LoadRecord(
                    rows=rows[0],
                    arm="alpha",
                    scenario="single_stream",
                    issuer="loadgen",
                    status="failed",
                    queries=0,
                    reason="The worker died.",
                ),
            ),
        ),
        canary=Canary(
            median_s=5.02e-3,
            times_s=tuple(map(float, 5e-3 * generator.lognormal(0, 0.012, 45))),
            redone=2,
            is_noisy=False,
        ),
        floor_s=0.31e-6,
        elapsed_s=118.4,
        warnings=("The frequency governor is powersave: times may vary more than needed.",),
    )
    return record, calls


def _time(times: tuple[float, ...], rows: int) -> float:
    known = (1, 16, 128, 512)
    return float(1e-6 * np.exp(np.interp(np.log(rows), np.log(known), np.log(times))))


def _race(
    base: dict[str, float],
    rows: int,
    generator: np.random.Generator,
    calls: dict[str, npt.NDArray[np.int64]],
) -> tuple[dict[str, Measurement], Verdict]:
    """What a race would find where the arms take these times."""
    best = min(base.values())
    winner = min(base, key=lambda name: base[name])
    found = {}
    ties = []
    drift = np.exp(np.cumsum(generator.normal(0, 0.01, LOOKS[-1])))
    for name, time in base.items():
        ratio = time / best
        if ratio > 2:
            look: int | None = 2
        elif ratio > 1.02:
            look = next(look for look in LOOKS if 0.25 / look < ratio - 1 or look == LOOKS[-1])
        else:
            look = None
            ties.append(name)
        blocks = look or 20
        values = time * drift[:blocks] * generator.lognormal(0, 0.01, blocks)
        each = max(3, min(500, int(0.05 / time)))
        tail = generator.pareto(3, (blocks, each)) * 0.02
        times = values[:, None] * (1 + generator.gamma(2, 0.004, (blocks, each)) + tail)
        calls[f"{name}|{rows}"] = (times.ravel() * 1e9).astype(np.int64)
        ordered = np.sort(times, axis=None)
        middle = float(np.median(values))
        spread = 0.03 / math.sqrt(blocks)
        found[name] = Measurement(
            rows=rows,
            status="tied" if look is None else "eliminated",
            reason="" if look is None else f"{100 * (ratio - 1):.1f} % slower at look {look}.",
            look=look,
            slower=None
            if name == winner
            else Interval(value=ratio, low=ratio * (1 - spread), high=ratio * (1 + spread)),
            median_s=middle,
            median_low_s=middle * (1 - spread),
            median_high_s=middle * (1 + spread),
            p90_s=float(ordered[int(0.9 * ordered.size)]),
            p99_s=float(ordered[int(0.99 * ordered.size)]) if ordered.size >= 100 else None,
            p99_upper_s=float(ordered[-1]) if ordered.size >= 299 else None,
            rows_per_s=rows / middle,
            cpu_s=1.7 * middle,
            calls=int(ordered.size),
            blocks=tuple(float(value) for value in values),
            mild_outliers=int(0.04 * ordered.size),
            severe_outliers=int(0.01 * ordered.size),
            first_call_s=8 * time,
            warmup_calls=75,
            is_stable=True,
        )
    ties.remove(winner)
    found[winner] = replace(found[winner], status="tied" if ties else "won")
    default = base[next(iter(base))] / best
    return found, Verdict(
        rows=rows,
        status="tied" if ties else "proven",
        winner=winner,
        ties=tuple(ties),
        regret=0.017 if ties else 0.0,
        default_ratio=Interval(value=default, low=default * 0.99, high=default * 1.01),
        ranking=tuple(sorted(base, key=lambda name: base[name])),
    )


def _arm(
    name: str, buckets: tuple[Measurement, ...], error: float, *, is_default: bool
) -> ArmRecord:
    backend, _, rest = name.partition("/")
    statuses = {one.status for one in buckets}
    status = next(one for one in ("won", "tied", "eliminated") if one in statuses)
    return ArmRecord(
        id=name,
        model=1 if backend == "gamma" else 0,
        backend=backend,
        device="cpu",
        options=dict(pair.split("=") for pair in rest.partition("#")[0].split(",") if pair),
        tier="strict",
        status=status,
        is_default=is_default,
        is_reference=is_default,
        info={"provider": backend.title(), "threads": 2},
        load_s=0.21,
        memory_bytes=214_000_000,
        peak_memory_bytes=281_000_000,
        agreement=()
        if is_default
        else tuple(
            OutputRecord(
                output=output,
                passes=True,
                max_abs=error * scale,
                max_rel=error * 8,
                p99_abs=error * 0.7,
                cosine=1.0,
                excess=error * scale * 2e4,
            )
            for output, scale in (("click", 1.0), ("like", 0.6), ("share", 0.8))
        ),
        buckets=buckets,
    )


def _fallen(rows: tuple[int, ...]) -> list[ArmRecord]:
    """Arms that ended without a chance to win."""

    def fallen(name: str, status: str, **fields: Any) -> ArmRecord:
        backend, _, rest = name.partition("/")
        options = dict(pair.split("=") for pair in rest.split(",") if pair)
        common = {"model": 0, "device": "cpu", "tier": "strict", "options": options}
        return ArmRecord(id=name, backend=backend, status=status, **{**common, **fields})

    missed = OutputRecord(
        output="click",
        passes=False,
        max_abs=0.031,
        max_rel=0.4,
        p99_abs=0.012,
        cosine=0.99991,
        excess=3.1,
    )
    error = {
        "class": "ModelLoadFailed",
        "message": "backend 'delta' could not load ranker.onnx: operator Foo is unknown.",
        "fix": "Convert the model.",
    }
    return [
        fallen(
            "beta/precision=bf16",
            "not_conformant",
            tier="half",
            agreement=(missed,),
            metrics=(
                MetricRecord(
                    metric="auc",
                    output="click",
                    reference=0.7812,
                    value=0.7803,
                    limit=0.7807,
                    passes=False,
                ),
            ),
            reason="Output click misses the gate 3.1 times: off by 0.031 at index (3, 0).",
            load_s=0.4,
            memory_bytes=190_000_000,
        ),
        fallen("delta/execution=compiled", "failed", error=error),
        fallen("delta/threads=64", "crashed", reason="The worker died of signal 11 (SIGSEGV)."),
        fallen("gamma/inter_threads=2", "timed_out", reason="No answer within 60 s."),
        *(
            fallen(
                f"epsilon/streams={number}",
                "skipped",
                rule="not-installed",
                reason="module 'epsilon' is not installed; pip install epsilon",
            )
            for number in range(6)
        ),
        fallen(
            "alpha/io_binding=true",
            "skipped",
            rule="io-binding-on-cpu",
            reason="On a CPU inputs are handed over directly anyway.",
        ),
    ]


class Page(HTMLParser):
    """What a page holds: its tags, balanced, its attributes and its text."""

    VOID = frozenset({"meta", "wbr", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def none_left(record: SelectionRecord) -> SelectionRecord:
    verdicts = tuple(
        Verdict(rows=one.rows, status="none", winner=None, reason="No arm is left.")
        for one in record.decision.verdicts
    )
    return replace(
        record,
        decision=Decision(status="none", summary="All were refused.", verdicts=verdicts),
        arms=tuple(arm for arm in record.arms if not arm.buckets),
        canary=None,
        floor_s=None,
    )


def planned(record: SelectionRecord) -> SelectionRecord:
    return replace(
        record,
        decision=Decision(status="planned", summary="Nothing was measured."),
        buckets=(),
        arms=tuple(
            arm
            if arm.status == "skipped"
            else replace(arm, status="planned", buckets=(), agreement=(), load_s=None)
            for arm in record.arms
        ),
        canary=None,
        floor_s=None,
        elapsed_s=None,
        command=(),
    )


def undecided(record: SelectionRecord) -> SelectionRecord:
    verdicts = tuple(
        replace(one, status="undecided", regret=0.061) for one in record.decision.verdicts
    )
    return replace(record, decision=replace(record.decision, status="undecided", verdicts=verdicts))


def bare(record: SelectionRecord) -> SelectionRecord:
    """Everything that may be empty or ``None`` is."""
    return replace(
        record,
        models=(),
        command=(),
        signature={},
        profile={},
        batch_axes={},
        machine={},
        versions={},
        variables={},
        buckets=(),
        arms=(),
        decision=Decision(status="none", summary=""),
        canary=None,
        floor_s=None,
        elapsed_s=None,
        warnings=(),
    )


def hollow(record: SelectionRecord) -> SelectionRecord:
    """Arms and buckets of which next to nothing is known."""
    return replace(
        record,
        arms=tuple(
            replace(
                arm,
                load_s=None,
                memory_bytes=None,
                agreement=tuple(
                    OutputRecord(output=one.output, passes=False) for one in arm.agreement
                ),
                buckets=tuple(
                    Measurement(rows=one.rows, status="undecided") for one in arm.buckets
                ),
            )
            for arm in record.arms
        ),
        decision=replace(
            record.decision,
            verdicts=tuple(
                replace(one, regret=None, default_ratio=None) for one in record.decision.verdicts
            ),
        ),
    )


KINDS: dict[str, Callable[[SelectionRecord], SelectionRecord]] = {
    "decided": lambda record: record,
    "none": none_left,
    "planned": planned,
    "undecided": undecided,
    "bare": bare,
    "hollow": hollow,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_makes_a_sound_page(kind: str) -> None:
    record, calls = sample()
    for times in (calls, None):
        text = render(KINDS[kind](record), times)
        seen = Page(text)
        assert seen.count("h1") == 1
        assert seen.count("script") == 0
        assert not re.search(r"(?<![\w-])(nan|NaN|None|null|inf|Infinity)(?![\w-])", seen.text)
        policy = next(found for name, found in seen.tags if "http-equiv" in found)
        assert "default-src 'none'" in str(policy["content"])
        for _, attributes in seen.tags:
            assert not {"src", "href", "srcset", "data"} & set(attributes)
            assert not [name for name in attributes if name.startswith("on")]
            for value in attributes.values():
                assert "nan" not in str(value).split()
        assert "url(" not in text
        assert "@import" not in text


def test_a_page_says_what_was_chosen_and_how_sure_that_is() -> None:
    record, calls = sample()
    seen = Page(render(record, calls))
    text = seen.text
    assert "Fastest: 4 arms, by rows per call" in text
    assert "1.20\u00d7" in text
    assert "as fast as the default (1.19\u00d7 to 1.21\u00d7)" in text
    assert "No other arm is more than 1.7 % faster (95 % confidence)." in text
    assert "bridge.load('DIR')" in text
    assert "257 rows or more" in text
    assert "0.3 % of the fastest median" in text
    assert "2 blocks measured again" in text
    assert "signal 11" in text
    assert "pip install epsilon" in text
    assert "bridge select ranker.onnx --batch 1,16,128,512 -o ranker.bridge" in text
    for title in (
        "How much slower is each arm?",
        "Time by rows in a call",
        "The slow calls",
        "How the race went",
        "Error against speed",
        "Under a load generator",
        "The gate: are the answers right?",
        "Machine and versions",
    ):
        assert title in text


def test_drawings_are_named_for_those_who_cannot_see_them() -> None:
    record, calls = sample()
    seen = Page(render(record, calls))
    drawings = [found for name, found in seen.tags if name == "svg" and found.get("role") == "img"]
    assert len(drawings) > 50
    assert all(found["aria-label"] for found in drawings)
    assert "alpha/threads=1: 1.00x" in {found["aria-label"] for found in drawings}


def test_whatever_a_record_says_is_escaped() -> None:
    record, calls = sample(rows=(1, 16))
    renamed = {arm.id: f"{arm.id}{EVIL}" for arm in record.arms}

    def evil(arm: ArmRecord) -> ArmRecord:
        return replace(
            arm,
            id=renamed[arm.id],
            reason=EVIL,
            rule=arm.rule and EVIL,
            error=arm.error and {"class": EVIL, "message": EVIL, "fix": EVIL},
            agreement=tuple(
                replace(one, output=EVIL, passes=False, problem=EVIL) for one in arm.agreement
            ),
            buckets=tuple(replace(one, reason=EVIL) for one in arm.buckets),
        )

    decision = replace(
        record.decision,
        summary=EVIL,
        verdicts=tuple(
            replace(
                one,
                winner=renamed[one.winner or ""],
                ties=tuple(renamed[tie] for tie in one.ties),
                ranking=tuple(renamed[arm] for arm in one.ranking),
                reason=EVIL,
            )
            for one in record.decision.verdicts
        ),
        routes=tuple(replace(one, arm=renamed[one.arm]) for one in record.decision.routes),
    )
    record = replace(
        record,
        models=tuple(replace(one, name=EVIL) for one in record.models),
        command=("bridge", "select", EVIL),
        signature={"inputs": [{"name": EVIL, "dtype": None, "shape": [EVIL, None]}]},
        profile={EVIL: {EVIL: [EVIL, None]}},
        machine={"cpu_model": EVIL, EVIL: EVIL},
        versions={EVIL: EVIL},
        variables={EVIL: EVIL},
        arms=tuple(map(evil, record.arms)),
        decision=decision,
        warnings=(EVIL,),
        attachments={EVIL: EVIL},
    )
    named = {
        f"{renamed[name.partition('|')[0]]}|{name.partition('|')[2]}": times
        for name, times in calls.items()
    }
    text = render(record, named)
    assert "<script" not in text
    assert text.count("</style>") == 1
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )
    text.encode("utf-8")
    seen = Page(text)
    assert seen.count("script") == 0
    assert seen.text.count("alert('1')") > 100


def test_many_arms_and_buckets_stay_a_page_that_opens() -> None:
    record, calls = sample(rows=(1, 4, 16, 64, 256, 1024), arms=48)
    text = render(record, calls)
    assert len(text) < 2_000_000
    assert Page(text).count("details") > 6


def test_one_arm_in_one_bucket() -> None:
    record, calls = sample(rows=(16,), arms=1)
    text = Page(render(record, calls)).text
    assert "Fastest: alpha" in text
    assert "It is the only arm that could be measured." in text


def test_equal_records_make_equal_pages() -> None:
    record, calls = sample()
    assert render(record, calls) == render(*sample())


def test_the_tail_counts_the_calls_that_took_longer() -> None:
    points = tail(np.arange(1, 1001) * 1000, points=40)
    assert points[0] == pytest.approx((1e-6, 1.0))
    assert points[-1] == pytest.approx((1e-3, 1e-3))
    for time, share in points:
        assert share == pytest.approx(1 - (time * 1e6 - 1) / 1000)
    assert [share for _, share in points] == sorted((s for _, s in points), reverse=True)
    assert tail(np.empty(0)) == []
    assert tail(np.array([7])) == [pytest.approx((7e-9, 1.0))]


def test_axes_hold_their_values_and_have_round_ticks() -> None:
    axis = logarithmic([3e-6, 4e-1], duration)
    assert axis.place(3e-6) > 0
    assert axis.place(4e-1) < 1
    assert 2 <= len(axis.ticks) <= 6
    assert axis.place(0) == 0
    assert axis.place(9) == 1
    narrow = logarithmic([1.0, 1.3], str, ticks=7)
    assert narrow.ticks[0] == pytest.approx(1.0)
    assert 3 <= len(narrow.ticks) <= 8
    assert len(logarithmic([], str).ticks) >= 2
    assert len(logarithmic([1.0, 1.7e308], str).ticks) >= 2  # a page has to open all the same
    assert logarithmic([1.0, math.inf, math.nan], str).high < 2
    assert linear(0, 45, str).ticks == (0, 10, 20, 30, 40)
    assert linear(3, 3, str).place(3) == 0.5


def test_labels_do_not_overlap_and_keep_their_order() -> None:
    wanted = [100.0, 101.0, 99.0, 5.0, 300.0]
    placed = spread(wanted, low=6, high=290)
    order = sorted(range(5), key=lambda index: wanted[index])
    heights = [placed[index] for index in order]
    assert all(later - earlier >= 14.99 for earlier, later in pairwise(heights))
    assert heights[0] >= 6
    assert heights[-1] <= 290
    crowded = spread([10.0] * 30, low=0, high=100)
    assert len(set(crowded)) == 30
    assert max(crowded) <= 100.001
    assert shortened("short") == "short"
    assert len(shortened("x" * 90)) == 36


def contrast(one: str, other: str) -> float:
    """Ratio of two colours' luminances, as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_read_in_light_and_dark() -> None:
    style = Path(str(page.__file__)).with_name("page.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part))
        for part in style.split("@media")[:2]
    ]
    for theme in themes:
        for ground in ("ground", "card"):
            for text in ("text", "soft", "good", "bad", "warn", "calm", "link"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for tone in ("good", "bad", "warn", "calm"):
            assert contrast(theme[tone], theme[f"{tone}-tint"]) >= 4.5, tone
        for index in range(palette.LIMIT):
            assert contrast(theme[f"c{index}"], theme["card"]) >= 3, index


def test_markup() -> None:
    evil = document(tag("p", "<b>&", title='"><script>'))
    assert evil == '<!DOCTYPE html>\n<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;</p>\n'
    assert clean("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc?"
    made = tag("p", "a", None, tag("b", "c"), "d", class_="e", data_f=None)
    assert document(made) == '<!DOCTYPE html>\n<p class="e">a<b>c</b>d</p>\n'


def test_wording() -> None:
    record, _ = sample()
    first, second = record.decision.verdicts[:2]
    assert wording.sureness(record, first) == "Every other arm is slower (95 % confidence)."
    assert wording.gain(record, first) == "1.20x as fast as the default (1.19x to 1.21x)."
    assert wording.gain(record, second) == "It is the default."
    level = replace(first, default_ratio=Interval(value=1.004, low=0.99, high=1.02))
    assert "as far as known" in wording.gain(record, level)
    assert wording.tally(record).startswith("26: 1 won, 5 tied")
    assert wording.headline(planned(record)) == "Plan: 19 arms to measure"
    assert wording.headline(none_left(record)) == "No arm may serve this model"
    assert wording.headline(undecided(record)).startswith("Undecided; ahead so far")
    throughput = replace(record, limits=Limits(objective="throughput"))
    assert wording.headline(throughput).startswith("Highest throughput")
    trusted = replace(record, models=tuple(replace(one, trust=True) for one in record.models))
    assert "trust=True" in wording.load_code(trusted, Path("DIR"))[1]
    assert wording.load_code(none_left(record), None) == []
    light = replace(record, limits=Limits(objective="memory"))
    weighed = replace(first, regret=0.0, default_ratio=None, reason="It needs the least memory.")
    assert wording.sureness(light, weighed) == "It needs the least memory."
    tied = replace(weighed, ties=("alpha", "beta"))
    assert wording.ties(light, tied) == "Need about as little: alpha, beta."
    assert wording.ties(record, tied) == "May be as fast: alpha, beta."
    assert re.fullmatch(
        r"It needs \d+\.\d\dx the memory of the default.", wording.gain(light, weighed)
    )
    assert [percent(one) for one in (0.5, 0.017, 0.1, 1e-4, 0, None)] == [
        "50 %", "1.7 %", "10 %", "0.01 %", "0 %", "-",
    ]  # fmt: skip


def write(record: SelectionRecord, content: bytes, folder: Path) -> SelectionRecord:
    """The record, read from a folder with this ``calls.npz``."""
    digest = hashlib.sha256(content).hexdigest()
    record = replace(record, attachments={calls_file.NAME: digest})
    (folder / "record.json").write_text(json.dumps(recording.to_document(record)))
    (folder / calls_file.NAME).write_bytes(content)
    return recording.read(folder)


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(head: str, how: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of one array whose header says this, and no more."""
    length = len(head).to_bytes(2, "little")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as made:
        made.writestr("x.npy", b"\x93NUMPY\x01\x00" + length + head.encode())
    return file.getvalue()


def damaged(archive: bytes) -> bytes:
    """The archive with a first block of a kind that deflate does not have."""
    start = archive.index(b"x.npy") + len("x.npy")
    return archive[:start] + b"\x07" + archive[start + 1 :]


def test_calls_are_read_from_beside_the_record(tmp_path: Path) -> None:
    record, calls = sample(rows=(16,), arms=3)
    assert calls_file.read(record) is None
    found = calls_file.read(write(record, archive(**calls), tmp_path))
    assert found is not None
    assert {name: times.tolist() for name, times in found.items()} == {
        name: times.tolist() for name, times in calls.items()
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive(x=np.array([{}], object)),
        archive(x=np.ones(3)),
        archive(x=np.ones((3, 3), np.int64)),
        archive(**{"alpha|16": np.arange(9)})[:-40],
        zipped("{'descr': '<i8', 'shape': (9, "),
        zipped("{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846975,)}\n"),
        damaged(zipped("x" * 300, zipfile.ZIP_DEFLATED)),
    ],
    ids=["empty", "text", "pickle", "floats", "axes", "truncated", "header", "huge", "deflate"],
)
def test_calls_that_are_none_are_refused(content: bytes, tmp_path: Path) -> None:
    record, _ = sample(rows=(16,), arms=1)
    with pytest.raises(InvalidRecord, match="calls.npz"):
        calls_file.read(write(record, content, tmp_path))
