"""Fresh processes that answer requests, tried with a module that misbehaves on demand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bridge.errors import PredictError, PredictTimeout, UnsupportedModel, WorkerDied
from bridge_bench.process import Process

MODULE = """
import os, sys, time
from bridge.errors import UnsupportedModel
from bridge_bench.process import SERVE, serve

def answer(request):
    what = request["what"]
    if what == "refuse":
        raise UnsupportedModel("operator 'Odd' is unknown.", fix="Avoid it.")
    if what == "fail":
        raise KeyError("lost")
    if what == "garble":
        print("noise on stdout", flush=True)
        os.write(1, b"native noise")
    if what == "die":
        os.write(2, b"last words")
        os._exit(3)
    if what == "hang":
        time.sleep(600)
    if what == "odd":
        return {"it": object()}
    return {"what": what, "cpus": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}

assert sys.argv[1:] == [SERVE]
sys.exit(serve(answer))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "answering.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "answering"


def test_it_answers_and_goes_on_after_errors(module: str) -> None:
    with Process(module) as process:
        assert process.ask({"what": "this"})["what"] == "this"
        with pytest.raises(UnsupportedModel, match="Odd") as refused:
            process.ask({"what": "refuse"})
        assert refused.value.fix == "Avoid it."
        with pytest.raises(PredictError, match="KeyError: 'lost'") as failed:
            process.ask({"what": "fail"})
        assert "def answer" not in str(failed.value)
        assert "answering.py" in failed.value.detail["traceback"]
        with pytest.raises(PredictError, match="not JSON serializable"):
            process.ask({"what": "odd"})
        assert process.ask({"what": "garble"})["what"] == "garble"
        assert not process.is_closed
    assert process.is_closed
    process.close()


def test_it_stays_on_its_cpus(module: str) -> None:
    one = min(os.sched_getaffinity(0))
    with Process(module, cpus=[one]) as process:
        assert process.ask({"what": "where"})["cpus"] == [one]


def test_it_dies(module: str) -> None:
    with Process(module) as process:
        with pytest.raises(
            WorkerDied, match="ended with exit status 3; its last line: 'last words'"
        ) as died:
            process.ask({"what": "die"})
        assert "last words" in died.value.detail["log"]
        assert process.is_closed


def test_it_hangs(module: str) -> None:
    with Process(module) as process:
        pid = process.ask({"what": "who"})["pid"]
        began = time.monotonic()
        with pytest.raises(PredictTimeout, match="within 0.1 s"):
            process.ask({"what": "hang"}, timeout_s=0.1)
        assert time.monotonic() - began < 60
        assert process.is_closed
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
