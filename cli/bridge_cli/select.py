"""``bridge select``: the fastest arm that computes the right answer, and its record."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson
from bridge_cli.profile import (
    BatchDim,
    Dims,
    HighestId,
    InputSpecs,
    Samples,
    Seed,
    Set,
    Shapes,
    SignatureText,
    make_profile,
    pairs,
    read_samples,
    read_signature,
    stated_signature,
)
from bridge_cli.quantities import parse_duration_s, parse_size_bytes, parse_sla

if TYPE_CHECKING:
    from bridge.record import Limits, SelectionRecord
    from bridge_bench.gate import Gate
    from bridge_bench.request import Request

__all__ = ["select"]

EPILOG = """
\b
Examples:
  bridge select model.onnx -o record
  bridge select model.onnx saved_model/ --batch 1,16,128,512 --sla p99=5ms -o record
  bridge select ranker.onnx --input 'user_*=broadcast' --samples rows.npz --tier half \\
      --metric auc:max_drop=0.0005 --labels clicks.npy -o record
  bridge select model.onnx --dry-run

\b
The reference is the first model on its native backend with default options; an arm
whose outputs are not its outputs, within the gate, cannot win. Arms take turns in short
blocks in random order, each runtime in a process of its own, until no other arm can be
more than 2 % faster (95 %) or the budget ends. Ctrl-C once: finish the block, decide and
write the record; twice: stop. --resume goes on from there.

