"""The ONNX format, on files written byte by byte: what is told, and what is refused."""

from __future__ import annotations

import os
import random
import sys
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
from bridge.formats.onnx import Onnx, OrtModel
from bridge.model import FileProbe, ModelFacts, ModelRef


def varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


Field = tuple[int, int | str | bytes]


def message(*fields: Field) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def value_info(name: str, dims: tuple[int | str | None, ...] | None, code: int = 1) -> bytes:
    tensor: list[Field] = [(1, code)]
    if dims is not None:
        shape = b""
        for dim in dims:
            fields: list[Field] = [] if dim is None else [(1 if isinstance(dim, int) else 2, dim)]
            shape += message((1, message(*fields)))
        tensor.append((2, shape))
    return message((1, name), (2, message((1, message(*tensor)))))


def entry(key: str, value: str | bytes) -> bytes:
    return message((1, key), (2, value))


def tensor(name: str, *dims: int, data: bytes = b"", code: int = 1, **external: str) -> bytes:
    fields: list[Field] = [(1, dim) for dim in dims]
    fields += [(2, code), (8, name)]
    if external:
        fields += [(13, entry(key, value)) for key, value in external.items()]
        fields.append((14, 1))
    else:
        fields.append((9, data))
    return message(*fields)


def node(op: str, *attributes: bytes, domain: str = "") -> bytes:
    fields: list[Field] = [(1, "x"), (2, "y"), (4, op), *((5, one) for one in attributes)]
    return message(*fields, *([(7, domain)] if domain else []))


ADD = node("Add")
X = value_info("x", ("N", 4))
Y = value_info("y", ("N", 4))


def model(
    *nodes: bytes, initializers: tuple[bytes, ...] = (), ir: int = 8, tail: bytes = b""
) -> bytes:
    graph = message(
        *((1, one) for one in nodes or (ADD,)),
        (2, "g"),
        *((5, one) for one in initializers),
        (11, X),
        (12, Y),
    )
    opset = message((1, ""), (2, 17))
    return message((1, ir), (2, "by hand"), (3, "1.0"), (7, graph), (8, opset)) + tail


def opened(data: bytes, folder: Path, *, trust: bool = False) -> ModelRef:
    path = folder / "m.onnx"
    path.write_bytes(data)
    return ModelRef.open(path, [kind() for kind in BUILT_IN], trust=trust)


def facts(data: bytes, folder: Path) -> ModelFacts:
    return opened(data, folder).facts


# Recognition


def sniffed(data: bytes) -> bool:
    return Onnx().sniff(FileProbe(None, data[:4096], data))


def test_models_are_recognised_by_content() -> None:
    assert sniffed(model())
    assert sniffed(message((1, 8), (7, message((2, "only a name")))))
    assert sniffed(model(initializers=(tensor("w", 4000, data=bytes(16000)),)))
    assert sniffed(message((1, 4), (2, ""), (3, ""), (4, ""), (5, 0), (6, "")) + model())
    assert sniffed(message((1, 8), (8, message((1, ""), (2, 9)))) + model())


def test_a_long_text_before_the_graph_does_not_hide_a_model(tmp_path: Path) -> None:
    for doc in ("word " * 2000, "ü" * 5000):
        data = message((1, 8), (2, "p"), (6, doc)) + model()
        assert sniffed(data)
        assert facts(data, tmp_path).operators == {"Add": 1}


SAVED_MODEL = message((1, 1), (2, message((1, message((4, b"\x0a\x05serve"))), (2, bytes(9000)))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        b"\x08\x08",
        SAVED_MODEL,
        SAVED_MODEL[:40],
        message((1, 1), (2, message((1, message((4, "serve")))))),
        b"\x1c\x00\x00\x00TFL3" + bytes(100),
        b"\x20\x00\x00\x00ORTM" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02}q\x00." + bytes(100),
        b"ptrt" + bytes(100),
        b'<?xml version="1.0"?><net name="a" version="11"></net>',
        b"Some words about a model.\n" * 300,
        bytes(5000),
        b"\xff" * 5000,
        message((1, 0), (7, message((2, "g")))),
        message((1, 8), (7, b"\x08\x01")),
        message((1, 8), (9, 3), (7, message((2, "g")))),
    ],
)
def test_other_files_are_not_claimed(data: bytes) -> None:
    assert not sniffed(data)


