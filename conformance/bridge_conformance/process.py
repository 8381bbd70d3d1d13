"""A fresh process that runs one function of the suite: for exits, forks, handlers and memory.

The function is one of a module that can be imported, takes the ``Subject`` and returns
what JSON can hold. The process loads the same plugins as the one that starts it.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_conformance.subject import Subject

__all__ = ["Ended", "main", "run_fresh"]

_DEADLINE_S = 100.0


@dataclass(frozen=True)
class Ended:
    """How a fresh process ended.

    Attributes:
        status: Exit status; the negative number of the signal that ended it.
        printed: All that it wrote to its outputs.
        value: What the function returned; ``None`` if it did not return.
    """

    status: int
    printed: str
    value: Any


def run_fresh(
    subject: Subject,
    function: Callable[..., Any],
    *arguments: Any,
    deadline_s: float = _DEADLINE_S,
) -> Ended:
    """Calls ``function(subject, *arguments)`` in a process of its own, and waits for its end.

    Args:
        subject: What is under test.
        function: A function at the top level of a module.
        *arguments: What JSON can hold.
        deadline_s: The process is ended if it takes longer, and the test fails.
    """
    __tracebackhide__ = True
    with tempfile.TemporaryDirectory(prefix="bridge-conformance-") as name:
        folder = Path(name)
        answer = folder / "answer.json"
        call = {
            "function": [function.__module__, function.__qualname__],
            "subject": [subject.backend.name, str(subject.device)],
            "arguments": arguments,
            "answer": str(answer),
        }
        (folder / "call.json").write_text(json.dumps(call), "utf-8")
        # A file, because a pipe would be held open by whatever the process starts.
        with (folder / "printed").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(folder / "call.json")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                status: int | None = process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            printed = output.read().decode("utf-8", "replace")
        assert status is not None, f"the process did not end within {deadline_s:g} s: {printed}"
        value = json.loads(answer.read_text("utf-8")) if answer.exists() else None
    return Ended(status, printed, value)


def main(arguments: Sequence[str]) -> None:
    """What the fresh process does; ``arguments`` holds the path of the call."""
    from bridge import Device
    from bridge.registry import registry
    from bridge_conformance.writing import load_test_plugins

    load_test_plugins()
    call = json.loads(Path(arguments[0]).read_text("utf-8"))
    backend, device = call["subject"]
    subject = Subject(registry().backends.get(backend), Device.parse(device))
    module, name = call["function"]
    value = getattr(importlib.import_module(module), name)(subject, *call["arguments"])
    Path(call["answer"]).write_text(json.dumps(value), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
