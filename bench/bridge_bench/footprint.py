"""How much memory a large model takes: ``python -m bridge_bench.footprint`` prints it.

A ranker of half a GB is written in each format. A fresh process loads a ranker of 1 KB
first, so that the runtime is there, then the large one, calls it, and loads it once more;
another does the same with the backend's ``native.py``. What counts is by how much the
resident memory of the process has grown, mapped files included: after loading, after one
call, and with the second predictor of the same model.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bridge_zoo
from bridge.backend import Backend
from bridge.check import Arrays
from bridge.errors import BridgeError, MeasureError
from bridge.loading import backends, load, open_model
from bridge.memory import resident_bytes
from bridge_bench import units
from bridge_bench.conditions import conditions, heading, sentence
from bridge_bench.process import SERVE, Process, serve
from bridge_bench.stats import median
from bridge_bench.subject import RANKER_FILES, ZOO_FORMATS, cpu_backends, ranker_signature, takes

__all__ = ["LIMIT", "large", "main", "tiny", "weigh"]

LIMIT = 1.05
SIDES = ("native", "bridge")
SHARED = "shared"  # the bridge with the option by which predictors share weights, if there is one
_SHARING = ("share_weights", "shared")
STEPS = ("loaded_bytes", "called_bytes", "second_bytes")
_IR = "openvino_ir"  # written from the ONNX file; the zoo has no writer for it
_FILES = {**RANKER_FILES, _IR: "ranker.xml"}

_Call = Callable[[Arrays], object]


def tiny() -> bridge_zoo.Ranker:
    """A ranker with some 100 bytes of weights, so that a file of it is about 1 KB."""
    return bridge_zoo.Ranker(
        name="ranker",
        size="tiny",
        id_features=(bridge_zoo.IdFeature("id_00", 4),),
        embedding_width=2,
        dense_width=1,
        expert_count=2,
        expert_widths=(2,),
        tower_widths=(2,),
        tasks=("click",),
    )


def large(weights_bytes: int, size: str = "real") -> bridge_zoo.Ranker:
    """The zoo's ranker of that size with larger tables: so many bytes, or more."""
    real = bridge_zoo.describe("ranker", size)
    assert isinstance(real, bridge_zoo.Ranker)
    sizes = _sizes(real)
    tables = sum(size for name, size in sizes.items() if name.startswith("tables."))
    factor = max(1.0, (weights_bytes - sum(sizes.values()) + tables) / tables)
    features = tuple(
        dataclasses.replace(one, vocabulary=math.ceil(one.vocabulary * factor))
        for one in real.id_features
    )
    return dataclasses.replace(real, size="large", id_features=features)


def write(ranker: bridge_zoo.Ranker, format: str, folder: Path) -> Path:
    """Writes a ranker in one format, unless it is there already; its path."""
    path = folder / _FILES[format]
    if path.exists():
        return path
    if format != _IR:
        bridge_zoo.write(ranker, folder=folder, formats=[ZOO_FORMATS.get(format, format)])
        return path
    import openvino

    source = write(ranker, "onnx", folder)
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)
    return path


def weigh(
    side: str,
    backend: str,
    small: tuple[bridge_zoo.Ranker, Path],
    big: tuple[bridge_zoo.Ranker, Path],
) -> dict[str, int]:
    """Growth of this process, in bytes, at each of ``STEPS``; to be called in a fresh one.

    Args:
        side: ``native``, ``bridge``, or ``shared`` for the bridge with the backend's option by
            which predictors of one model share weights.
        backend: Name of the backend.
        small: A model to load first, with its path.
        big: The model that is weighed, with its path.

    Returns:
        The growth since before the large model, but for the second predictor its own; and
        ``info_bytes``, what the bridge's first predictor says of itself.
    """
    held: list[object] = []  # nothing may be freed meanwhile
    start = {"native": _native, "bridge": _bridge, SHARED: _shared}[side]
    inputs = dict(bridge_zoo.inputs(big[0], 1))
    call, _ = start(backend, *small, held)
    call(dict(bridge_zoo.inputs(small[0], 1)))
    before = _resident()
    call, said = start(backend, *big, held)
    loaded = _resident()
    call(inputs)
    called = _resident()
    call, _ = start(backend, *big, held)
    call(inputs)
    second = _resident()
    return {
        "loaded_bytes": loaded - before,
        "called_bytes": called - before,
        "second_bytes": second - called,
        "info_bytes": said,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status, 1 where the bridge takes more than ``LIMIT``."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_bench.footprint",
        description="Memory of a large ranker through the bridge over that of each runtime alone.",
    )
    parser.add_argument("--backend", action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--format", action="append", choices=_FILES, help="only this one; may be repeated"
    )
    parser.add_argument("--megabytes", type=float, default=512, help="of weights; default: 512")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side; default: 3")
    parser.add_argument("--folder", type=Path, help="where models are written and kept")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--size", default="real", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    weights_bytes = sum(_sizes(large(round(given.megabytes * 1e6), given.size)).values())
    about = {**conditions(), "weights_bytes": weights_bytes, "rounds": given.rounds}
    known = cpu_backends(given.backend or ())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for item in given.format or _FILES:
            takers = [one for one in known if takes(item, one)]
            folder = given.folder or Path(scratch) / item
            request = {
                "format": item,
                "folder": str(folder),
                "megabytes": given.megabytes,
                "size": given.size,
            }
            for backend in takers:
                print(f"weighing {backend.name}, {item} ...", file=sys.stderr, flush=True)
                rows.append(_row(backend, request, given.rounds))
            if given.folder is None:
                shutil.rmtree(folder, ignore_errors=True)  # half a GB each
    print(json.dumps({**about, "rows": rows}, indent=2) if given.json else _table(about, rows))
    return int(not rows or any(row["verdict"] != "met" for row in rows))


