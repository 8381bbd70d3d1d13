"""The program around its commands: help, start, exit status, plugins, closed pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bridge import errors
from bridge_cli import exit_codes

COMMANDS = (
    "doctor", "inspect", "run", "compare", "select", "verify", "report", "compare-records",
    "bench", "convert", "routes", "options", "conform",
)  # fmt: skip
GROUPS = {"cache": ("ls", "rm", "verify"), "zoo": ("ls", "build")}
GROUPED = [(group, name) for group, names in GROUPS.items() for name in names]
SCHEMAS = sorted((Path(str(exit_codes.__file__)).parent / "schemas").glob("*.schema.json"))


def python(code: str, environment: dict[str, str], **variables: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), *GROUPED])
def test_help_has_an_example_and_the_exit_status(bridge: Any, words: tuple[str, ...]) -> None:
    found = bridge(*words, "--help")
    assert found.code == 0
    assert "Example" in found.out
    assert "Exit status" in found.out
    assert "bridge " + " ".join(words) in found.out.partition("Example")[2]
    if words:
        assert "--json" in found.out


def test_help_lists_every_exit_status_and_command(bridge: Any) -> None:
    text = bridge("--help").out
    codes = {
        value for name, value in vars(exit_codes).items() if name.isupper() and name != "TABLE"
    }
    assert set(exit_codes.TABLE) == codes
    for code, meaning in exit_codes.TABLE.items():
        assert f"{code}  {meaning}" in text
    for name in (*COMMANDS, *GROUPS):
        assert f"\n  {name} " in text


def test_version(bridge: Any) -> None:
    from importlib.metadata import version

    assert bridge("--version").out == version("inference-bridge") + "\n"


def test_unknown_command_offers_the_nearest(bridge: Any) -> None:
    found = bridge("docter")
    assert found.code == exit_codes.USAGE
    assert "doctor" in found.err


def test_help_and_version_load_neither_numpy_nor_the_core() -> None:
    code = (
        "import sys; from bridge_cli.main import run; run([WORD])\n"
        "print([name for name in ('numpy', 'bridge', 'rich.console') if name in sys.modules])"
    )
    for word in ("--help", "--version"):
        done = python(code.replace("WORD", repr(word)), {})
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_doctor_loads_no_runtime() -> None:
    code = (
        "import sys; from bridge_cli.main import run; run(['doctor'])\n"
        "heavy = ('tensorflow', 'torch', 'onnxruntime', 'openvino', 'onnx', 'tensorrt_rtx')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert python(code, {}).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_core_alone_says_what_to_type(missing: str) -> None:
    done = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from bridge_cli.main import run; sys.exit(run(['doctor']))",
        {},
    )
    assert done.returncode == exit_codes.FINDING
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: the command line needs '{missing}', which is not installed.",
        "fix: Install it with: pip install 'inference-bridge[cli]'",
    ]


def test_a_typer_that_is_broken_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import no_such_part_of_typer")
    done = python(
        "import sys; from bridge_cli.main import run; sys.exit(run(['doctor']))",
        {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == exit_codes.DEFECT
    assert "no_such_part_of_typer" in done.stderr
    assert "pip install" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.OptionError, 2),
        (errors.ModelNotFound, 3),
        (errors.UntrustedModel, 3),
        (errors.ModelLoadFailed, 3),
        (errors.BackendNotFound, 4),
        (errors.BackendUnavailable, 4),
        (errors.DuplicateName, 4),
        (errors.PluginLoadFailed, 4),
        (errors.ShapeMismatch, 5),
        (errors.MissingInput, 5),
        (errors.SilentFallback, 6),
        (errors.OutOfMemory, 6),
        (errors.WorkerDied, 7),
        (errors.PredictorClosed, 7),
        (errors.ConversionError, 7),
        (errors.CacheError, 7),
        (errors.BridgeError, 7),
    ],
)
def test_exit_status_by_class(kind: type[errors.BridgeError], code: int) -> None:
    assert exit_codes.of(kind("it is so.")) == code


def test_every_error_class_has_a_documented_status() -> None:
    for kind in errors.error_classes().values():
        assert exit_codes.of(kind("it is so.")) in exit_codes.TABLE


def test_an_error_is_two_lines_and_no_traceback(process: Any) -> None:
    found = process("run", "model.nope", "--backend", "exact")
    assert found.code == exit_codes.MODEL
    assert found.out == ""
    first, second = found.err.splitlines()
    assert first.startswith("error: there is no model at")
    assert second.startswith("fix: ")


def test_the_traceback_is_there_for_who_asks(process: Any) -> None:
    found = process("run", "model.nope", BRIDGE_TRACEBACK="1")
    assert found.code == exit_codes.MODEL
    assert "Traceback" in found.err
    assert "error: there is no model at" in found.err


def test_plugins_add_commands(process: Any) -> None:
    assert "say-hello" in process("--help").out
    assert process("say-hello", "--name", "Ada").out == "hello Ada\n"
    assert process("tools", "say-hello").out == "hello you\n"


def test_a_defect_of_a_plugin_shows_where_it_is(process: Any) -> None:
    found = process("tools", "stumble")
    assert found.code == exit_codes.DEFECT
    assert "ValueError: I fell" in found.err


def test_a_plugin_whose_commands_fail_is_reported_and_takes_nothing_down(bridge: Any) -> None:
    found = bridge("--help", BRIDGE_PLUGINS="acting,rotten")
    assert found.code == 0
    assert "warning: the commands of plugin 'rotten' of rotten do not load" in found.err
    assert "say-hello" in found.out
    assert bridge("say-hello", BRIDGE_PLUGINS="acting,rotten").out == "hello you\n"
    seen = bridge("doctor", "--json", BRIDGE_PLUGINS="acting,rotten")
    assert seen.code == exit_codes.FINDING
    (failure,) = seen.document("doctor")["failures"]
    assert failure["plugin"] == "rotten"
    assert "RuntimeError: rotten" in failure["traceback"]


def test_a_plugin_cannot_take_a_name_of_ours(bridge: Any) -> None:
    found = bridge("doctor", BRIDGE_PLUGINS="acting,greedy")
    assert found.code == exit_codes.FINDING
    assert "I am the doctor now" not in found.out
    assert "command 'doctor' is registered by inference-bridge and by greedy" in found.out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_output_is_no_defect(
    unbuffered: str, environment: dict[str, str], model: Any
) -> None:
    for words in (["--help"], ["run", "--help"], ["inspect", str(model())], ["doctor", "--json"]):
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "bridge_cli", *words],
            env={**os.environ, **environment, "PYTHONUNBUFFERED": unbuffered},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        child.stdout.close()  # before the child has had time to write anything
        assert child.stderr is not None
        text = child.stderr.read()
        child.stderr.close()
        assert child.wait(60) == exit_codes.CLOSED_OUTPUT, (words, text)
        assert text == ""


def test_ctrl_c_ends_the_workers(environment: dict[str, str], model: Any, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "bridge_cli", "compare", str(model()), "--backend", "slow"],
        env={**os.environ, **environment, "SLOW_PID": str(note)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads
    )
    for _ in range(600):
        if note.exists() and note.read_text():
            break
        time.sleep(0.05)
    worker = int(note.read_text())
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (exit_codes.INTERRUPTED, "", "")
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_schemas_are_strict_and_described(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"

    def walk(node: Any, name: str) -> None:
        if not isinstance(node, dict):
            return
        if "properties" in node:
            assert node["additionalProperties"] is False, name
            assert set(node["required"]) == set(node["properties"]), name
            for key, item in node["properties"].items():
                assert item.get("description") or "$ref" in item, f"{name}.{key}"
                walk(item, f"{name}.{key}")
        for key, item in node.get("$defs", {}).items():
            walk(item, key)
        walk(node.get("items"), f"{name}[]")
        for item in node.get("oneOf", ()):
            walk(item, name)

    walk(schema, path.name)


def test_there_is_a_schema_for_every_json_output() -> None:
    wanted = {*COMMANDS, *map("-".join, GROUPED)}
    wanted.remove("report")  # prints the record itself, as select does
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS} == wanted


def test_a_full_disk_is_told_in_one_sentence(environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bridge_cli", "doctor", "--json"],
            env={**os.environ, **environment},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == exit_codes.WORK
    assert done.stderr.startswith("error: the output cannot be written: No space left")
