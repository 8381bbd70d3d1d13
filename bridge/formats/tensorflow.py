"""SavedModel folders and Keras files."""

from __future__ import annotations

from bridge.model import FileProbe, Format

__all__ = ["Keras", "SavedModel"]


class SavedModel(Format):
    """A folder with ``saved_model.pb``, of TensorFlow 1 or 2."""

    name = "saved_model"
    title = "SavedModel"
    native_backend = "tensorflow"

    def sniff(self, file: FileProbe) -> bool:
        return file.is_folder and "saved_model.pb" in file.members


class Keras(Format):
    """A Keras 3 zip archive, or a live Keras model."""

    name = "keras"
    title = "Keras"
    native_backend = "tensorflow"
    suffixes = (".keras",)

    def sniff(self, file: FileProbe) -> bool:
        return not file.is_folder and {"config.json", "metadata.json"} <= file.members

    def sniff_live(self, live: object) -> bool:
        return any(
            base.__module__.startswith("keras.") and base.__name__ == "Model"
            for base in type(live).__mro__
        )