@pytest.mark.parametrize("size", [5, 100, 6000])
def test_random_bytes_are_not_claimed(size: int) -> None:
    for seed in range(300):
        assert not sniffed(random.Random(seed).randbytes(size))


def test_ort_files_are_recognised_and_left_to_onnxruntime(tmp_path: Path) -> None:
    found = opened(b"\x20\x00\x00\x00ORTM" + bytes(100), tmp_path)
    assert isinstance(found.format, OrtModel)
    assert "onnxruntime" in found.facts.notes[0]
    assert not found.facts.signatures


# Description


def test_signature_operators_and_versions_are_told(tmp_path: Path) -> None:
    found = facts(model(ADD, ADD, node("Gelu", domain="com.microsoft")), tmp_path)
    signature = found.signatures[""]
    assert str(signature) == "(x: float32 (N, 4)) -> (y: float32 (N, 4))"
    assert signature.inputs[0].native_name == "x"
    assert found.operators == {"Add": 2, "com.microsoft.Gelu": 1}
    assert found.versions == {"ir_version": "8", "opset": "17", "producer": "by hand 1.0"}
    assert found.notes == ()


def graph_of(inputs: list[bytes], initializers: tuple[bytes, ...] = (), ir: int = 8) -> bytes:
    graph = [(1, ADD), *((5, one) for one in initializers), *((11, one) for one in inputs)]
    return message((1, ir), (7, message(*graph, (12, Y))))


def test_initializers_that_are_inputs_are_defaults(tmp_path: Path) -> None:
    inputs = [X, value_info("w", (4,))]
    stored = (tensor("w", 4, data=bytes(16)), tensor("v", 4, data=bytes(16)))
    (x, w) = facts(graph_of(inputs, stored), tmp_path).signatures[""].inputs
    assert (x.name, x.has_default) == ("x", False)
    assert (w.name, w.has_default) == ("w", True)
    old = facts(graph_of(inputs, stored, ir=3), tmp_path).signatures[""]
    assert old.input_names == ("x",)
    sparse = message((1, tensor("w", 1, data=bytes(4))), (2, tensor("", 1, code=7)), (3, 4))
    data = message((1, 8), (7, message((1, ADD), (15, sparse), (11, X), (11, inputs[1]), (12, Y))))
    assert facts(data, tmp_path).signatures[""].input("w").has_default


def test_dims_and_types_of_every_kind(tmp_path: Path) -> None:
    inputs = [
        value_info("scalar", (), 7),
        value_info("free", (None, "", "?", "unk__12", -1, "N", 0), 10),
        value_info("any", None, 8),
        value_info("bf16", (1,), 16),
        value_info("f8", (1,), 17),
    ]
    specs = facts(graph_of(inputs), tmp_path).signatures[""].inputs
    assert [spec.shape for spec in specs] == [
        (),
        (None, None, None, None, None, "N", 0),
        None,
        (1,),
        (1,),
    ]
    assert [spec.dtype for spec in specs] == [
        DType.INT64,
        DType.FLOAT16,
        DType.STRING,
        DType.BFLOAT16,
        DType.FLOAT8_E4M3FN,
    ]


def test_inputs_that_are_no_arrays_have_open_types_and_a_note(tmp_path: Path) -> None:
    sequence = message((4, message((1, message((1, message((1, 1))))))))
    inputs = [
        message((1, "s"), (2, sequence)),
        message((1, "o"), (2, message((9, b"")))),
        message((1, "u")),
        value_info("f6", (2,), 27),
        value_info("new", (2,), 999),
    ]
    found = facts(graph_of(inputs), tmp_path)
    specs = found.signatures[""].inputs
    assert all(spec.dtype is None for spec in specs)
    assert [spec.shape for spec in specs] == [None, None, None, (2,), (2,)]
    words = ("a sequence", "an optional value", "no stated type", "type FLOAT6E2M3", "type 999")
    for note, spec, word in zip(found.notes, specs, words, strict=True):
        assert f"input '{spec.name}'" in note
        assert word in note