\b
Exit status: 0 if an arm was chosen; 9 if none passed the gate, 10 if none keeps the
limits, 8 if none ran; others as in 'bridge --help'.
"""


def select(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="The network, in one or several formats."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder to write the record to."),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Rows per call to decide for. [1]")
    ] = None,
    batch_mix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Histogram of real batch sizes: JSON {"16": 900, ...} or lines "rows count".',
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(metavar="WORD", help="p50, p99, throughput, memory or cost.")
    ] = "p50",
    sla: Annotated[
        str | None, typer.Option(metavar="p99=5ms", help="Latency that may not be exceeded.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="2GiB", help="Most memory of what is kept loaded.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, metavar="N", help="Calls in flight at once while measuring.")
    ] = 1,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="Of this machine; for cost.")
    ] = None,
    tier: Annotated[
        str, typer.Option(metavar="WORD", help="Reduced precision let in: strict, half or int8.")
    ] = "strict",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="Such as auc:max_drop=0.0005,output=click. May be repeated."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="DROP", help="What auc may lose, for rules that do not say. [0.0005]"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels of the samples: .npy, or .npz by output."),
    ] = None,
    expected: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Right outputs of the samples, by output."),
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Starting and measuring, such as 30s, 120s, 600s.")
    ] = "120s",
    prepare_budget: Annotated[
        str, typer.Option(metavar="TIME", help="Converting, compiling and building before that.")
    ] = "300s",
    launches: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Fresh processes to confirm the winner in; 0: none."),
    ] = 3,
    under_load: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Also put winner and default under MLPerf LoadGen (SingleStream), each so long.",
        ),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Backend to try. May be repeated.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE", help="Device to try. May be repeated.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="BACKEND.KEY=VALUE", help="Option of all its arms. May be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Arms to try. May be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Arms to leave out.")
    ] = None,
    max_arms: Annotated[int, typer.Option(min=1, metavar="N", help="Most arms to measure.")] = 48,
    routes: Annotated[
        bool,
        typer.Option(
            "--routes/--no-routes",
            help="Convert the first model for backends that take none of the files.",
        ),
    ] = True,
    signature: SignatureText = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="The models may run code of their own.")
    ] = False,
    input_: InputSpecs = None,
    samples: Samples = None,
    batch_dim: BatchDim = None,
    dim: Dims = None,
    shape: Shapes = None,
    constant: Set = None,
    highest_id: HighestId = None,
    seed: Seed = 0,
    output_map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="OUTPUT=OTHER",
            help="An output of the reference, and its name elsewhere. May be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan with its reasons; measure nothing.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on from this record of the same request; written there again without --out.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a record that is there already.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the fastest arm that computes the right answer; leave a record to serve from.

    An arm is one model file on one backend and device with one set of options.
    """
    profile = make_profile(
        rows=1,
        batch_dim=batch_dim,
        dims=dim,
        shapes=shape,
        constants=constant,
        highest_id=highest_id,
        seed=seed,
        inputs=input_,
    )
    limits = _limits(objective, sla, max_memory, concurrency, price_per_hour)
    declared = read_signature(signature)
    names = pairs(output_map, "--map", "output=other")
    budget_s = parse_duration_s(budget, "--budget")
    prepare_budget_s = parse_duration_s(prepare_budget, "--prepare-budget")
    batches = _batches(batch, batch_mix)
    if resume is not None:
        resume = resume.parent if resume.is_file() else resume
        out = out or resume
    if out is not None:
        is_same = resume is not None and out.resolve() == resume.resolve()
        _check_target(out, force=force or is_same)

    from bridge import recording
    from bridge.record import Protocol
    from bridge_bench.request import request
    from bridge_bench.selection import Selection
    from bridge_cli.render import Progress, print_error, print_json
    from bridge_cli.selection_view import show

    if samples is not None:
        stated = stated_signature(models[0], declared, trust=trust)
        profile = read_samples(samples, profile, stated)
    asked: Request = request(
        models,
        batches=batches,
        profile=profile,
        limits=limits,
        gate=_gate(tier, metric, max_drop),
        protocol=Protocol(budget_s=budget_s, prepare_budget_s=prepare_budget_s),
        backends=backend or None,
        devices=device or None,
        options=_options(option),
        only=only or (),
        skip=skip or (),
        max_arms=max_arms,
        routes=routes,
        signature=declared,
        trust=trust,
        output_map=names,
        labels=None if labels is None else _arrays(labels, "--labels"),
        expected=None if expected is None else _arrays(expected, "--expected"),
        launches=launches,
        under_load_s=0.0 if under_load is None else parse_duration_s(under_load, "--under-load"),
        seed=seed,
        command=("bridge", *sys.argv[1:]),
    )
    earlier = None if resume is None else recording.read(resume)
    failure: Any = None
    with _stopping() as stop, Progress() as tell:
        selection = Selection(asked, stop=stop, tell=tell, resume=earlier)
        record = selection.plan() if dry_run else selection.run()
        if out is not None and not dry_run:
            from bridge.errors import BridgeError

            try:
                record = selection.write(out)
            except BridgeError as error:  # what was measured is shown all the same
                failure = error
    if as_json:
        print_json(recording.to_document(record))
    else:
        show(record, out if failure is None and not dry_run else None)
    if failure is not None:
        print_error(failure)
        raise typer.Exit(exit_codes.of(failure))
    if not dry_run:
        _exit(record)


