"""The backend: whether the library is there, what it can do, how a model becomes a predictor."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bridge.backend import Availability, Backend, Refusal
from bridge.capabilities import Capabilities, ThreadSafety
from bridge.device import CPU, Device, driver_devices
from bridge.dtypes import DType
from bridge.errors import (
    BackendUnavailable,
    InvalidModel,
    ModelNotFound,
    OptionError,
    PredictError,
    UnsupportedModel,
    nearest,
)
from bridge.logs import logger
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor, PredictorInfo
from bridge.search import Pruned, combine
from bridge.signature import Signature, TensorSpec
from bridge_deeprec.configuration import environment, model_config
from bridge_deeprec.library import NAME, VARIABLE, Library, ServedModel, find
from bridge_deeprec.options import DeeprecOptions
from bridge_deeprec.predictor import ProcessorPredictor, version
from bridge_deeprec.request import TYPES

__all__ = [
    "WARM_CALLS",
    "DeeprecBackend",
    "check_agreement",
    "check_folders",
    "check_preload",
    "served_signature",
]

WARM_CALLS = 200
"""Calls after which the memory planner and the cost-model executor have learnt.

Source: STOP_NODE_STATS_STEP of DeepRec's page ``Executor-Optimization``.
"""

_DEFAULT_KEY = "serving_default"
_MARK = "BRIDGE_DEEPREC_PROCESS"  # set in processes that were started for one predictor
_OTHERS = ("tensorflow", "torch", "onnxruntime", "openvino", "google.protobuf")
# What TensorFlow 1.15 says of a name that a graph does not have: ``subgraph.cc`` and
# ``direct_session.cc``. Nothing less certain, since a wrong guess ends the process.
_UNKNOWN_NAME = re.compile(
    "unable to find feed output|FetchOutputs node|specified in either feed_devices"
)
# Complex inputs: the code that reads them writes beyond the tensor (``util.cc``).
_DTYPES = frozenset(TYPES) - {DType.COMPLEX64, DType.COMPLEX128}


class DeeprecBackend(Backend):
    """SavedModels in DeepRec's serving library, each in a process of its own."""

    name = "deeprec"
    options_type: ClassVar[type[Options]] = DeeprecOptions
    device_kinds = ("cpu", "cuda")
    always_isolated = True
    is_public = False

    def probe(self) -> Availability:
        path = find()
        how = (
            f"Set {VARIABLE} to the path of {NAME}, which is built from DeepRec's sources; or "
            "convert its models for other backends: bridge convert MODEL --to onnx -o FOLDER."
        )
        if path is None:
            reason = f"DeepRec's library {NAME} was not found"
            return Availability(installed=False, reason=reason, fix=how)
        wrong = _not_loadable(path)
        if wrong:
            return Availability(installed=False, reason=f"'{path}' {wrong}", fix=how)
        return Availability(installed=True)

    def devices(self) -> tuple[Device, ...]:
        return tuple(device for device, _ in driver_devices() if device.kind in self.device_kinds)

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            formats=frozenset({"deeprec", "saved_model"}),
            dtypes=_DTYPES,
            dynamic_dims=True,
            thread_safety=ThreadSafety.SHARED,
            warm_calls=WARM_CALLS,
        )

    def worker_environment(self, device: Device, options: DeeprecOptions) -> Mapping[str, str]:
        # A build for GPUs takes what it sees: a CPU is a CPU only if there is nothing to see.
        visible = str(device.index) if device.kind == "cuda" else ""
        return {**environment(options), "CUDA_VISIBLE_DEVICES": visible, _MARK: "1"}

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options | Pruned, ...]:
        """What DeepRec's pages recommend to try: threads, sessions, executor, planner."""
        return combine(
            DeeprecOptions,
            [
                {},
                {"enable_inline_execute": True},
                {"intra_op_parallelism_threads": 1},
                {"session_num": 2, "use_per_session_threads": True},
                {"memory_planner": False},
                {"onednn_reco_only": False},
            ],
        )

    def refuse(self, model: ModelRef, device: Device) -> Refusal | None:
        if model.declared is not None:
            return Refusal(
                "a whole signature was given, but a SavedModel holds its own.",
                "Pass the key of one of its signatures, or nothing.",
            )
        return super().refuse(model, device)

    def _load(self, model: ModelRef, device: Device, options: DeeprecOptions) -> Predictor:
        _require_own_process()
        path = find()
        assert path is not None  # probe found it
        key, signature = served_signature(model)
        check_folders(options)
        check_preload(options)
        config = model_config(options, str(model.file), key)
        served = ServedModel(Library(path), json.dumps(config))
        check_agreement(signature, served, path)
        info = PredictorInfo(device=device, provider=NAME, threads=_threads(config))
        predictor = self._tested(served, signature, key, options, info, path)
        predictor.info = dataclasses.replace(
            info,
            device=_device(device),
            versions={"numpy": np.__version__},
            details={
                "library": str(path),
                "signature_key": key,
                "names": predictor.names,
                **_told_version(served),
                "self_test": options.self_test,
                "atomic_full_update": True,
                "atomic_delta_update": False,
                "update_poll_s": 60 if options.checkpoint_dir or options.checkpoint_url else None,
            },
        )
        return predictor

    def _tested(
        self,
        served: ServedModel,
        signature: Signature,
        key: str,
        options: DeeprecOptions,
        info: PredictorInfo,
        path: Path,
    ) -> ProcessorPredictor:
        """The predictor that answers a made-up request, with the names that it takes."""
        # Keys first: older builds answer them with an error, while newer ones end the process
        # for the name of a tensor.
        names = "alias" if options.names == "auto" else options.names
        found = ProcessorPredictor(served, signature, key, names, info)
        error = None
        if options.self_test or options.names == "auto":
            error = _self_test(found)
        if options.names == "auto" and error is not None and _UNKNOWN_NAME.search(str(error)):
            found = ProcessorPredictor(served, signature, key, "tensor", info)
            error = _self_test(found)
        if error is not None and options.self_test:
            raise BackendUnavailable(
                f"the library '{path}' does not answer a made-up row of this model: "
                f"{error.message}",
                fix="Some builds cannot read requests: try another one, or self_test=false if the "
                "model cannot answer a row of ones and empty strings.",
                **error.detail,
            ) from error
        return found


