"""What is worth measuring of torch's options, and what they say of themselves."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.cpus import usable_cpus
from bridge.errors import OptionError
from bridge.loading import open_model
from bridge.search import Pruned

torch = pytest.importorskip("torch")

from bridge_torch.options import TorchOptions  # noqa: E402
from bridge_torch.package import find_compiler  # noqa: E402


def test_all_options_worth_measuring_load_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a compiler prepares are in test_torch_compiled."""
    monkeypatch.setattr("bridge_torch.options._cores_are_shared", lambda: False)
    net = torch.nn.Linear(3, 2).eval()
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    want = net(torch.from_numpy(x)).detach().numpy()
    script, program = tmp_path / "net.pt", tmp_path / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, torch.from_numpy(x)).save(str(script))
    rows = {"input": {0: torch.export.Dim("rows")}}
    exported = torch.export.export(net, (torch.from_numpy(x),), dynamic_shapes=rows)
    torch.export.save(exported, program)
    backend = bridge.backends()["torch"]
    rules = {}
    for path in (script, program):
        space = backend.search_space(open_model(path), bridge.CPU)
        arms = [options for options in space if isinstance(options, TorchOptions)]
        assert arms[0] == TorchOptions()
        assert len(set(arms)) == len(arms)
        for options in arms:
            if options.prepares:
                continue
            with backend.load(open_model(path), options=options) as predictor:
                (result,) = predictor.predict({predictor.signature.input_names[0]: x}).values()
                tolerance = 1e-5 if options.tier == "strict" else 1e-2
                np.testing.assert_allclose(result, want, rtol=tolerance, atol=tolerance)
                assert dict(predictor.info.options) == options.to_dict()
        left_out = [item for item in space if isinstance(item, Pruned)]
        assert all(item.reason.endswith(".") for item in left_out)
        rules[path] = {item.rule for item in left_out} - {"no-instructions"}
    assert rules[script] == {"not-for-torchscript", "same-as-default"}
    assert rules[program] >= {"not-for-exported-program", "same-as-default"}


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_code_for_one_size_is_for_fixed_sizes(tmp_path: Path) -> None:
    net, x = torch.nn.Linear(3, 2).eval(), torch.zeros(4, 3)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (x,)), path)
    one_size = TorchOptions(execution="compiled", dynamic=False)
    space = bridge.backends()["torch"].search_space
    assert one_size in space(open_model(path), bridge.CPU)
    rows = {"input": {0: torch.export.Dim("rows")}}
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=rows), path)
    found = space(open_model(path), bridge.CPU)
    assert one_size not in found
    assert "compiles-per-size" in {item.rule for item in found if isinstance(item, Pruned)}


def test_nothing_is_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    model = open_model(torch.nn.Linear(3, 2))
    space = bridge.backends()["torch"].search_space(model, bridge.CPU)
    rules = {
        item.values["execution"]: item.rule
        for item in space
        if isinstance(item, Pruned) and "execution" in item.values
    }
    assert rules == {"compiled": "no-cxx-compiler", "aot_inductor": "not-for-torch-module"}


def test_what_options_say_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert TorchOptions(tf32=True).tier == "half"
    assert TorchOptions(execution="compiled").prepares
    assert not TorchOptions(execution="frozen").prepares
    assert TorchOptions(threads=1024).process_key() == "threads=1024"
    everything = TorchOptions(threads=usable_cpus())
    for are_shared in (False, True):  # then torch takes one thread a core
        monkeypatch.setattr("bridge_torch.options._cores_are_shared", partial(bool, are_shared))
        assert everything.effective() == (everything if are_shared else TorchOptions())
    monkeypatch.setattr("bridge_torch.options._cores_are_shared", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    everything = TorchOptions(threads=len(os.sched_getaffinity(0)))
    assert everything.effective() == everything
    with pytest.raises(OptionError, match="dynamic=False has no effect") as caught:
        TorchOptions(dynamic=False)
    assert caught.value.detail["rule"] == "dynamic-without-compiled"