def _exit(record: SelectionRecord) -> None:
    if record.decision.status == "interrupted":
        raise typer.Exit(exit_codes.INTERRUPTED)
    if record.decision.routes:
        return
    statuses = {one.status for one in record.arms}
    statuses |= {bucket.status for one in record.arms for bucket in one.buckets}
    if "infeasible" in statuses:
        raise typer.Exit(exit_codes.OVER_LIMIT)
    if "not_conformant" in statuses:
        raise typer.Exit(exit_codes.NOT_CONFORMANT)
    raise typer.Exit(exit_codes.NOTHING_RAN)


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one raises ``KeyboardInterrupt`` as usual."""
    pressed: list[int] = []

    def first(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print: the signal may have come in the middle of one, which cannot be entered twice.
        text = "finishing the block, then deciding with what there is; Ctrl-C again to stop"
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"\n{text}\n".encode())

    before = signal.signal(signal.SIGINT, first)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _limits(
    objective: str,
    sla: str | None,
    max_memory: str | None,
    concurrency: int,
    price_per_hour: float | None,
) -> Limits:
    from bridge.record import Limits

    words = ("p50", "p99", "throughput", "memory", "cost")
    if objective not in words:
        raise typer.BadParameter(
            f"{objective!r} is none of {', '.join(words)}", param_hint="--objective"
        )
    if (objective == "cost") != (price_per_hour is not None):
        raise typer.BadParameter(
            "cost and --price-per-hour belong together", param_hint="--objective"
        )
    percentile, limit_s = (None, None) if sla is None else parse_sla(sla, "--sla")
    return Limits(
        objective=objective,
        sla_percentile=percentile,
        sla_s=limit_s,
        max_memory_bytes=None
        if max_memory is None
        else parse_size_bytes(max_memory, "--max-memory"),
        concurrency=concurrency,
        price_per_hour=price_per_hour,
    )


def _gate(tier: str, metrics: Sequence[str] | None, max_drop: float | None) -> Gate:
    from bridge_bench.gate import TIERS, Gate
    from bridge_bench.metrics import MetricRule

    if tier not in TIERS:
        raise typer.BadParameter(f"{tier!r} is none of {', '.join(TIERS)}", param_hint="--tier")
    asked = [text.strip() for text in metrics or ()]
    if max_drop is not None and not any(text.partition(":")[0] == "auc" for text in asked):
        raise typer.BadParameter(
            "it is for --metric auc, which is not given", param_hint="--max-drop"
        )
    defaults = {} if max_drop is None else {"max_drop": max_drop}
    return Gate(tier=tier, metrics=tuple(MetricRule.parse(text, **defaults) for text in asked))


def _batches(batch: str | None, mix: Path | None) -> Sequence[int] | Mapping[int, float]:
    if batch is not None and mix is not None:
        raise typer.BadParameter("give --batch or --batch-mix, not both", param_hint="--batch")
    if mix is not None:
        return _histogram(mix)
    texts = [text.strip() for text in (batch or "1").split(",")]
    if not all(text.isdecimal() and int(text) for text in texts):
        raise typer.BadParameter(
            f"{batch!r} is no list of sizes; wanted for example 1,16,128", param_hint="--batch"
        )
    return [int(text) for text in texts]


def _histogram(path: Path) -> dict[int, float]:
    """Rows -> count, from JSON or from lines of two numbers."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            found = {int(rows): float(count) for rows, count in json.loads(text).items()}
        else:
            lines = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
            found = {int(rows): float(count) for rows, count in lines}
    except (OSError, ValueError) as error:
        raise typer.BadParameter(
            f"'{path}' is no histogram ({error}); wanted JSON {{\"16\": 900}} or lines '16 900'",
            param_hint="--batch-mix",
        ) from error
    is_sound = all(rows > 0 and 0 <= count < float("inf") for rows, count in found.items())
    if not found or not is_sound or not any(found.values()):
        raise typer.BadParameter(
            f"'{path}' has no calls, or a size or count below 1", param_hint="--batch-mix"
        )
    return found


def _options(texts: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for text in texts or ():
        name, dot, rest = text.partition(".")
        key, sign, value = rest.partition("=")
        if not (dot and name and sign and key):
            raise typer.BadParameter(
                f"{text!r} is not of the form openvino.threads=2", param_hint="--option"
            )
        found.setdefault(name, {})[key.strip()] = value.strip()
    return found


def _arrays(path: Path, option: str) -> dict[str, Any]:
    """Arrays of a ``.npz`` by name, or of a ``.npy`` under the name ``""``."""
    import zipfile

    import numpy as np

    try:
        with path.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"": found}
            with found:
                return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise typer.BadParameter(
            f"'{path}' cannot be read as .npy or .npz: {error}", param_hint=option
        ) from error


def _check_target(out: Path, *, force: bool) -> None:
    """Refuses a bad target before minutes are spent on measuring."""
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"'{out}' is a file", param_hint="--out")
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder '{out.parent}'", param_hint="--out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / "record.json").is_file():
            raise typer.BadParameter(
                f"'{out}' holds other things than a record", param_hint="--out"
            )
        if not force:
            raise typer.BadParameter(
                f"'{out}' holds a record already; add --force to replace it", param_hint="--out"
            )