def _require_own_process() -> None:
    """Refuses a process that was not started for this predictor.

    The library reads its environment once, ends its process on bad input, and clashes with
    another TensorFlow or protobuf.
    """
    other = next((name for name in _OTHERS if name in sys.modules), None)
    if _MARK in os.environ and other is None:
        return
    reason = "this one is not" if other is None else f"{other} is loaded in this one"
    raise BackendUnavailable(
        f"DeepRec's library runs only in a process that was started for it; {reason}.",
        fix="Load the model with bridge.load, which starts one.",
    )


def _not_loadable(path: Path) -> str | None:
    """What is wrong with a file that should be a library; ``None`` if it looks like one."""
    try:
        with path.open("rb") as stream:
            head = stream.read(20)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    with open("/proc/self/exe", "rb") as stream:  # noqa: PTH123 - what this process is made of
        own = stream.read(20)
    if head[:4] != b"\x7fELF":
        return "is no shared library"
    if head[4:6] != own[4:6] or head[18:20] != own[18:20]:
        return "is a library for another kind of processor"
    return None


def served_signature(model: ModelRef) -> tuple[str, Signature]:
    """Key and tensors of the signature to serve, from the model's own file.

    Raises:
        OptionError: There is no such signature.
        UnsupportedModel: A tensor cannot be an array.
    """
    signatures = model.facts.signatures
    key = model.signature_key
    if key is None:
        key = next(iter(signatures)) if len(signatures) == 1 else _DEFAULT_KEY
    if key not in signatures:
        raise OptionError(
            f"SavedModel {model.name} has no signature '{key}'.",
            fix=nearest(key, signatures),
            signature=key,
            valid=sorted(signatures),
        )
    found = signatures[key]
    for spec in (*found.inputs, *found.outputs):
        if spec.dtype is None or not spec.native_name:
            raise UnsupportedModel(
                f"'{spec.name}' of signature '{key}' is sparse, composite, or of a type that has "
                "no arrays here.",
                fix="Export a signature of dense tensors.",
                signature=key,
                tensor=spec.name,
            )
    return key, found


