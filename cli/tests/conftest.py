"""An external distribution with acting backends, and ways to run the program on them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from bridge.registry import registry
from bridge_cli.plugins import plugin_commands
from bridge_cli.program import app

ACTING = r'''
import json, os, sys, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import bridge
from bridge.errors import ModelLoadFailed, PredictError, UntrustedModel

F32, I64, TEXT = bridge.DType.FLOAT32, bridge.DType.INT64, bridge.DType.STRING
# What a hostile file may hold: rich markup, a terminal sequence, a direction mark, a bell.
EVIL = "[bold red]y[/]\x1b[2J\u202e\x07"


def spec(name):
    if name == "wide":
        return bridge.Signature(
            (bridge.TensorSpec("x", F32, ("n", 3)),),
            tuple(bridge.TensorSpec(f"y{i}", F32, ("n", 3)) for i in range(30)),
        )
    return bridge.Signature(
        (
            bridge.TensorSpec("x", None if name == "open" else F32, ("n", 3)),
            bridge.TensorSpec("sr", I64, (), has_default=name != "full"),
            bridge.TensorSpec("words", TEXT, ("n", "t"), has_default=name != "full"),
        ),
        (
            bridge.TensorSpec(EVIL if name == "evil" else "y", F32, ("n", 3)),
            bridge.TensorSpec("file", TEXT, ("n",)),
        ),
    )


class Acting(bridge.Format):
    name, title, native_backend, suffixes = "acting", "Acting", "exact", (".act",)
    has_signature_keys = True

    def sniff(self, file):
        return file.head.startswith(b"ACT")

    def describe(self, model):
        name = model.file.read_bytes()[4:].decode()
        text = EVIL if name == "evil" else "plain"
        signatures = {"one": spec(name), "two": spec(name)} if name == "two" else {"": spec(name)}
        if name == "silent":
            signatures = {}
        return bridge.ModelFacts(
            signatures=signatures, operators={text: 3}, versions={"made by": text}, notes=(text,)
        )

    def check(self, model):
        if b"untrusted" in model.file.read_bytes() and not model.trust:
            raise UntrustedModel("it would run code.", fix="Pass trust=True.", model=model.name)


class Player(bridge.Predictor):
    def __init__(self, backend, name, options):
        self.backend = backend
        info = bridge.PredictorInfo(provider="Stage", threads=2, versions={backend: "1.0"})
        super().__init__(spec(name), info)

    def _predict(self, inputs, outputs):
        x = inputs["x"]
        if self.backend == "off":
            x = x + np.float32(0.01)
        if self.backend == "fails":
            raise PredictError("it forgot its lines.", fix="Rehearse.")
        if self.backend == "stumbles":
            raise IndexError("8 is out of range")
        if self.backend == "slow":
            Path(os.environ["SLOW_PID"]).write_text(str(os.getpid()))
            time.sleep(60)
        if self.backend == "odd":
            x = np.full_like(x, np.nan)
            x.reshape(-1)[:2] = (np.inf, 4)
        found = {spec.name: x for spec in self.signature.outputs}
        words = inputs.get("words")
        if "file" in found:
            found["file"] = np.array(["straße" if words is None else "/".join(words[0])], object)
            found["file"] = found["file"].repeat(len(x))
        return found

    def _close(self):
        pass


@dataclass(frozen=True, kw_only=True)
class Props(bridge.Options):
    threads: int | None = bridge.option(None, help="Threads.", unit="threads", minimum=1)
    mode: str = bridge.option("fast", help="How.", choices=("fast", "exact"))
    share: float = bridge.option(0.5, help="How much.", minimum=0, maximum=1)
    extras: tuple[str, ...] = bridge.option((), help="Who else.")
    quiet: bool = bridge.option(False, help="Hush.", when="The audience sleeps.")


class Backend(bridge.Backend):
    options_type = Props

    def __init__(self, name):
        self.name = name

    def probe(self):
        if self.name == "absent":
            return bridge.Availability(
                installed=False, reason="module 'absent' is not installed", fix="Type: get absent"
            )
        return bridge.Availability(installed=True, version="1.0", distribution="acting")

    def capabilities(self, device):
        formats = {"other"} if self.name == "unable" else {"acting"}
        return bridge.Capabilities(
            formats=frozenset(formats),
            dynamic_dims=True,
            zero_rows=True,
            thread_safety=bridge.ThreadSafety.SHARED,
        )

    def devices(self):
        if os.environ.get("BROKEN_DEVICES") and self.name == "odd":
            raise RuntimeError("the driver is too old")
        return (bridge.CPU,)

    def _load(self, model, device, options):
        if self.name == "refuses":
            raise ModelLoadFailed(f"'{EVIL}' is no operator.", fix="Avoid it.")
        return Player(self.name, model.file.read_bytes()[4:].decode(), options)


class Turn(bridge.Adapter):
    sources = frozenset({"acting"})
    options_type = Props

    def __init__(self, name, target):
        self.name, self.target = name, target

    def probe(self):
        return bridge.Availability(installed=True)

    def _convert(self, model, target, options):
        if options.mode == "exact":
            raise bridge.errors.ConversionError("it cannot be exact.", fix="Be fast.")
        target.write_bytes(model.file.read_bytes())
        return {"threads": options.threads, "profiles": [{"x": [1, 3]}], "share": 0.25}


@bridge.hookimpl
def register_backends(register):
    names = "exact off odd fails stumbles slow refuses absent unable"
    for name in os.environ.get("ACTING", names).split():
        register(Backend(name))


@bridge.hookimpl
def register_formats(register):
    register(Acting())


@bridge.hookimpl
def register_adapters(register):
    register(Turn("acting-to-mime", "mime"))
    register(Turn("acting-to-opera", "opera"))
    register(Turn("acting-to-opera-2", "opera"))


@bridge.hookimpl
def register_commands(register):
    import typer

    def say_hello(name: str = "you") -> None:
        """Say hello."""
        typer.echo(f"hello {name}")

    def stumble() -> None:
        raise ValueError("I fell")

    tools = typer.Typer(name="tools")
    tools.command()(say_hello)
    tools.command()(stumble)
    register(say_hello)
    register(tools)
'''

ROTTEN = """
import bridge

