"""``bridge bench``: a model or a record under load, and whether it keeps a promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson, Trust
from bridge_cli.profile import (
    BatchDim,
    Dims,
    HighestId,
    InputSpecs,
    Rows,
    Samples,
    Seed,
    Set,
    Shapes,
    SignatureText,
    advise,
    make_profile,
    read_samples,
    read_signature,
    stated_signature,
)
from bridge_cli.quantities import parse_duration_s, parse_sla

if TYPE_CHECKING:
    from bridge.record import SelectionRecord
    from bridge.signature import Signature
    from bridge_bench.load import Latency, LoadResult, Peak
    from bridge_bench.profile import InputProfile

__all__ = ["bench"]

EPILOG = """
\b
Examples:
  bridge bench model.onnx --rows 16
  bridge bench record --scenario server --qps 500 --sla p99=5ms --rows 16
  bridge bench record --sla p99=5ms --rows 16 --find-max-qps

\b
The scenarios are those of MLPerf Inference. In single_stream a call begins when the one
before has ended; multi_stream makes several calls a query; in server queries arrive at
random, at a mean rate, and their latency counts from when they were due, waiting
included; offline has all calls to make at once. A promise is met, or not, if that is
proven with 95 % confidence; else it is undecided, and more queries are needed.

\b
The issuer is MLPerf LoadGen where it is installed and its own cost is at most 2 % of the
median call or of the latency allowed; else the bridge's own.

\b
Exit status: 0 if the run is valid and the promise met, 1 if not (also if undecided, or if
calls failed); others as in 'bridge --help'.
"""


def bench(
    target: Annotated[str, typer.Argument(metavar="MODEL|RECORD", help="What to put under load.")],
    scenario: Annotated[
        str,
        typer.Option(metavar="NAME", help="single_stream, multi_stream, server or offline."),
    ] = "single_stream",
    qps: Annotated[
        float | None, typer.Option(metavar="X", help="Mean queries per second in server.")
    ] = None,
    sla: Annotated[
        str | None, typer.Option(metavar="p99=5ms", help="Promise about the latency of queries.")
    ] = None,
    find_max_qps: Annotated[
        bool,
        typer.Option("--find-max-qps", help="Look for the highest rate that keeps the promise."),
    ] = False,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="How long --find-max-qps may take.")
    ] = "60s",
    duration: Annotated[
        str, typer.Option(metavar="TIME", help="How long to send queries, else.")
    ] = "10s",
    min_queries: Annotated[
        int, typer.Option(min=1, metavar="N", help="Queries to send, at least.")
    ] = 1,
    samples_per_query: Annotated[
        int, typer.Option(min=1, metavar="N", help="Calls of one multi_stream query.")
    ] = 8,
    concurrency: Annotated[
        int, typer.Option(min=1, metavar="N", help="Threads that call, except in single_stream.")
    ] = 1,
    issuer: Annotated[
        str, typer.Option(metavar="NAME", help="Who sends the queries: auto, loadgen or own.")
    ] = "auto",
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Backend; else the format's own, or the record's winners."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Such as cpu or cuda:0.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the backend; arm=ID for an arm of a record. May be repeated.",
        ),
    ] = None,
    signature: SignatureText = None,
    trust: Trust = False,
    input_: InputSpecs = None,
    samples: Samples = None,
    rows: Rows = 1,
    batch_dim: BatchDim = None,
    dim: Dims = None,
    shape: Shapes = None,
    constant: Set = None,
    highest_id: HighestId = None,
    seed: Seed = 0,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="When a run counts as hung.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a model or a record under load: latency, rate, and a promise kept or not."""
    profile = make_profile(
        rows=rows,
        batch_dim=batch_dim,
        dims=dim,
        shapes=shape,
        constants=constant,
        highest_id=highest_id,
        seed=seed,
        inputs=input_,
    )
    declared = read_signature(signature)
    promise = None if sla is None else parse_sla(sla, "--sla")
    duration_s = parse_duration_s(duration, "--duration")
    budget_s = parse_duration_s(budget, "--budget")
    timeout_s = None if timeout is None else parse_duration_s(timeout, "--timeout")
    _check_rate(scenario, qps, promise, find_max_qps=find_max_qps)

    from bridge.errors import BridgeError
    from bridge_bench import load
    from bridge_cli.render import Progress, print_json

    profile = _inputs(profile, target, samples, declared, trust=trust)
    subject: dict[str, Any] = {
        "profile": profile,
        "issuer": issuer,
        "concurrency": concurrency,
        "seed": seed,
        "backend": backend,
        "device": device,
        "options": option,
        "signature": declared,
        "trust": trust,
    }
    peak = None
    try:
        with Progress() as tell:
            if find_max_qps and promise is not None:
                peak = load.find_max_qps(
                    target, promise, budget_s=budget_s, progress=tell, **subject
                )
                result = peak.result
            else:
                result = load.run(
                    target,
                    scenario=scenario,
                    qps=qps,
                    sla=promise,
                    duration_s=duration_s,
                    min_queries=min_queries,
                    samples_per_query=samples_per_query,
                    timeout_s=timeout_s,
                    progress=tell,
                    **subject,
                )
    except BridgeError as error:
        if samples is None:
            advise(error)
        raise
    if as_json:
        print_json({"result": result.to_dict(), "peak": None if peak is None else peak.to_dict()})
    else:
        _show(result, peak)
    if not result.is_good or (peak is not None and peak.max_qps is None):
        raise typer.Exit(exit_codes.FINDING)


