"""Routes and verified conversions, over a plugin whose converters misbehave on demand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import conversion, load, proof
from bridge.conversion import convert
from bridge.dtypes import DType
from bridge.errors import (
    BackendNotFound,
    BackendUnavailable,
    ConversionError,
    ModelNotFound,
    OptionError,
    UnsupportedModel,
    UntrustedModel,
)
from bridge.loading import open_model
from bridge.registry import registry
from bridge.routes import Route, find_routes
from bridge.signature import Signature, TensorSpec

PLUGIN = """
import errno, os, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import bridge

class Lines(bridge.Format):
    native_backend = "lines"
    def __init__(self, name):
        self.name, self.title, self.suffixes = name, name.title(), (f".{name}",)
    def sniff(self, file):
        return file.head.startswith(self.name.encode() + b" ")

class Player(bridge.Predictor):
    def __init__(self, words):
        f32 = bridge.DType.FLOAT32
        rows = 4 if "fixed" in words else "n"
        super().__init__(
            bridge.Signature(
                (
                    bridge.TensorSpec("x", f32, (rows, 2)),
                    bridge.TensorSpec("k", bridge.DType.INT64, (rows,)),
                ),
                (bridge.TensorSpec("z" if "renamed" in words else "y", f32, (rows, 2)),),
            ),
            bridge.PredictorInfo(threads=1),
        )
        self.words = words
    def _predict(self, inputs, outputs):
        if "choosy" in self.words and inputs["k"].max() < 7:
            raise bridge.errors.PredictError("k is too small.")
        y = inputs["x"] * 2 + inputs["k"][:, None].astype(np.float32)
        if "off" in self.words:
            y = y + np.float32(0.01)
        return {self.signature.output_names[0]: y}
    def _close(self):
        pass

class Backend(bridge.Backend):
    def __init__(self, name, formats, installed=True):
        self.name, self.formats, self.installed = name, frozenset(formats), installed
    def probe(self):
        return bridge.Availability(installed=self.installed, reason="it is away", fix="Get it.")
    def capabilities(self, device):
        return bridge.Capabilities(formats=self.formats, dynamic_dims=True)
    def _load(self, model, device, options):
        kind, *words = model.file.read_text().split()
        if kind == "source":  # its words are for the converters
            words = [word for word in words if word == "choosy"]
        if "unloadable" in words:
            raise ValueError("no such thing")
        return Player(words)

@dataclass(frozen=True, kw_only=True)
class Knobs(bridge.Options):
    gain: int = bridge.option(1, help="How much.", minimum=1)

class Turn(bridge.Adapter):
    options_type = Knobs
    distributions = ("lines",)
    def __init__(self, name, source, target, *, acts=False, installed=True, code=False):
        self.name, self.sources, self.target = name, frozenset({source}), target
        self.acts, self.installed = acts, installed
        self.needs_trust = self.makes_code = code
    def probe(self):
        reason = "module 'away' is not installed"
        return bridge.Availability(installed=self.installed, reason=reason, fix="Get it.")
    def _convert(self, model, target, options):
        words = model.file.read_text().split()[1:]
        if "log" in os.environ:
            with open(os.environ["log"], "a") as log:
                log.write(self.name + "\\n")
        made = ["renamed"] if "renamed" in words and "end" in self.sources else []
        for word in words if self.acts else ():
            if word == "crash":
                os.write(1, b"about to abort\\n")
                os.abort()
            if word == "hang":
                time.sleep(600)
            if word == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            if word == "unknown-op":
                raise bridge.errors.ConversionError("Frobnicate cannot be converted.")
            if word == "odd":
                raise KeyError("odd")
            if word in ("off", "renamed", "unloadable", "fixed"):
                made.append(word)
        target.write_text(" ".join([self.target, *made, ""]))
        target.with_name(f"{target.name}.side").write_text("weights")
        is_told = self.acts and "renamed" in made
        return {"gain": options.gain, **({"renamed": {"y": "z"}} if is_told else {})}

class Coarse(Turn):
    precision = "int8"

@bridge.hookimpl
def register_backends(register):
    register(Backend("lines", {"source", "middle", "end", "code"}))
    register(Backend("other", {"end"}))
    register(Backend("away", {"end"}, installed=False))