def test_operators_of_subgraphs_and_functions_are_counted(tmp_path: Path) -> None:
    branch = message((1, node("Mul")), (1, node("Mul")))
    conditional = node("If", message((1, "then_branch"), (6, branch), (20, 5)))
    many = node("Odd", message((1, "graphs"), (11, branch), (11, branch)), domain="my.ops")
    function = message((1, "F"), (7, node("Neg")), (10, "my.functions"))
    data = model(conditional, many, node("F", domain="my.functions"), tail=message((25, function)))
    found = facts(data, tmp_path)
    assert found.operators == {"Mul": 6, "If": 1, "my.ops.Odd": 1, "my.functions.F": 1, "Neg": 1}
    (note,) = found.notes
    assert "'my.ops'" in note
    assert "my.functions" not in note


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (message((1, 8), (7, message((2, "g"))), (7, message((2, "g")))), "stands twice"),
        (graph_of([X, X]), "unique"),
        (model(initializers=(tensor("w", 1 << 40, data=bytes(16)),)), "declares 1099511627776"),
        (model(initializers=(tensor("w", *[1 << 33] * 64, data=bytes(4)),)), "64 bits"),
        (model(initializers=(tensor("w", -3, data=bytes(4)),)), "the dim -3"),
        (model(node("C", message((1, "value"), (5, b""), (5, b"")))), "stands twice"),
    ],
    ids=["two graphs", "two inputs", "absurd dim", "overflow", "negative dim", "two values"],
)
def test_impossible_models_are_invalid(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=words):
        opened(data, tmp_path).format.check(opened(data, tmp_path))


def test_absurd_sparse_tensors_are_invalid(tmp_path: Path) -> None:
    values, indices = tensor("w", 1, data=bytes(4)), tensor("", 1, code=7, data=bytes(8))
    for dims in ((1 << 20, 1 << 21), (1 << 62, 1 << 62)):
        sparse = message((1, values), (2, indices), *((3, dim) for dim in dims))
        graph = message((1, ADD), (15, sparse), (11, X), (12, Y))
        found = opened(message((1, 8), (7, graph)), tmp_path)
        with pytest.raises(InvalidModel, match="elements"):
            found.format.check(found)


def test_deep_nesting_is_invalid_and_not_a_recursion_error(tmp_path: Path) -> None:
    graph = message((1, ADD))
    for _ in range(2000):
        graph = message((1, node("If", message((1, "then_branch"), (6, graph)))))
    found = opened(message((1, 8), (7, graph)), tmp_path)
    with pytest.raises(InvalidModel, match="nested"):
        found.format.check(found)


# Broken files


def rich_model() -> bytes:
    branch = message((1, node("Mul")), (5, tensor("v", 8, data=bytes(32))))
    sparse = message((1, tensor("s", 1, data=bytes(4))), (2, tensor("", 1, code=7)), (3, 4))
    constant = node("Constant", message((1, "value"), (5, tensor("", 3, data=bytes(12))), (20, 4)))
    conditional = node("If", message((1, "then_branch"), (6, branch), (20, 5)))
    function = message((1, "F"), (7, node("Neg")), (10, "my.functions"))
    extra = message((14, entry("key", "value")), (20, message((1, branch))), (25, function))
    weights = tuple(tensor(f"w{i}", 16, data=bytes(range(64))) for i in range(10))
    odd = node("Odd", message((1, "sparse"), (22, sparse)))
    return model(ADD, constant, conditional, odd, initializers=weights, tail=extra)


def read(data: bytes) -> BridgeError | None:
    """Describes and checks bytes that claim to be ONNX; other errors than ours get out."""
    found = ModelRef(format=Onnx(), data=data)
    try:
        Onnx().describe(found)
        Onnx().check(found)
    except BridgeError as error:
        return error
    return None


