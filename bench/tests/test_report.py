"""The report: what the page says of a record, whatever the record holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

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

LOOKS = (6, 9, 14, 20, 30, 45)
EVIL = "<script>alert('1')</script>&\"\x00\ud800"

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
        ),
        canary=Canary(
            median_s=5.02e-3,
            times_s=tuple(5e-3 * generator.lognormal(0, 0.012, 45)),
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
