"""What runs on the GPU of this machine: ``make gpu-check``.

The tests marked ``gpu`` of every backend that sees a GPU here and those that all backends
have in common, and a short benchmark of each, with whatever this Python has. The outcome
goes to ``docs/verified-hardware.json`` and from there to ``docs/verified-hardware.md``; a
later run of the same GPU, driver and versions takes the place of the earlier one. Nothing
is fetched and nothing installed: a checkout that is not installed is given entry points
for the time of the check, and packages that are missing can be brought as wheels
(``--wheels FOLDER``).

On a machine without a GPU, or where no runtime of this Python can use the one there is,
one sentence says so, nothing is written, and the exit status is 1.
"""

# At module level the standard library alone: what is missing has to be found first.
from __future__ import annotations

import argparse
import ast
import configparser
import datetime as dt
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

__all__ = ["gpu_tests", "main", "page", "replaced"]

CHECKOUT = Path(__file__).resolve().parents[2]
RECORD = Path("docs/verified-hardware.json")
PAGE = Path("docs/verified-hardware.md")
SOURCES = (".", "backends", "cli", "conformance", "bench")
# Stands beside the backends for the tests that they have in common.
ALL = "all backends"
NEEDED = ("numpy", "pluggy", "pytest")
TESTS_LIMIT_S = 900
FIGURES_LIMIT_S = 400
# Not the project's own settings: they need plugins that a Python found somewhere may lack.
_INI = """[pytest]
addopts = --import-mode=importlib --strict-markers -p no:cacheprovider
markers =
    gpu: needs a CUDA device
    checkout: about the checkout itself
    fresh: installs into an environment of its own
"""


class _Impossible(Exception):
    """Why nothing can be checked here, one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, and writes the page; the exit status.

    0 if tests passed and none failed, 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m bridge_bench.hardware", description=__doc__)
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what is missing here")
    parser.add_argument("--render", action="store_true", help="only write the page anew")
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.ask:
        print(json.dumps(_backends()))
        return 0
    if given.render:
        _write(CHECKOUT, _read(CHECKOUT)["runs"])
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            run = _checked(Path(folder), given.wheels)
    except _Impossible as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    _write(CHECKOUT, replaced(_read(CHECKOUT)["runs"], run))
    outcomes = [one["tests"] for one in run["backends"].values() if one.get("tests")]
    for name, one in run["backends"].items():
        print(f"{name}: {_outcome(one)}")
    print(f"written: {PAGE}")
    is_bad = any(one["failed"] or one["problem"] for one in outcomes)
    return int(is_bad or not any(one["passed"] for one in outcomes))


def _checked(folder: Path, wheels: Path | None) -> dict[str, Any]:
    gpus = _gpus()
    if not gpus:
        raise _Impossible("this machine has no NVIDIA GPU, so nothing was run and nothing written.")
    environment = _environment(folder, wheels)
    asked = _child(["-m", "bridge_bench.hardware", "--ask"], environment, limit_s=300)
    found = _told(asked)
    if found is None:
        raise _Impossible(
            "asking the backends for their devices ended with exit status "
            f"{asked.returncode}, so nothing was run and nothing written."
        )
    usable = {name: one for name, one in found.items() if one["devices"]}
    if not usable:
        reasons = "; ".join(f"{name}: {one['reason']}" for name, one in found.items())
        raise _Impossible(
            f"no runtime of this Python can use the GPU ({gpus[0]['name']}), so nothing was run "
            f"and nothing written: {reasons}."
        )
    for name, one in usable.items():
        print(f"gpu-check: testing {name} ...", file=sys.stderr, flush=True)
        one["tests"] = _tested(name, folder, environment)
        print(f"gpu-check: measuring {name} ...", file=sys.stderr, flush=True)
        one["figures"] = _measured(name, environment)
    print(f"gpu-check: testing {ALL} ...", file=sys.stderr, flush=True)
    found[ALL] = {"version": None, "reason": None, "tests": _tested(ALL, folder, environment)}
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _commit(),
        "gpus": gpus,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "backends": found,
    }


def _gpus() -> list[dict[str, str | None]]:
    """Name and driver of each GPU, as the driver's own program or its files tell."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = _ended(query, limit_s=60)
        rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
        if done.returncode == 0 and rows:
            return [{"name": name.strip(), "driver": driver.strip()} for name, driver in rows]
    root = Path("/proc/driver/nvidia")
    texts = [
        one.read_text(encoding="utf-8", errors="replace")
        for one in sorted(root.glob("gpus/*/information"))
    ]
    version = root / "version"
    told = version.read_text(encoding="utf-8", errors="replace") if version.is_file() else ""
    driver = re.search(r"Kernel Module\D*([\d.]+)", told)
    return [
        {
            "name": found[1].strip() if (found := re.search(r"Model:\s*(.+)", text)) else "a GPU",
            "driver": driver[1] if driver else None,
        }
        for text in texts
    ]