def check_folders(options: DeeprecOptions) -> None:
    """Refuses what ``initialize`` would wait for without end, looking every 60 s."""
    folder = options.checkpoint_dir
    if folder is None:
        return
    if not folder.is_dir():
        raise ModelNotFound(f"there is no folder '{folder}'.", fix="Check checkpoint_dir.")
    if not any(folder.glob("*/checkpoint")):
        raise ModelNotFound(
            f"no subfolder of checkpoint_dir '{folder}' holds a file 'checkpoint'.",
            fix="Give the folder above that of the checkpoint.",
            path=str(folder),
        )


def check_preload(options: DeeprecOptions) -> None:
    """Refuses an allocator that the loader left out, which it says in a line of text only."""
    if options.jemalloc is None:
        return
    path = options.jemalloc.resolve()
    mapped = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    if not any(line.endswith(f" {path}") for line in mapped.splitlines()):
        raise OptionError(
            f"'{options.jemalloc}' could not be preloaded into the process of DeepRec's library.",
            fix="Give the path of a libjemalloc.so that is built for this machine.",
            option="jemalloc",
            value=str(options.jemalloc),
        )


def check_agreement(signature: Signature, served: ServedModel, path: Path) -> None:
    """Refuses a library that serves other tensors than those of the file.

    The file tells more: names of tensors, all types, and whether a rank is known at all.

    Raises:
        BackendUnavailable: What the library tells cannot be read.
        InvalidModel: The library serves another model than that of the file.
    """
    text = served.process(b"")
    if not text:  # of a signature whose method is not TensorFlow's predict, it tells nothing
        return
    try:
        told = json.loads(text)
        sides = {side: {str(one["name"]) for one in told[side]} for side in ("inputs", "outputs")}
    except (ValueError, KeyError, TypeError) as error:
        raise BackendUnavailable(
            f"the library '{path}' describes its signature in a way that cannot be read: {error}.",
            fix="The library may be of another version, or broken; try another build.",
            text=text[:1000].decode("utf-8", "replace"),
        ) from error
    for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if sides[side] != {spec.name for spec in specs}:
            raise InvalidModel(
                f"the library serves {side} {', '.join(sorted(sides[side])) or 'none'}; the model "
                f"has {', '.join(sorted(spec.name for spec in specs)) or 'none'}.",
                fix="Check savedmodel_url and checkpoint_dir: they belong to another model.",
            )


def _made_up(spec: TensorSpec) -> Any:
    """One row, as the library makes it for its own warm-up: ones; here also empty strings."""
    dims = (1,) if spec.shape is None else spec.shape
    shape = [size if isinstance(size, int) else 1 for size in dims]
    assert spec.dtype is not None  # refused before
    if spec.dtype is DType.STRING:
        return np.full(shape, "", object)
    return np.ones(shape, spec.dtype.numpy)


def _self_test(predictor: ProcessorPredictor) -> PredictError | None:
    """What is wrong with the answer to a made-up row; ``None`` if it is as it should be."""
    signature = predictor.signature
    inputs = {spec.name: _made_up(spec) for spec in signature.inputs}
    try:
        predictor._predict(inputs, signature.output_names)
    except PredictError as error:
        return error
    return None


def _told_version(served: ServedModel) -> dict[str, Any]:
    try:
        return version(served)
    except PredictError as error:  # it may serve all the same
        logger("deeprec").warning("the version of the model is not known: %s", error)
        return {"model_path": None, "full_version": None}


def _threads(config: Mapping[str, Any]) -> int:
    return int(config["intra_op_parallelism_threads"])


def _device(wanted: Device) -> Device:
    """Where it runs: on a GPU if this process has one open. The library does not tell."""
    if wanted.kind != "cuda":
        return CPU
    for link in Path("/proc/self/fd").iterdir():
        try:
            if re.fullmatch(r"/dev/nvidia\d+", str(link.readlink())):
                return wanted
        except OSError:
            continue
    return CPU