@bridge.hookimpl
def register_commands(register):
    raise RuntimeError("rotten")
"""

GREEDY = """
import bridge, typer

@bridge.hookimpl
def register_commands(register):
    def doctor() -> None:
        typer.echo("I am the doctor now")
    register(doctor)
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the distributions as pip would install them."""
    folder = tmp_path_factory.mktemp("site")
    for name, source in (("acting", ACTING), ("rotten", ROTTEN), ("greedy", GREEDY)):
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[bridge]\n{name} = {name}\n")
    return folder


@pytest.fixture
def environment(site: Path, tmp_path: Path) -> dict[str, str]:
    """Variables under which only the acting plugin exists, and an empty cache."""
    return {
        "PYTHONPATH": str(site),
        "BRIDGE_PLUGINS": "acting",
        "BRIDGE_CACHE_DIR": str(tmp_path / "cache"),
        "COLUMNS": "100",
    }


@dataclass
class Outcome:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str

    def document(self, schema: str) -> Any:
        """The JSON document on standard output, checked against its schema."""
        found = json.loads(self.out)
        jsonschema.Draft202012Validator(read_schema(schema)).validate(found)
        return found


def read_schema(name: str) -> Any:
    import bridge_cli

    path = Path(str(bridge_cli.__file__)).parent / "schemas" / f"{name}.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))


Run = Callable[..., Outcome]


@contextlib.contextmanager
def fresh_registry() -> Iterator[None]:
    registry.cache_clear()
    plugin_commands.cache_clear()
    try:
        yield
    finally:
        registry.cache_clear()
        plugin_commands.cache_clear()


@pytest.fixture
def bridge(
    environment: dict[str, str], site: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Runs the program in this process, on the acting plugin."""
    monkeypatch.syspath_prepend(site)

    def run(*words: object, **variables: str) -> Outcome:
        with fresh_registry(), pytest.MonkeyPatch.context() as patch:
            for name, value in {**environment, **variables}.items():
                patch.setenv(name, value)
            done = CliRunner().invoke(app, [str(word) for word in words], prog_name="bridge")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Outcome(done.exit_code, done.stdout, done.stderr)

    yield run
    sys.modules.pop("acting", None)


@pytest.fixture
def process(environment: dict[str, str]) -> Run:
    """Runs the program as users do, in a process of its own."""

    def run(*words: object, **variables: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bridge_cli", *map(str, words)],
            env={**os.environ, **environment, **variables},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=240,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def real(environment: dict[str, str]) -> Run:
    """Runs the program in this process, on the plugins that are installed."""

    def run(*words: object) -> Outcome:
        with fresh_registry(), pytest.MonkeyPatch.context() as patch:
            patch.delenv("BRIDGE_PLUGINS", raising=False)
            patch.setenv("BRIDGE_CACHE_DIR", environment["BRIDGE_CACHE_DIR"])
            done = CliRunner().invoke(app, [str(word) for word in words], prog_name="bridge")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Outcome(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a model file for the acting format; its name says how it acts."""

    def make(name: str = "plain") -> Path:
        path = tmp_path / f"{name}.act"
        path.write_bytes(f"ACT {name}".encode())
        return path

    return make