def _check_rate(
    scenario: str,
    qps: float | None,
    promise: tuple[float, float] | None,
    *,
    find_max_qps: bool,
) -> None:
    """Refuses options that do not go together, before anything is loaded."""
    if find_max_qps:
        if promise is None:
            raise typer.BadParameter(
                "the promise to keep is missing: add --sla, as in --sla p99=5ms",
                param_hint="--find-max-qps",
            )
        if qps is not None:
            raise typer.BadParameter("it is what --find-max-qps looks for", param_hint="--qps")
        if scenario not in ("single_stream", "server"):  # the former is the default
            raise typer.BadParameter(
                "only server has a rate to look for", param_hint="--find-max-qps"
            )
    elif scenario == "server" and qps is None:
        raise typer.BadParameter(
            "server wants a rate, as in --qps 500, or --find-max-qps", param_hint="--scenario"
        )
    elif scenario != "server" and qps is not None:
        raise typer.BadParameter(
            f"{scenario} has no rate; it is of --scenario server", param_hint="--qps"
        )


def _inputs(
    profile: InputProfile,
    target: str,
    samples: Path | None,
    declared: str | Signature | None,
    *,
    trust: bool,
) -> InputProfile:
    """The profile with samples, and with what the model or the record tells of its inputs."""
    from bridge import recording
    from bridge.loading import open_model
    from bridge.signature import Signature

    if recording.is_record(Path(target)):
        record = recording.read(target)
        stated = Signature.from_dict(dict(record.signature))
        return read_samples(samples, _as_recorded(profile, record), stated)
    profile = profile.informed(open_model(target, signature=declared, trust=trust).facts)
    if samples is None:
        return profile
    return read_samples(samples, profile, stated_signature(target, declared, trust=trust))


def _as_recorded(profile: InputProfile, record: SelectionRecord) -> InputProfile:
    """What the record was measured on, except where an option says otherwise."""
    from bridge_bench.profile import InputProfile

    kept = InputProfile.from_dict({**record.profile, "samples": None})
    return dataclasses.replace(
        profile,
        batch_dim=profile.batch_dim or kept.batch_dim,
        dims={**kept.dims, **profile.dims},
        shapes={**kept.shapes, **profile.shapes},
        constants={**kept.constants, **profile.constants},
        values=(*kept.rules, *profile.rules),
        vocabularies=kept.vocabularies,
        highest_id=kept.highest_id if profile.highest_id is None else profile.highest_id,
    )


