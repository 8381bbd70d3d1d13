"""``bridge.convert``: a model in another format, verified against its source, and kept.

Each conversion runs in a process of its own with a deadline. The result is then run
beside its source on generated inputs, each on the backend native to its format, before
anybody gets to see it. Results are kept in the cache by content of the model, route,
versions of the converters and options, so that the next call costs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from bridge import proof, staging
from bridge.adapter import Adapter, CalibratedAdapter, copy_model
from bridge.cache import default_cache
from bridge.check import Arrays
from bridge.cpus import cpu_flags
from bridge.errors import (
    BridgeError,
    CacheError,
    ConversionError,
    OptionError,
    PredictTimeout,
    UnsupportedModel,
    WorkerDied,
)
from bridge.isolation import Worker
from bridge.live import written
from bridge.loading import open_model
from bridge.model import ModelRef
from bridge.options import Options
from bridge.proof import Proof
from bridge.registry import registry
from bridge.routes import (
    Route,
    find_routes,
    held_format,
    impossible,
    named_route,
    require_samples,
    require_target,
)
from bridge.signature import Signature

__all__ = ["Attempt", "Converted", "convert"]

_ABOUT, _MODEL = "conversion.json", "model"
_SCHEMA = 2

_Given = Options | Mapping[str, Any] | Sequence[str] | None


@dataclass(frozen=True)
class Attempt:
    """A route that was tried in vain: its name, and what happened."""

    route: str
    error: BridgeError


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Attributes:
        path: The file or folder, in the cache: read only.
        target: Name of its format.
        route: Names of the adapters that made it, joined by ``+``.
        facts: What each adapter says about its result, by name.
        proof: How it compares with its source; ``None`` if that was not asked for.
        convert_s: How long converting took, when it was done.
        is_cached: It was there already.
        failed: Routes that were tried before.
        makes_code: It is native code: ``bridge.load`` wants ``trust=True`` for it.
        precision: What it computes in where that is less than in its source; the proof then
            has the figures, and whether they are good enough is for a gate to say.
        signature: What to state when it is loaded; ``None`` where its bytes tell, or where
            those of its source do not and it was not run.
    """

    path: Path
    target: str
    route: str
    facts: Mapping[str, Mapping[str, Any]]
    proof: Proof | None
    convert_s: float
    is_cached: bool = False
    failed: tuple[Attempt, ...] = field(default=(), compare=False)
    makes_code: bool = False
    precision: str | None = None
    signature: Signature | None = None

    def open(self) -> ModelRef:
        """The converted model, as ``bridge.load`` takes it."""
        return open_model(self.path, signature=self.signature, trust=self.makes_code)

    def save(self, target: Path) -> None:
        """Copies it out of the cache, to a path of the same file name.

        Raises:
            ConversionError: The path is taken, or cannot be written to.
        """
        copy_model(self.path, target)