@bridge.hookimpl
def register_formats(register):
    for name in ("source", "middle", "end", "code", "lonely"):
        register(Lines(name))

@bridge.hookimpl
def register_adapters(register):
    register(Turn("source-to-end", "source", "end", acts=True))
    register(Turn("source-to-middle", "source", "middle"))
    register(Turn("middle-to-end", "middle", "end"))
    register(Turn("middle-to-source", "middle", "source"))
    register(Turn("end-trim", "end", "end"))
    register(Coarse("end-coarse", "end", "end"))
    register(Turn("end-to-middle", "end", "middle"))
    register(Turn("source-to-code", "source", "code", code=True))
    register(Turn("end-to-away", "end", "away", installed=False))
    register(Turn("end-to-nowhere", "end", "nowhere"))
"""

Make = Callable[[str], Path]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Installs the plugin; makes models that act as their words say."""
    site = tmp_path / "site"
    info = site / "lines-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lines.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge]\nlines = lines\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("BRIDGE_PLUGINS", "lines")
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("log", str(tmp_path / "log"))
    registry.cache_clear()

    def make(words: str) -> Path:
        path = tmp_path / "model.source"
        path.write_text(f"source {words}")
        return path

    yield make
    registry.cache_clear()
    sys.modules.pop("lines", None)


def names(routes: tuple[Route, ...]) -> list[str]:
    return [route.name for route in routes]


def runs(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().split() if log.exists() else []


def test_routes_are_found_shortest_first_and_never_turn_back(stage: Make) -> None:
    model = open_model(stage(""))
    assert names(find_routes(model, "end")) == ["source-to-end", "source-to-middle+middle-to-end"]
    every = find_routes(model)
    for route in every:
        formats = ["source", *(one.target for one in route.adapters)]
        assert len(set(formats)) == len(formats) <= 4
    assert "end-trim" not in {one.name for route in every for one in route.adapters}
    away = next(one for one in every if one.target == "away")
    assert (away.status, away.name) == ("not installed", "source-to-end+end-to-away")
    assert "module 'away' is not installed" in away.reason
    assert away.fix == "Get it."
    code = next(one for one in every if one.target == "code")
    assert (code.status, "may run code" in code.reason) == ("refused", True)
    assert find_routes(open_model(model.file, trust=True), "code")[0].status == "possible"
    assert names(find_routes(model, "end", max_steps=1)) == ["source-to-end"]


def test_an_optimiser_is_taken_where_its_own_format_is_asked_for(
    stage: Make, tmp_path: Path
) -> None:
    path = tmp_path / "model.end"
    path.write_text("end ")
    assert names(find_routes(open_model(path), "end")) == ["end-trim"]
    made = convert(path, "end")
    assert made.route == "end-trim"
    assert made.path.name == "model.end"


def test_a_conversion_is_verified_kept_and_made_once(stage: Make, tmp_path: Path) -> None:
    model = stage("")
    made = convert(model, "end", options={"source-to-end": {"gain": 3}})
    assert made.route == "source-to-end"
    assert made.facts == {"source-to-end": {"gain": 3}}
    assert made.proof is not None
    assert made.proof.is_equal
    assert made.proof.backends == ("lines", "lines")
    assert made.proof.calls == 4
    assert made.proof.differences == (proof.Difference("y", 0.0, 0.0),)
    assert not made.is_cached
    assert made.path.with_name("model.end.side").read_text() == "weights"
    with load(made.path) as predictor:
        x = {"x": np.ones((3, 2), np.float32), "k": np.zeros(3, np.int64)}
        assert predictor.predict(x)["y"].shape == (3, 2)
    again = convert(model, "end", options={"source-to-end": {"gain": 3}})
    assert again.is_cached
    assert again.path == made.path
    assert again.proof == made.proof
    assert runs(tmp_path) == ["source-to-end"]
    assert not convert(model, "end").is_cached  # other options
    model.write_text("source another")
    assert not convert(model, "end").is_cached  # other content


def test_other_code_of_an_adapter_converts_anew(stage: Make, tmp_path: Path) -> None:
    model = stage("")
    assert not convert(model, "end", verify=False).is_cached
    assert convert(model, "end", verify=False).is_cached
    (tmp_path / "site" / "lines.py").write_text(f"{PLUGIN}# mended\n")
    assert not convert(model, "end", verify=False).is_cached


def test_what_leads_to_a_reduced_precision_keeps_to_the_strict_tolerance(stage: Make) -> None:
    route = ["source-to-end", "end-coarse"]
    made = convert(stage(""), "end", route=route)
    assert made.proof is not None
    assert (made.precision, made.proof.is_equal) == ("int8", True)
    with pytest.raises(ConversionError, match="output 'y' is off by 0.01"):
        convert(stage("off"), "end", route=route)
    assert convert(stage("off"), "end", route=route, tolerance=(0.1, 0.0)).proof is not None


def test_a_proof_needs_inputs(stage: Make) -> None:
    with pytest.raises(OptionError, match="no set of inputs to verify with"):
        convert(stage(""), "end", inputs=[])


def test_callers_that_race_convert_once(stage: Make, tmp_path: Path) -> None:
    model = stage("")
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: convert(model, "end", verify=False), range(3)))
    assert len({one.path for one in made}) == 1
    assert runs(tmp_path) == ["source-to-end"]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("crash", "source-to-end crashed on model.source: the worker process ended by signal"),
        ("unknown-op", "Frobnicate cannot be converted."),
        ("odd", "source-to-end could not convert model.source: KeyError"),
        ("off", "output 'y' is off by 0.01"),
        ("unloadable", "does not run on lines"),
    ],
)
def test_the_next_route_is_tried_and_what_failed_is_told(
    stage: Make, tmp_path: Path, word: str, text: str
) -> None:
    made = convert(stage(word), "end", verify=word in ("off", "unloadable"))
    assert made.route == "source-to-middle+middle-to-end"
    assert [one.route for one in made.failed] == ["source-to-end"]
    assert text in made.failed[0].error.message
    assert isinstance(made.failed[0].error, ConversionError)
    if word == "crash":
        assert "about to abort" in made.failed[0].error.detail["log"]


