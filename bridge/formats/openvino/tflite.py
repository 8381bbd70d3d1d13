"""TensorFlow Lite files, and the files of their own in which large ones keep buffers."""

from __future__ import annotations

from pathlib import Path

from bridge.errors import InvalidModel
from bridge.formats.containment import named_file
from bridge.formats.openvino.flatbuffer import Contents, FlatbufferError, read_flatbuffer
from bridge.model import FileProbe, Format, ModelFacts, ModelRef
from bridge.wire import opened

__all__ = ["TfLite"]


class TfLite(Format):
    """A TensorFlow Lite flatbuffer; its operators are not counted."""

    name = "tflite"
    title = "TensorFlow Lite"
    native_backend = "openvino"
    suffixes = (".tflite",)
    has_signature_keys = True

    def sniff(self, file: FileProbe) -> bool:
        return file.head[4:8] == b"TFL3"

    def files(self, model: ModelRef) -> tuple[Path, ...]:
        main = model.file
        return (main, *_external_files(model, _flatbuffer(model)))

    def describe(self, model: ModelRef) -> ModelFacts:
        contents = _flatbuffer(model)
        versions = {"schema": str(contents.version)}
        if contents.description:
            versions["producer"] = contents.description[:200]
        return ModelFacts(
            signatures=contents.signatures, versions=versions, notes=tuple(contents.notes)
        )

    def check(self, model: ModelRef) -> None:
        _external_files(model, _flatbuffer(model))


def _flatbuffer(model: ModelRef) -> Contents:
    source = model.data if model.data is not None else model.file
    with opened(source) as root:
        data = root.view()
        try:
            return read_flatbuffer(data)
        except FlatbufferError as error:
            raise InvalidModel(
                f"the {TfLite.title} file {model.name} is truncated or corrupt: {error}.",
                fix="Export or copy it again.",
                model=model.name,
            ) from error
        finally:
            data.release()


def _external_files(model: ModelRef, contents: Contents) -> list[Path]:
    names = sorted(set(contents.external_files))
    return [named_file(model, name, "a group of buffers").path for name in names]
