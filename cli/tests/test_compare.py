"""compare, on acting backends."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def arms(found: Any) -> dict[str, Any]:
    return {arm["backend"]: arm for arm in found["arms"]}


def only(*backends: str) -> list[str]:
    return [word for name in backends for word in ("--backend", name)]


def test_arms_that_disagree_or_fail_are_shown(bridge: Any, model: Any) -> None:
    found = bridge("compare", model(), *only("exact", "off", "fails"), "--rounds", 2)
    assert found.code == 1
    assert re.search(r"^exact +ref ", found.out, re.MULTILINE)
    assert re.search(r"^off +NO ", found.out, re.MULTILINE)
    assert re.search(r"^fails +failed ", found.out, re.MULTILINE)
    assert "it forgot its lines." in found.out
    assert "Rehearse." in found.out
    assert "Fastest that agrees: exact" in found.out


def test_json(bridge: Any, model: Any) -> None:
    words = [*only("exact", "off", "fails", "unable"), "--rounds", 2, "--json"]
    found = bridge("compare", model(), *words)
    assert found.code == 1
    document = found.document("compare")
    assert not document["all_agree"]
    seen = arms(document)
    assert seen["exact"]["is_reference"]
    assert seen["off"]["agreement"][0]["max_abs"] == pytest.approx(0.01, rel=1e-2)
    assert seen["fails"]["error"]["class"] == "PredictError"
    assert seen["unable"]["error"]["class"] == "UnsupportedModel"
    assert document["fastest"]["backend"] == "exact"


def test_tolerance_decides(bridge: Any, model: Any) -> None:
    words = [*only("exact", "off"), "--rounds", 1, "--tolerance", 0.1]
    assert bridge("compare", model(), *words).code == 0


def test_numbers_that_json_lacks(bridge: Any, model: Any) -> None:
    words = [*only("exact", "odd"), "--rounds", 1]
    document = bridge("compare", model(), *words, "--json").document("compare")
    odd = arms(document)["odd"]["agreement"][0]
    assert odd["tolerance"] is None
    assert "not finite" in odd["problem"]
    found = bridge("compare", model(), *words)
    assert found.code == 1
    assert re.search(r"^odd +NO +inf ", found.out, re.MULTILINE)


def test_nothing_ran(bridge: Any, model: Any) -> None:
    found = bridge("compare", model(), *only("fails"), "--rounds", 1)
    assert found.code == 8
    assert "No arm ran." in found.out
    assert "predictor = " not in found.out
    document = bridge("compare", model(), *only("fails"), "--json").document("compare")
    assert document["fastest"] is None


def test_a_single_arm_is_not_called_agreement(bridge: Any, model: Any) -> None:
    found = bridge("compare", model(), *only("exact"), "--rounds", 1)
    assert found.code == 0
    assert "Only one arm ran" in found.out


def test_no_rounds_means_no_times(bridge: Any, model: Any) -> None:
    found = bridge("compare", model(), *only("exact", "off"), "--rounds", 0)
    assert found.code == 1
    assert "No arm was timed." in found.out


def test_many_outputs_show_the_worst(bridge: Any, model: Any) -> None:
    found = bridge("compare", model("wide"), *only("exact", "off"), "--rounds", 1)
    assert "and 10 more, no worse than these" in found.out
    table = found.out.partition("Agreement")[2]
    assert len(re.findall(r"^off +y\d+ ", table, re.MULTILINE)) == 20


def test_same_names_in_several_folders_are_told_apart(
    bridge: Any, model: Any, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.act").write_bytes(b"ACT plain")
    paths = [tmp_path / "a" / "m.act", tmp_path / "b" / "m.act"]
    found = bridge("compare", *paths, *only("exact"), "--rounds", 1)
    assert found.code == 0
    assert "exact · a/m.act" in found.out
    assert "exact · b/m.act" in found.out


def test_options_reach_their_backend(bridge: Any, model: Any) -> None:
    words = ["--option", "off.threads=3", "--option", "exact.mode=exact", "--rounds", 1]
    found = bridge("compare", model(), *only("exact", "off"), *words, "--json")
    seen = arms(found.document("compare"))
    assert seen["off"]["info"]["options"] == {"threads": 3}
    assert seen["exact"]["info"]["options"] == {"mode": "exact"}


def test_real_inputs(bridge: Any, model: Any, tmp_path: Path) -> None:
    x = np.full((4, 3), 100, np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    words = [*only("exact", "off"), "--rounds", 1, "--inputs", tmp_path / "in.npz"]
    document = bridge("compare", model(), *words, "--json").document("compare")
    off = arms(document)["off"]["agreement"][0]
    assert off["max_rel"] == pytest.approx(1e-4, rel=1e-2)  # 0.01 of 100
    two = [model("two"), *words, "--signature"]
    assert bridge("compare", *two, "one").code == 0
    chosen = bridge("compare", *two, "three")
    assert chosen.code == 2
    assert "none is called 'three'" in chosen.err
    silent = bridge("compare", model("silent"), *words)
    assert silent.code == 5
    assert "--signature FILE.json" in silent.err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--option", "threads=2"], 2, "onnxruntime.threads=2"),
        (["--option", "exact.thread=2"], 2, "threads"),
        (["--option", "exakt.threads=2"], 4, "exact"),
        (["--option", "off.threads=2", "--backend", "exact"], 2, "leaves out"),
        (["--backend", "exakt"], 4, "exact"),
        (["--map", "y"], 2, "output=other"),
        (["--tolerance", "-1"], 2, "--tolerance"),
        (["--inputs", "no.npz"], 3, "no inputs file"),
    ],
)
def test_compare_refuses(bridge: Any, model: Any, words: list[str], code: int, text: str) -> None:
    found = bridge("compare", model(), *words)
    assert found.code == code, found.err
    assert text in " ".join(found.err.split())


def test_the_code_it_prints_runs(
    bridge: Any, model: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    path = model("plain")
    odd = path.rename(tmp_path / 'it\'s "odd" \n name.act')
    words = [*only("exact"), "--option", "exact.threads=2", "--rounds", 1, "--trust"]
    found = bridge("compare", odd, *words)
    lines = found.out.splitlines()
    start = lines.index("    import bridge")
    code = [line.strip() for line in lines[start : start + 3]]
    assert code[2] == "outputs = predictor.predict(inputs)"
    program = "\n".join(
        [
            "import numpy as np",
            "inputs = {'x': np.ones((2, 3), np.float32)}",
            *code,
            "print(sorted(outputs), predictor.info.options)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "['file', 'y'] {'threads': 2}\n", done.stderr
