"""Who writes networks in which format, and where the written models are.

A format's models are written once, all of them, by a process of its own
(``python -m bridge_conformance.writing FORMAT FOLDER``): the library that writes a format
never shares a process with the runtime under test. They are kept in the bridge's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.cache import Cache, default_cache
from bridge.errors import DuplicateName, PluginError, PluginLoadFailed
from bridge.registry import registry
from bridge_conformance.network import Network

__all__ = [
    "NotExpressible",
    "NotWritable",
    "Writer",
    "WriterFailed",
    "Written",
    "load_test_plugins",
    "main",
    "writers",
    "written",
]

_DEADLINE_S = 600
_TAIL_LINES = 20
_INDEX = "index.json"
_PLUGINS = "BRIDGE_CONFORMANCE_PLUGINS"


class NotExpressible(Exception):
    """A format cannot say a network; the text is one sentence that says why."""


class NotWritable(Exception):
    """Nothing here writes a format: there is no writer, or its library is not installed."""


class WriterFailed(Exception):
    """The writer of a format crashed, hung or is wrong; the text tells what it printed."""


@dataclass(frozen=True)
class Writer:
    """Writes networks in one format.

    Attributes:
        format: Name of a format that is registered with the bridge.
        library: Module that must be importable to write.
        write: Writes a network into an empty folder and returns the path of the model in
            it; raises ``NotExpressible`` where the format cannot say that network.
        is_code: A model of this format is native code, and refused without trust.
    """

    format: str
    library: str
    write: Callable[[Network, Path], Path]
    is_code: bool = False


@dataclass(frozen=True)
class Written:
    """The models of one format; read only.

    Attributes:
        folder: Where they are.
        models: Path of each network's model.
        refusals: For each network that the format cannot say, one sentence that says why.
    """

    folder: Path
    models: Mapping[str, Path]
    refusals: Mapping[str, str]


@functools.cache
def load_test_plugins() -> None:
    """Registers the bridge plugins that ``BRIDGE_CONFORMANCE_PLUGINS`` names.

    For testing a backend that is not installed yet: the variable holds names of modules,
    with commas between them, that can be imported and have the hooks of a bridge plugin.
    Processes that the suite starts read it as well. Does nothing the second time.

    Raises:
        PluginLoadFailed: A module cannot be imported, or its hooks fail.
    """
    for name in filter(None, (item.strip() for item in os.environ.get(_PLUGINS, "").split(","))):
        try:
            plugin = importlib.import_module(name)
        except Exception as error:
            raise PluginLoadFailed(
                f"module '{name}' of {_PLUGINS} cannot be imported: {error}.",
                fix="Put its folder on PYTHONPATH, or take it out of the variable.",
                plugin=name,
            ) from error
        registry().add(plugin, name, _PLUGINS)
    for failure in registry().failures:
        if failure.distribution == _PLUGINS:
            raise failure.error


def writers() -> dict[str, Writer]:
    """The writers that plugins registered, by format.

    Raises:
        BackendNotFound: A writer's format is not registered.
        DuplicateName: Two plugins write one format.
        PluginError: A plugin's hook fails, or registers something else.
    """
    found: dict[str, tuple[Writer, str]] = {}
    for implementation in registry().manager.hook.register_conformance_models.get_hookimpls():
        plugin = f"plugin '{implementation.plugin_name}'"
        given: list[Writer] = []
        try:
            implementation.function(given.append)
        except Exception as error:
            raise PluginError(
                f"{plugin} does not register its conformance models: "
                f"{type(error).__name__}: {error}.",
                fix="Repair or uninstall it, or leave it out with BRIDGE_PLUGINS.",
                plugin=implementation.plugin_name,
            ) from error
        for writer in given:
            if not isinstance(writer, Writer):
                raise PluginError(
                    f"{plugin} registers {writer!r} as conformance models; wanted a Writer.",
                    fix="Pass a bridge_conformance.Writer to register.",
                    plugin=implementation.plugin_name,
                )
            registry().formats.get(writer.format)
            other = found.setdefault(writer.format, (writer, plugin))
            if other[0] is not writer:
                raise DuplicateName(
                    f"two writers of format '{writer.format}' are registered: by {other[1]} and "
                    f"by {plugin}.",
                    fix="Uninstall one, or name the plugins to load in BRIDGE_PLUGINS.",
                    name=writer.format,
                    sources=[other[1], plugin],
                )
    return {name: writer for name, (writer, _) in sorted(found.items())}


def written(format: str) -> Written:
    """The models of a format, written now unless the cache has them.

    Raises:
        NotWritable: Nobody writes the format, or the library for it is not installed.
        WriterFailed: There are no models though there should be; it is not tried again by
            this process.
    """
    found = _written(format, default_cache())
    if isinstance(found, str):
        raise NotWritable(found)
    if isinstance(found, WriterFailed):
        raise WriterFailed(str(found))  # anew, for a traceback of its own
    return found


@functools.cache
def _written(format: str, cache: Cache) -> Written | WriterFailed | str:
    """The models, or how writing them failed, or why nobody can write them."""
    writer = writers().get(format)
    if writer is None:
        return f"no plugin writes models of format '{format}' for the suite."
    library = writer.library.partition(".")[0]
    if importlib.util.find_spec(library) is None:
        return f"module '{library}', which writes {format} models, is not installed."
    from bridge_conformance.networks import digest

    try:
        # In full at each hit: runtimes read these files without checks of their own.
        folder = cache.entry(
            "conformance-models",
            {
                "catalogue": digest(),
                "code": _code_digest(writer),
                "format": format,
                "library": _versions(library),
            },
            lambda empty: _write_all(format, empty),
            executable=True,
        )
    except WriterFailed as error:
        return error
    index = json.loads((folder / _INDEX).read_text("utf-8"))
    models = {name: folder / path for name, path in index["models"].items()}
    return Written(folder, models, index["refusals"])


def _versions(module: str) -> list[str]:
    names = importlib.metadata.packages_distributions().get(module, [])
    return sorted({f"{name} {importlib.metadata.version(name)}" for name in names})


def _code_digest(writer: Writer) -> str:
    """SHA-256 over the sources that decide what is written, for a version may lag behind."""
    files = {Path(__file__), *(Path(__file__).parent / "writers").glob("*.py")}
    source = getattr(sys.modules.get(writer.write.__module__), "__file__", None)
    if source is not None:
        files.add(Path(source))
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def _write_all(format: str, folder: Path) -> None:
    """Runs the process that writes; ends it and all that it started when it is done.

    Raises:
        WriterFailed: It failed, or took longer than ``_DEADLINE_S``.
    """
    command = [sys.executable, "-P", "-m", "bridge_conformance.writing", format, str(folder)]
    with tempfile.TemporaryFile() as output:  # a pipe would be held open by compilers' workers
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(_DEADLINE_S)
            problem = f"ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            problem = f"took longer than {_DEADLINE_S} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if problem:
            output.seek(0)
            lines = output.read().decode("utf-8", "replace").splitlines()
            tail = "\n".join(lines[-_TAIL_LINES:]) or "It printed nothing."
            raise WriterFailed(f"the process that writes {format} models {problem}:\n{tail}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes every network in one format, and ``index.json`` beside them."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_conformance.writing",
        description="Write the networks of the conformance suite in one format.",
    )
    parser.add_argument("format", help="name of a format that a plugin writes")
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each network")
    given = parser.parse_args(arguments)
    from bridge_conformance.networks import NETWORKS

    load_test_plugins()
    known = writers()
    if given.format not in known:
        parser.error(f"no plugin writes '{given.format}'; written are: {', '.join(known)}")
    models, refusals = {}, {}
    for network in NETWORKS.values():
        started = time.perf_counter()
        try:
            path = _write_one(known[given.format], network, given.folder)
            models[network.name] = outcome = str(path.relative_to(given.folder))
        except NotExpressible as error:
            refusals[network.name] = outcome = str(error)
        if given.verbose:
            took_s = time.perf_counter() - started
            print(f"{network.name}\t{took_s:.2f} s\t{outcome}", file=sys.stderr)  # noqa: T201
    index = {"models": models, "refusals": refusals}
    (given.folder / _INDEX).write_text(json.dumps(index, indent=1), "utf-8")
    return 0


def _write_one(writer: Writer, network: Network, folder: Path) -> Path:
    own = folder / network.name
    own.mkdir(parents=True)
    try:
        path = writer.write(network, own)
    except NotExpressible:
        shutil.rmtree(own)  # with what was written until it turned out
        raise
    if not path.is_relative_to(own) or not path.exists():
        raise ValueError(
            f"the writer of {writer.format} says that it wrote '{network.name}' to '{path}'; "
            f"wanted a path that is there, in '{own}'."
        )
    return path


if __name__ == "__main__":
    # By its own name: writers raise the NotExpressible of that module, not of this one.
    from bridge_conformance.writing import main as run

    raise SystemExit(run())