def _bridge(
    backend: str,
    ranker: bridge_zoo.Ranker,
    path: Path,
    held: list[object],
    options: Mapping[str, Any] | None = None,
) -> tuple[_Call, int]:
    predictor = load(
        path, backend=backend, signature=_stated(ranker, path), options=dict(options or {})
    )
    held.append(predictor)
    return predictor.predict, predictor.info.resident_bytes or 0


def _shared(
    backend: str, ranker: bridge_zoo.Ranker, path: Path, held: list[object]
) -> tuple[_Call, int]:
    option = _sharing(backends()[backend])
    assert option is not None
    return _bridge(backend, ranker, path, held, {option: True})


def _sharing(backend: Backend) -> str | None:
    names = {one.name for one in backend.options_type.describe()}
    return next((one for one in _SHARING if one in names), None)


def _native(
    backend: str, ranker: bridge_zoo.Ranker, path: Path, held: list[object]
) -> tuple[_Call, int]:
    package = type(backends()[backend]).__module__.rpartition(".")[0]
    model = open_model(path, signature=_stated(ranker, path))
    call, named = importlib.import_module(f"{package}.native").load(model)
    held.append(call)
    return lambda inputs: named(call(inputs)), 0


def _stated(ranker: bridge_zoo.Ranker, path: Path) -> Any:
    return ranker_signature(ranker) if path.name == RANKER_FILES["torchscript"] else None


def _resident() -> int:
    gc.collect()
    found = resident_bytes()
    if found is None:
        raise MeasureError(
            "this system does not tell the resident memory of a process.",
            fix="Weigh models on Linux, whose /proc/self/statm tells it.",
        )
    return found


def _row(backend: Backend, request: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "backend": backend.name,
        "version": backend.probe().version,
        "format": request["format"],
        "verdict": "failed",
        "error": None,
    }
    sides = SIDES if _sharing(backend) is None else (*SIDES, SHARED)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    try:
        with Process(_MODULE) as writer:  # what writing leaves in memory is nobody's
            writer.ask({**request, "do": "write"})
        for _ in range(rounds):
            for side in sides:
                with Process(_MODULE) as process:
                    asked = {**request, "do": "weigh", "side": side, "backend": backend.name}
                    found[side].append(process.ask(asked))
    except BridgeError as error:
        return {**row, "error": f"{type(error).__name__}: {error.message}"}
    for side in sides:
        row[side] = {
            name: round(median([one[name] for one in found[side]])) for name in found[side][0]
        }
    row["ratios"] = {name: row["bridge"][name] / max(1, row["native"][name]) for name in STEPS}
    is_met = max(row["ratios"][name] for name in ("loaded_bytes", "called_bytes")) <= LIMIT
    return {**row, "verdict": "met" if is_met else "missed"}


def _serve() -> int:
    def answer(request: dict[str, Any]) -> Mapping[str, Any]:
        folder, item = Path(request["folder"]), request["format"]
        rankers = (tiny(), large(round(request["megabytes"] * 1e6), request["size"]))
        # A folder that is kept may hold rankers of other sizes.
        homes = [folder / f"{one.size}-{sum(_sizes(one).values())}" for one in rankers]
        if request["do"] == "write":
            for ranker, home in zip(rankers, homes, strict=True):
                home.mkdir(parents=True, exist_ok=True)
                write(ranker, item, home)
            return {}
        small, big = zip(rankers, (home / _FILES[item] for home in homes), strict=True)
        return weigh(request["side"], request["backend"], small, big)

    return serve(answer)


def _table(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    weights = about["weights_bytes"]
    columns = (
        "backend",
        "format",
        "native: loaded, called",
        "bridge: loaded, called",
        "bridge ÷ native",
        "second: native, bridge, sharing",
        f"≤ {LIMIT}",
    )
    lines = [
        sentence(
            about,
            f"{units.size(weights)} of weights",
            f"medians of {about['rounds']} processes; growth in multiples of the weights",
        ),
        "",
        *heading(columns),
    ]
    for row in rows:
        cells = [f"{row['backend']} {row['version']}", row["format"]]
        if row["error"] is not None:
            cells += ["-"] * 4 + [f"{row['verdict']}: {row['error']}"]
        else:
            for side in SIDES:
                cells.append(", ".join(f"{row[side][name] / weights:.2f}" for name in STEPS[:2]))
            cells.append(", ".join(f"{row['ratios'][name]:.3f}" for name in STEPS[:2]))
            second = [row[side][STEPS[2]] / weights for side in (*SIDES, SHARED) if side in row]
            cells.append(", ".join(f"{one:.2f}" for one in second))
            cells.append(row["verdict"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sizes(ranker: bridge_zoo.Ranker) -> dict[str, int]:
    return {name: 4 * math.prod(shape) for name, shape in bridge_zoo.weight_shapes(ranker).items()}


_MODULE = "bridge_bench.footprint"

if __name__ == "__main__":
    sys.exit(_serve() if sys.argv[1:] == [SERVE] else main())
