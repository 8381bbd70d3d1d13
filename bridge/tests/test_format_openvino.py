"""OpenVINO IR and TensorFlow Lite, on files written by hand: what is told and refused."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from bridge.dtypes import DType
from bridge.errors import (
    BridgeError,
    InvalidModel,
    ModelNotFound,
    UnsupportedModel,
    UntrustedModel,
)
from bridge.formats import BUILT_IN
from bridge.formats.openvino import OpenvinoIr, TfLite
from bridge.model import FileProbe, Format, ModelFacts, ModelRef


def layer(
    number: int,
    kind: str,
    name: str,
    data: str = "",
    inside: str = "",
    version: str = "opset1",
    more: str = "",
) -> str:
    return (
        f'<layer id="{number}" name="{name}" type="{kind}" version="{version}" {more}>'
        f"<data {data}/>{inside}</layer>"
    )


def port(
    side: str, precision: str = "FP32", dims: tuple[int, ...] = (), names: str | None = None
) -> str:
    named = "" if names is None else f'names="{names}"'
    shape = "".join(f"<dim>{dim}</dim>" for dim in dims)
    return f'<{side}><port id="0" precision="{precision}" {named}>{shape}</port></{side}>'


X = layer(0, "Parameter", "x", 'shape="?,4" element_type="f32"', port("output", names="x"))
W = layer(1, "Const", "w", 'element_type="f32" shape="4" offset="16" size="16"', port("output"))
ADD = layer(2, "Add", "sum", 'auto_broadcast="numpy"', port("output", names="s"))
Y = layer(3, "Result", "y", "", port("input", "FP32", (-1, 4)), more='output_names="y"')
EDGES = '<edge from-layer="0" from-port="0" to-layer="3" to-port="0"/>'


def ir(*layers: str, version: str = "11", edges: str = EDGES, tail: str = "") -> bytes:
    body = "".join(layers or (X, W, ADD, Y))
    return (
        f'<?xml version="1.0"?>\n<net name="g" version="{version}"><layers>{body}</layers>'
        f"<edges>{edges}</edges>{tail}</net>"
    ).encode()


def opened(data: bytes, folder: Path, weights: int | None = 32) -> ModelRef:
    (folder / "m.xml").write_bytes(data)
    if weights is not None:
        (folder / "m.bin").write_bytes(bytes(weights))
    return ModelRef.open(folder / "m.xml", [kind() for kind in BUILT_IN])


def facts(data: bytes, folder: Path) -> ModelFacts:
    return opened(data, folder).facts


def refused(model: ModelRef) -> BridgeError:
    """The error of ``check`` and of ``files``, which have to agree."""
    with pytest.raises(BridgeError) as from_check:
        model.format.check(model)
    with pytest.raises(BridgeError) as from_files:
        model.format.files(model)
    assert str(from_check.value) == str(from_files.value)
    return from_check.value


def sniffed(data: bytes, kind: type[Format] = OpenvinoIr) -> bool:
    return kind().sniff(FileProbe(None, data[:4096], data))


@pytest.mark.parametrize(
    "data",
    [
        ir(),
        ir().split(b"\n")[1],
        b"\xef\xbb\xbf" + ir(),
        b"\n\t " + ir().split(b"\n")[1],
        b"<?xml version='1.0'?><!-- <other> --><!-- -> --><?pi x?>\n" + ir().split(b"\n")[1],
        b"<!DOCTYPE net [<!ENTITY a 'b'>]>" + ir().split(b"\n")[1],
        b"<!DOCTYPE net SYSTEM 'x.dtd'>\n" + ir().split(b"\n")[1],
        b"<net\n name='a' version='11'>",
        b"<net>",
    ],
)
def test_graphs_are_recognised_by_content(data: bytes) -> None:
    assert sniffed(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<",
        b"<net",
        b"<network name='a'>",
        b"<html><net name='a'></html>",
        b"<!-- <net name='a'> -->",
        b"<!-- <net name='a'> ",
        b"<?xml version='1.0'?>",
        b"text <net name='a'>",
        b"<!DOCTYPE html><html>",
        bytes(100),
        b"\x08\x08:\x05<net ",
    ],
)
def test_other_files_are_not_claimed(data: bytes) -> None:
    assert not sniffed(data)


def test_random_bytes_are_not_claimed() -> None:
    for seed in range(300):
        assert not sniffed(random.Random(seed).randbytes(200))


def test_signature_operators_versions_and_files_are_told(tmp_path: Path) -> None:
    runtime = '<rt_info><info name="OpenVINO Runtime" value="2026.4"/></rt_info>'
    model = opened(ir(tail=runtime), tmp_path)
    model.format.check(model)
    assert model.format.files(model) == (tmp_path / "m.xml", tmp_path / "m.bin")
    found = model.facts
    assert str(found.signatures[""]) == "(x: float32 (?, 4)) -> (y: float32 (?, 4))"
    assert found.operators == {"Parameter": 1, "Const": 1, "Add": 1, "Result": 1}
    assert found.versions == {
        "ir_version": "11",
        "opsets": "opset1",
        "producer": "OpenVINO Runtime 2026.4",
    }
    assert found.notes == ()


def test_older_files_name_producer_and_outputs_in_other_places(tmp_path: Path) -> None:
    result = layer(3, "Result", "sum/sink_port_0", "", port("input", "FP16", (2, 4)))
    edges = '<edge from-layer="2" from-port="0" to-layer="3" to-port="0"/>'
    runtime = '<rt_info><Runtime_version value="2023.1"/></rt_info>'
    found = facts(ir(X, W, ADD, result, edges=edges, version="10", tail=runtime), tmp_path)
    assert str(found.signatures[""].outputs[0]) == "s: float16 (2, 4)"
    assert found.signatures[""].outputs[0].native_name == "sum"
    assert found.versions["producer"] == "OpenVINO Runtime 2023.1"


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("", ()),
        ("...", None),
        ("?,3,-1", (None, 3, None)),
        ("1..8,0", (None, 0)),
        ("..5,2..", (None, None)),
    ],
)
def test_shapes_of_every_kind(
    shape: str, wanted: tuple[int | None, ...] | None, tmp_path: Path
) -> None:
    x = layer(0, "Parameter", "x", f'shape="{shape}" element_type="f32"', port("output"))
    assert facts(ir(x, Y), tmp_path).signatures[""].inputs[0].shape == wanted


@pytest.mark.parametrize(
    ("native", "precision", "wanted"),
    [
        ("boolean", "BOOL", DType.BOOL),
        ("i64", "I64", DType.INT64),
        ("bf16", "BF16", DType.BFLOAT16),
        ("f64", "FP64", DType.FLOAT64),
        ("string", "STRING", DType.STRING),
        ("f8e4m3", "F8E4M3", DType.FLOAT8_E4M3FN),
        ("i4", "I4", None),
    ],
)
def test_types_of_every_kind(
    native: str, precision: str, wanted: DType | None, tmp_path: Path
) -> None:
    x = layer(0, "Parameter", "x", f'shape="" element_type="{native}"', port("output", precision))
    y = layer(3, "Result", "y", "", port("input", precision))
    found = facts(ir(x, y), tmp_path)
    (into,), (out,) = found.signatures[""].inputs, found.signatures[""].outputs
    assert (into.dtype, out.dtype) == (wanted, wanted)
    assert len(found.notes) == (2 if wanted is None else 0)
    assert all(native in note for note in found.notes)


def test_names_are_those_of_the_tensor(tmp_path: Path) -> None:
    cases = {
        None: "node",
        "node": "node",
        "b,a": "a",
        "z,node": "node",
        "a\\,b,c": "a,b",
        "&lt;a&gt;": "<a>",
    }
    for names, wanted in cases.items():
        inside = port("output", names=names)
        x = layer(0, "Parameter", "node", 'shape="" element_type="f32"', inside)
        assert facts(ir(x, Y), tmp_path).signatures[""].input_names == (wanted,)


def test_one_tensor_returned_twice_has_two_names(tmp_path: Path) -> None:
    twice = [
        layer(n, "Result", f"r{n}", "", port("input"), more='output_names="y"') for n in (3, 4)
    ]
    assert facts(ir(X, *twice), tmp_path).signatures[""].output_names == ("y", "r4")


def test_layers_of_inner_graphs_are_counted_and_no_part_of_the_signature(tmp_path: Path) -> None:
    body = f"<body><layers>{X}{W}{ADD}{Y}</layers></body>"
    found = facts(ir(X, layer(7, "Loop", "loop", inside=body), Y), tmp_path)
    assert found.operators == {"Parameter": 2, "Result": 2, "Const": 1, "Add": 1, "Loop": 1}
    assert found.signatures[""].input_names == ("x",)
    short = opened(ir(X, layer(7, "Loop", "loop", inside=body), Y), tmp_path, 31)
    assert "truncated" in str(refused(short))


def test_operators_of_extensions_are_named(tmp_path: Path) -> None:
    found = facts(ir(X, layer(5, "Mine", "m", version="extension"), Y), tmp_path)
    assert found.operators["extension.Mine"] == 1
    assert "none is ever loaded" in found.notes[0]


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    error = refused(opened(ir(), tmp_path, None))
    assert isinstance(error, ModelNotFound)
    assert "'m.bin'" in str(error)
    without = opened(ir(X, Y), tmp_path, None)
    without.format.check(without)
    assert without.format.files(without) == (tmp_path / "m.xml",)


@pytest.mark.parametrize(
    ("offset", "size"),
    [("16", "17"), ("33", "0"), ("-1", "4"), ("0", "-4"), ("1e1", "4"), ("", "4"), ("9" * 19, "1")],
)
def test_constants_beyond_the_weights_are_invalid(offset: str, size: str, tmp_path: Path) -> None:
    data = f'element_type="f32" shape="4" offset="{offset}" size="{size}"'
    error = refused(opened(ir(X, layer(1, "Const", "w", data), Y), tmp_path))
    assert isinstance(error, InvalidModel)
    assert "constant 'w'" in str(error)


def test_constants_are_seen_wherever_their_data_stands(tmp_path: Path) -> None:
    data = '<data element_type="f32" shape="4" offset="0" size="99"/>'
    hidden = f'<layer id="1" name="w" type="Const" version="opset1">{ADD}{data}</layer>'
    assert "constant 'w'" in str(refused(opened(ir(X, hidden, Y), tmp_path)))


def test_truncated_weights_are_called_truncated(tmp_path: Path) -> None:
    error = refused(opened(ir(), tmp_path, 31))
    assert isinstance(error, InvalidModel)
    assert "needs 16 bytes at 16 of 'm.bin', which has 31: it is truncated" in str(error)


def test_weights_may_not_be_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    for data in (ir(), ir(X, Y)):
        model = opened(data, folder, None)
        (folder / "m.bin").symlink_to("../secret")
        assert isinstance(refused(model), UntrustedModel)
        (folder / "m.bin").unlink()
    (folder / "other.bin").write_bytes(bytes(64))
    (folder / "m.bin").symlink_to("other.bin")
    model = opened(ir(), folder, None)
    model.format.check(model)
    (folder / "m.bin").unlink()
    os.mkfifo(folder / "m.bin")
    assert isinstance(refused(opened(ir(), folder, None)), InvalidModel)


def test_graphs_given_as_bytes_have_no_weights() -> None:
    model = ModelRef.open(ir(), [OpenvinoIr()])
    with pytest.raises(UnsupportedModel, match="path"):
        model.format.check(model)
    without = ModelRef.open(ir(X, Y), [OpenvinoIr()])
    without.format.check(without)
    assert without.facts.signatures[""].input_names == ("x",)


def test_versions_that_nothing_reads_are_unsupported(tmp_path: Path) -> None:
    model = opened(ir(version="7"), tmp_path)
    with pytest.raises(UnsupportedModel, match="version 7"):
        model.format.check(model)


LAUGHS = "".join(f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(9))


@pytest.mark.parametrize(
    "doctype",
    [
        f"<!DOCTYPE net [<!ENTITY a0 'ha'>{LAUGHS}]>",
        "<!DOCTYPE net [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>",
        "<!DOCTYPE net SYSTEM 'http://localhost:9/x.dtd'>",
        "<!DOCTYPE net>",
    ],
)
def test_document_types_are_refused(doctype: str, tmp_path: Path) -> None:
    text = ir().decode().split("\n")[1].replace('name="w"', 'name="&x;&a9;"')
    error = refused(opened((doctype + text).encode(), tmp_path))
    assert isinstance(error, InvalidModel)
    assert "document type definition" in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ir()[:300], "truncated"),
        (ir()[:-2], "truncated"),
        (ir().replace(b"</edges>", b"</edge>"), "mismatched"),
        (ir().replace(b'name="w"', b'name="\xff"'), "not sound"),
        (ir().replace(b'version="11"', b'version="eleven"'), "version='eleven'"),
        (b"<?xml version='1.0' encoding='none'?><net version='11'/>", "not sound"),
        (b'<net version="11">' + b"<a>" * 10_000, "nested"),
        (ir(X, X.replace('name="x"', 'name=""'), Y).replace(b"<net ", b"<net <"), "not sound"),
    ],
)
def test_broken_graphs_are_invalid(data: bytes, words: str, tmp_path: Path) -> None:
    error = refused(opened(data, tmp_path))
    assert isinstance(error, InvalidModel)
    assert words in str(error)


@pytest.mark.parametrize("block", range(10))
def test_bit_flips_raise_nothing_but_our_errors(block: int, tmp_path: Path) -> None:
    sound = ir(X, W, ADD, layer(7, "Loop", "l", inside=f"<body><layers>{W}</layers></body>"), Y)
    outcomes = set()
    for seed in range(block * 20, block * 20 + 20):
        choose = random.Random(seed)
        data = bytearray(sound)
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        (tmp_path / "m.xml").write_bytes(data)
        (tmp_path / "m.bin").write_bytes(bytes(32))
        model = ModelRef(format=OpenvinoIr(), path=tmp_path / "m.xml")
        try:
            model.format.describe(model)
            model.format.check(model)
            outcomes.add("sound")
        except BridgeError:
            outcomes.add("refused")
    assert outcomes == {"sound", "refused"}


# TensorFlow Lite


Table = dict[int, Any]
"""Fields by number: four bytes in place, a text, a list of numbers or tables."""


def flatbuffer(root: Table) -> bytes:
    out = bytearray(b"\0\0\0\0TFL3")

    def place(value: Any) -> int:
        """Writes a value at the end, and what it refers to behind it; returns where."""
        if isinstance(value, str):
            out.extend(struct.pack("<I", len(value)) + value.encode().ljust(len(value) + 3 & ~3))
            return len(out) - 4 - (len(value) + 3 & ~3)
        if isinstance(value, list):
            start = len(out)
            numbers = [item if isinstance(item, int) else 0 for item in value]
            out.extend(struct.pack(f"<I{len(value)}i", len(value), *numbers))
            for index, item in enumerate(value):
                if not isinstance(item, int):
                    refer(start + 4 + 4 * index, item)
            return start
        count = max(value) + 1 + (max(value) + 1) % 2
        offsets = [4 + 4 * sorted(value).index(n) if n in value else 0 for n in range(count)]
        out.extend(struct.pack(f"<HH{count}H", 4 + 2 * count, 4 + 4 * len(value), *offsets))
        start = len(out)
        out.extend(struct.pack("<i", 4 + 2 * count) + bytes(4 * len(value)))
        for number, item in value.items():
            at = start + offsets[number]
            if isinstance(item, bytes):
                out[at : at + 4] = item
            else:
                refer(at, item)
        return start

    def refer(position: int, value: Any) -> None:
        struct.pack_into("<I", out, position, place(value) - position)

    refer(0, root)
    return bytes(out)


def lite(**more: Any) -> bytes:
    """A flatbuffer with one graph whose input 'x' is also its output."""
    tensor = {0: [1, 4], 1: bytes(4), 3: "x", 7: [-1, 4]}
    graph = {0: [tensor], 1: [0], 2: [0]}
    root = {0: struct.pack("<I", 3), 2: [graph], 3: "by hand", 4: [{0: [0, 0, 0]}]}
    named = {"external": 8, "signatures": 7, "graphs": 2}
    return flatbuffer(root | {named[key]: value for key, value in more.items()})


def test_signatures_of_flatbuffers_are_told(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(lite())
    model = ModelRef.open(path, [kind() for kind in BUILT_IN])
    assert isinstance(model.format, TfLite)
    model.format.check(model)
    assert model.format.files(model) == (path,)
    assert str(model.facts.signatures[""]) == "(x: float32 (?, 4)) -> (x: float32 (?, 4))"
    assert model.facts.versions == {"schema": "3", "producer": "by hand"}


def test_signatures_of_flatbuffers_have_keys_and_native_names() -> None:
    entries = [{0: "a", 1: bytes(4)}], [{0: "b", 1: bytes(4)}]
    one = {0: entries[0], 1: entries[1], 2: "serve"}
    model = ModelRef(format=TfLite(), data=lite(signatures=[one, one | {2: "other"}]))
    assert set(model.facts.signatures) == {"serve", "other"}
    signature = model.facts.signatures["serve"]
    assert str(signature) == "(a: float32 (?, 4)) -> (b: float32 (?, 4))"
    assert signature.outputs[0].native_name == "x"


def test_types_and_shapes_of_flatbuffers() -> None:
    rank = struct.pack("<I", 1)
    tensors = [
        {1: b"\x04\0\0\0", 3: "scalar", 8: rank},
        {1: b"\x05\0\0\0", 3: "any"},
        {1: b"\x11\0\0\0", 3: "int4", 0: [2, 3]},
    ]
    graph = {0: tensors, 1: [0, 1, 2], 2: []}
    found = ModelRef(format=TfLite(), data=lite(graphs=[graph])).facts
    specs = found.signatures[""].inputs
    assert [spec.dtype for spec in specs] == [DType.INT64, DType.STRING, None]
    assert [spec.shape for spec in specs] == [(), None, (2, 3)]
    assert len(found.notes) == 1
    for wrong in (-1, 3, 1 << 30):
        data = lite(graphs=[graph | {1: [wrong]}])
        assert isinstance(read_lite(data), InvalidModel)


def test_flatbuffers_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    for name, wanted in (("../w", UntrustedModel), ("w", ModelNotFound)):
        (tmp_path / "m.tflite").write_bytes(lite(external=[{0: name}]))
        assert isinstance(refused(ModelRef.open(tmp_path / "m.tflite", [TfLite()])), wanted)
    (tmp_path / "w").write_bytes(b"weights")
    model = ModelRef.open(tmp_path / "m.tflite", [TfLite()])
    assert model.format.files(model) == (tmp_path / "m.tflite", tmp_path / "w")


def read_lite(data: bytes) -> BridgeError | None:
    try:
        TfLite().describe(ModelRef(format=TfLite(), data=data))
    except BridgeError as error:
        return error
    return None


def test_truncated_and_flipped_flatbuffers_raise_nothing_but_our_errors() -> None:
    data = lite()
    assert read_lite(data) is None
    for size in range(8, len(data) - 9):  # the last vector, of bytes, is written as numbers
        assert isinstance(read_lite(data[:size]), InvalidModel), size
    outcomes = set()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        outcomes.add(type(read_lite(bytes(flipped))))
    assert outcomes == {type(None), InvalidModel}
    for seed in range(100):
        noise = b"\x10\x00\x00\x00TFL3" + random.Random(seed).randbytes(500)
        assert isinstance(read_lite(noise), InvalidModel)
