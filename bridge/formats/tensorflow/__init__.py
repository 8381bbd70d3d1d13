"""SavedModel folders, Keras archives and live Keras models, read without TensorFlow."""

from __future__ import annotations

from bridge.formats.tensorflow.keras import Keras
from bridge.formats.tensorflow.saved_model import SavedModel

__all__ = ["Keras", "SavedModel"]
