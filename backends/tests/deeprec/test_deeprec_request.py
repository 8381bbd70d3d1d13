"""The wire format, against the protobuf runtime with descriptors built here."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.dtypes import DType
from bridge.errors import PredictError
from bridge_deeprec.request import (
    TYPES,
    decode_model_info,
    decode_response,
    encode_request,
)

# 10^5 with BRIDGE_FUZZ=100000; a few hundred otherwise.
CASES = int(os.environ.get("BRIDGE_FUZZ", "300"))


def schema() -> dict[str, Any]:
    """The messages of ``tf_predict.proto``, by its field numbers and types."""
    file = descriptor_pb2.FileDescriptorProto(
        name="predict.proto", package="tensorflow.eas", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto

    def add(message: Any, name: str, number: int, kind: int, *, many: bool = False, of: str = ""):
        label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
        more = {"type_name": of} if of else {}
        message.field.add(name=name, number=number, type=kind, label=label, **more)

    add(file.message_type.add(name="ArrayShape"), "dim", 1, kinds.TYPE_INT64, many=True)
    array = file.message_type.add(name="ArrayProto")
    add(array, "dtype", 1, kinds.TYPE_INT32)  # an enum on the wire
    add(array, "array_shape", 2, kinds.TYPE_MESSAGE, of=".tensorflow.eas.ArrayShape")
    for name, number, kind in (
        ("float_val", 3, kinds.TYPE_FLOAT),
        ("double_val", 4, kinds.TYPE_DOUBLE),
        ("int_val", 5, kinds.TYPE_INT32),
        ("string_val", 6, kinds.TYPE_BYTES),
        ("int64_val", 7, kinds.TYPE_INT64),
        ("bool_val", 8, kinds.TYPE_BOOL),
    ):
        add(array, name, number, kind, many=True)
    for name, field, number in (("PredictRequest", "inputs", 2), ("PredictResponse", "outputs", 1)):
        message = file.message_type.add(name=name)
        entry = message.nested_type.add(name=f"{field.capitalize()}Entry")
        entry.options.map_entry = True
        add(entry, "key", 1, kinds.TYPE_STRING)
        add(entry, "value", 2, kinds.TYPE_MESSAGE, of=".tensorflow.eas.ArrayProto")
        of = f".tensorflow.eas.{name}.{field.capitalize()}Entry"
        add(message, field, number, kinds.TYPE_MESSAGE, many=True, of=of)
        if name == "PredictRequest":
            add(message, "signature_name", 1, kinds.TYPE_STRING)
            add(message, "output_filter", 3, kinds.TYPE_STRING, many=True)
    add(file.message_type.add(name="ServingModelInfo"), "model_path", 1, kinds.TYPE_STRING)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        one.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.eas.{one.name}")
        )
        for one in file.message_type
    }


SCHEMA = schema()
FIELD = {
    **dict.fromkeys(("float32", "float16", "bfloat16", "complex64"), "float_val"),
    **dict.fromkeys(("float64", "complex128"), "double_val"),
    **dict.fromkeys(("int32", "int16", "int8", "uint8", "uint16"), "int_val"),
    "int64": "int64_val",
    "bool": "bool_val",
    "string": "string_val",
}


def samples(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if dtype is DType.STRING:
        texts = ["", "a", "\u00e9\u4e2d", "x" * 200]
        return rng.choice(np.array(texts, object), shape)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        low, high = dtype.bounds
        values = rng.integers(low, high, shape, np.int64, endpoint=True).astype(dtype.numpy)
        values.reshape(-1)[:2] = low, high
        return values
    return rng.standard_normal(shape).astype(dtype.numpy)


def values_of(array: Any, proto: Any) -> list[Any]:
    """What a protobuf field should hold for an array."""
    flat = array.ravel()
    if array.dtype == object:
        return [one.encode() for one in flat]
    if array.dtype.kind == "c":
        return flat.view(flat.real.dtype).tolist()
    return flat.astype(np.float64).tolist() if array.dtype == ml_dtypes.bfloat16 else flat.tolist()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (2, 0), (3, 1, 2)], ids=str)
def test_protobuf_reads_requests(dtype: DType, shape: tuple[int, ...]) -> None:
    array = samples(dtype, shape) if np.prod(shape) else np.empty(shape, dtype.numpy)
    data = encode_request("serving_default", {"one": array, "two": array}, ["b", "a"])
    request = SCHEMA["PredictRequest"].FromString(data)
    assert request.signature_name == "serving_default"
    assert list(request.output_filter) == ["b", "a"]
    assert set(request.inputs) == {"one", "two"}
    for proto in request.inputs.values():
        assert proto.dtype == TYPES[dtype]
        assert tuple(proto.array_shape.dim) == shape
        assert list(getattr(proto, FIELD[dtype.value])) == values_of(array, proto)


def test_inputs_of_many_kinds_in_one_request_keep_their_own_values() -> None:
    inputs = {f"{dtype}{n}": samples(dtype, (n,), n) for dtype in TYPES for n in (2, 5)}
    inputs["none"] = np.empty((0, 3), np.int64)
    request = SCHEMA["PredictRequest"].FromString(encode_request("k", inputs, []))
    for name, array in inputs.items():
        proto = request.inputs[name]
        field = FIELD[DType.of(array.dtype).value]
        assert list(getattr(proto, field)) == values_of(array, proto), name


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40))
@example([2**56 - 1, 2**56, 2**63 - 1, -(2**63), -1, 0, 127, 128])
@example([2**49 - 1, 2**49, 2**35])
@settings(max_examples=CASES, deadline=None)
def test_integers_of_every_size(values: list[int]) -> None:
    array = np.array(values, np.int64)
    request = SCHEMA["PredictRequest"].FromString(encode_request("k", {"x": array}, []))
    assert list(request.inputs["x"].int64_val) == values
    response = SCHEMA["PredictResponse"]()
    response.outputs["x"].dtype = TYPES[DType.INT64]
    response.outputs["x"].array_shape.dim.append(len(values))
    response.outputs["x"].int64_val.extend(values)
    found = decode_response(response.SerializeToString())["x"]
    assert found.dtype == np.int64
    assert found.tolist() == values
    assert found.flags.writeable


def response(dtype: DType, array: Any, shape: tuple[int, ...] | None = None) -> Any:
    made = SCHEMA["PredictResponse"]()
    made.outputs["y"].dtype = TYPES[dtype]
    made.outputs["y"].array_shape.dim.extend(array.shape if shape is None else shape)
    getattr(made.outputs["y"], FIELD[dtype.value]).extend(values_of(array, made))
    return made


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (4,), (2, 0)], ids=str)
def test_responses_of_protobuf_are_read(dtype: DType, shape: tuple[int, ...]) -> None:
    array = samples(dtype, (4,))[: int(np.prod(shape))].reshape(shape)
    found = decode_response(response(dtype, array).SerializeToString())
    assert list(found) == ["y"]
    assert found["y"].dtype == array.dtype
    np.testing.assert_array_equal(found["y"], array)
    assert found["y"].flags.writeable or not found["y"].size


def test_numbers_that_are_not_packed_are_read_as_well() -> None:
    # dtype 1, shape [2], two float_val of wire type 5; the parser of proto3 takes both ways.
    array = bytes.fromhex("0801 12030a0102 1d0000803f 1d00000040")
    entry = b"\x0a\x01y\x12" + bytes([len(array)]) + array
    found = decode_response(b"\x0a" + bytes([len(entry)]) + entry)
    assert found["y"].tolist() == [1.0, 2.0]


def test_bytes_that_are_no_text_stay_bytes() -> None:
    made = SCHEMA["PredictResponse"]()
    made.outputs["y"].dtype = 7
    made.outputs["y"].array_shape.dim.append(2)
    made.outputs["y"].string_val.extend([b"\xff", b"ok"])
    assert decode_response(made.SerializeToString())["y"].tolist() == [b"\xff", b"ok"]


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (response(DType.FLOAT32, np.ones(3, np.float32), (4,)), "3 values"),
        (response(DType.FLOAT32, np.ones(3, np.float32), (1 << 40, 1 << 40)), "3 values"),
        (response(DType.FLOAT32, np.ones(0, np.float32), (0, 1 << 62)), "shape"),
        (response(DType.FLOAT32, np.ones(2, np.float32), (-1, -2)), "shape"),
        (response(DType.INT64, np.ones(2, np.int64), (1,) * 65), "shape"),
        (SCHEMA["PredictResponse"](outputs={"y": SCHEMA["ArrayProto"](dtype=20)}), "type 20"),
        (SCHEMA["PredictResponse"](outputs={"y": SCHEMA["ArrayProto"]()}), "type 0"),
        (
            SCHEMA["PredictResponse"](
                outputs={
                    "y": SCHEMA["ArrayProto"](dtype=6, int_val=[300], array_shape={"dim": [1]})
                }
            ),
            "no int8",
        ),
    ],
    ids=[
        "too few values",
        "huge",
        "huge and empty",
        "negative",
        "rank",
        "resource",
        "no type",
        "out of range",
    ],
)
def test_parts_that_do_not_fit_are_refused(made: Any, match: str) -> None:
    with pytest.raises(PredictError, match=match):
        decode_response(made.SerializeToString())


def test_the_version_of_the_model() -> None:
    made = SCHEMA["ServingModelInfo"](model_path="/models/1/model.ckpt-7")
    assert decode_model_info(made.SerializeToString()) == "/models/1/model.ckpt-7"
    assert decode_model_info(b"") == ""
    with pytest.raises(PredictError):
        decode_model_info(b"\x0a\x02\xff\xfe")


WHOLE = [
    response(dtype, samples(dtype, (3, 2), 5)).SerializeToString()
    for dtype in (DType.FLOAT32, DType.INT64, DType.INT32, DType.STRING, DType.BOOL)
]


@given(
    st.one_of(
        st.binary(max_size=80),
        st.tuples(
            st.sampled_from(WHOLE),
            st.integers(0, 400),
            st.integers(1, 4),
            st.binary(max_size=6),
        ).map(lambda one: one[0][: one[1]] + one[3] + one[0][one[1] + one[2] :]),
    )
)
@settings(max_examples=CASES, deadline=None)
def test_any_bytes_end_in_arrays_or_in_an_error(data: bytes) -> None:
    for read in (decode_response, decode_model_info):
        try:
            found = read(data)
        except PredictError:
            continue
        if isinstance(found, dict):
            # Strings take a pointer for each, every other value a few bytes on the wire.
            assert sum(array.nbytes for array in found.values()) <= 16 * len(data)
