"""The models that the benches load: real ones, and the ranker of the zoo in each format."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bridge_zoo
from bridge.backend import Backend
from bridge.check import Arrays
from bridge.device import CPU
from bridge.dtypes import DType
from bridge.errors import BackendUnavailable
from bridge.loading import backends, open_model
from bridge.model import ModelRef
from bridge.registry import registry
from bridge.signature import Signature, TensorSpec
from bridge_bench.profile import InputProfile

__all__ = [
    "MODELS_FOLDER",
    "RANKER_FILES",
    "ROWS",
    "SHARED_FORMATS",
    "ZOO_FOLDER",
    "ZOO_FORMATS",
    "Subject",
    "cpu_backends",
    "is_native",
    "ranker_signature",
    "rankers",
    "real_models",
    "takes",
]

MODELS_FOLDER = Path(sys.prefix) / "models"
"""Where ``make`` unpacks the packages that carry real models."""
ZOO_FOLDER = Path(sys.prefix) / "zoo"
"""Where ``make`` writes the ranker."""
ROWS = (1, 16, 128, 512)
"""Rows that the ranker is asked for."""

RANKER_FILES = {
    "onnx": "ranker.onnx",
    "saved_model": "ranker_saved_model",
    "torchscript": "ranker.pt",
    "exported_program": "ranker.pt2",
}
"""Files of the ranker as the zoo calls them, by format."""
SHARED_FORMATS = ("onnx", "saved_model")
"""Formats that native calls of several backends take; others only those that they are made for."""
ZOO_FORMATS = {"exported_program": "pt2"}
"""The zoo's names of formats, where they are others than the bridge's."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model file, and what to ask it.

    Attributes:
        name: As tables show it.
        format: Name of its format.
        path: File or folder.
        rows: Sizes of the batches.
        signature: For formats that hold none.
        profile: What inputs are like, for models that are not the ranker.
        size: Of the ranker; empty for others.
    """

    name: str
    format: str
    path: Path
    rows: tuple[int, ...] = (1,)
    signature: Signature | None = None
    profile: InputProfile = field(default_factory=InputProfile)
    size: str = ""

    def open(self) -> ModelRef:
        """The model; errors are those of ``bridge.loading.open_model``."""
        return open_model(self.path, signature=self.signature)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as ``from_dict`` reads it."""
        return {
            "name": self.name,
            "format": self.format,
            "path": str(self.path),
            "rows": list(self.rows),
            "signature": self.signature and self.signature.to_dict(),
            "profile": self.profile.to_dict(),
            "size": self.size,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Subject:
        """Reads what ``to_dict`` made."""
        said = data["signature"]
        return cls(
            name=data["name"],
            format=data["format"],
            path=Path(data["path"]),
            rows=tuple(data["rows"]),
            signature=said and Signature.from_dict(said),
            profile=InputProfile.from_dict(data["profile"]),
            size=data["size"],
        )

    def inputs(self, model: ModelRef, signature: Signature, rows: int, count: int) -> list[Arrays]:
        """Sets of inputs, each with other values; the same for equal arguments.

        Args:
            model: The opened model.
            signature: The predictor's.
            rows: Size of the batch.
            count: Number of sets.
        """
        if self.size:
            ranker = bridge_zoo.describe(self.name, self.size)
            return [dict(bridge_zoo.inputs(ranker, rows, seed)) for seed in range(count)]
        profile = self.profile.informed(model.facts)
        return [profile.make(signature, variant, rows) for variant in range(count)]


def real_models(folder: Path = MODELS_FOLDER) -> list[Subject]:
    """The real models that are in the folder.

    silero-vad gets 512 samples at 16 kHz, in ONNX with 64 samples of context before them.
    """
    basic = folder / "basic_pitch" / "saved_models" / "icassp_2022"
    silero = folder / "silero_vad" / "data"
    said = Signature(
        (TensorSpec("x", DType.FLOAT32, (1, 512)), TensorSpec("sr", DType.INT64, ())),
        (TensorSpec("output_0", DType.FLOAT32, (1, 1)),),
    )
    rate = {"sr": 16000}
    shapes = {"input": (1, 576), "state": (2, 1, 128)}
    magika = folder / "magika" / "models" / "standard_v3_3" / "model.onnx"
    found = [
        Subject(name="basic-pitch", format="saved_model", path=basic / "nmp"),
        Subject(name="basic-pitch", format="onnx", path=basic / "nmp.onnx"),
        Subject(
            name="silero-vad",
            format="torchscript",
            path=silero / "silero_vad.jit",
            signature=said,
            profile=InputProfile(constants=rate),
        ),
        Subject(
            name="silero-vad",
            format="onnx",
            path=silero / "silero_vad.onnx",
            profile=InputProfile(constants=rate, shapes=shapes),
        ),
        Subject(name="magika", format="onnx", path=magika, profile=InputProfile(highest_id=256)),
    ]
    return [one for one in found if one.path.exists()]


def rankers(
    folder: Path = ZOO_FOLDER, size: str = "real", formats: Sequence[str] = tuple(RANKER_FILES)
) -> list[Subject]:
    """The ranker in those of the formats that the zoo writes.

    It is built, in a process of its own, where it is not there yet.

    Raises:
        BackendUnavailable: It could not be built; the log says why.
    """
    formats = [one for one in formats if one in RANKER_FILES]
    missing = [one for one in formats if not (folder / RANKER_FILES[one]).exists()]
    if missing:
        words = [word for one in missing for word in ("--format", ZOO_FORMATS.get(one, one))]
        command = [sys.executable, "-m", "bridge_zoo", "ranker", "--size", size, *words]
        done = subprocess.run(
            [*command, "-o", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BackendUnavailable(
                f"the ranker could not be built as {', '.join(missing)}.",
                fix="Install the runtimes that write these formats: make test does.",
                log=done.stderr[-4000:],
            )
    described = bridge_zoo.describe("ranker", size)
    assert isinstance(described, bridge_zoo.Ranker)
    stated = ranker_signature(described)
    return [
        Subject(
            name="ranker",
            format=one,
            path=folder / RANKER_FILES[one],
            rows=ROWS,
            signature=stated if one == "torchscript" else None,
            size=size,
        )
        for one in formats
    ]


def cpu_backends(names: Sequence[str] = ()) -> list[Backend]:
    """Installed backends whose first device is the CPU.

    Args:
        names: Only these; if empty, all but those that are there to be right, not fast.

    Raises:
        BackendNotFound: There is none of a name.
        BackendUnavailable: A named one is not installed, or does not compute on the CPU.
    """
    named = {name: registry().backends.get(name) for name in names}
    found = [
        one
        for one in backends().values()
        if one.device_kinds[0] == "cpu"
        and (one.name in names if names else not one.is_oracle)
        and one.probe().installed
        and one.capabilities(CPU).predicts
    ]
    missing = sorted(named.keys() - {one.name for one in found})
    if missing:
        reason = named[missing[0]].probe().reason or "it does not compute on the CPU"
        raise BackendUnavailable(
            f"backend '{missing[0]}' cannot be measured: {reason}.",
            fix=named[missing[0]].probe().fix,
            backend=missing[0],
        )
    return found


def is_native(format: str, backend: Backend) -> bool:
    """Whether the backend is the one that the format was made for."""
    return registry().formats.get(format).native_backend == backend.name


def takes(format: str, backend: Backend) -> bool:
    """Whether the backend loads that format on the CPU, and its native call does as well."""
    is_taken = format in backend.capabilities(CPU).formats
    return is_taken and (format in SHARED_FORMATS or is_native(format, backend))


def ranker_signature(ranker: bridge_zoo.Ranker) -> Signature:
    """What a ranker takes and gives, for formats that do not say."""
    inputs: list[Any] = [
        TensorSpec(one.name, DType.INT64, ("batch",)) for one in ranker.id_features
    ]
    inputs.append(TensorSpec("dense", DType.FLOAT32, ("batch", ranker.dense_width)))
    outputs = tuple(TensorSpec(task, DType.FLOAT32, ("batch",)) for task in ranker.tasks)
    return Signature(tuple(inputs), outputs)