def test_a_result_that_differs_is_not_kept_and_its_figures_are(stage: Make, tmp_path: Path) -> None:
    model = stage("off")
    with pytest.raises(ConversionError, match="output 'y' is off by 0.01") as caught:
        convert(model, "end", route=["source-to-end"])
    (found,) = caught.value.detail["differences"]
    assert found["max_abs"] == pytest.approx(0.01, rel=0.1)
    assert found["excess"] > 10
    assert not list((tmp_path / "cache" / "entries").iterdir())
    assert not list((tmp_path / "cache" / "tmp").iterdir())
    kept = convert(model, "end", route=["source-to-end"], verify=False)
    assert kept.proof is None
    wide = convert(model, "end", route=["source-to-end"], tolerance=(0.1, 0.0))
    assert wide.proof is not None
    assert wide.proof.is_equal


def test_a_converter_that_hangs_is_ended(stage: Make) -> None:
    with pytest.raises(ConversionError, match="did not finish model.source within 2 s") as caught:
        convert(stage("hang"), "end", route=["source-to-end"], timeout_s=2.0)
    assert caught.value.detail["timeout_s"] == 2.0


def test_a_full_disk_is_told_at_once(stage: Make, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="there is no room in"):
        convert(stage("full"), "end")
    assert runs(tmp_path) == ["source-to-end"]


