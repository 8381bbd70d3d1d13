"""``bridge conform``: what a backend proves, and a certificate that says so.

The suite is a pytest plugin. It is only ever started here, in processes of its own, one
for each backend and device; what comes back is a certificate.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson

if TYPE_CHECKING:
    from bridge.errors import BridgeError, OptionError
    from bridge_conformance.certificate import Certificate

__all__ = ["conform"]

EPILOG = """
\b
Examples:
  bridge conform onnxruntime --quick
  bridge conform --all --report matrix.html

\b
Exit status: 0 if nothing failed, also where some could not be verified; 1 if a test failed,
and with --strict also where a backend is not certified; 4 if there is no such backend or it is
not installed; 7 if a run did not end in order; 8 if nothing could be tried; others as in
'bridge --help'.
"""

_ORDERLY = (0, 1, 5)  # of pytest: all passed, some failed, none collected
_NEEDED = ("pytest", "hypothesis")
_POLL_S = 0.1
_HEARD_S = 2.0
_FAREWELL_S = 30.0


@dataclass(frozen=True)
class _Cell:
    """One backend on one device."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}"


def conform(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKEND]...", help="Backends to test.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All backends that are installed, on all devices.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Device to test on, such as cuda:0.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what takes long; about a minute a backend.")
    ] = False,
    select: Annotated[
        str | None,
        typer.Option("--select", "-k", metavar="EXPR", help="Only tests that match, as pytest -k."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Keep the certificates here."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Fail unless every backend that can run models here is certified."
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the matrix as one HTML page.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Longest time of one test.", min=1.0)
    ] = 120.0,
    jobs: Annotated[
        int,
        typer.Option(min=1, max=64, help="Backends at once; measured numbers suffer from others."),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Test backends with the conformance suite and certify what they prove."""
    from bridge_cli.render import print_error, print_json

    _require_suite()
    if report is not None and not report.absolute().parent.is_dir():
        raise _no_folder(report)
    cells = _cells(names or [], device, everything=everything)
    words = [f"--bridge-timeout={timeout:g}"]
    words += ["--bridge-quick"] if quick else []
    words += ["-k", select] if select else []
    with tempfile.TemporaryDirectory(prefix="bridge-conform-") as scratch:
        folder = out or Path(scratch)
        _make(folder)
        runs = [_Run(cell, folder, Path(scratch), words) for cell in cells]
        _work(runs, jobs)
        certificates, errors = _collect(runs)
        if report is not None:
            from bridge_conformance.matrix import page

            _write(report, page(certificates))
    if as_json:
        print_json({"certificates": [one.to_dict() for one in certificates]})
    else:
        _show(certificates, out, report)
    for error in errors:
        print_error(error)
    if errors:
        raise typer.Exit(exit_codes.WORK)
    lacking = [one for one in certificates if one.predicts and one.verdict != "certified"]
    if (strict and lacking) or any(one.verdict == "failed" for one in certificates):
        raise typer.Exit(exit_codes.FINDING)
    if not any(one.total("passed") for one in certificates):
        raise typer.Exit(exit_codes.NOTHING_RAN)


class _Run:
    """One run of the suite."""

    def __init__(self, cell: _Cell, folder: Path, scratch: Path, words: Sequence[str]) -> None:
        name = f"{cell.backend}-{cell.device.replace(':', '-')}"
        self.cell = cell
        self._path = folder / f"{name}.json"
        self._progress = scratch / f"{name}.progress"
        self._output = scratch / f"{name}.output"
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._path.unlink(missing_ok=True)  # an old one must not be taken for this run's
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "--pyargs", "bridge_conformance"),
                    *("-q", "-c", str(_settings()), f"--bridge-backend={self.cell.backend}"),
                    f"--bridge-device={self.cell.device}",
                    f"--bridge-certificate={self._path}",
                    f"--bridge-progress={self._progress}",
                    *self._words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def is_started(self) -> bool:
        return self._process is not None

    @property
    def is_over(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def state(self) -> str:
        """How far it is, for a line of progress."""
        with contextlib.suppress(OSError, IndexError):  # it has not begun to write
            return self._progress.read_text(encoding="utf-8").splitlines()[-1]
        return "collecting"

    def interrupt(self) -> None:
        """Lets the run, which Ctrl-C has mostly reached as well, write down what there is."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=_HEARD_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_FAREWELL_S)
        self._process.kill()
        self._process.wait()

    def certificate(self) -> Certificate:
        """What the run has proved.

        Raises:
            PredictError: It did not end in order; its last output is told.
        """
        from bridge.errors import PredictError
        from bridge_conformance.certificate import Certificate

        if self._path.is_file() and self._process is not None and self._process.wait() in _ORDERLY:
            return Certificate.read(self._path)
        status = "was not started" if self._process is None else f"status {self._process.wait()}"
        text = self._output.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        told = f": {lines[-1].strip()}" if lines else ""
        raise PredictError(
            f"the suite did not end in order for {self.cell} ({status}){told}.",
            fix="Run it by hand: python -m pytest --pyargs bridge_conformance "
            f"--bridge-backend={self.cell.backend}.",
            backend=self.cell.backend,
            log=text[-4000:],
        )


def _settings() -> Path:
    """The suite's own pytest.ini: the folder that one is in may have other settings."""
    import bridge_conformance

    return Path(str(bridge_conformance.__file__)).parent / "pytest.ini"


def _require_suite() -> None:
    from bridge.errors import BackendUnavailable

    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise BackendUnavailable(
                f"the conformance suite needs '{name}', which is not installed.",
                fix="Install it with: pip install 'inference-bridge[conformance]'",
            )


def _cells(names: Sequence[str], device: str | None, *, everything: bool) -> list[_Cell]:
    """What to test: the named backends, or all that are installed."""
    from bridge.device import Device
    from bridge.errors import OptionError
    from bridge.registry import registry

    if everything == bool(names):
        raise OptionError(
            "backends are named and --all is given as well."
            if names
            else "no backend is named; wanted one or more, or --all.",
            fix="Name backends, or pass --all alone; 'bridge doctor' lists them.",
        )
    known = registry().backends
    if everything:
        chosen = [one for one in known if one.probe().installed]
    else:
        chosen = [known.get(name) for name in dict.fromkeys(names)]
        for one in chosen:
            one.require()
    if device is not None:
        wanted = str(Device.parse(device))
        return [_Cell(one.name, wanted) for one in chosen]
    return [_Cell(one.name, where) for one in chosen for where in _devices(one.device_kinds)]


def _devices(kinds: Sequence[str]) -> Iterator[str]:
    """The first device of each kind that the machine has; of none, the first kind's."""
    from bridge.device import Device, driver_devices

    there = {device.kind for device, _ in driver_devices()}
    found = [kind for kind in kinds if kind in there]
    yield from (str(Device(kind)) for kind in found or kinds[:1])


def _work(runs: Sequence[_Run], jobs: int) -> None:
    from bridge_cli.render import Progress

    try:
        with Progress() as tell:
            while not all(run.is_over for run in runs):
                running = [run for run in runs if run.is_started and not run.is_over]
                waiting = [run for run in runs if not run.is_started]
                for run in waiting[: jobs - len(running)]:
                    run.start()
                tell("; ".join(f"{run.cell}: {run.state()}" for run in running))
                time.sleep(_POLL_S)
    finally:  # after Ctrl-C, or where one could not be started
        for run in runs:
            run.interrupt()


def _collect(runs: Sequence[_Run]) -> tuple[list[Certificate], list[BridgeError]]:
    """The certificates, and the errors of runs that have none: one must not cost the others."""
    from bridge.errors import BridgeError

    certificates, errors = [], []
    for run in runs:
        try:
            certificates.append(run.certificate())
        except BridgeError as error:  # told at the end
            errors.append(error)
    return certificates, errors


def _make(folder: Path) -> None:
    from bridge.errors import OptionError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"the folder '{folder}' cannot be made: {error.strerror}.", fix="Choose another one."
        ) from error


def _no_folder(path: Path) -> OptionError:
    from bridge.errors import OptionError

    return OptionError(
        f"there is no folder '{path.parent}' for the report.", fix="Make it, or choose another."
    )


def _write(path: Path, text: str) -> None:
    from bridge.errors import OptionError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(
            f"the report '{path}' cannot be written: {error.strerror}.", fix="Choose another path."
        ) from error


def _show(certificates: Sequence[Certificate], out: Path | None, report: Path | None) -> None:
    from bridge_cli.render import facts, print_line, print_table

    for one in certificates:
        columns = ("area", "passed", "failed", "refused", "known", "not verified", "not claimed")
        print_table(
            columns,
            [
                tuple(
                    item or "-"
                    for item in (
                        area.name.replace("_", " "),
                        *(area.passed, area.failed, area.refused, area.known),
                        *(area.not_verified, area.not_claimed),
                    )
                )
                for area in one.areas
            ],
            title=f"{one.backend} {one.runtime_version or ''} on {one.device}",
            right=columns[1:],
        )
        if one.failures:
            print_line()
            print_line("Failed:", "bold red")
        for failure in one.failures:
            print_line(failure.id, indent=2)
            print_line(_gist(failure.text), indent=4)
    print_line()
    facts({f"{one.backend} on {one.device}": one.headline for one in certificates})
    if out is not None:
        print_line(f"certificates: {out}")
    if report is not None:
        print_line(f"report: {report}")


def _gist(text: str) -> str:
    """The line of a failure's text that says most: pytest's first line of what was raised."""
    lines: list[Any] = [line for line in text.splitlines() if line.strip()]
    raised = next((line[1:].strip() for line in lines if line.startswith("E ")), None)
    return raised or (lines[0].strip() if lines else "no text")