def _show(result: LoadResult, peak: Peak | None) -> None:
    from bridge_bench import units
    from bridge_cli.render import facts, print_line, print_table

    info = result.info
    threads = f", {result.concurrency} threads" if result.concurrency > 1 else ""
    rate = "" if result.qps is None else f" at {result.qps:.6g} queries per second"
    by = "MLPerf LoadGen" if result.issuer == "loadgen" else "the bridge's own"
    reason = f" ({result.issuer_reason})" if result.issuer_reason else ""
    shown: dict[str, object] = {
        "target": result.target,
        "backend": f"{info['backend']} on {info['device']}",
        "scenario": f"{result.scenario}{rate}, {_rows(result.rows)} per call{threads}",
        "issuer": f"{by}{reason}",
        "warm-up": f"{result.warmup_calls} calls, median {units.duration(result.median_s)}; "
        f"the first took {units.duration(result.first_call_s)}",
    }
    if result.floor is not None:
        shown["harness"] = (
            f"{units.duration(result.floor.p50_s)} p50, {units.duration(result.floor.p99_s)} p99, "
            f"over a predictor that does nothing ({result.floor.scenario})"
        )
    shown["queries"] = (
        f"{result.queries} in {units.duration(result.elapsed_s)}, {result.achieved_qps:.5g} per "
        f"second; {result.rows_per_s:.5g} rows per second"
    )
    if result.dropped or result.abandoned:
        shown["lost"] = f"{result.dropped} dropped, {result.abandoned} never sent"
    facts(shown)
    lines = [_times(_LATENCY[result.scenario], result.latency)]
    if result.scenario != "single_stream":
        lines.append(_times("one call", result.service))
    if result.lateness is not None:
        lines.append(_times("sent after it was due", result.lateness))
    if result.scenario == "offline":
        del lines[0]  # of one query
    columns = ("time of", "calls", "mean", "p50", "p90", "p99", "p99.9", "max", "p99 at most")
    print_table(columns, lines, right=columns[1:])
    print_line()
    if peak is not None:
        _show_probes(peak)
    for reason in result.reasons:
        print_line(f"{result.status.upper()}: {reason}", "bold red")
    for warning in result.warnings:
        print_line(f"warning: {warning}")
    _show_verdict(result)
    if peak is not None:
        style = "bold green" if peak.status == "found" else "bold"
        print_line(f"{peak.status}: {peak.reason}", style)


_LATENCY = {
    "single_stream": "one call",
    "multi_stream": "one query",
    "server": "one query, waiting included",
    "offline": "the query",
}


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _times(name: str, found: Latency | None) -> tuple[str, ...]:
    from bridge_bench import units

    if found is None:
        return (name, "0", *("-",) * 7)
    times = (
        found.mean_s,
        found.p50_s,
        found.p90_s,
        found.p99_s,
        found.p999_s,
        found.max_s,
        found.p99_upper_s,
    )
    return (name, str(found.count), *(units.duration(one) for one in times))


def _show_probes(peak: Peak) -> None:
    from bridge_bench import units
    from bridge_cli.render import print_line, print_table

    print_table(
        ("queries per second", peak.sla.name, "late", "of", "promise"),
        [
            (
                f"{probe.qps:.5g}",
                units.duration(probe.sla_latency_s),
                probe.late,
                probe.queries,
                _VERDICT[probe.verdict] if probe.keeps_up else "did not keep up",
            )
            for probe in peak.probes
        ],
        title="Rates tried",
        right=("queries per second", peak.sla.name, "late", "of"),
        styles={"met": "green", "not met": "red", "did not keep up": "red"},
    )
    print_line()


_VERDICT = {"met": "met", "not_met": "not met", "undecided": "undecided"}


def _show_verdict(result: LoadResult) -> None:
    from bridge_bench import units
    from bridge_cli.render import print_line

    if result.verdict is None or result.sla is None:
        if result.sla is not None and result.status != "failed":
            print_line("offline has one query: there is no promise to judge.")
        return
    verdict = result.verdict
    promise = f"{result.sla.name} of at most {units.duration(result.sla.latency_s)}"
    best = units.duration(result.sla_latency_s)
    upper = units.duration(result.sla_upper_s)
    share = f"{verdict.late} of {verdict.queries} queries were late"
    if verdict.status == "met":
        text = f"met: {promise}; {best} here, at most {upper} with 95 % confidence ({share})"
    elif verdict.status == "not_met":
        text = f"not met: {promise}; {best} was achieved ({share})"
    else:
        text = (
            f"undecided: {promise}; {best} here ({share}); {verdict.more} more queries, none of "
            "them late, would decide it: give a longer --duration"
        )
    style = {"met": "bold green", "not_met": "bold red"}.get(verdict.status, "bold")
    print_line(text, style)
