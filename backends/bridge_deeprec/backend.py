"""The backend: whether the library is there, what it can do, how a model becomes a predictor."""

from __future__ import annotations

from typing import ClassVar

from bridge.backend import Availability, Backend
from bridge.capabilities import Capabilities
from bridge.device import Device
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor
from bridge_deeprec.options import DeeprecOptions

__all__ = ["DeeprecBackend"]


class DeeprecBackend(Backend):
    """SavedModels in DeepRec's serving library, each in a process of its own."""

    name = "deeprec"
    options_type: ClassVar[type[Options]] = DeeprecOptions

    def probe(self) -> Availability:
        return Availability(installed=False, reason="libserving_processor.so was not found")

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(formats=frozenset({"deeprec", "saved_model"}))

    def _load(self, model: ModelRef, device: Device, options: DeeprecOptions) -> Predictor:
        raise NotImplementedError
