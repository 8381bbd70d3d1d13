"""The backend: what is installed, what it can do, and how a model becomes a predictor."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from bridge.backend import Availability, Backend, find_runtime
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.cpus import cpu_flags, default_threads
from bridge.device import CPU, Device, driver_devices
from bridge.dtypes import DType
from bridge.errors import ErrorRule, OptionError, UnsupportedModel
from bridge.formats.tensorflow import SavedModel
from bridge.formats.tensorflow.graph import MetaGraph
from bridge.formats.tensorflow.reach import keeps_state, reach
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor, PredictorInfo
from bridge.search import Pruned, combine
from bridge.signature import Signature
from bridge_tensorflow.failures import error_rules
from bridge_tensorflow.lease import Lease, same_files
from bridge_tensorflow.options import TensorflowOptions
from bridge_tensorflow.predictor import TensorflowPredictor
from bridge_tensorflow.session import OpenSession, own_pools, session_config

__all__ = ["TensorflowBackend"]

# TensorFlow 2.21 has no e8m0; what its SavedModels say of the other small types has no
# counterpart in arrays that a session takes.
_DTYPES = frozenset(DType) - {
    DType.INT2,
    DType.INT4,
    DType.UINT2,
    DType.UINT4,
    DType.FLOAT4_E2M1FN,
    DType.FLOAT8_E8M0FNU,
}
_DISTRIBUTIONS = ("tensorflow-cpu", "tensorflow", "tf-nightly", "tensorflow-intel")


class TensorflowBackend(Backend):
    """SavedModels and Keras models in graph sessions."""

    name = "tensorflow"
    options_type: ClassVar[type[Options]] = TensorflowOptions
    device_kinds = ("cpu", "cuda")

    def probe(self) -> Availability:
        return find_runtime("tensorflow", _DISTRIBUTIONS, "tensorflow")

    def devices(self) -> tuple[Device, ...]:
        if all(device == CPU for device, _ in driver_devices()):
            return (CPU,)
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        return (CPU, *(Device("cuda", index) for index in range(len(gpus))))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            formats=frozenset({"keras", "saved_model"}),
            dtypes=_DTYPES,
            dynamic_dims=True,
            zero_rows=True,
            dlpack=True,
            deterministic=device.kind == "cpu",
            thread_safety=ThreadSafety.SHARED,
        )

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options | Pruned, ...]:
        """Executor, threads and bfloat16, then XLA, where it need not compile again and again."""
        candidates: list[Mapping[str, Any] | Pruned]
        if device != CPU:
            candidates = [{}, {"inter_threads": 2}, {"tf32": True}]
        else:
            cpus = default_threads()
            single = {"executor": "single_threaded"}
            candidates = [
                {},
                single,
                {"threads": 1},
                {**single, "threads": 1},
                *([{"threads": cpus // 2}] if cpus > 3 else []),
                {"inter_threads": 2},
                {"spinning": True},
                {"graph_optimizer": False},
                {"threads": cpus},
                {**single, "inter_threads": 2},
                {**single, "xla": True},
            ]
            candidates.insert(4, _bf16())
        return combine(TensorflowOptions, [*candidates, _xla(model)])

    def error_rules(self) -> tuple[ErrorRule, ...]:
        return error_rules()

    def _load(self, model: ModelRef, device: Device, options: TensorflowOptions) -> Predictor:
        if model.declared is not None:
            raise OptionError(
                f"a whole signature was given for {model.name}, but its format holds its own.",
                fix="Pass the key of one of its signatures, or nothing.",
            )
        _settle_tf32(device, options)
        if model.format.name == "saved_model":
            return _open(model, device, options)
        own_pools()  # before Keras makes TensorFlow compute
        import keras

        from bridge_tensorflow.keras import exported

        with exported(model) as (saved, names):
            return _open(saved, device, options, names, {"keras": keras.__version__})


def _xla(model: ModelRef) -> Mapping[str, Any] | Pruned:
    """XLA for models of fixed sizes; elsewhere each new size would stop a call for seconds."""
    values = {"xla": True}
    signatures = model.facts.signatures
    signature = signatures.get(model.signature_key or "serving_default")
    if signature is None and len(signatures) == 1:
        signature = next(iter(signatures.values()))
    for spec in () if signature is None else signature.inputs:
        if spec.shape is None or not all(isinstance(size, int) for size in spec.shape):
            return Pruned(
                values,
                "compiles-per-size",
                f"XLA compiles again for each new size of '{spec.name}', which stops that call; "
                "options={'xla': True} has it measured all the same.",
            )
    return values


def _open(
    model: ModelRef,
    device: Device,
    options: TensorflowOptions,
    names: Mapping[str, str] = MappingProxyType({}),
    versions: Mapping[str, str] = MappingProxyType({}),
) -> Predictor:
    """The predictor for a SavedModel.

    Args:
        model: The SavedModel.
        device: Where to run.
        options: How to run.
        names: What to call inputs whose names are not the ones users know.
        versions: Versions that matter besides TensorFlow's.
    """
    import tensorflow as tf

    kind = SavedModel()
    graph = kind.graph(model)
    key = kind.signature_key(model, graph)
    native = graph.signatures[key]
    _check_served(model, key, native)
    config = session_config(device, options)
    _check_precision(options)
    is_stateful = _is_stateful(graph, native)
    is_inline = options.inter_threads == 0

    def opened() -> OpenSession:
        return OpenSession(model.file, graph.tags, device, config, is_inline=is_inline)

    shared = None
    if not is_stateful:
        settings = config.SerializeToString(deterministic=True)
        shared = (same_files(kind.files(model)), graph.tags, device, settings, is_inline)
    lease = Lease(shared, opened)
    try:
        session = lease.session
        defaults = {
            names.get(name, name): array for name, array in session.defaults.get(key, {}).items()
        }
        info = PredictorInfo(
            device=_placed(session.native, device),
            provider="tf.compat.v1.Session",
            precision=_precision(device, options),
            threads=session.threads,
            stateful=is_stateful,
            versions={"tensorflow": tf.__version__, "numpy": np.__version__, **versions},
            details={
                "signature_key": key,
                "tags": sorted(graph.tags),
                "written_by": graph.version,
                "devices": [item.name for item in session.native.list_devices()],
                "onednn": _has_onednn(),
                "own_thread_pool": session.threads is not None,
                "calling_thread": is_inline,
                "spinning": options.spinning,
                "shared_weights": lease.is_shared,
            },
        )
        return TensorflowPredictor(lease, _renamed(native, names), defaults, info)
    except BaseException:
        lease.close()
        raise


def _check_served(model: ModelRef, key: str, signature: Signature) -> None:
    """Refuses what cannot be fed or fetched as one array."""
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not spec.native_name:
                reason = "is sparse or composite"
            elif spec.dtype is None:
                reason = "has a dtype that has no numpy counterpart"
            else:
                continue
            raise UnsupportedModel(
                f"{side} '{spec.name}' of signature '{key}' {reason}.",
                fix="Export a signature of dense tensors.",
                signature=key,
                tensor=spec.name,
            )
    twice = [
        name
        for name, count in Counter(spec.native_name for spec in signature.inputs).items()
        if count > 1
    ]
    if twice:
        raise UnsupportedModel(
            f"signature '{key}' of {model.name} has two inputs for the one tensor '{twice[0]}'.",
            fix="Export the signature again with one name for each tensor.",
            signature=key,
        )


def _renamed(signature: Signature, names: Mapping[str, str]) -> Signature:
    inputs = tuple(
        dataclasses.replace(spec, name=names.get(spec.name, spec.name)) for spec in signature.inputs
    )
    return Signature(inputs, signature.outputs)


def _is_stateful(graph: MetaGraph, signature: Signature) -> bool:
    outputs = [(spec.native_name or "").partition(":")[0] for spec in signature.outputs]
    return keeps_state(reach(graph, outputs))


def _placed(session: Any, wanted: Device) -> Device:
    """The device that the session has; operators were pinned to it on loading."""
    kinds = {item.device_type for item in session.list_devices()}
    return wanted if wanted.kind == "cpu" or "GPU" in kinds else CPU


# Instructions with which oneDNN multiplies bfloat16 in hardware, and those that it makes do
# with. Source: "Data Types" of oneDNN's documentation, and TensorFlow's ``onednn_env_vars.h``
# and ``mkl_util.h``.
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"})
_BF16_EMULATING_FLAGS = frozenset({"avx512f"})


def _bf16() -> Mapping[str, Any] | Pruned:
    """bfloat16 where the CPU has instructions for it; where nothing is known, loading tells."""
    values = {"precision": "bf16"}
    flags = cpu_flags()
    if not flags or flags & _BF16_FLAGS:
        return values
    return Pruned(values, "no-bf16", "this CPU has no instructions for bf16 that oneDNN uses.")


def _check_precision(options: TensorflowOptions) -> None:
    """Refuses bfloat16 where TensorFlow would silently compute in float32."""
    if options.precision != "bf16":
        return
    flags = cpu_flags()
    if flags and not flags & (_BF16_FLAGS | _BF16_EMULATING_FLAGS):
        reason = "this CPU lacks the instructions"
    elif _has_onednn() is False:
        reason = "oneDNN is switched off, or not in this build of TensorFlow"
    else:
        return
    raise OptionError(
        f"precision=bf16 cannot be had: {reason}.",
        fix="Leave precision out; TF_ENABLE_ONEDNN_OPTS=1 in the environment switches oneDNN on.",
        option="precision",
        rule="no-bf16",
    )


def _precision(device: Device, options: TensorflowOptions) -> str:
    if device.kind == "cuda":
        return "tf32" if options.tf32 else "float32"
    return "bfloat16" if options.precision == "bf16" else "float32"


def _settle_tf32(device: Device, options: TensorflowOptions) -> None:
    """Float32 means float32 on GPUs too, unless TF32 was asked for.

    TensorFlow allows TF32 by default, with one switch for the whole process.
    """
    if device.kind == "cuda":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(options.tf32)


def _has_onednn() -> bool | None:
    """Whether oneDNN's kernels are used, as TensorFlow says; ``None`` if it does not."""
    try:
        from tensorflow.python.util import _pywrap_util_port
    except ImportError:
        return None
    return bool(_pywrap_util_port.IsMklEnabled())