def test_truncation_anywhere_is_invalid_and_mostly_called_so(tmp_path: Path) -> None:
    data = rich_model()
    assert read(data) is None
    offsets = {1 << power for power in range(len(data).bit_length())}
    offsets |= set(random.Random(1).sample(range(1, len(data)), 10))
    for offset in sorted(offsets):
        error = read(data[:offset])
        # Cut between two fields behind the graph, the rest is a sound model.
        assert error is None or isinstance(error, InvalidModel)
        if offset < len(data) // 2:
            assert error is not None
            assert "truncated" in str(error) or "no graph" in str(error)
    found = opened(data[: len(data) // 2], tmp_path)
    assert isinstance(found.format, Onnx), "a truncated model is still an ONNX file"
    with pytest.raises(InvalidModel, match=r"m\.onnx is truncated"):
        found.format.check(found)


@pytest.mark.parametrize("block", range(20))
def test_bit_flips_raise_nothing_but_our_errors(block: int) -> None:
    for seed in range(block * 10, block * 10 + 10):
        choose = random.Random(seed)
        data = bytearray(rich_model())
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        Onnx().sniff(FileProbe(None, bytes(data[:4096]), bytes(data)))
        read(bytes(data))


# External data


def external(location: str, *dims: int, **more: Any) -> bytes:
    return tensor("w", *(dims or (4,)), location=location, **more)


def refused(data: bytes, folder: Path, *, trust: bool = False) -> BridgeError:
    """The error of ``check`` and of ``files``, which have to agree."""
    found = opened(data, folder, trust=trust)
    with pytest.raises(BridgeError) as from_check:
        found.format.check(found)
    with pytest.raises(BridgeError) as from_files:
        found.format.files(found)
    assert str(from_check.value) == str(from_files.value)
    assert from_check.value.model == "m.onnx"
    return from_check.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model's folder; beside it is a file that no model may reach."""
    (tmp_path / "secret").write_bytes(bytes(64))
    made = tmp_path / "model"
    made.mkdir()
    (made / "w.bin").write_bytes(bytes(64))
    return made


def test_external_files_belong_to_the_model(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "v.bin").write_bytes(bytes(16))
    stored = (external("w.bin"), external("w.bin", offset="16", length="16"))
    data = model(initializers=(*stored, external("sub/v.bin")))
    found = opened(data, folder)
    found.format.check(found)
    files = found.format.files(found)
    assert files == (folder / "m.onnx", folder / "sub" / "v.bin", folder / "w.bin")
    assert found.size_bytes == len(data) + 64 + 16
    before = found.digest
    (folder / "w.bin").write_bytes(bytes(63) + b"\x01")
    assert opened(data, folder).digest != before
    assert "2 file(s) of their own: sub/v.bin, w.bin" in found.facts.notes[0]


HOSTILE = [
    "../secret",
    "a/../../secret",
    "sub/../w.bin",
    "..",
    "/etc/passwd",
    "/proc/self/environ",
    "//server/share",
    "..\\secret",
    "a\\..\\..\\secret",
    "C:\\secret",
    "C:secret",
    "c:/secret",
    "w.bin\0.txt",
    "",
    "*/_ORT_MEM_ADDR_/*",
    "*/_ORT_MEM_ADDR_LITTLE_ENDIAN_/*",
]


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("location", HOSTILE)
def test_locations_outside_the_folder_are_refused(location: str, trust: bool, folder: Path) -> None:
    error = refused(model(initializers=(external(location),)), folder, trust=trust)
    assert isinstance(error, UntrustedModel)
    assert "tensor 'w'" in str(error)
    assert error.detail["location"] == location
    assert error.fix


@pytest.mark.parametrize("location", ["~", "~/secret", "%2e%2e/secret", "$HOME/x", "file:///x"])
def test_nothing_is_expanded_in_locations(location: str, folder: Path) -> None:
    error = refused(model(initializers=(external(location),)), folder)
    assert isinstance(error, ModelNotFound)


def places() -> dict[str, bytes]:
    bad = external("../secret")
    sound = tensor("", 1, code=7, data=bytes(8))
    graph = message((1, ADD), (5, bad))
    constant = node("Constant", message((1, "value"), (5, bad)))
    in_main = {
        "attribute": constant,
        "tensors": node("Odd", message((1, "many"), (10, bad))),
        "subgraph": node("If", message((1, "then_branch"), (6, graph))),
        "subgraphs": node("Odd", message((1, "graphs"), (11, graph))),
        "subgraph's constant": node("If", message((6, message((1, constant))))),
        "sparse values": node("Odd", message((22, message((1, bad), (2, sound))))),
        "sparse indices": node("Odd", message((23, message((1, sound), (2, bad))))),
    }
    found = {name: model(one) for name, one in in_main.items()}
    sparse = message((1, bad), (2, sound), (3, 4))
    found["sparse initializer"] = message(
        (1, 8), (7, message((1, ADD), (15, sparse), (11, X), (12, Y)))
    )
    tails = {
        "function": message((25, message((1, "F"), (7, constant)))),
        "function's default": message((25, message((1, "F"), (11, message((1, "a"), (5, bad)))))),
        "training": message((20, message((2, graph)))),
        "initialization": message((20, message((1, graph)))),
    }
    return found | {name: model(tail=tail) for name, tail in tails.items()}


@pytest.mark.parametrize("place", places())
def test_tensors_are_found_wherever_they_are(place: str, folder: Path) -> None:
    assert isinstance(refused(places()[place], folder), UntrustedModel)


def test_odd_encodings_hide_nothing(folder: Path) -> None:
    location = message((13, entry("location", "../secret")))
    for marks in (
        message((14, 1)),
        message((14, 1), (14, 0)),
        message((14, 1), (14, 77)),
        message((14, (1 << 32) + 1)),
        b"",
        message((14, 0)),
    ):
        odd = message((2, 1), (8, "w")) + location + marks
        assert isinstance(refused(model(initializers=(odd,)), folder), UntrustedModel)
    twice = message((2, 1), (8, "w"), (13, entry("location", "w.bin"))) + location + b"\x70\x01"
    assert isinstance(refused(model(initializers=(twice,)), folder), UntrustedModel)
    undecodable = message((2, 1), (13, entry("location", b"\xff\xfe")), (14, 1))
    assert isinstance(refused(model(initializers=(undecodable,)), folder), InvalidModel)


def test_entries_of_tensors_that_are_not_external_are_ignored(folder: Path) -> None:
    inert = message((1, 1), (2, 1), (8, "w"), (9, bytes(4)), (13, entry("location", "gone")))
    found = opened(model(initializers=(inert,)), folder)
    found.format.check(found)
    assert found.format.files(found) == (folder / "m.onnx",)


def test_links_may_not_leave_the_folder(folder: Path) -> None:
    (folder / "link").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    (folder / "dangling").symlink_to("../gone")
    (folder / "chain").symlink_to("link")
    (folder / "good").symlink_to("w.bin")
    (folder / "loop").symlink_to("loop")
    for location in ("link", "up/secret", "dangling", "chain"):
        error = refused(model(initializers=(external(location),)), folder, trust=True)
        assert isinstance(error, UntrustedModel), location
        assert "symbolic link" in str(error)
    found = opened(model(initializers=(external("good"),)), folder)
    found.format.check(found)
    assert isinstance(refused(model(initializers=(external("loop"),)), folder), BridgeError)


def test_a_folder_of_links_into_one_store_works(tmp_path: Path) -> None:
    store, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    store.mkdir()
    snapshot.mkdir()
    (store / "1").write_bytes(model(initializers=(external("w.bin"),)))
    (store / "2").write_bytes(bytes(64))
    (snapshot / "m.onnx").symlink_to("../blobs/1")
    (snapshot / "w.bin").symlink_to("../blobs/2")
    found = ModelRef.open(snapshot / "m.onnx", [Onnx()])
    found.format.check(found)
    assert found.format.files(found) == (snapshot / "m.onnx", snapshot / "w.bin")


def test_hard_links_are_names_like_any_other(folder: Path) -> None:
    os.link(folder / "w.bin", folder / "v.bin")
    found = opened(model(initializers=(external("v.bin"),)), folder)
    found.format.check(found)


def test_a_missing_file_is_named(folder: Path) -> None:
    error = refused(model(initializers=(external("sub/gone.bin"),)), folder)
    assert isinstance(error, ModelNotFound)
    assert "'sub/gone.bin', which is missing" in str(error)
    assert str(folder) in str(error.fix)


def test_only_regular_files_are_data(folder: Path) -> None:
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    for location in ("sub", "pipe", "."):
        error = refused(model(initializers=(external(location),)), folder)
        assert isinstance(error, InvalidModel), location
    error = refused(model(initializers=(external("x" * 5000),)), folder)
    assert isinstance(error, InvalidModel)


@pytest.mark.parametrize(
    ("dims", "more"),
    [
        ((4,), {"offset": "-1"}),
        ((4,), {"length": "-16"}),
        ((4,), {"offset": "65"}),
        ((4,), {"offset": "64", "length": "16"}),
        ((4,), {"offset": "56"}),
        ((4,), {"length": "65"}),
        ((4,), {"length": "15"}),
        ((17,), {}),
        ((1 << 40,), {}),
        ((4,), {"offset": "9223372036854775808"}),
        ((4,), {"offset": "18446744073709551616"}),
        ((4,), {"length": "1e3"}),
        ((4,), {"offset": " 1"}),
        ((4,), {"offset": "0x10"}),
        ((4,), {"offset": ""}),
    ],
)
def test_ranges_beyond_the_file_are_invalid(
    dims: tuple[int, ...], more: dict[str, str], folder: Path
) -> None:
    error = refused(model(initializers=(external("w.bin", *dims, **more),)), folder)
    assert isinstance(error, InvalidModel)
    assert "tensor 'w'" in str(error)


def test_unknown_keys_are_no_matter(folder: Path) -> None:
    more = {"checksum": "00", "basepath": "x", "__class__": "y", "length": "0"}
    found = opened(model(initializers=(external("w.bin", **more),)), folder)
    found.format.check(found)


def test_an_external_tensor_without_a_file_is_invalid(folder: Path) -> None:
    error = refused(model(initializers=(tensor("w", 4, checksum="00"),)), folder)
    assert isinstance(error, InvalidModel)
    assert "names none" in str(error)


def test_models_given_as_bytes_hold_all_their_data() -> None:
    for location, wanted in (("w.bin", UnsupportedModel), ("../w.bin", UntrustedModel)):
        found = ModelRef.open(model(initializers=(external(location),)), [Onnx()], trust=True)
        with pytest.raises(wanted, match=r"names the file|Pass the path"):
            found.format.check(found)
    plain = ModelRef.open(model(), [Onnx()])
    plain.format.check(plain)
    assert plain.facts.operators == {"Add": 1}


def context(*fields: tuple[str, int | str]) -> bytes:
    attributes = [
        message((1, name), (3 if isinstance(value, int) else 4, value)) for name, value in fields
    ]
    return model(node("EPContext", *attributes, domain="com.microsoft"))


@pytest.mark.parametrize(
    "fields",
    [
        [("embed_mode", 0), ("ep_cache_context", "../secret")],
        [("embed_mode", 1), ("embed_mode", 0), ("ep_cache_context", "../secret")],
        [("embed_mode", 1), ("onnx_model_filename", "/etc/passwd")],
    ],
)
def test_compiled_parts_may_not_leave_the_folder(fields: list[Any], folder: Path) -> None:
    error = refused(context(*fields), folder, trust=True)
    assert isinstance(error, UntrustedModel)
    assert "EPContext" in str(error)


def test_compiled_parts_need_trust(folder: Path) -> None:
    beside = context(("embed_mode", 0), ("ep_cache_context", "w.bin"))
    embedded = context(("embed_mode", 1), ("ep_cache_context", "../any bytes"))
    for data, count in ((beside, 2), (embedded, 1), (context(("ep_cache_context", "/x")), 1)):
        found = opened(data, folder)
        with pytest.raises(UntrustedModel, match="EPContext"):
            found.format.check(found)
        trusted = opened(data, folder, trust=True)
        trusted.format.check(trusted)
        assert len(trusted.format.files(trusted)) == count


class Recorder:
    """Names of the files that Python opens inside the ``with`` block."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_on = False
        sys.addaudithook(self.record)  # cannot be taken out again, so it stays, idle

    def record(self, event: str, args: tuple[Any, ...]) -> None:
        if self.is_on and event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            self.names.append(os.fsdecode(args[0]))

    def __enter__(self) -> list[str]:
        self.is_on = True
        return self.names

    def __exit__(self, *_: object) -> None:
        self.is_on = False


def test_nothing_but_the_model_is_opened(folder: Path) -> None:
    (folder / "link").symlink_to("../secret")
    with Recorder() as names:
        for location in [*HOSTILE, "link", "w.bin"]:
            found = opened(model(initializers=(external(location),)), folder)
            if location == "w.bin":
                found.format.check(found)
            else:
                with pytest.raises(UntrustedModel):
                    found.format.check(found)
    assert set(names) == {str(folder / "m.onnx")}


# Tables that inputs index


def step(op: str, inputs: str, outputs: str, *attributes: bytes, domain: str = "") -> bytes:
    fields: list[Field] = [(1, name) for name in inputs.split()]
    fields += [(2, name) for name in outputs.split()]
    fields += [(4, op), *((5, one) for one in attributes), (7, domain)]
    return message(*fields)


def vocabularies(
    folder: Path, *nodes: bytes, inputs: tuple[str, ...] = ("ids",), code: int = 7
) -> dict[str, int]:
    graph = message(
        *((1, one) for one in nodes),
        *((5, tensor(f"table{rows}", rows, 2, data=bytes(8 * rows))) for rows in (1, 5, 9)),
        (5, tensor("which", 1, data=bytes(8), code=7)),
        *((11, value_info(name, ("N",), code)) for name in inputs),
        (12, Y),
    )
    data = message((1, 8), (2, "by hand"), (7, graph), (8, message((1, ""), (2, 17))))
    return dict(facts(data, folder).vocabularies)


def axis(value: int) -> bytes:
    return message((1, "axis"), (3, value), (20, 2))


def test_tables_that_inputs_index_are_found(tmp_path: Path) -> None:
    assert vocabularies(tmp_path, step("Gather", "table5 ids", "y")) == {"ids": 5}
    assert vocabularies(tmp_path, step("Gather", "table5 ids", "y", axis(0))) == {"ids": 5}
    # The smallest of several tables bounds the ids; each input has its own.
    both = [
        step("Gather", "table9 ids", "a"),
        step("Gather", "table5 ids", "b"),
        step("Gather", "table9 user", "c"),
    ]
    assert vocabularies(tmp_path, *both, inputs=("ids", "user")) == {"ids": 5, "user": 9}


def test_values_that_are_handed_on_are_followed(tmp_path: Path) -> None:
    chain = [
        step("Where", "which which ids", "0"),
        step("Cast", "0", "a"),
        step("Unsqueeze", "a which", "b"),
        step("Split", "b", "c d"),
        step("Gather", "d which", "e", axis(1)),
        step("DequantizeLinear", "table9 which", "table"),
        step("Gather", "table e", "f"),
    ]
    assert vocabularies(tmp_path, *chain) == {"ids": 9}
    constant = step(
        "Constant", "", "t", message((1, "value"), (5, tensor("", 7, 1, data=b"0" * 28)))
    )
    assert vocabularies(tmp_path, constant, step("Gather", "t ids", "y")) == {"ids": 7}


def test_what_is_no_row_number_has_no_vocabulary(tmp_path: Path) -> None:
    for nodes in (
        [step("Gather", "table5 ids", "y", axis(1))],
        [step("Gather", "table5 ids", "y", domain="custom")],
        [step("Add", "ids which", "a"), step("Gather", "table5 a", "y")],
        [step("Gather", "ids which", "y")],
        [step("Gather", "ids", "y"), step("Gather", "", "z"), step("Cast", "", "")],
        [step("GatherElements", "table5 ids", "y")],
    ):
        assert not vocabularies(tmp_path, *nodes)
    # Neither a boolean nor a string is one.
    for code in (8, 9):
        assert not vocabularies(tmp_path, step("Gather", "table5 ids", "y"), code=code)
