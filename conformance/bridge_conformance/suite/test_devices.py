"""What was asked for is what runs."""

from __future__ import annotations

from typing import Any

import pytest

import bridge
from bridge.device import KINDS, Device, driver_devices
from bridge.errors import DeviceUnavailable
from bridge_conformance.claims import refuses, requires
from bridge_conformance.subject import Subject


def _load(subject: Subject, device: str) -> None:
    bridge.load(subject.path("fixed"), backend=subject.backend.name, device=device).close()


@pytest.mark.builds
class TestDevices:
    """A model runs on the device that was asked for, or not at all."""

    @requires("predicts")
    def test_is_reported(self, subject: Subject) -> None:
        """The device under test is among those that the backend lists."""
        assert subject.device in subject.backend.devices()

    @requires("predicts")
    def test_is_used(self, subject: Subject, load: Any) -> None:
        """``info.device`` is the device that was asked for, as the runtime reports it."""
        assert load("affine").info.device == subject.device

    @refuses("predicts")
    def test_is_refused(self, subject: Subject) -> None:
        """Where models cannot be run, loading one raises DeviceUnavailable."""
        with pytest.raises(DeviceUnavailable) as caught:
            _load(subject, str(subject.device))
        assert caught.value.fix

    def test_there_is_no_such_index(self, subject: Subject) -> None:
        """A device number that the machine does not have raises DeviceUnavailable."""
        kinds = set(subject.backend.device_kinds) - {"cpu", "auto"}
        for kind in kinds or {"cuda"}:
            with pytest.raises(DeviceUnavailable):
                _load(subject, f"{kind}:999")

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "auto"])
    def test_kind_that_is_not_there(self, subject: Subject, kind: str) -> None:
        """A kind that the backend cannot use raises DeviceUnavailable, never falls back."""
        if Device(kind) in (subject.backend.devices() or ()):
            with bridge.load(
                subject.path("fixed"), backend=subject.backend.name, device=kind
            ) as predictor:
                assert predictor.info.device == Device(kind)
            return
        with pytest.raises(DeviceUnavailable):
            _load(subject, kind)

    @pytest.mark.parametrize("text", ["", "CPU0", "tpu", "cuda:x", "cpu:1", "cuda:-1", "cpu cuda"])
    def test_text_that_is_no_device(self, subject: Subject, text: str) -> None:
        """A text that names no device raises DeviceUnavailable."""
        with pytest.raises(DeviceUnavailable) as caught:
            _load(subject, text)
        assert caught.value.fix

    def test_devices_are_of_its_kinds(self, subject: Subject) -> None:
        """Listed devices are of the kinds that the backend declares, each once."""
        found = subject.backend.devices()
        assert len(set(found)) == len(found)
        assert {device.kind for device in found} <= set(subject.backend.device_kinds)

    def test_cuda_needs_a_driver(self, subject: Subject) -> None:
        """No CUDA device is listed that the kernel's driver does not know."""
        listed = {device for device in subject.backend.devices() if device.kind == "cuda"}
        assert listed <= {device for device, _ in driver_devices()}
