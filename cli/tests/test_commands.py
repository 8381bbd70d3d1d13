"""doctor, inspect, run, convert, options and cache, on acting backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.cache import Cache
from bridge_cli.arrays import summary, write_npz


def test_doctor_is_healthy_though_a_runtime_is_missing(bridge: Any) -> None:
    found = bridge("doctor")
    assert found.code == 0
    assert "module 'absent' is not installed" in found.out
    assert "absent: Type: get absent" in found.out
    document = bridge("doctor", "--json").document("doctor")
    assert document["is_healthy"]
    absent = next(one for one in document["backends"] if one["name"] == "absent")
    assert (absent["installed"], absent["fix"]) == (False, "Type: get absent")
    assert absent["devices"] is None


def test_doctor_deep_asks_the_runtimes(bridge: Any) -> None:
    document = bridge("doctor", "--deep", "--json").document("doctor")
    devices = {one["name"]: one["devices"] for one in document["backends"]}
    assert devices["exact"] == ["cpu"]
    assert devices["absent"] is None
    broken = bridge("doctor", "--deep", BROKEN_DEVICES="1")
    assert broken.code == 1
    assert "odd: RuntimeError: the driver is too old" in broken.out


def test_doctor_reports_a_plugin_that_is_not_there(bridge: Any) -> None:
    found = bridge("doctor", BRIDGE_PLUGINS="acting,nowhere")
    assert found.code == 1
    assert "BRIDGE_PLUGINS names 'nowhere'" in found.out


def test_inspect(bridge: Any, model: Any) -> None:
    path = model()
    found = bridge("inspect", path)
    assert found.code == 0
    for text in ("Acting (acting)", "exact", "yes (native)", "not installed", "Type: get absent"):
        assert text in found.out
    assert "unable does not load Acting" in found.out
    document = bridge("inspect", path, "--json").document("inspect")
    assert document["path"] == str(path)
    assert document["operators"] == {"plain": 3}
    assert document["problem"] is None


def test_inspect_shows_every_signature(bridge: Any, model: Any) -> None:
    found = bridge("inspect", model("two"))
    assert "signature 'one'" in found.out
    assert "signature 'two'" in found.out


def test_inspect_shows_a_model_that_would_be_refused(bridge: Any, model: Any) -> None:
    path = model("untrusted")
    found = bridge("inspect", path)
    assert found.code == 1
    assert "it would run code." in found.out
    document = bridge("inspect", path, "--json").document("inspect")
    assert document["problem"]["class"] == "UntrustedModel"
    assert document["digest"] is None
    assert bridge("inspect", path, "--trust").code == 0


def test_run_makes_inputs(bridge: Any, model: Any) -> None:
    path = model("full")
    words = ("--rows", 2, "--dim", "t=3", "--set", "sr=16000", "--seed", 7)
    found = bridge("run", path, *words)
    assert found.code == 0
    for text in ("exact 1.0", "Stage", "float32", "2x3"):
        assert text in found.out
    document = bridge("run", path, *words, "--json").document("run")
    assert [one["shape"] for one in document["inputs"]] == [[2, 3], [], [2, 3]]
    assert document["info"]["threads"] == 2
    assert [one["name"] for one in document["outputs"]] == ["y", "file"]
    again = bridge("run", path, *words, "--json").document("run")
    assert again["outputs"] == document["outputs"]


def test_run_takes_options_outputs_and_shapes(bridge: Any, model: Any) -> None:
    document = bridge(
        "run", model(), "--option", "threads=3", "--option", "mode=exact",
        "--outputs", "y", "--shape", "x=5x3", "--json",
    ).document("run")  # fmt: skip
    assert document["info"]["options"] == {"threads": 3, "mode": "exact"}
    assert [(one["name"], one["shape"]) for one in document["outputs"]] == [("y", [5, 3])]


def test_run_counts_what_is_not_finite(bridge: Any, model: Any) -> None:
    found = bridge("run", model(), "--backend", "odd", "--rows", 2, "--json").document("run")
    y = found["outputs"][0]
    assert (y["nan_count"], y["infinite_count"]) == (4, 1)
    assert (y["min"], y["max"], y["mean"]) == (4, 4, 4)
    assert y["first"] == ["inf", 4, "nan", "nan"]


def test_run_reads_inputs_and_writes_outputs(bridge: Any, model: Any, tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    words = np.array([["a", "推荐"], ["b", "c"]])
    np.savez(tmp_path / "in.npz", x=x, words=words)
    np.save(tmp_path / "in.npy", x)
    (tmp_path / "in.json").write_text(json.dumps({"x": x.tolist()}))
    path = model()
    for name in ("in.npz", "in.npy", "in.json"):
        out = tmp_path / f"{name}.npz"
        found = bridge("run", path, "--inputs", tmp_path / name, "-o", out)
        assert found.code == 0, found.err
        assert f"written to {out}" in found.out.replace("\n", "")
        with np.load(out, allow_pickle=False) as archive:
            assert set(archive.files) == {"y", "file"}
            assert np.array_equal(archive["y"], x)
            assert archive["file"].dtype.kind == "U"
            assert archive["file"][0] == ("a/推荐" if name == "in.npz" else "straße")
    assert {item.suffix for item in tmp_path.iterdir()} <= {".npz", ".npy", ".json", ".act", ""}


def test_run_replaces_a_file_only_when_told_to(bridge: Any, model: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    out.write_text("precious")
    path = model()
    found = bridge("run", path, "-o", out)
    assert found.code == 2
    assert "--force" in found.err
    assert out.read_text() == "precious"
    assert bridge("run", path, "-o", out, "--force").code == 0
    assert np.load(out)["y"].shape == (1, 3)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--dim", "T"], 2, "T=50"),
        (["--dim", "T=many"], 2, "whole number"),
        (["--dim", "T=1", "--dim", "T=2"], 2, "twice"),
        (["--shape", "x=1xy"], 2, "input=1x512"),
        (["--shape", "x=-1x3"], 2, "whole number"),
        (["--set", "sr=fast"], 2, "sr=16000"),
        (["--set", "sr=nan"], 2, "finite"),
        (["--rows", "-1"], 2, "--rows"),
        (["--signature", "no.json"], 2, "states no signature"),
        (["--option", "thread=2"], 2, "threads"),
        (["--option", "threads"], 2, "key=value"),
        (["--option", "mode=slow"], 2, "fast, exact"),
        (["-o", "out.txt"], 2, ".npz"),
        (["-o", "no/such/folder/out.npz"], 2, "no folder"),
        (["--backend", "exakt"], 4, "exact"),
        (["--backend", "absent"], 4, "Type: get absent"),
        (["--backend", "unable"], 3, "does not load Acting"),
        (["--backend", "refuses"], 3, "is no operator"),
        (["--inputs", "no.npz"], 3, "no inputs file"),
        (["--shape", "z=1"], 5, "'z'"),
        (["--outputs", "why"], 5, "'why'"),
        (["--shape", "x=1x4"], 5, "4"),
        (["--device", "cuda"], 6, "cuda"),
        (["--device", "moon"], 6, "cpu"),
        (["--backend", "fails"], 7, "forgot its lines"),
    ],
)
def test_run_refuses(bridge: Any, model: Any, words: list[str], code: int, text: str) -> None:
    found = bridge("run", model(), *words)
    assert found.code == code, found.err
    assert text in " ".join(found.err.split())
    assert found.out == ""
    assert "Traceback" not in found.err


def test_run_refuses_code_without_trust(bridge: Any, model: Any) -> None:
    assert bridge("run", model("untrusted")).code == 3
    assert bridge("run", model("untrusted"), "--trust").code == 0


def test_run_says_why_it_cannot_write(
    bridge: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    found = bridge("run", model(), "-o", tmp_path / "out.npz")
    assert found.code == 7
    assert "No space left on device" in found.err
    assert [item.suffix for item in tmp_path.iterdir()] == [".act"]


def test_signature_from_a_file(bridge: Any, model: Any, tmp_path: Path) -> None:
    path = model()
    stated = bridge("inspect", path, "--json").document("inspect")["signatures"][""]
    (tmp_path / "signature.json").write_text(json.dumps(stated))
    (tmp_path / "broken.json").write_text('{"inputs": [{"dtype": "float32"}], "outputs": []}')
    assert bridge("run", path, "--signature", tmp_path / "signature.json").code == 0
    found = bridge("run", path, "--signature", tmp_path / "broken.json")
    assert found.code == 2
    assert "states no signature" in " ".join(found.err.split())


def test_summary_of_odd_arrays() -> None:
    assert summary("a", np.zeros((0, 3), np.float32))["mean"] is None
    assert summary("a", np.array(3, np.int64))["first"] == [3]
    big = summary("a", np.array([2**63 - 1, 0], np.int64))
    assert (big["max"], big["min"]) == (2**63 - 1, 0)
    assert summary("a", np.full(4, 1e308))["mean"] == pytest.approx(1e308)
    assert summary("a", np.array([True, False]))["first"] == [True, False]
    assert summary("a", np.array([1 + 2j]))["min"] is None
    assert summary("a", np.array([b"\xff", "x"], object))["first"] == ["\\xff", "x"]
    for array in (np.array([np.nan, np.inf]), np.array([1 + 2j, np.nan]), np.zeros((), bool)):
        json.dumps(summary("a", array), allow_nan=False)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("float8_e5m2", "float32"), ("float4_e2m1fn", "float32"), ("int4", "int8"), ("uint4", "int8")],
)
def test_small_dtypes_become_what_holds_them(tmp_path: Path, dtype: str, kept: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = np.array([0, 1, 6, 3], getattr(ml_dtypes, dtype))
    assert write_npz(tmp_path / "out.npz", {"y": given}) == [
        f"output 'y' is {dtype}, written as {kept}."
    ]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert archive["y"].dtype == kept
        assert np.array_equal(archive["y"].astype(given.dtype), given)


def test_dtypes_that_npy_lacks_become_float32(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    notes = write_npz(tmp_path / "out.npz", {"y": given, "half": np.ones(2, np.float16)})
    assert notes == ["output 'y' is bfloat16, written as float32."]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["y"].astype(ml_dtypes.bfloat16), given)
        assert archive["half"].dtype == np.float16


def test_convert(bridge: Any, model: Any, tmp_path: Path) -> None:
    out = tmp_path / "made.mime"
    found = bridge("convert", model(), "--to", "mime", "-o", out, "--option", "threads=2")
    assert found.code == 0
    assert out.read_bytes() == b"ACT plain"
    assert "acting-to-mime" in found.out
    assert "profiles x (1, 3)" in " ".join(found.out.split())
    out.unlink()
    document = bridge("convert", model(), "--to", "mime", "-o", out, "--json").document("convert")
    assert (document["adapter"], document["size_bytes"]) == ("acting-to-mime", 9)
    assert document["facts"]["share"] == 0.25


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--to", "mimes"], 4, "'mime'"),
        (["--to", "acting"], 4, "no adapter writes format 'acting'"),
        (["--to", "onnx"], 3, "no adapter turns"),
        (["--to", "opera", "--adapter", "acting-to-mime"], 2, "--to mime"),
        (["--to", "mime", "--adapter", "acting-to-mim"], 4, "acting-to-mime"),
        (["--to", "mime", "--option", "thread=1"], 2, "threads"),
        (["--to", "mime", "--option", "mode=exact"], 7, "cannot be exact"),
    ],
)
def test_convert_refuses(
    bridge: Any, model: Any, tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    if words == ["--to", "onnx"]:
        words = ["--to", "mime"]
        path = tmp_path / "m.tflite"
        path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    else:
        path = model()
    found = bridge("convert", path, *words, "-o", tmp_path / "made")
    assert found.code == code, found.err
    assert text in found.err
    assert not (tmp_path / "made").exists()


def test_convert_takes_the_adapter_that_is_named(bridge: Any, model: Any, tmp_path: Path) -> None:
    words = ["--to", "opera", "--adapter", "acting-to-opera-2", "-o", tmp_path / "made", "--json"]
    document = bridge("convert", model(), *words).document("convert")
    assert document["adapter"] == "acting-to-opera-2"
    # The format has no backend, so nothing could be compared.
    assert document["proof"]["is_equal"] is None
    assert "no backend can run opera" in document["proof"]["reason"]


def test_convert_keeps_what_is_there(bridge: Any, model: Any, tmp_path: Path) -> None:
    (tmp_path / "made").write_text("precious")
    found = bridge("convert", model(), "--to", "mime", "-o", tmp_path / "made")
    assert found.code == 7
    assert (tmp_path / "made").read_text() == "precious"


def test_convert_tells_of_the_route_and_of_options_nobody_has(
    bridge: Any, model: Any, tmp_path: Path
) -> None:
    words = ["--to", "opera", "-o", tmp_path / "made", "--option", "acting-to-opera.threads=3"]
    document = bridge("convert", model(), *words, "--no-verify", "--json").document("convert")
    assert document["route"] == ["acting-to-opera"]
    assert document["facts"]["threads"] == 3
    assert document["proof"] is None
    found = bridge("convert", model(), "--to", "opera", "-o", tmp_path / "b", "--timeout", "soon")
    assert found.code == 2
    found = bridge("convert", model(), "--to", "opera", "-o", tmp_path / "b", "--option", "x.y=1")
    assert (found.code, "has the option 'x.y'" in found.err) == (2, True)


def test_routes(bridge: Any, model: Any) -> None:
    found = bridge("routes", model())
    assert found.code == 0
    for text in ("mime", "acting-to-opera-2", "nothing", "possible"):
        assert text in found.out
    document = bridge("routes", model(), "--to", "mime", "--verify", "--json").document("routes")
    (route,) = document["routes"]
    assert (route["status"], route["adapters"]) == ("converted", ["acting-to-mime"])
    assert "no backend can run mime here" in route["reason"]
    assert bridge("routes", model(), "--to", "mimes").code == 4


def test_options(bridge: Any) -> None:
    found = bridge("options", "exact")
    assert found.code == 0
    for text in (
        "fast | exact",
        "at least 1",
        "0 to 1",
        "empty",
        "false",
        "(threads)",
        "The audience sleeps.",
    ):
        assert text in found.out
    document = bridge("options", "exact", "--json").document("options")
    assert [one["name"] for one in document["options"]] == [
        "threads", "mode", "share", "extras", "quiet",
    ]  # fmt: skip
    assert [one["when"] for one in document["options"]] == ["", "", "", "", "The audience sleeps."]
    assert bridge("options", "acting-to-mime", "--json").document("options")["kind"] == "adapter"
    missing = bridge("options", "exakt")
    assert missing.code == 4
    assert "'exact'" in missing.err


@pytest.fixture
def cache(environment: dict[str, str]) -> Cache:
    made = Cache(Path(environment["BRIDGE_CACHE_DIR"]))
    for number in range(3):
        made.entry("thing", {"n": number}, lambda folder: write(folder / "a", b"x" * 1000))
    return made


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def test_cache_ls(bridge: Any, cache: Cache) -> None:
    found = bridge("cache", "ls")
    assert found.code == 0
    assert "3 entries" in found.out
    assert "moments ago" in found.out
    for entry in cache.ls():
        assert entry.key[:12] in found.out
    document = bridge("cache", "ls", "--json").document("cache-ls")
    assert sorted(one["parts"]["n"] for one in document["entries"]) == [0, 1, 2]


def test_cache_rm(bridge: Any, cache: Cache) -> None:
    key = cache.ls()[0].key
    document = bridge("cache", "rm", key[:16], "--json").document("cache-rm")
    assert [one["key"] for one in document["removed"]] == [key]
    assert document["freed_bytes"] == 1000
    assert len(cache.ls()) == 2
    assert bridge("cache", "rm").code == 2
    assert bridge("cache", "rm", key[:16], "--all").code == 2
    assert bridge("cache", "rm", key[:16]).code == 7  # it is gone
    assert len(cache.ls()) == 2
    found = bridge("cache", "rm", "--all")
    assert "2 entries removed, 1.95 KiB freed" in found.out
    assert cache.ls() == ()


def test_cache_verify(bridge: Any, cache: Cache) -> None:
    assert bridge("cache", "verify").code == 0
    bad = cache.ls()[1]
    (damaged,) = [path for path in bad.path.rglob("a") if path.is_file()]
    damaged.chmod(0o600)
    damaged.write_bytes(b"y" * 1000)
    found = bridge("cache", "verify")
    assert found.code == 1
    assert bad.key[:12] in found.out
    document = bridge("cache", "verify", "--json").document("cache-verify")
    assert not document["is_sound"]
    assert [one["key"] for one in document["entries"] if one["problem"]] == [bad.key]


def test_cache_that_cannot_be_used(bridge: Any, tmp_path: Path) -> None:
    found = bridge("cache", "ls", BRIDGE_CACHE_SIZE="plenty")
    assert found.code == 7
    assert "BRIDGE_CACHE_SIZE" in found.err


def test_a_call_that_fails_on_made_up_inputs_says_how_to_make_others(
    bridge: Any, model: Any, tmp_path: Path
) -> None:
    path = model()
    assert "--highest-id" in bridge("run", path, "--backend", "stumbles").err
    np.save(tmp_path / "in.npy", np.zeros((1, 3), np.float32))
    real = bridge("run", path, "--backend", "stumbles", "--inputs", tmp_path / "in.npy")
    assert real.code == 7
    assert "--highest-id" not in real.err
    compared = bridge("compare", path, "--backend", "stumbles", "--json").document("compare")
    assert "--highest-id" in compared["arms"][0]["error"]["fix"]
    own = bridge("compare", path, "--backend", "fails", "--json").document("compare")
    assert own["arms"][0]["error"]["fix"] == "Rehearse."


def test_an_open_signature_asks_for_a_whole_one(bridge: Any, model: Any) -> None:
    found = bridge("run", model("open"))
    assert found.code == 5
    assert "--signature FILE.json" in found.err


def test_convert_takes_samples_only_for_who_looks_at_them(
    bridge: Any, model: Any, tmp_path: Path
) -> None:
    words = ["--to", "mime", "-o", tmp_path / "made", "--samples"]
    np.savez(tmp_path / "rows.npz", x=np.ones((4, 3), np.float32))
    found = bridge("convert", model(), *words, tmp_path / "rows.npz")
    assert found.code == 2
    assert "no adapter of acting-to-mime looks at any" in found.err
    np.savez(tmp_path / "rows.npz", x=np.ones((4, 3)))
    found = bridge("convert", model(), *words, tmp_path / "rows.npz")
    assert found.code == 5
    assert "float64" in found.err
    assert not (tmp_path / "made").exists()
