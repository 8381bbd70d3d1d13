"""SavedModel folders, read and judged without TensorFlow: the graphs are written by hand."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from bridge.dtypes import DType
from bridge.errors import (
    BridgeError,
    InvalidModel,
    ModelNotFound,
    UnsupportedModel,
    UntrustedModel,
)
from bridge.formats.operators import allowed, refused
from bridge.formats.tensorflow import SavedModel
from bridge.formats.tensorflow.graph import read_meta_graphs
from bridge.formats.tensorflow.reach import keeps_state, reach
from bridge.model import ModelRef
from bridge.signature import TensorSpec


def field(number: int, *values: bytes | str | int) -> bytes:
    """A protobuf field, once for each value."""
    parts = []
    for value in values:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            raw = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | 2) + varint(len(raw)) + raw)
    return b"".join(parts)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def entry(key: str, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def text(value: str) -> bytes:
    """An attribute value that is a string."""
    return field(2, value)


def func(name: str, **attrs: bytes) -> bytes:
    """An attribute value that names a function."""
    return field(10, field(1, name) + field(2, *(entry(k, v) for k, v in attrs.items())))


def node(name: str, op: str, *inputs: str, **attrs: bytes) -> bytes:
    return (
        field(1, name)
        + field(2, op)
        + field(3, *inputs)
        + field(5, *(entry(key, value) for key, value in attrs.items()))
    )


def function(name: str, nodes: Iterable[bytes], args: Iterable[str] = (), **attrs: bytes) -> bytes:
    signature = field(1, name) + field(2, *(field(1, arg) for arg in args))
    return (
        field(1, signature)
        + field(3, *nodes)
        + field(5, *(entry(key, value) for key, value in attrs.items()))
    )


def tensor(name: str, dtype: int = 1, dims: Iterable[int] | None = (-1,)) -> bytes:
    shape = field(3, 1) if dims is None else field(2, *(field(1, size) for size in dims))
    return field(1, name) + field(2, dtype) + field(3, shape)


def signature(inputs: dict[str, bytes], outputs: dict[str, bytes]) -> bytes:
    return field(1, *(entry(k, v) for k, v in inputs.items())) + field(
        2, *(entry(k, v) for k, v in outputs.items())
    )


X, Y = {"x": tensor("x:0")}, {"y": tensor("y:0")}
INPUT = node("x", "Placeholder")
SAVER = field(3, field(1, "saver_filename:0") + field(3, "restore"))


def meta_graph(
    *nodes: bytes,
    functions: Iterable[bytes] = (),
    signatures: dict[str, bytes] | None = None,
    tags: Iterable[str] = ("serve",),
    more: bytes = b"",
) -> bytes:
    if signatures is None:
        signatures = {"serving_default": signature(X, Y)}
    return (
        field(1, field(4, *tags) + field(5, "2.21.0"))
        + field(2, field(1, *nodes) + field(2, field(1, *functions)))
        + field(5, *(entry(key, value) for key, value in signatures.items()))
        + more
    )


def write(folder: Path, *graphs: bytes) -> ModelRef:
    folder.mkdir(exist_ok=True)
    (folder / "saved_model.pb").write_bytes(field(1, 1) + field(2, *graphs))
    return ModelRef.open(folder, [SavedModel()])


def check(folder: Path, *graphs: bytes) -> None:
    model = write(folder, *graphs)
    model.format.check(model)


PLAIN = meta_graph(INPUT, node("y", "Relu", "x"))


def test_facts(tmp_path: Path) -> None:
    signatures = {
        "serving_default": signature(
            {"b": tensor("b:0", 7, (-1, 3)), "a": tensor("a:0", 9, ())},
            {"out": tensor("f:1", 14, None), "none": tensor("f:2", 1, (0, 2))},
        ),
        "__saved_model_init_op": signature({}, {"__saved_model_init_op": tensor("init")}),
    }
    nodes = [node("a", "Placeholder"), node("b", "Placeholder"), node("init", "NoOp")]
    body = function("g", [node("r", "Relu", "x"), node("s", "Relu", "r")])
    model = write(tmp_path / "m", meta_graph(*nodes, functions=[body], signatures=signatures))
    facts = model.facts
    assert list(facts.signatures) == ["serving_default"]
    found = facts.signatures["serving_default"]
    assert found.inputs == (
        TensorSpec("a", DType.INT64, ()),
        TensorSpec("b", DType.STRING, (None, 3)),
    )
    assert found.outputs == (
        TensorSpec("none", DType.FLOAT32, (0, 2)),
        TensorSpec("out", DType.BFLOAT16, None),
    )
    assert [spec.native_name for spec in found.outputs] == ["f:2", "f:1"]
    assert facts.operators == {"NoOp": 1, "Placeholder": 2, "Relu": 2}
    assert facts.versions == {"tensorflow": "2.21.0", "tags": "serve"}
    assert facts.notes == ()


def test_sparse_tensors_and_other_dtypes_are_noted(tmp_path: Path) -> None:
    sparse = field(4, field(1, "v:0") + field(2, "i:0")) + field(2, 1)
    resource = {"y": tensor("y:0", 20)}
    model = write(
        tmp_path / "m",
        meta_graph(INPUT, signatures={"serving_default": signature({"x": sparse}, resource)}),
    )
    assert model.facts.notes == ("These tensors are sparse or composite: serving_default:x.",)
    assert model.facts.signatures["serving_default"].output("y").dtype is None


def test_graph_is_chosen_by_its_tags(tmp_path: Path) -> None:
    other = meta_graph(INPUT, node("y", "ReadFile", "x"), tags=("serve", "tpu"))
    check(tmp_path / "m", other, PLAIN)
    model = write(tmp_path / "m", other, PLAIN)
    assert model.facts.notes == ("Graphs with other tags are left alone: serve, tpu.",)
    only = write(tmp_path / "n", meta_graph(INPUT, tags=("special",)))
    assert only.facts.versions["tags"] == "special"
    with pytest.raises(UnsupportedModel, match="serve, tpu; train"):
        write(tmp_path / "o", other, meta_graph(INPUT, tags=("train",))).format.check(
            write(tmp_path / "o", other, meta_graph(INPUT, tags=("train",)))
        )


def test_text_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1")
    model = ModelRef.open(tmp_path, [SavedModel()])
    with pytest.raises(UnsupportedModel, match="text form"):
        model.format.check(model)


def test_empty_graph_file(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    model = ModelRef.open(tmp_path, [SavedModel()])
    with pytest.raises(InvalidModel, match="empty"):
        model.format.check(model)


def test_every_truncation_and_much_damage_is_a_bridge_error(tmp_path: Path) -> None:
    body = function("g", [node("r", "Relu", "x")], ["x"], api_implements=text("i"))
    call = node("y", "PartitionedCall", "x", f=func("g", T=text("t")))
    content = field(1, 1) + field(2, meta_graph(INPUT, call, functions=[body], more=SAVER))
    path = tmp_path / "saved_model.pb"
    dice = random.Random(0)
    damaged = [content[:size] for size in range(1, len(content))]
    for _ in range(500):
        flipped = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            flipped[dice.randrange(len(flipped))] = dice.randrange(256)
        damaged.append(bytes(flipped))
    for piece in damaged:
        path.write_bytes(piece)
        model = ModelRef.open(tmp_path, [SavedModel()])
        for read in (model.format.describe, model.format.check):
            with contextlib.suppress(BridgeError):
                read(model)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidModel, match="truncated"):
        model.format.check(ModelRef.open(tmp_path, [SavedModel()]))


def reading(name: str = "bad", **attrs: bytes) -> bytes:
    return function(name, [node("r", "ReadFile", "x")], ["x"], **attrs)


CALL = {"Tin": b""}
REFUSED = {
    "in the graph": meta_graph(INPUT, node("y", "ReadFile", "x")),
    "before the output": meta_graph(INPUT, node("z", "PyFunc", "x"), node("y", "Relu", "z:1")),
    "by a control input": meta_graph(INPUT, node("z", "WriteFile"), node("y", "Relu", "x", "^z")),
    "in a function": meta_graph(
        INPUT, node("y", "StatefulPartitionedCall", "x", f=func("bad")), functions=[reading()]
    ),
    "in a function of a function": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("good")),
        functions=[function("good", [node("c", "If", "x", then_branch=func("bad"))]), reading()],
    ),
    "in a list of functions": meta_graph(
        INPUT,
        node("y", "Case", "x", branches=field(1, field(9, field(1, "bad")))),
        functions=[reading()],
    ),
    "in an attribute of a function's attribute": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("good", g=func("bad"))),
        functions=[function("good", []), reading()],
    ),
    "by the function's name as operator": meta_graph(
        INPUT, node("y", "bad", "x"), functions=[reading()]
    ),
    "by the function's name as a string": meta_graph(
        INPUT, node("y", "Relu", "x", anything=text("bad")), functions=[reading()]
    ),
    "by the interface it implements": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("good")),
        functions=[
            function("good", [], api_implements=text("lstm")),
            reading(api_implements=text("lstm")),
        ],
    ),
    "by a function's attribute": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("good")),
        functions=[function("good", [], forward_function_name=text("bad")), reading()],
    ),
    "in the second of two functions of one name": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("bad")),
        functions=[function("bad", []), reading()],
    ),
    "in the second of two nodes of one name": meta_graph(
        INPUT, node("y", "Relu", "x"), node("y", "ReadFile", "x")
    ),
    "in the second part of a graph in two parts": meta_graph(INPUT)
    + field(2, field(1, node("y", "ReadFile", "x"))),
    "in a function called like a harmful operator": meta_graph(
        INPUT, node("y", "ReadFile", "x"), functions=[function("ReadFile", [])]
    ),
    "on initialisation": meta_graph(
        INPUT,
        node("y", "Relu", "x"),
        node("init", "NoOp", "^w"),
        node("w", "WriteFile"),
        signatures={
            "serving_default": signature(X, Y),
            "__saved_model_init_op": signature({}, {"__saved_model_init_op": tensor("init")}),
        },
    ),
    "on initialisation as TensorFlow 1 says it": meta_graph(
        INPUT,
        node("y", "Relu", "x"),
        node("w", "WriteFile"),
        more=field(4, entry("legacy_init_op", field(1, field(1, "w")))),
    ),
    "a checkpoint read in a call": meta_graph(
        node("saver_filename", "Placeholder"),
        node("y", "RestoreV2", "saver_filename"),
        more=field(3, field(1, "saver_filename:0")),
    ),
    "an asset's table filled in a call": meta_graph(
        node("path", "Const"),
        node("y", "InitializeTableFromTextFileV2", "table", "path"),
        more=field(6, field(1, field(1, "path:0")) + field(2, "words.txt")),
    ),
    "printing to a file": meta_graph(
        INPUT, node("y", "PrintV2", "x", output_stream=text("file:///tmp/x"))
    ),
    "printing to what the caller says": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("p", where=text("file:///tmp/x"))),
        functions=[function("p", [node("q", "PrintV2", "x", output_stream=field(9, "where"))])],
    ),
    "a sampler with a vocabulary file": meta_graph(
        INPUT, node("y", "FixedUnigramCandidateSampler", "x", vocab_file=text("/etc/passwd"))
    ),
    "a proto described by a file": meta_graph(
        INPUT, node("y", "DecodeProtoV2", "x", descriptor_source=text("/etc/passwd"))
    ),
    "a compiled module": meta_graph(INPUT, node("y", "XlaCallModule", "x")),
    "records": meta_graph(node("y", "RecordInput", file_pattern=text("/*"))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reaches_beyond_the_model_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "m" / "assets").mkdir(parents=True)
    (tmp_path / "m" / "assets" / "words.txt").touch()
    model = write(tmp_path / "m", REFUSED[case])
    with pytest.raises(UntrustedModel) as caught:
        model.format.check(model)
    assert set(caught.value.detail["operators"]) <= refused("tensorflow")
    trusted = ModelRef.open(tmp_path / "m", [SavedModel()], trust=True)
    trusted.format.check(trusted)


PASSED = {
    "plain": PLAIN,
    "what nothing calls": meta_graph(
        INPUT, node("y", "Relu", "x"), node("z", "ReadFile", "x"), functions=[reading()]
    ),
    "another signature": meta_graph(
        INPUT,
        node("y", "Relu", "x"),
        node("z", "ReadFile", "x"),
        signatures={
            "serving_default": signature(X, Y),
            "files": signature(X, {"z": tensor("z:0")}),
        },
    ),
    "printing": meta_graph(INPUT, node("y", "PrintV2", "x", output_stream=text("stderr"))),
    "a sampler without a file": meta_graph(INPUT, node("y", "FixedUnigramCandidateSampler", "x")),
    "a loop": meta_graph(INPUT, node("y", "Merge", "x", "z"), node("z", "NextIteration", "y")),
    "a function that calls itself": meta_graph(
        INPUT,
        node("y", "PartitionedCall", "x", f=func("f")),
        functions=[function("f", [node("c", "PartitionedCall", "x", f=func("f"))], ["x"])],
    ),
}


@pytest.mark.parametrize("case", PASSED)
def test_what_only_computes_passes(case: str, tmp_path: Path) -> None:
    check(tmp_path / "m", PASSED[case])


def test_signature_asked_for_is_the_one_that_is_judged(tmp_path: Path) -> None:
    write(tmp_path / "m", PASSED["another signature"])
    model = ModelRef.open(tmp_path / "m", [SavedModel()], signature="files")
    with pytest.raises(UntrustedModel, match="ReadFile"):
        model.format.check(model)


def test_operator_that_tensorflow_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'Frobnicate'"):
        check(tmp_path / "m", meta_graph(INPUT, node("y", "Frobnicate", "x")))


def restoring(*nodes: bytes, functions: Iterable[bytes] = ()) -> bytes:
    return meta_graph(INPUT, node("y", "Relu", "x"), *nodes, functions=functions, more=SAVER)


FILENAME = node("saver_filename", "Placeholder")
RESTORED = {
    "TensorFlow 1": restoring(
        node("c", "Const"),
        node("save/filename", "PlaceholderWithDefault", "c"),
        node("saver_filename", "PlaceholderWithDefault", "save/filename"),
        node("r", "RestoreV2", "saver_filename"),
        node("restore", "NoOp", "^r"),
    ),
    "TensorFlow 2": restoring(
        FILENAME,
        node("restore", "StatefulPartitionedCall", "saver_filename", f=func("f")),
        functions=[function("f", [node("r", "RestoreV2", "file_prefix")], ["file_prefix"])],
    ),
}
OTHER_RESTORES = {
    "a path of its own": restoring(node("c", "Const"), node("restore", "RestoreV2", "c")),
    "a path of its own in a function": restoring(
        FILENAME,
        node("restore", "StatefulPartitionedCall", "saver_filename", f=func("f")),
        functions=[function("f", [node("c", "Const"), node("r", "RestoreV2", "c:output:0")])],
    ),
    "a path that is changed": restoring(
        FILENAME, node("j", "StringJoin", "saver_filename"), node("restore", "RestoreV2", "j")
    ),
    "a second caller with another path": restoring(
        FILENAME,
        node("c", "Const"),
        node("restore", "StatefulPartitionedCall", "saver_filename", "^other", f=func("f")),
        node("other", "StatefulPartitionedCall", "c", f=func("f")),
        functions=[function("f", [node("r", "RestoreV2", "file_prefix")], ["file_prefix"])],
    ),
    "no path": restoring(node("restore", "RestoreV2")),
    "writing instead": restoring(FILENAME, node("restore", "WriteFile", "saver_filename")),
    "saving instead": restoring(FILENAME, node("restore", "SaveV2", "saver_filename")),
}


@pytest.mark.parametrize("case", [*RESTORED, *OTHER_RESTORES])
def test_only_the_model_s_own_variables_are_restored(case: str, tmp_path: Path) -> None:
    (tmp_path / "m" / "variables").mkdir(parents=True)
    (tmp_path / "m" / "variables" / "variables.index").touch()
    if case in RESTORED:
        check(tmp_path / "m", RESTORED[case])
    else:
        with pytest.raises(UntrustedModel):
            check(tmp_path / "m", OTHER_RESTORES[case])


def initialising(*nodes: bytes, functions: Iterable[bytes] = ()) -> bytes:
    signatures = {
        "serving_default": signature(X, Y),
        "__saved_model_init_op": signature({}, {"__saved_model_init_op": tensor("init")}),
    }
    asset = field(6, field(1, field(1, "path:0")) + field(2, "words.txt"))
    shared = [INPUT, node("y", "Relu", "x"), node("path", "Placeholder"), node("h", "HashTableV2")]
    return meta_graph(*shared, *nodes, functions=functions, signatures=signatures, more=asset)


FILL = "InitializeTableFromTextFileV2"
HANDLE = node("v", "VarHandleOp", shared_name=text("v"))
ASSIGN = node("a", "AssignVariableOp", "v", "path")
READ = node("r", "ReadVariableOp", "v", "^a")
OWN_TABLES = {
    "directly": initialising(node("init", FILL, "h", "path")),
    "in a function": initialising(
        node("init", "PartitionedCall", "path", "h", f=func("f")),
        functions=[function("f", [node("t", FILL, "table", "name")], ["name", "table"])],
    ),
    "through a variable": initialising(HANDLE, ASSIGN, READ, node("init", FILL, "h", "r")),
}
OTHER_TABLES = {
    "any path": initialising(node("c", "Const"), node("init", FILL, "h", "c")),
    "the other argument": initialising(
        node("c", "Const"),
        node("init", "PartitionedCall", "path", "c", f=func("f")),
        functions=[function("f", [node("t", FILL, "table", "name")], ["table", "name"])],
    ),
    "arguments that shift": initialising(
        node("init", "If", "c", "path", then_branch=func("f")),
        functions=[function("f", [node("t", FILL, "t", "name")], ["name"])],
    ),
    "a variable read before it is assigned": initialising(
        HANDLE, ASSIGN, node("r", "ReadVariableOp", "v"), node("init", FILL, "h", "r", "^a")
    ),
    "a variable assigned twice": initialising(
        HANDLE, ASSIGN, node("c", "Const"), node("b", "AssignVariableOp", "v", "c"), READ,
        node("init", FILL, "h", "r"),
    ),
    "a variable with a second handle": initialising(
        HANDLE, ASSIGN, READ, node("w", "VarHandleOp", shared_name=text("v")),
        node("init", FILL, "h", "r"),
    ),
    "a variable handed to a function": initialising(
        HANDLE, ASSIGN, READ, node("f", "PartitionedCall", "v", f=func("g")),
        node("init", FILL, "h", "r"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*OWN_TABLES, *OTHER_TABLES])
def test_tables_are_filled_from_the_model_s_own_assets(case: str, tmp_path: Path) -> None:
    (tmp_path / "m" / "assets").mkdir(parents=True)
    (tmp_path / "m" / "assets" / "words.txt").touch()
    if case in OWN_TABLES:
        check(tmp_path / "m", OWN_TABLES[case])
    else:
        with pytest.raises(UntrustedModel, match=FILL):
            check(tmp_path / "m", OTHER_TABLES[case])


def test_assets_stay_in_their_folder(tmp_path: Path) -> None:
    def graph(name: str) -> bytes:
        return meta_graph(
            INPUT,
            node("y", "Relu", "x"),
            more=field(6, field(1, field(1, "path:0")) + field(2, name)),
        )

    for name in ("../../secret", "/etc/passwd", "a/../../secret"):
        model = write(tmp_path / "m", graph(name))
        with pytest.raises(UntrustedModel, match="outside"):
            model.format.check(model)
        trusted = ModelRef.open(tmp_path / "m", [SavedModel()], trust=True)
        with pytest.raises(UntrustedModel, match="outside"):  # not even with trust
            trusted.format.check(trusted)
    with pytest.raises(ModelNotFound, match=r"words\.txt"):
        check(tmp_path / "m", graph("words.txt"))


def test_files_and_digest(tmp_path: Path) -> None:
    for top in ("m", "n"):
        model = write(tmp_path / top, PLAIN)
        for name in ("variables/variables.index", "assets/deep/words.txt", "fingerprint.pb"):
            path = tmp_path / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name if name != "fingerprint.pb" else top)
        names = [str(path.relative_to(tmp_path / top)) for path in model.format.files(model)]
        assert names == ["saved_model.pb", "assets/deep/words.txt", "variables/variables.index"]
    digests = {ModelRef.open(tmp_path / top, [SavedModel()]).digest for top in ("m", "n")}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["variables", "variables/variables.index", "assets/deep"])
def test_links_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    model = write(tmp_path / "m", PLAIN)
    link = tmp_path / "m" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    for trust in (False, True):
        model = ModelRef.open(tmp_path / "m", [SavedModel()], trust=trust)
        with pytest.raises(UntrustedModel, match=name):
            model.format.check(model)
        with pytest.raises(UntrustedModel):
            model.format.files(model)


def test_linked_graph_file_and_links_inside(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", PLAIN)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").symlink_to(tmp_path / "elsewhere" / "saved_model.pb")
    model = ModelRef.open(tmp_path / "m", [SavedModel()])
    with pytest.raises(UntrustedModel, match=r"saved_model\.pb"):
        model.format.check(model)
    inside = write(tmp_path / "n", PLAIN)
    (tmp_path / "n" / "kept").mkdir()
    (tmp_path / "n" / "assets").mkdir()
    (tmp_path / "n" / "kept" / "words.txt").touch()
    (tmp_path / "n" / "assets" / "words.txt").symlink_to("../kept/words.txt")
    (tmp_path / "n" / "assets" / "loop").symlink_to("loop")
    with pytest.raises(InvalidModel, match="nowhere"):
        inside.format.check(inside)
    (tmp_path / "n" / "assets" / "loop").unlink()
    inside.format.check(inside)


def test_lists_of_operators() -> None:
    assert not allowed("tensorflow") & refused("tensorflow")
    harmful = "PyFunc EagerPyFunc ReadFile WriteFile SaveV2 RestoreV2 TFRecordDataset RemoteCall"
    assert set(harmful.split()) <= refused("tensorflow")
    assert {"MatMul", "Relu", "ReadVariableOp", "LookupTableFindV2", "While"} <= allowed(
        "tensorflow"
    )


@pytest.mark.parametrize(
    ("op", "is_stateful"),
    [("AssignAddVariableOp", True), ("RandomUniform", True), ("QueueDequeueV2", True),
     ("StatelessRandomUniform", False), ("TensorScatterAdd", False), ("Relu", False)],
)  # fmt: skip
def test_state(op: str, is_stateful: bool, tmp_path: Path) -> None:
    model = write(tmp_path / "m", meta_graph(INPUT, node("y", op, "x")))
    (graph,) = read_meta_graphs(model.file / "saved_model.pb")
    assert keeps_state(reach(graph, ["y"])) is is_stateful


# Tables that inputs index


def shaped(*dims: int) -> bytes:
    return field(7, field(2, *(field(1, size) for size in dims)))


def constant(number: int) -> bytes:
    return field(8, field(1, 3) + field(2, b"") + field(7, number))


TABLE = node("table", "VarHandleOp", shape=shaped(50, 4))
IDS = node("ids", "Placeholder")
ZERO, ONE = (node(f"axis{number}", "Const", value=constant(number)) for number in (0, 1))


def vocabularies(folder: Path, *nodes: bytes, functions: Iterable[bytes] = ()) -> dict[str, int]:
    graph = meta_graph(
        IDS,
        TABLE,
        *nodes,
        functions=functions,
        signatures={"s": signature({"user_ids": tensor("ids:0", 9)}, {"y": tensor("y:0")})},
    )
    return dict(write(folder, graph).facts.vocabularies)


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([node("y", "ResourceGather", "table", "ids")], 50),
        ([ZERO, node("y", "GatherV2", "table", "ids", "axis0")], 50),
        ([ONE, node("y", "GatherV2", "table", "ids", "axis1")], None),
        ([node("y", "GatherV2", "table", "ids", "axis_unknown")], None),
        ([node("y", "GatherV2", "table", "ids")], None),
        (
            [
                node("y", "ResourceGather", "same", "flat"),
                node("same", "Identity", "table"),
                node("flat", "Reshape", "wide:0", "shape"),
                node("wide", "Cast", "ids"),
            ],
            50,
        ),
        ([node("y", "ResourceGather", "table", "sum"), node("sum", "AddV2", "ids", "ids")], None),
        ([node("y", "ResourceGather", "a", "ids"), node("a", "Identity", "a")], None),
        (
            [
                # How Keras counts negative ids from the end.
                node("y", "ResourceGather", "table", "s"),
                node("s", "SelectV2", "less", "sum", "ids"),
                node("sum", "AddV2", "ids", "size"),
            ],
            50,
        ),
        (
            [
                node("y", "ResourceGather", "table", "a"),
                node("a", "SelectV2", "c", "b", "a"),
                node("b", "Maximum", "a", "ids"),
            ],
            50,
        ),
        ([node("t", "Const", value=field(8, field(1, 1) + field(2, field(2, field(1, 8))))),
          ZERO, node("y", "GatherV2", "t", "ids", "axis0")], 8),
    ],
)  # fmt: skip
def test_tables_that_inputs_index(tmp_path: Path, nodes: list[bytes], wanted: int | None) -> None:
    assert vocabularies(tmp_path, *nodes) == ({} if wanted is None else {"user_ids": wanted})


def test_tables_are_found_in_functions_that_functions_call(tmp_path: Path) -> None:
    gather = node("g", "ResourceGather", "handle", "rows")
    inner = function("inner", [gather], ["rows", "handle"])
    call = node("c", "StatefulPartitionedCall", "i", "h", f=func("inner"))
    outer = function("outer", [call], ["i", "h"])
    top = node("y", "StatefulPartitionedCall", "ids", "table", f=func("outer"))
    assert vocabularies(tmp_path, top, functions=[inner, outer]) == {"user_ids": 50}


def test_functions_that_call_themselves_end(tmp_path: Path) -> None:
    calls = [node(f"c{k}", "PartitionedCall", "i", "h", f=func("loop")) for k in range(3)]
    gather = node("g", "ResourceGather", "h", "i")
    loop = function("loop", [*calls, gather], ["i", "h"])
    top = node("y", "PartitionedCall", "ids", "table", f=func("loop"))
    vocabularies(tmp_path, top, functions=[loop])


def test_long_chains_are_followed(tmp_path: Path) -> None:
    chain = [node(f"n{k}", "Identity", f"n{k - 1}" if k else "ids") for k in range(5000)]
    last = node("y", "ResourceGather", "table", "n4999")
    assert vocabularies(tmp_path, last, *reversed(chain)) == {"user_ids": 50}