def convert(
    model: object,
    target: str,
    *,
    route: Sequence[str] | None = None,
    options: Mapping[str, _Given] | None = None,
    signature: str | Signature | None = None,
    trust: bool = False,
    verify: bool = True,
    inputs: Sequence[Arrays] | None = None,
    tolerance: tuple[float, float] | None = None,
    samples: Arrays | None = None,
    timeout_s: float | None = None,
    name: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Converts a model to another format.

    Routes are tried in order, the shortest first, until one succeeds. Live torch modules
    are exported first, in this process, with the dims that the signature or the inputs
    leave open; the result is compared with the live module as well.

    Args:
        model: Path of the model, or a live ``torch.nn.Module`` or ``ExportedProgram``.
        target: Name of the format to write; for models that need a composite around it, such
            as tables, that is what is written.
        route: Names of the adapters to use, in order; ``None`` tries every route.
        options: Options by name of the adapter.
        signature: Which of a SavedModel's signatures to convert, or a whole ``Signature``
            for formats that hold none (TorchScript, live modules).
        trust: The model may run code of its own.
        verify: Run the result beside its source. Where no backend here can run it (an
            engine without its GPU), the proof says so instead.
        inputs: Sets of inputs to verify with; ``None`` makes some up, see ``bridge.proof``.
            For a live module they also say what goes in, where no signature is stated: see
            ``bridge.live.signature_of_inputs``.
        tolerance: ``(atol, rtol)`` of floats; ``None`` is that of the strict gate, beyond
            which only a route of reduced precision may be. Other values have to be equal.
        samples: Recorded rows, one array for each input, for adapters that are calibrated.
        timeout_s: Longest time of one conversion, and of verifying; ``None`` leaves it to
            the adapters.
        name: Name of the file or folder to make; ``None`` is made from the model's.
        tell: Called with one line of text now and then.

    Raises:
        BackendNotFound: There is no such format or adapter.
        OptionError: An option or the tolerance is not valid, or is for an adapter that no
            route uses.
        BackendUnavailable: What converts, or what the result is to be compared with, is
            not installed.
        UnsupportedModel: No route leads there, or all refuse.
        ConversionError: All routes failed: a converter raised, crashed or took too long,
            the result computes something else, or the disk is full.
            ``detail["attempts"]`` says which route failed and why.
        ModelError: The model cannot be opened.
    """
    proof.require(inputs, tolerance)
    if name is not None and (Path(name).name != name or name == ".."):
        raise ConversionError(
            f"'{name}' is no name of a file.",
            fix="Leave folders out; save() takes a path.",
            name=name,
        )
    found = open_model(model, signature=signature, trust=trust)
    if found.live is not None:  # an object cannot go to another process
        with written(found, inputs, verify=verify, tolerance=tolerance or proof.STRICT) as path:
            return convert(
                path,
                target,
                route=route,
                options=options,
                trust=True,  # it runs here already
                verify=verify,
                inputs=inputs,
                tolerance=tolerance,
                samples=samples,
                timeout_s=timeout_s,
                name=name,
                tell=tell,
            )
    source = found.file
    require_target(target)
    ways = (named_route(found, route),) if route else find_routes(found, target)
    if not ways:
        raise UnsupportedModel(
            f"no adapter turns {found.format.name} into {target}.",
            fix="'bridge routes' shows what there is.",
            model=found.name,
        )
    if target not in (ways[-1].target, held_format(ways[-1].target)):
        raise UnsupportedModel(
            f"the route {ways[-1].name} leads to {ways[-1].target}, not {target}.",
            fix="Name adapters that lead there, or leave the route out.",
            model=found.name,
        )
    found.format.check(found)
    possible = [one for one in ways if one.status == "possible"]
    if not possible:
        raise impossible(found, ways[0])
    chosen = {
        one: registry().adapters.get(one).options_type.make(given)
        for one, given in (options or {}).items()
    }
    _require_use(chosen, ways)
    require_samples(found, possible, samples)
    job = _Job(
        found,
        source,
        chosen,
        verify,
        inputs,
        tolerance,
        samples,
        timeout_s,
        name or _file_name(source, target),
        tell,
    )
    attempts: list[Attempt] = []
    for way in possible:
        try:
            made = job.run(way)
        except BridgeError as error:
            if "full" in error.detail:  # the next route would find no room either
                raise
            attempts.append(Attempt(way.name, error))
            tell(f"{way.name} failed: {error.message}")
            continue
        return dataclasses.replace(made, failed=tuple(attempts))
    raise _failed(found, attempts)


@dataclass(frozen=True)
class _Job:
    """What is asked for, whichever route it takes."""

    model: ModelRef
    source: Path
    options: Mapping[str, Options]
    verify: bool
    inputs: Sequence[Arrays] | None
    tolerance: tuple[float, float] | None
    samples: Arrays | None
    timeout_s: float | None
    name: str
    tell: Callable[[str], None]

    def run(self, route: Route) -> Converted:
        chosen = {
            one.name: self.options.get(one.name) or one.options_type() for one in route.adapters
        }
        tolerance = self.tolerance or (None if route.precision else proof.STRICT)
        parts: dict[str, Any] = {
            "schema": _SCHEMA,
            "name": self.name,
            "model": self.model.digest,
            "format": self.model.format.name,
            "signature": self.model.signature_key
            if self.model.declared is None
            else self.model.declared.to_dict(),
            "route": [
                {
                    "adapter": one.name,
                    "versions": one.versions(),
                    "code": one.code_digest(),
                    "options": _plain(chosen[one.name]),
                }
                for one in route.adapters
            ],
            # Whether these inputs were passed is no property of the result, but nobody who
            # asks for it shall get one that was not looked at, for lack of a backend maybe.
            "verified": self.verify and [*(tolerance or ()), proof.find_runner(route.target)],
            "inputs": None if self.inputs is None else proof.digest(self.inputs),
            "samples": None if self.samples is None else proof.digest([self.samples]),
        }
        was_built = []

        def build(folder: Path) -> None:
            was_built.append(True)
            self._build(route, chosen, folder, tolerance)

        try:
            folder = self._folder(route, parts, build)
        except CacheError as error:
            raise self._no_room(error) from error
        except BridgeError:
            raise
        except OSError as error:
            raise self._no_room(error) from error
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        stated = about["signature"]
        return Converted(
            path=folder / _MODEL / self.name,
            target=route.target,
            route=route.name,
            facts=about["facts"],
            proof=None if about["proof"] is None else Proof.from_dict(about["proof"]),
            convert_s=about["convert_s"],
            is_cached=not was_built,
            makes_code=route.makes_code,
            precision=route.precision,
            signature=None if stated is None else Signature.from_dict(stated),
        )

    def _no_room(self, error: OSError) -> ConversionError:
        told = error if isinstance(error, CacheError) else None
        return ConversionError(
            f"the converted model cannot be kept: {told.message if told else error}",
            fix=(told and told.fix)
            or "Make room, or set BRIDGE_CACHE_DIR and TMPDIR to a disk with some.",
            model=self.model.name,
            full=True,
        )

    def _folder(self, route: Route, parts: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder with the result, from the cache where all that it depends on is known."""
        if all(one.distributions for one in route.adapters):
            if route.makes_code:  # for this very CPU
                parts["hardware"] = [platform.machine(), *sorted(cpu_flags())]
            return default_cache().entry("conversion", parts, build, executable=route.makes_code)
        folder = Path(tempfile.mkdtemp(prefix="bridge-convert-"))
        staging.delete_at_exit(folder)
        build(folder)
        return folder

    def _build(
        self, route: Route, chosen: Mapping[str, Options], folder: Path, tolerance: Any
    ) -> None:
        model, signature = self.source, self.model.declared or self.model.signature_key
        facts: dict[str, Any] = {}
        started = perf_counter()
        home, work = folder / _MODEL, folder / "steps"
        home.mkdir()
        work.mkdir()
        names: dict[str, str] = {}
        once: set[str] = set()
        strict: tuple[Adapter, Path, dict[str, str], set[str]] | None = None
        exact = next((at for at, one in enumerate(route.adapters) if one.precision), 0)
        for number, adapter in enumerate(route.adapters, 1):
            self.tell(f"converting {self.model.name}: {adapter.name}")
            if number == len(route.adapters):
                made = home / self.name
            else:  # in a folder of its own, for what is written beside it
                made = work / str(number) / _file_name(self.source, adapter.target)
                made.parent.mkdir()
            with Worker() as worker:
                try:
                    facts[adapter.name] = worker.convert(
                        model,
                        adapter.name,
                        made,
                        options=chosen[adapter.name],
                        signature=signature,
                        trust=self.model.trust,
                        samples=self._samples(adapter, names),
                        timeout_s=self.timeout_s or adapter.timeout_s,
                    )
                except (WorkerDied, PredictTimeout) as error:
                    raise _ended(adapter.name, self.model, error) from error
            model = made
            old = {new: name for name, new in names.items()}
            once |= {old.get(name, name) for name in facts[adapter.name].get("broadcast", ())}
            names = _chained(names, facts[adapter.name].get("renamed", {}))
            signature = None  # the one that was chosen is the only one of the result
            if number == exact:
                strict = adapter, made, names, set(once)
        convert_s = perf_counter() - started
        found: Proof | None = None
        stated = None
        if self.verify:
            if strict is not None and tolerance is None:
                # What comes after may be off as it likes, but what led there may not.
                self._proved(*strict, proof.STRICT)
            found, stated = self._proved(route.adapters[-1], model, names, once, tolerance)
        shutil.rmtree(work)
        if dataclasses.replace(self.model).digest != self.model.digest:  # of other content now
            raise ConversionError(
                f"the model '{self.model.name}' was changed while it was converted.",
                fix="Convert it again; replace a model by renaming, not by overwriting.",
                model=self.model.name,
            )
        if route.makes_code and stated is None:
            stated = _only_signature(self.model)
        about = {
            "facts": facts,
            "convert_s": convert_s,
            "proof": None if found is None else found.to_dict(),
            "signature": stated.to_dict() if stated is not None and route.makes_code else None,
        }
        (folder / _ABOUT).write_text(json.dumps(about), "utf-8")

    def _proved(
        self,
        maker: Adapter,
        made: Path,
        names: Mapping[str, str],
        once: set[str],
        tolerance: tuple[float, float] | None,
    ) -> tuple[Proof, Signature | None]:
        self.tell(f"verifying {self.model.name} as {maker.target}")
        return proof.verify(
            self.model,
            made,
            maker.target,
            is_code=maker.makes_code,
            renamed=names,
            broadcast=once,
            inputs=self.inputs,
            tolerance=tolerance,
            timeout_s=self.timeout_s,
        )

    def _samples(self, adapter: Adapter, names: Mapping[str, str]) -> Arrays | None:
        """The samples by the names that an adapter's source has, if it looks at them."""
        if not isinstance(adapter, CalibratedAdapter) or self.samples is None:
            return None
        return {names.get(name, name): array for name, array in self.samples.items()}


def _chained(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """Old names -> new ones, over two conversions."""
    untouched = {old: new for old, new in then.items() if old not in first.values()}
    return untouched | {old: then.get(new, new) for old, new in first.items()}


def _require_use(options: Iterable[str], routes: Iterable[Route]) -> None:
    used = {adapter.name for route in routes for adapter in route.adapters}
    for name in options:
        if name not in used:
            raise OptionError(
                f"there are options for the adapter '{name}', which no route here uses.",
                fix=f"Leave them out; routes here use {', '.join(sorted(used))}.",
                option=name,
                valid=sorted(used),
            )


def _only_signature(model: ModelRef) -> Signature | None:
    """The signature that was stated, or the one that its bytes tell, if they tell one."""
    told = tuple(model.facts.signatures.values())
    return model.declared or (told[0] if len(told) == 1 else None)


def _file_name(source: Path, target: str) -> str:
    """The source's name with the usual suffix of the target's format."""
    known = {one.name: one for one in registry().formats}.get(target)
    stem = source.stem if source.is_file() else source.name
    return f"{stem}{known.suffixes[0] if known is not None and known.suffixes else ''}"


def _plain(options: Options) -> dict[str, Any]:
    return json.loads(json.dumps(options.to_dict(), default=str, sort_keys=True))  # type: ignore[no-any-return]


def _ended(adapter: str, model: ModelRef, error: WorkerDied | PredictTimeout) -> ConversionError:
    log = str(error.detail.get("log", ""))
    if isinstance(error, PredictTimeout):
        return ConversionError(
            f"{adapter} did not finish {model.name} within {error.detail['timeout_s']:g} s.",
            fix="Give it more time (timeout_s=, --timeout), or try another route.",
            model=model.name,
            log=log,
            timeout_s=error.detail["timeout_s"],
        )
    return ConversionError(
        f"{adapter} crashed on {model.name}: {error.message}",
        fix="What it printed is in detail['log']; try another route.",
        model=model.name,
        log=log,
    )


def _failed(model: ModelRef, attempts: Sequence[Attempt]) -> BridgeError:
    first = attempts[0].error
    if len(attempts) == 1:
        first.detail.setdefault("attempts", [{"route": attempts[0].route, "error": first.message}])
        return first
    told = "; ".join(f"{one.route}: {one.error.message}" for one in attempts)
    return ConversionError(
        f"no route could convert {model.name}: {told}",
        fix=first.fix,
        model=model.name,
        attempts=[{"route": one.route, "error": one.error.message} for one in attempts],
    )
