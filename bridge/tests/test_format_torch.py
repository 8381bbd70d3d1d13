"""What the bridge says about torch's files without torch: archives made by hand."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.errors import InvalidModel, UnsupportedModel, UntrustedModel
from bridge.formats.operators import allowed, refused
from bridge.formats.torch.code import scan
from bridge.formats.torch.graph import scan_graph
from bridge.formats.torch.structure import ExportedTensor, named_leaves, program_signature
from bridge.loading import open_model

CODE = """class Net(Module):
  __parameters__ = ["weight", ]
  __buffers__ = []
  weight : Tensor
  training : bool
  _is_full_backward_hook : Optional[bool]
  def forward(self: __torch__.Net,
    x: Tensor,
    scale: float=1.,
    mask: Optional[Tensor]=None) -> Tuple[Tensor, Tensor]:
    weight = self.weight
    y = torch.mul(torch.matmul(x, weight), scale)
    if torch.__isnot__(mask, None):
      z = torch.relu(y)
    else:
      z = y
    ops.prim.RaiseException("never \\"so\\"", "builtins.ValueError")
    return (y, (self).helper(z, ))
  def helper(self: __torch__.Net,
    z: Tensor) -> Tensor:
    return torch.to(z, ops.prim.device(z))
"""
ROOT = b"c__torch__\nNet\n."
"""A pickle, protocol 0, that only names the class of the model."""


def write_zip(
    path: Path, members: Mapping[str, bytes | str], *, compress: bool = False, top: str = "net/"
) -> Path:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(top + name, content)
    return path


def script(path: Path, code: str = CODE, root: bytes = ROOT, **more: bytes | str) -> Path:
    members = {"data.pkl": root, "code/__torch__.py": code, "constants.pkl": b").", "version": "3"}
    return write_zip(path, {**members, **more})


def check(path: Path, *, trust: bool = False) -> None:
    model = open_model(path, trust=trust)
    model.format.check(model)


# TorchScript


def test_a_script_that_only_computes_passes(tmp_path: Path) -> None:
    model = open_model(script(tmp_path / "net.pt"))
    assert model.format.name == "torchscript"
    model.format.check(model)
    facts = model.facts
    signature = facts.signatures[""]
    assert signature.input_names == ("x", "scale", "mask")
    assert [spec.has_default for spec in signature.inputs] == [False, True, True]
    assert [str(spec.dtype) for spec in signature.inputs] == ["None", "float64", "None"]
    assert signature.output_names == ("output_0", "output_1")
    assert facts.operators["aten::matmul"] == 1
    assert facts.operators["prim::RaiseException"] == 1
    assert facts.versions == {"version": "3"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('y = torch.from_file("/etc/passwd", True, 9)', "aten::from_file"),
        ('torch.save(y, "/tmp/stolen")', "aten::save"),
        ("y = ops.mylib.run(y)", "mylib::run"),
        ("y = ops.quantized.relu6(y)", "quantized::relu6"),
        ("y = torch.no_such_operator(y)", "unknown"),
        ("print(y)", "calls 'print'"),
        ('y = rpc_sync("host", y)', "calls 'rpc_sync'"),
        ("t = torch", "'torch' as a value"),
        ("f = ops", "'ops' as a value"),
        ('f = getattr(ops, "mylib")', "'ops' as a value"),
        ('y = (y).from_file("/etc/passwd")', "from_file"),
        ('y = "/etc/passwd".from_file(True, 9)', "from_file"),
        ('y = getattr("/etc/passwd", "from_file")(True, 9)', "from_file"),
        ("f = y.save", "save"),
        ("y = (y).exotic_method()", "defined nowhere"),
        ("y = __torch__.torch.classes.evil.Thing(y)", "native class"),
        ("y = y # torch.save", "a comment"),
        ("y = 'single quotes'", "unusual string"),
        ('y = r"raw"', "unusual string"),
        ("y = (lambda a: a)(y)", "result of an expression"),
        ("import os", "Import"),
        ("y = ^Python()(y)", "cannot be read|outside the language"),
    ],
)
def test_a_script_that_may_do_more_is_refused(tmp_path: Path, line: str, said: str) -> None:
    code = CODE.replace("    weight = self.weight\n", f"    {line}\n    weight = self.weight\n")
    path = script(tmp_path / "net.pt", code)
    with pytest.raises(UntrustedModel) as caught:
        check(path)
    assert re.search(said, " ".join(caught.value.detail["findings"]))
    assert "trust=True" in str(caught.value)
    check(path, trust=True)


def test_code_is_found_under_names_that_torch_finds(tmp_path: Path) -> None:
    evil = 'def f(x: Tensor) -> Tensor:\n  return torch.from_file("x", True, 9)\n'
    for name in ("code/__torch__/other.py", "Code/__torch__/other.PY", "code/odd"):
        with pytest.raises(UntrustedModel, match="from_file"):
            check(script(tmp_path / "net.pt", **{name: evil}))


@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl", "attributes.pkl"])
def test_native_classes_in_data_are_refused(tmp_path: Path, member: str) -> None:
    evil = ROOT[:-1] + b"c__torch__.torch.classes.evil\nThing\n."
    with pytest.raises(UntrustedModel, match=r"torch\.classes\.evil\.Thing"):
        check(script(tmp_path / "net.pt", **{member: evil}))


def test_an_own_method_may_have_any_name_when_called_on_self() -> None:
    code = (
        "class A(Module):\n  def save(self: __torch__.A) -> int:\n    return 1\n"
        "  def forward(self: __torch__.A) -> int:\n    return (self).save()\n"
    )
    assert scan({"code/a.py": code})[0] == []
    on_other = code.replace("(self).save()", '("text").save()')
    assert scan({"code/a.py": on_other})[0]


def test_deeply_nested_code_is_refused_not_crashed_on(tmp_path: Path) -> None:
    path = script(tmp_path / "net.pt", "x = " + "(" * 50_000 + "1" + ")" * 50_000)
    with pytest.raises(UntrustedModel, match="cannot be read"):
        check(path)


def test_outputs_known_only_after_a_call_are_said_so(tmp_path: Path) -> None:
    code = CODE.replace("-> Tuple[Tensor, Tensor]", "-> Dict[str, Tensor]")
    facts = open_model(script(tmp_path / "net.pt", code)).facts
    assert not facts.signatures
    assert any("Dict[str, Tensor]" in note for note in facts.notes)


def test_fields_of_a_named_tuple_name_the_outputs(tmp_path: Path) -> None:
    code = CODE.replace("-> Tuple[Tensor, Tensor]", "-> __torch__.Result")
    code += "class Result(NamedTuple):\n  scores : Tensor\n  boxes : Tensor\n"
    facts = open_model(script(tmp_path / "net.pt", code)).facts
    assert facts.signatures[""].output_names == ("scores", "boxes")


# Archives


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    members = {"data.pkl": ROOT, "code/__torch__.py": CODE, "data/0": b"\0" * 1_000_000}
    with pytest.raises(InvalidModel, match="zip bomb"):
        check(write_zip(tmp_path / "net.pt", members, compress=True), trust=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_hide_each_other_are_refused(tmp_path: Path) -> None:
    for second in ("code/__torch__.py", "code/__TORCH__.py"):
        path = script(tmp_path / "net.pt")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("net/" + second, CODE)
        with pytest.raises(InvalidModel, match="two members"):
            check(path)


def test_a_truncated_archive_is_invalid(tmp_path: Path) -> None:
    whole = script(tmp_path / "net.pt").read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 10):
        (tmp_path / "net.pt").write_bytes(whole[:size])
        with pytest.raises(InvalidModel):
            check(tmp_path / "net.pt")


def test_an_archive_without_its_parts_is_invalid(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "net.pt", {"code/__torch__.py": CODE})
    with pytest.raises(InvalidModel, match=r"data\.pkl"):
        open_model(path).facts  # noqa: B018 - reading is what is tested


# ExportedProgram


def graph(**changes: Any) -> dict[str, Any]:
    """What torch.export.save writes for ``x + 1``, as far as it is looked at."""
    symbol = {"as_expr": {"expr_str": "Symbol('s77', positive=True, integer=True)"}}
    size = {"dtype": 7, "sizes": [symbol, {"as_int": 16}], "device": {"type": "cpu"}}
    tree = {"type": None, "context": None, "children_spec": []}
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [tree]}
    none = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    whole = {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, none]}
    node = {
        "target": "torch.ops.aten.add.Tensor",
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "add"}}],
        "metadata": {"stack_trace": 'File "a.py", line 1, in forward\n x + 1; "quoted"'},
    }
    made: dict[str, Any] = {
        "graph_module": {
            "graph": {
                "inputs": [{"as_tensor": {"name": "x"}}],
                "nodes": [node],
                "tensor_values": {"x": size, "add": size},
                "custom_obj_values": {},
            },
            "signature": {
                "input_specs": [{"user_input": {"arg": {"as_tensor": {"name": "x"}}}}],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "add"}}}}],
            },
            "module_call_graph": [
                {
                    "fqn": "",
                    "signature": {
                        "in_spec": json.dumps([1, whole]),
                        "out_spec": json.dumps([1, tree]),
                        "forward_arg_names": ["x"],
                    },
                }
            ],
        },
        "range_constraints": {"s77": {"min_val": 0, "max_val": None}},
        "guards_code": ["L['x'].size()[0] <= 100"],
        "torch_version": "2.13.0+cpu",
        "schema_version": {"major": 8, "minor": 20},
    }
    for path, value in changes.items():
        at: Any = made
        *steps, last = path.split("__")
        for step in steps:
            at = at[int(step)] if step.isdigit() else at[step]
        at[int(last) if last.isdigit() else last] = value
    return made


class Evil:
    """Pickled, it creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def saved(data: bytes) -> bytes:
    """The archive that torch.save makes around a pickle."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return stream.getvalue()


def program(path: Path, made: dict[str, Any] | None = None, **more: bytes | str) -> Path:
    config = {"config": {}}
    members: dict[str, bytes | str] = {
        "models/model.json": json.dumps(graph() if made is None else made),
        "data/weights/model_weights_config.json": json.dumps(config),
        "data/constants/model_constants_config.json": json.dumps(config),
        "data/sample_inputs/model.pt": saved(pickle.dumps(())),
        "archive_format": "pt2",
        "archive_version": "0",
        ".data/version": "3",
    }
    return write_zip(path, {**members, **more})


def test_a_program_that_only_computes_passes(tmp_path: Path) -> None:
    model = open_model(program(tmp_path / "net.pt2"))
    assert model.format.name == "exported_program"
    model.format.check(model)
    facts = model.facts
    assert str(facts.signatures[""]) == (
        "(x: float32 (batch, 16)) -> (output_0: float32 (batch, 16))"
    )
    assert facts.operators == {"aten::add": 1}
    assert facts.versions["torch"] == "2.13.0+cpu"


NODE = "graph_module__graph__nodes__0__"
CALLS = "graph_module__module_call_graph__0__"


def tree(kind: str, context: str = "null") -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


@pytest.mark.parametrize(
    "changes",
    [
        {NODE + "target": "torch.hub.load"},
        {NODE + "target": "torch.load"},
        {NODE + "target": "torch.ops.mylib.run.default"},
        {NODE + "target": "torch.ops.aten.from_file.default"},
        {NODE + "target": "torch.ops.aten.add.__class__"},
        {NODE + "target": "_operator.methodcaller"},
        {NODE + "target": "math.os.system"},
        {NODE + "target": "#ext:thing"},
        {NODE + "inputs__0__arg": {"as_operator": "torch.load"}},
        {NODE + "inputs__0__arg": {"as_custom_obj": {"name": "x", "class_fqn": "a.B"}}},
        {NODE + "inputs__0__arg__as_tensor__name": "x\nimport os"},
        {NODE + "unheard_of": "print('hello')"},
        {"graph_module__graph__tensor_values": {"x); evil(": {}}},
        {"graph_module__graph__custom_obj_values": {"a": {}}},
        {"graph_module__graph__tensor_values__x__sizes__0__as_expr__expr_str": "exit()"},
        {"graph_module__graph__tensor_values__x__sizes__0__as_expr__expr_str": "Symbol.mro()"},
        {
            "graph_module__graph__tensor_values__x__sizes__0__as_expr__expr_str": (
                "Symbol('__import__')"
            )
        },
        {"guards_code": ["__import__('os').system('true')"]},
        {"guards_code": ["L['x'].__class__"]},
        {"guards_code": ["L['x\"'].size()[0] == 1"]},
        {"guards_code": ["[1 for _ in L]"]},
        {"range_constraints": {"exit()": {}}},
        {CALLS + "fqn": 'a"b'},
        {CALLS + "signature__in_spec": tree("collections.defaultdict", '{"default_factory": 1}')},
        {CALLS + "signature__in_spec": tree("mymodule.MyClass")},
        {CALLS + "signature__out_spec": tree("builtins.dict", json.dumps(["a'b"]))},
        {CALLS + "signature__out_spec": "not json"},
        {CALLS + "signature__forward_arg_names": ["x, y=evil()"]},
    ],
)
def test_a_program_that_may_do_more_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = program(tmp_path / "net.pt2", graph(**changes))
    with pytest.raises(UntrustedModel):
        check(path)
    check(path, trust=True)


def test_programs_with_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = pickle.dumps(Evil(marker))
    entry = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
    objects = {"config": {"w": {"path_name": "opaque_obj_0", "use_pickle": True}}}
    config = "data/weights/model_weights_config.json"
    cases: list[dict[str, bytes | str]] = [
        {"data/sample_inputs/model.pt": saved(evil)},
        {config: json.dumps(entry), "data/weights/weight_0": saved(evil)},
        {"data/weights/model.pt": saved(evil)},
        {"data/constants/model.pt": saved(evil)},
        {"data/constants/opaque_obj_0": evil},
        {"data/constants/custom_obj_0": evil},
        {"data/constants/model_constants_config.json": json.dumps(objects)},
        {"surprise/file": b""},
    ]
    for case in cases:
        with pytest.raises(UntrustedModel):
            check(program(tmp_path / "net.pt2", **case))
    assert not marker.exists()


def test_pickles_that_hide_what_they_call_are_invalid(tmp_path: Path) -> None:
    for data in (b"\x80\x04\x82\x01.", b"\x80\x04K\x01\x8c\x02os\x93.", b"garbage"):
        with pytest.raises(InvalidModel):
            check(program(tmp_path / "a.pt2", **{"data/sample_inputs/model.pt": saved(data)}))


def test_sizes_and_guards_that_torch_writes_pass() -> None:
    sizes = "graph_module__graph__tensor_values__x__sizes__0__as_expr__expr_str"
    for text in (
        "Mul(Integer(2), Symbol('s77', positive=True, integer=True))",
        "FloorDiv(Symbol('s0', integer=True), Integer(4)) + 1",
        "Max(1, Symbol('u0'))",
    ):
        assert scan_graph(graph(**{sizes: text})) == []
    for text in (
        "L['x'].size()[0] == L['k'].size()[0]",
        "L['x']['deep key'][0].size()[1] % 8 == 0",
        "Mod(L['x'].size()[0], 2) == 0 and L['x'].stride()[0] >= 1",
    ):
        assert scan_graph(graph(guards_code=[text])) == []


def test_the_layout_of_old_torch_is_told_apart(tmp_path: Path) -> None:
    members = {"version": "8.2", "serialized_exported_program.json": "{}"}
    path = write_zip(tmp_path / "old.pt2", members, top="")
    assert open_model(path).format.name == "exported_program"
    with pytest.raises(UnsupportedModel, match="torch 2.7 and older"):
        check(path)


def test_a_program_that_is_no_json_is_invalid(tmp_path: Path) -> None:
    for text in ("{", "[]", "[" * 100_000):
        with pytest.raises(InvalidModel):
            check(program(tmp_path / "net.pt2", **{"models/model.json": text}), trust=True)


# The others


def test_native_packages_need_trust(tmp_path: Path) -> None:
    members = {"data/aotinductor/model/a.wrapper.so": b"\x7fELF", "models/model.json": "{}"}
    path = write_zip(tmp_path / "net.pt2", members)
    assert open_model(path).format.name == "aot_inductor"
    with pytest.raises(UntrustedModel, match="native code"):
        check(path)
    check(path, trust=True)


def test_pickles_need_trust_and_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for protocol in (2, 5):
        bare = tmp_path / f"bare{protocol}.pt"
        bare.write_bytes(pickle.dumps(Evil(marker), protocol))
        zipped = write_zip(tmp_path / f"zip{protocol}.pt", {"data.pkl": bare.read_bytes()})
        for path in (bare, zipped):
            assert open_model(path).format.name == "torch_pickle"
            with pytest.raises(UntrustedModel, match="runs code of its own"):
                bridge.load(path)
    assert not marker.exists()


def test_other_archives_are_not_taken_for_torch(tmp_path: Path) -> None:
    keras = write_zip(tmp_path / "a.keras", {"config.json": "{}", "metadata.json": "{}"}, top="")
    arrays = write_zip(tmp_path / "a.npz", {"x.npy": b"\x93NUMPY"}, top="")
    assert open_model(keras).format.name == "keras"
    with pytest.raises(UnsupportedModel, match="no format known"):
        open_model(arrays)


def test_the_lists_of_operators() -> None:
    assert {"aten::add", "aten::conv2d", "aten::lstm", "prim::device"} <= allowed("torch")
    forbidden = {"aten::from_file", "aten::save", "aten::set_", "prim::Print", "prim::rpc_sync"}
    assert not allowed("torch") & forbidden
    assert {"aten::from_file", "aten::save"} <= refused("torch")
    assert not allowed("torch") & refused("torch")
    assert not any(name.endswith("_backward") for name in allowed("torch"))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (1, ["output_0"]),
        ((1, 2), ["output_0", "output_1"]),
        ({"a": 1, "b": 2}, ["a", "b"]),
        ((1, {"k": 2, "z": [3, 4]}), ["output_0", "k", "z_0", "z_1"]),
        (((1, 2), 3), ["output_0", "output_1", "output_2"]),
        (({"a": 1}, {"a": 2}), ["output_0", "output_1"]),
        ((None, 1), ["output_0", "output_1"]),
    ],
)
def test_leaves_have_names(value: Any, names: list[str]) -> None:
    assert [name for name, _ in named_leaves(value)] == names


def test_symbols_become_names_only_where_they_tie_tensors() -> None:
    signature = program_signature(
        [
            ExportedTensor("a", bridge.DType.FLOAT32, ["s1", "s2", 3]),
            ExportedTensor("b", bridge.DType.FLOAT32, ["s1", "s2", "s3"]),
            ExportedTensor("n", bridge.DType.INT64, None),
        ],
        [ExportedTensor("y", None, ["s1", "2*s2"])],
    )
    assert [spec.shape for spec in signature.inputs] == [
        ("batch", "dim_1", 3),
        ("batch", "dim_1", None),
        None,
    ]
    assert signature.outputs[0].shape == ("batch", None)