def test_no_room_for_the_cache_is_a_conversion_error(
    stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *given: Any, **more: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bridge.cache.Cache.entry", full)
    with pytest.raises(ConversionError, match="cannot be kept: .*No space left on device"):
        convert(stage(""), "end")


def test_every_route_that_failed_is_in_the_error(stage: Make, tmp_path: Path) -> None:
    # The second route fails while it verifies: the source takes no such inputs.
    model = stage("unknown-op choosy")
    with pytest.raises(ConversionError, match="no route could convert") as caught:
        convert(model, "end")
    attempts = caught.value.detail["attempts"]
    assert [one["route"] for one in attempts] == ["source-to-end", "source-to-middle+middle-to-end"]
    assert "Frobnicate" in attempts[0]["error"]
    assert "the source itself fails on the inputs" in attempts[1]["error"]


def test_inputs_of_the_caller_are_used(stage: Make) -> None:
    inputs = [{"x": np.ones((2, 2), np.float32), "k": np.full(2, 7)}]
    made = convert(stage("choosy"), "end", inputs=inputs)
    assert made.proof is not None
    assert (made.proof.is_equal, made.proof.calls) == (True, 1)


def test_what_an_adapter_renames_is_told(stage: Make) -> None:
    made = convert(stage("renamed"), "end")
    assert made.route == "source-to-end"
    assert made.proof is not None
    assert made.proof.changes == ("output 'y' is called 'z'",)


def test_dims_that_are_lost_are_refused_or_told(stage: Make) -> None:
    made = convert(stage("fixed"), "end")  # it fails on calls of other sizes
    assert made.route == "source-to-middle+middle-to-end"
    assert "does not run" in made.failed[0].error.message


def test_native_code_needs_trust_and_says_what_to_state(stage: Make) -> None:
    model = stage("")
    with pytest.raises(UntrustedModel, match="may run code"):
        convert(model, "code")
    made = convert(model, "code", trust=True)
    assert made.makes_code
    assert made.signature is not None
    assert made.signature.input_names == ("x", "k")
    assert made.open().trust


def test_what_cannot_run_here_is_converted_and_not_called_equal(stage: Make) -> None:
    made = convert(stage(""), "nowhere")
    assert made.proof is not None
    assert made.proof.is_equal is None
    assert made.proof.reason == "no backend can run nowhere here"


@pytest.mark.parametrize(
    ("target", "more", "error", "text"),
    [
        ("ends", {}, BackendNotFound, "'end'"),
        ("lonely", {}, BackendNotFound, "no adapter writes format 'lonely'"),
        ("away", {}, BackendUnavailable, "module 'away' is not installed"),
        ("end", {"route": ["middle-to-end"]}, UnsupportedModel, "reads middle, not source"),
        ("end", {"route": ["source-to-middle"]}, UnsupportedModel, "leads to middle, not end"),
        ("end", {"options": {"source-to-end": {"gian": 2}}}, OptionError, "gain"),
        ("end", {"options": {"end-to-away": {}}}, OptionError, "which no route here uses"),
        ("end", {"name": "../model.end"}, ConversionError, "no name of a file"),
    ],
)
def test_bad_requests(
    stage: Make, target: str, more: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        convert(stage(""), target, **more)


def test_a_model_that_is_not_there(stage: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        convert(tmp_path / "none.source", "end")


def test_a_copy_appears_whole_or_not_at_all(stage: Make, tmp_path: Path) -> None:
    made = convert(stage(""), "end", name="other.end", verify=False)
    out = tmp_path / "out"
    out.mkdir()
    made.save(out / "other.end")
    assert sorted(one.name for one in out.iterdir()) == ["other.end", "other.end.side"]
    (out / "other.end").unlink()
    with pytest.raises(ConversionError, match="other.end.side', which belongs to"):
        made.save(out / "other.end")
    assert [one.name for one in out.iterdir()] == ["other.end.side"]


def test_generated_inputs_fit_the_signature_and_the_tables() -> None:
    signature = Signature(
        (
            TensorSpec("x", DType.FLOAT32, ("n", 3)),
            TensorSpec("ids", DType.INT64, ("n",)),
            TensorSpec("small", DType.UINT8, ("n",)),
            TensorSpec("flag", DType.BOOL, ()),
            TensorSpec("words", DType.STRING, ("n", "t")),
        ),
        (),
    )
    sets = proof.generated(signature, {"ids": 1000})
    assert [one["words"].shape for one in sets[::2]] == [(1, 1), (4, 1), (4, 6)]
    assert [len(one["x"]) for one in sets] == [1, 1, 4, 4, 4, 4]
    ids = np.concatenate([one["ids"] for one in sets])
    assert 1 < ids.max() < 1000
    assert max(one["small"].max() for one in sets) <= 1
    assert {one["flag"].dtype.kind for one in sets} == {"b"}
    assert proof.digest(sets) == proof.digest(proof.generated(signature, {"ids": 1000}))
    with pytest.raises(ConversionError, match="no inputs can be made"):
        proof.generated(Signature((TensorSpec("x", None, None),), ()))


def test_infinities_and_whole_numbers_have_to_be_equal() -> None:
    def excess(right: Any, made: Any) -> float:
        return proof._compared("y", np.array(right), np.array(made), proof.STRICT).excess

    assert excess([np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0]) == 0
    assert excess([np.inf, 1.0], [1e30, 1.0]) == np.inf
    assert excess([1.0], [np.nan]) == np.inf
    assert excess([2**53 + 1], [2**53]) == np.inf
    assert excess([1000.0], [1000.05]) == pytest.approx(0.5, rel=0.01)


def test_names_are_followed_through_a_whole_route(stage: Make) -> None:
    made = convert(stage("renamed"), "middle", route=["source-to-end", "end-to-middle"])
    assert made.proof is not None
    assert made.proof.changes == ("output 'y' is called 'z'",)
    assert conversion._chained({"a": "b"}, {"b": "c", "d": "e"}) == {"a": "c", "d": "e"}


def test_an_adapter_may_come_anywhere_and_again(stage: Make) -> None:
    route = ["source-to-end", "end-trim", "end-trim", "end-to-middle"]
    made = convert(stage(""), "middle", route=route)
    assert made.proof is not None
    assert made.proof.is_equal
    assert sorted(one.name for one in made.path.parent.iterdir()) == [
        "model.middle",
        "model.middle.side",
    ]


def test_what_was_not_compared_for_lack_of_a_backend_is_compared_later(
    stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stage("off")
    with monkeypatch.context() as lacking:
        lacking.setattr(proof, "find_runner", lambda _: None)
        made = convert(model, "end", route=["source-to-end"])
    assert made.proof is not None
    assert made.proof.is_equal is None
    with pytest.raises(ConversionError, match="output 'y' is off by 0.01"):
        convert(model, "end", route=["source-to-end"])


@pytest.mark.parametrize("verify", [False, True])
def test_a_model_that_changes_while_it_is_converted_is_not_kept(
    stage: Make, tmp_path: Path, verify: bool
) -> None:
    model = stage("")

    def overwrite(_: str) -> None:
        model.write_text("source of another")

    with pytest.raises(ConversionError, match="was changed while it was converted"):
        convert(model, "end", route=["source-to-end"], verify=verify, tell=overwrite)
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_code_that_was_not_run_keeps_the_signature_that_was_stated(stage: Make) -> None:
    model = stage("")
    stated = Signature((TensorSpec("x", DType.FLOAT32, ("n", 2)),), ())
    made = convert(model, "code", signature=stated, trust=True, verify=False)
    assert made.signature == stated
    assert made.open().declared == stated
    assert convert(model, "code", trust=True, verify=False).signature is None


@pytest.mark.parametrize("tolerance", [(-1.0, 0.0), (0.0, np.nan), (np.inf, 0.0)])
def test_a_tolerance_that_allows_anything_is_refused(
    stage: Make, tolerance: tuple[float, float]
) -> None:
    with pytest.raises(OptionError, match="finite numbers of at least 0"):
        convert(stage("off"), "end", tolerance=tolerance)


def test_nothing_may_differ_where_nothing_is_allowed() -> None:
    right, made = np.array([0.0, 2.0]), np.array([0.0, 2.5])
    assert proof._compared("y", right, right, (0.0, 0.0)).excess == 0
    assert proof._compared("y", right, made, (0.0, 0.0)).excess == np.inf


def test_a_copy_under_another_name_is_refused(stage: Make, tmp_path: Path) -> None:
    made = convert(stage(""), "end", verify=False)
    with pytest.raises(ConversionError, match="cannot be copied as 'other.end'") as caught:
        made.save(tmp_path / "other.end")
    assert "name='other.end'" in str(caught.value.fix)


def test_a_copy_that_fails_says_why(
    stage: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = convert(stage(""), "end", verify=False)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bridge.adapter.shutil.copyfile", refused)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="cannot be copied to .*: .*Permission denied"):
        made.save(tmp_path / "out" / "model.end")
    assert not list((tmp_path / "out").iterdir())


def test_a_cache_of_no_size_is_told_as_that(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_CACHE_SIZE", "huge")
    with pytest.raises(ConversionError, match="BRIDGE_CACHE_SIZE is 'huge'") as caught:
        convert(stage(""), "end")
    assert caught.value.fix == "Write for example 500M or 20G."