def _environment(folder: Path, wheels: Path | None) -> dict[str, str]:
    """Variables for children that import the checkout, its plugins and what the wheels hold."""
    paths = [str((CHECKOUT / one).resolve()) for one in SOURCES]
    if wheels is not None:
        site = folder / "site"
        files = [str(one) for one in sorted(wheels.glob("*.whl"))]
        if not files:
            raise _Impossible(f"there are no wheels in '{wheels}', so nothing was run.")
        flags = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        done = subprocess.run([*pip, *flags, *files], check=False)
        if done.returncode != 0:
            raise _Impossible(f"the wheels in '{wheels}' cannot be installed, so nothing was run.")
        paths.append(str(site))
        sys.path.append(str(site))
        importlib.invalidate_caches()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _Impossible(
            f"{sys.executable} lacks {', '.join(missing)}, so nothing was run: bring them as "
            "wheels in a folder and name it with WHEELS=FOLDER."
        )
    try:
        importlib.metadata.version("inference-bridge")
    except importlib.metadata.PackageNotFoundError:
        paths.insert(0, str(_registered(folder / "registered")))
    before = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*paths, *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": joined, "BRIDGE_TEST_GPU": "1"}


def _registered(folder: Path) -> Path:
    """A folder that, on the path, has the checkout's plugins found as if it were installed."""
    about = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    home.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    (home / "METADATA").write_text(head, encoding="utf-8")
    points = configparser.ConfigParser()
    points["bridge"] = about["entry-points"]["bridge"]
    with (home / "entry_points.txt").open("w", encoding="utf-8") as stream:
        points.write(stream)
    return folder


def _child(
    arguments: Sequence[str], environment: Mapping[str, str], *, limit_s: int
) -> subprocess.CompletedProcess[str]:
    """A process of this Python; see ``_ended``."""
    return _ended([sys.executable, *arguments], limit_s=limit_s, environment=environment)


