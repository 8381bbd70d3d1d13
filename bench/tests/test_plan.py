"""The plan: ids, order, and the rule of everything that is left out."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import bridge
from bridge import errors, option
from bridge.backend import Refusal
from bridge.loading import open_model
from bridge.registry import Registry
from bridge.search import Pruned, combine
from bridge_bench.plan import PlannedArm, plan

CUDA = bridge.Device("cuda")


@dataclass(frozen=True, kw_only=True)
class Settings(bridge.Options):
    threads: int | None = option(None, help="Threads.", minimum=1)
    half: bool = option(False, help="Compute in 16 bits.")
    compiled: bool = option(False, help="Compile.")
    pool: int = option(0, help="Size of the pool.", process_wide=True)
    names: tuple[str, ...] = option((), help="Names.")

    def check(self) -> None:
        if self.half and self.compiled:
            raise errors.OptionError(
                "half and compiled do not go together.", rule="half-without-compiled"
            )

    @property
    def tier(self) -> str:
        return "half" if self.half else "strict"

    @property
    def prepares(self) -> bool:
        return self.compiled


SPACE: tuple[Mapping[str, Any], ...] = (
    {},
    {"threads": 1},
    {"half": True},
    {"compiled": True},
    {"pool": 3},
    {"half": True, "compiled": True},
)


class Fake(bridge.Backend):
    """A backend that loads nothing: plans never load."""

    options_type: ClassVar[type[bridge.Options]] = Settings
    device_kinds = ("cpu", "cuda")
    formats = frozenset({"first", "second"})
    places: tuple[bridge.Device, ...] = (bridge.CPU,)
    space: Sequence[Mapping[str, Any] | Pruned] = ({}, {"threads": 1})
    missing: str | None = None
    predicts = True

    def __init__(self, name: str, **changed: Any) -> None:
        self.name = name  # type: ignore[misc]
        self.__dict__.update(changed)

    def probe(self) -> bridge.Availability:
        return bridge.Availability(
            installed=self.missing is None, reason=self.missing, fix="Install it."
        )

    def capabilities(self, device: bridge.Device) -> bridge.Capabilities:
        return bridge.Capabilities(formats=self.formats, dynamic_dims=True, predicts=self.predicts)

    def devices(self) -> tuple[bridge.Device, ...]:
        return self.places

    def search_space(
        self, model: bridge.ModelRef, device: bridge.Device
    ) -> tuple[bridge.Options | Pruned, ...]:
        return combine(Settings, self.space)

    def _load(self, model: bridge.ModelRef, device: bridge.Device, options: Any) -> Any:
        raise AssertionError("a plan loads nothing")


class Text(bridge.Format):
    def __init__(self, name: str, devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
        self.name, self.title, self.native_backend = name, name.title(), "native"
        self.devices = devices

    def sniff(self, file: bridge.model.FileProbe) -> bool:  # type: ignore[name-defined]
        return file.head.startswith(self.name.encode())


Stage = Callable[..., None]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """``stage(backend, ...)`` makes these backends all there are."""

    def put(*backends: Fake) -> None:
        made = Registry()
        for backend in backends:
            made.backends.add(backend, "test")
        monkeypatch.setattr("bridge_bench.plan.registry", lambda: made)

    return put


def model(folder: Path, name: str = "net.first", **about: Any) -> bridge.ModelRef:
    path = folder / name
    path.write_text(path.suffix[1:])
    return bridge.ModelRef(format=Text(path.suffix[1:], **about), path=path)


def by_id(arms: Sequence[PlannedArm]) -> dict[str, PlannedArm]:
    found = {arm.id: arm for arm in arms}
    assert len(found) == len(arms)
    return found


def test_the_default_comes_first_and_ids_can_be_typed(stage: Stage, tmp_path: Path) -> None:
    stage(Fake("native", space=(*SPACE, {"names": ("a", "b c")})), Fake("all"))
    arms = plan([model(tmp_path)])
    found = by_id(arms)
    assert list(found) == [
        "native",
        "native/threads=1",
        "native/half=true",
        "native/compiled=true",
        "native/pool=3",
        "native/half=true,compiled=true",
        "native/names=a-b-c",
        "all",
        "all/threads=1",
    ]
    assert [arm.id for arm in arms if arm.is_default] == ["native"]
    assert found["native"].options == Settings()
    assert found["native/threads=1"].options == Settings(threads=1)
    assert found["native/compiled=true"].prepares
    assert found["native/half=true"].rule == "precision-tier"
    pruned = found["native/half=true,compiled=true"]
    assert (pruned.rule, pruned.options) == ("half-without-compiled", None)
    assert pruned.reason == "half and compiled do not go together."
    assert by_id(plan([model(tmp_path)], tier="half"))["native/half=true"].rule is None


def test_arms_share_a_process_unless_they_disturb_each_other(stage: Stage, tmp_path: Path) -> None:
    stage(Fake("native", space=(*SPACE, {"pool": 3, "threads": 1})), Fake("other"))
    keys = {arm.id: arm.process_key for arm in plan([model(tmp_path)]) if arm.rule is None}
    assert keys["native"] == keys["native/threads=1"]
    assert keys["native/pool=3"] == keys["native/threads=1,pool=3"]
    groups = Counter(keys.values())
    assert groups[keys["native/compiled=true"]] == 1
    assert len(groups) == 4


def test_each_reason_to_leave_a_backend_out_has_a_rule(stage: Stage, tmp_path: Path) -> None:
    class Narrow(Fake):
        def refuse(self, model: bridge.ModelRef, device: bridge.Device) -> Refusal:
            return Refusal("'x' is float64.", "Cast it.", {"tensor": "x", "dtype": "float64"})

    class Broken(Fake):
        def search_space(self, model: bridge.ModelRef, device: bridge.Device) -> Any:
            raise ZeroDivisionError("odd")

    stage(
        Fake("native"),
        Fake("absent", missing="module 'absent' is not installed"),
        Fake("strange", formats=frozenset({"other"})),
        Fake("builder", predicts=False, device_kinds=("cuda",), places=()),
        Fake("gpu", device_kinds=("cuda",), places=()),
        Fake("truth", is_oracle=True),
        Narrow("narrow"),
        Broken("broken"),
    )
    arms = plan([model(tmp_path)])
    rules = {arm.backend: arm.rule for arm in arms if arm.rule is not None}
    assert rules == {
        "absent": "not-installed",
        "strange": "format",
        "builder": "builder-only",
        "gpu": "no-device",
        "truth": "oracle",
        "narrow": "dtype",
        "broken": "search-space",
    }
    assert all(arm.reason for arm in arms if arm.rule is not None)
    assert not any(arm.reason for arm in arms if arm.rule is None)
    assert by_id(arms)["absent"].fix == "Install it."
    named = by_id(plan([model(tmp_path)], backends=["truth"]))
    assert named["truth"].rule is None
    assert named["native"].is_default
    assert named["native"].rule is None
    assert named["native/threads=1"].rule == "excluded"


def test_devices(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = (bridge.CPU, CUDA)
    stage(Fake("native", places=both), Fake("other"))
    monkeypatch.setattr("bridge_bench.places._may_have_others", lambda *_: True)
    found = by_id(plan([model(tmp_path)]))
    assert list(found)[:3] == ["native", "native/threads=1", "native@cuda:0"]
    assert list(found)[3:] == ["native/threads=1@cuda:0", "other", "other/threads=1"]
    assert found["native"].is_default
    assert not found["native@cuda:0"].is_default
    asked = by_id(plan([model(tmp_path)], devices=["cuda"]))
    assert asked["native@cuda:0"].is_default
    assert asked["other@cuda:0"].rule == "no-device"
    assert "other cannot use cuda:0 here" in asked["other@cuda:0"].reason
    cpu_only = model(tmp_path, devices=("cpu",))
    assert {arm.device for arm in plan([cpu_only])} == {bridge.CPU}
    with pytest.raises(errors.DeviceUnavailable, match="do not run on cuda:0"):
        plan([cpu_only], devices=["cuda"], backends=["native"])


def test_runtimes_are_not_asked_for_devices_without_a_reason(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Eager(Fake):
        def devices(self) -> tuple[bridge.Device, ...]:
            raise AssertionError("this imports the runtime")

    stage(Eager("native"))
    monkeypatch.setattr("bridge_bench.places._may_have", lambda _: False)
    assert [arm.id for arm in plan([model(tmp_path)])] == ["native", "native/threads=1"]
    monkeypatch.undo()
    stage(Eager("native"), Fake("other"))
    monkeypatch.setattr("bridge_bench.places._may_have", lambda _: True)
    found = by_id(plan([model(tmp_path)]))
    assert found["native"].rule == "no-device"
    assert "this imports the runtime" in found["native"].reason


def test_several_models(stage: Stage, tmp_path: Path) -> None:
    stage(Fake("native"), Fake("other", formats=frozenset({"second"})))
    first, second = model(tmp_path), model(tmp_path, "net.second")
    arms = plan([first, second])
    assert [(arm.id, arm.model) for arm in arms if arm.rule is None] == [
        ("net.first:native", 0),
        ("net.first:native/threads=1", 0),
        ("net.second:native", 1),
        ("net.second:native/threads=1", 1),
        ("net.second:other", 1),
        ("net.second:other/threads=1", 1),
    ]
    assert [arm.id for arm in arms if arm.is_default] == ["net.first:native"]
    (tmp_path / "more").mkdir()
    twins = plan([first, model(tmp_path / "more")])
    assert {arm.id.partition(":")[0] for arm in twins} == {"0", "1"}


def test_settled_options_are_kept(stage: Stage, tmp_path: Path) -> None:
    stage(Fake("native", space=SPACE), Fake("other"))
    found = by_id(plan([model(tmp_path)], options={"native": {"half": True}}, tier="half"))
    legal = {arm.id: arm.options for arm in found.values() if arm.rule is None}
    assert legal == {
        "native/half=true": Settings(half=True),
        "native/threads=1,half=true": Settings(half=True, threads=1),
        "native/half=true,pool=3": Settings(half=True, pool=3),
        "other": Settings(),
        "other/threads=1": Settings(threads=1),
    }
    assert found["native/half=true"].is_default
    assert {arm.rule for arm in found.values() if arm.rule} == {
        "half-without-compiled",
        "same-as-another",
    }
    one = by_id(plan([model(tmp_path)], options={"native": {"threads": "2"}}))
    assert one["native/threads=1"].rule == "settled"
    with pytest.raises(errors.OptionError, match="Did you mean 'threads'"):
        plan([model(tmp_path)], options={"native": {"thread": 2}})
    with pytest.raises(errors.BackendNotFound, match="nativ"):
        plan([model(tmp_path)], options={"nativ": {}})


def test_only_and_skip(stage: Stage, tmp_path: Path) -> None:
    stage(Fake("native", space=SPACE), Fake("other"))

    def kept(**asked: Any) -> list[str]:
        return [arm.id for arm in plan([model(tmp_path)], **asked) if arm.rule is None]

    assert kept(only=["other*"]) == ["native", "other", "other/threads=1"]
    assert kept(only=["*/threads=*"]) == ["native", "native/threads=1", "other/threads=1"]
    assert kept(skip=["native*"]) == ["other", "other/threads=1"]
    assert kept(only=["other"], skip=["native"]) == ["other"]
    assert kept(backends=["other"]) == ["native", "other", "other/threads=1"]
    with pytest.raises(errors.OptionError, match="all 8 arms are left out") as caught:
        plan([model(tmp_path)], skip=["*"])
    assert caught.value.detail["refusals"]["native"] == "it fits '*', which is to be skipped."


def test_too_many_arms_go_in_turn(stage: Stage, tmp_path: Path) -> None:
    stage(
        Fake("native", space=[{}, *({"threads": count} for count in range(1, 9))]),
        Fake("few", space=[{}]),
        Fake("more", space=[{}, *({"threads": count} for count in range(1, 9))]),
    )
    arms = plan([model(tmp_path)], max_arms=6)
    assert [arm.id for arm in arms if arm.rule is None] == [
        "native",
        "native/threads=1",
        "native/threads=2",
        "few",
        "more",
        "more/threads=1",
    ]
    left = [arm for arm in arms if arm.rule is not None]
    assert {arm.rule for arm in left} == {"max-arms"}
    assert left[0].reason == "only 6 arms are measured, and 19 were worth it."
    assert [arm.id for arm in plan([model(tmp_path)], max_arms=1) if arm.rule is None] == ["native"]


def test_nothing_to_measure_is_an_error_that_says_why(stage: Stage, tmp_path: Path) -> None:
    other = frozenset({"other"})
    stage(Fake("native", formats=other), Fake("second", formats=other))
    with pytest.raises(errors.UnsupportedModel, match="no backend takes net.first") as caught:
        plan([model(tmp_path)])
    assert set(caught.value.detail["refusals"]) == {"native", "second"}
    stage(Fake("native", missing="module 'native' is not installed"))
    with pytest.raises(errors.BackendUnavailable, match="'native' is not installed"):
        plan([model(tmp_path)])
    stage(Fake("native", device_kinds=("cuda",), places=()))
    with pytest.raises(errors.DeviceUnavailable, match="can run here"):
        plan([model(tmp_path)])


def test_wrong_calls(stage: Stage, tmp_path: Path) -> None:
    stage(Fake("native"))
    for asked, problem in (
        ({"tier": "halv"}, "tier is 'halv'"),
        ({"max_arms": 0}, "wanted at least 1"),
    ):
        with pytest.raises(errors.OptionError, match=problem):
            plan([model(tmp_path)], **asked)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="no model"):
        plan([])
    with pytest.raises(errors.BackendNotFound):
        plan([model(tmp_path)], backends=["nativ"])
    with pytest.raises(errors.DeviceUnavailable, match="unknown"):
        plan([model(tmp_path)], devices=["tpu"])


def test_the_real_backends_are_planned_without_their_runtimes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [make("x", 1, ["N", 3])],
        [make("y", 1, ["N", 3])],
    )
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    script = f"""
import sys
from bridge.loading import open_model
from bridge_bench.plan import plan
arms = plan([open_model({str(path)!r})], devices=["cpu"])
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set(sys.argv[1:])))
print(sum(arm.is_default for arm in arms), len(arms) > 10)
"""
    runtimes = ["onnxruntime", "openvino", "tensorflow", "torch", "tensorrt", "tensorrt_rtx"]
    done = subprocess.run(
        [sys.executable, "-c", script, *runtimes], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "[]"
    native = open_model(path).format.native_backend
    installed = bridge.backends()[native].probe().installed
    assert done.stdout.splitlines()[1] == f"{int(installed)} True"