def _ended(
    command: Sequence[str], *, limit_s: int, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A process that has ended; a late one is killed and has exit status 124."""
    try:
        return subprocess.run(
            command,
            env=None if environment is None else dict(environment),
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        # Bytes, whatever text=True says.
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        return subprocess.CompletedProcess(command, 124, said)


def _told(done: subprocess.CompletedProcess[str]) -> dict[str, Any] | None:
    """The last line of JSON that a process has printed, if it ended well.

    Runtimes may print other lines, even after it.
    """
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        return None
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _backends() -> dict[str, Any]:
    """Every backend for GPUs: its version, the GPUs that it sees, or why it sees none."""
    from bridge.errors import BridgeError
    from bridge.loading import backends

    found: dict[str, Any] = {}
    for name, backend in sorted(backends().items()):
        if "cuda" not in backend.device_kinds:
            continue
        about = backend.probe()
        devices: list[str] = []
        reason = about.reason
        if about.installed:
            try:
                devices = [str(one) for one in backend.devices() if one.kind == "cuda"]
            except (BridgeError, ImportError, OSError, RuntimeError) as error:
                reason = f"it cannot be asked for its devices: {error}"
            else:
                reason = None if devices else f"version {about.version} sees no CUDA device"
        found[name] = {
            "version": about.version,
            "distribution": about.distribution,
            "devices": devices,
            "reason": reason,
        }
    return found


def _tested(name: str, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Outcomes of the tests marked ``gpu`` of a backend, or of ``ALL``."""
    outcome: dict[str, Any] = {"passed": [], "failed": [], "skipped": [], "problem": None}
    files = [str(path) for path in _test_files(CHECKOUT) if _backend_of(path) == name]
    if not files:
        return {**outcome, "problem": "it has no tests here"}
    settings, report = folder / "pytest.ini", folder / f"{name}.xml"
    settings.write_text(_INI, encoding="utf-8")
    flags = ["-c", str(settings), f"--rootdir={CHECKOUT}", "-m", "gpu", "-q", "--tb=short"]
    flags += [f"--junitxml={report}", "-o", "junit_family=xunit2"]
    done = _child(["-m", "pytest", *flags, *files], environment, limit_s=TESTS_LIMIT_S)
    print(done.stdout, file=sys.stderr, flush=True)
    if done.returncode not in (0, 1, 5):  # passed, failed, no test there
        outcome["problem"] = f"pytest ended with exit status {done.returncode}"
    if report.is_file():
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
            kinds = {child.tag for child in case}
            word = "failed" if kinds & {"failure", "error"} else "passed"
            outcome["skipped" if "skipped" in kinds else word].append(case.get("name") or "?")
    return outcome


def _measured(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The figures of a backend, or what kept them from being measured."""
    command = ["-m", "bridge_bench.figures", name]
    done = _child(command, environment, limit_s=FIGURES_LIMIT_S)
    found = _told(done)
    if found is None:
        return {"problem": f"measuring ended with exit status {done.returncode}", "rows": []}
    return found


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(CHECKOUT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def replaced(runs: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs with a new one, instead of an older one of the same GPU, driver and versions."""

    def key(one: Mapping[str, Any]) -> tuple[Any, ...]:
        versions = {name: about["version"] for name, about in one["backends"].items()}
        gpus = [(gpu["name"], gpu["driver"]) for gpu in one["gpus"]]
        return gpus, one["python"], versions

    return [*(one for one in runs if key(one) != key(run)), run]


def gpu_tests(checkout: Path) -> dict[str, list[str]]:
    """Names of the tests marked ``gpu`` in the sources, by backend or ``ALL``."""
    found: dict[str, list[str]] = {}
    for path in _test_files(checkout):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = any(
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "pytestmark"
            and "pytest.mark.gpu" in ast.unparse(node.value)
            for node in tree.body
        )
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            marks = [ast.unparse(one) for one in node.decorator_list]
            if whole or "pytest.mark.gpu" in marks:
                found.setdefault(_backend_of(path), []).append(node.name)
    return found


def _test_files(checkout: Path) -> list[Path]:
    home = checkout / "backends" / "tests"
    return sorted([*home.glob("test_*.py"), *home.glob("*/test_*.py")])


def _backend_of(path: Path) -> str:
    return ALL if path.parent.name == "tests" else path.parent.name


def _read(checkout: Path) -> dict[str, Any]:
    path = checkout / RECORD
    if not path.is_file():
        return {"runs": [], "tests": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(checkout: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    record = {"runs": list(runs), "tests": gpu_tests(checkout)}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (checkout / RECORD).write_text(text, encoding="utf-8")
    (checkout / PAGE).write_text(page(record), encoding="utf-8")


def page(record: Mapping[str, Any]) -> str:
    """The page as Markdown, of the record's ``runs`` and of the ``tests`` there are."""
    runs, tests = record["runs"], record["tests"]
    lines = [
        "# Verified hardware",
        "",
        "What was run on a GPU, and what never was. `make gpu-check` on a machine with an NVIDIA",
        "GPU adds to this page; `make gpu-check PYTHON=python3` does so with the packages of that",
        "Python, without installing or fetching anything (`WHEELS=FOLDER` brings what it lacks).",
        "The page is written by `python -m bridge_bench.hardware` and not edited by hand.",
        "",
        "## What was run",
        "",
    ]
    if not runs:
        lines += ["Nothing: no run on a GPU is on record.", ""]
    else:
        lines += [
            "| date | GPU | driver | Python | commit | backend | tests marked `gpu` |",
            "|---|---|---|---|---|---|---|",
            *(row for run in runs for row in _run_rows(run)),
            "",
            "## Figures",
            "",
            "The ranker of `bridge_zoo` (60 MB of weights), inputs that differ from call to call;",
            "medians over blocks that alternate, host arrays in and out. The difference is the",
            "largest from the same model computed in float64.",
            "",
            "| GPU | backend | format | rows | predict, µs | bound, µs | CPU, µs | difference |",
            "|---|---|---|---|---|---|---|---|",
            *(row for run in runs for row in _figure_rows(run)),
            "",
        ]
    lines += ["## What was never run on a GPU", ""]
    open_tests = _never_passed(runs, tests)
    if not open_tests:
        lines += ["Every test marked `gpu` has passed on one.", ""]
    for name, names in open_tests.items():
        lines += [f"- `{name}`: {', '.join(f'`{one}`' for one in names)}"]
    lines += [
        "",
        "These tests cover the CUDA paths of the backends: arrays in device memory, CUDA graphs,",
        "engines and their caches. Where a test is listed, the code it covers is written, checked",
        "for types and against the names in the installed bindings, and tried on a stand-in for",
        "the GPU where there is one; that it works on a GPU has not been seen.",
    ]
    return "\n".join(lines) + "\n"


def _run_rows(run: Mapping[str, Any]) -> list[str]:
    gpu = run["gpus"][0]
    head = [run["date"], _counted(run["gpus"]), gpu["driver"] or "?", run["python"]]
    head.append(run["commit"] or "-")
    return [
        f"| {' | '.join(head)} | {name} {one['version'] or ''} | {_outcome(one)} |"
        for name, one in run["backends"].items()
    ]


def _counted(gpus: Sequence[Mapping[str, Any]]) -> str:
    return gpus[0]["name"] if len(gpus) == 1 else f"{len(gpus)} of {gpus[0]['name']}"


def _outcome(one: Mapping[str, Any]) -> str:
    tests = one.get("tests")
    if tests is None:
        return f"not run: {one['reason']}"
    parts = [f"{len(tests['passed'])} passed"]
    if tests["failed"]:
        parts.append(f"{len(tests['failed'])} failed ({', '.join(tests['failed'])})")
    if tests["skipped"]:
        parts.append(f"{len(tests['skipped'])} skipped ({', '.join(tests['skipped'])})")
    return ", ".join(parts + ([tests["problem"]] if tests["problem"] else []))


def _figure_rows(run: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in run["backends"].items():
        figures = one.get("figures")
        if figures is None:
            continue
        head = f"| {run['gpus'][0]['name']} | {name} {one['version'] or ''} |"
        if figures["problem"]:
            rows.append(f"{head} {figures['problem']} | | | | | |")
        for row in figures["rows"]:
            cpu = f"{row['cpu_us']:.0f}" if row["cpu_us"] is not None else "-"
            rows.append(
                f"{head} {row['format']} | {row['rows']} | {row['predict_us']:.0f} | "
                f"{row['bound_us']:.0f} | {cpu} | {row['difference']:.1e} |"
            )
    return rows


def _never_passed(
    runs: Sequence[Mapping[str, Any]], tests: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Tests of the sources that have passed in no run with all their parameters."""
    passed: set[tuple[str, str]] = set()
    for run in runs:
        for name, one in run["backends"].items():
            outcome = one.get("tests") or {"passed": (), "failed": (), "skipped": ()}
            bare = {
                word: {test.partition("[")[0] for test in outcome[word]}
                for word in ("passed", "failed", "skipped")
            }
            whole = bare["passed"] - bare["failed"] - bare["skipped"]
            passed |= {(name, test) for test in whole}
    left = {
        name: [one for one in names if (name, one) not in passed] for name, names in tests.items()
    }
    return {name: names for name, names in left.items() if names}


if __name__ == "__main__":
    sys.exit(main())
