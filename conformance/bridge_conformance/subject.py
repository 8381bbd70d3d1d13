"""What is under test: one backend on one device, and the models to test it with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.backend import Backend
from bridge.capabilities import Capabilities
from bridge.check import Arrays
from bridge.device import Device
from bridge.errors import BridgeError, OptionError, UnsupportedModel
from bridge.loading import open_model
from bridge.model import ModelRef
from bridge.registry import registry
from bridge_conformance.claims import not_claimed, not_verified
from bridge_conformance.known_failures import FILE_NAME, KnownFailure, read_known_failures
from bridge_conformance.network import Network
from bridge_conformance.networks import NETWORKS
from bridge_conformance.writing import NotWritable, Written, writers, written

__all__ = ["Native", "Subject", "subject_of"]

Native = tuple[Callable[[Arrays], Any], Callable[[Any], Arrays]]
"""A runtime's own call, and what turns its result into arrays by name."""

# Formats that state names, dtypes and shapes, and in which most networks can be said. A
# backend that loads several of them is tested whole on the first, and in the others on
# what depends on the format.
_PREFERRED = ("onnx", "saved_model", "exported_program")

_subjects = pytest.StashKey[dict[str, "Subject"]]()


class Subject:
    """A backend on a device, as the tests see it.

    Attributes:
        backend: The backend.
        device: The device.
        claims: What the backend says it can do there.
    """

    def __init__(self, backend: Backend, device: Device) -> None:
        self.backend = backend
        self.device = device
        self.claims: Capabilities = backend.capabilities(device)

    @functools.cached_property
    def formats(self) -> tuple[str, ...]:
        """Claimed formats in which models can be written here, the main one first."""
        able = sorted(set(self.claims.formats) & set(writers()))
        return tuple(sorted(able, key=lambda name: (_rank(name), name)))

    @property
    def format(self) -> str:
        """The format that most tests use; ends the test where there is none."""
        if not self.formats:
            claimed = ", ".join(sorted(self.claims.formats)) or "no format at all"
            not_verified(
                f"{self.backend.name} loads {claimed}, for which no plugin registers a writer."
            )
        return self.formats[0]

    @functools.cached_property
    def known_failures(self) -> dict[str, KnownFailure]:
        """What the backend's author lists, by test id.

        Raises:
            KnownFailuresError: The file breaks its own rules.
        """
        package = type(self.backend).__module__.rpartition(".")[0]
        found = importlib.util.find_spec(package) if package else None
        if found is None or found.origin is None:
            return {}
        return read_known_failures(Path(found.origin).parent / FILE_NAME, str(self.device))

    def network(self, name: str) -> Network:
        """The network of that name, with its oracle."""
        return NETWORKS[name]

    def path(self, network: str, format: str | None = None) -> Path:
        """A model of that network; the test is "not verified" where it cannot be had.

        Raises:
            WriterFailed: The format's writer is there and does not work.
        """
        wanted = format or self.format
        found = _written(wanted)
        if network in found.refusals:
            not_verified(f"{wanted} has no such model: {found.refusals[network]}")
        return found.models[network]

    def can_write(self, network: str, format: str | None = None) -> bool:
        """Whether ``path`` would give a model; also ends the test where nothing can be written."""
        return network in _written(format or self.format).models

    def require(self, network: str) -> None:
        """Ends the test where a network needs dims or dtypes that the backend does not claim."""
        signature = self.network(network).signature
        specs = (*signature.inputs, *signature.outputs)
        if not self.claims.dynamic_dims and any(
            not isinstance(dim, int) for spec in signature.inputs for dim in spec.shape or ()
        ):
            not_claimed(f"{self.backend.name} takes no dims that change, as in '{network}'.")
        for spec in specs if self.claims.dtypes else ():
            if spec.dtype not in self.claims.dtypes:
                not_claimed(f"{self.backend.name} does not take {spec.dtype}, as in '{network}'.")

    def load(self, network: str, format: str | None = None, **arguments: Any) -> bridge.Predictor:
        """A predictor of that network; the caller closes it.

        Native code is trusted, because the suite has written it; the network's signature
        is declared where the model's own bytes do not state it.
        """
        self.require(network)
        wanted = format or self.format
        path = self.path(network, wanted)
        if writers()[wanted].is_code:
            arguments["trust"] = True
        tries: list[dict[str, Any]] = [{}]
        is_stated = _states_inputs(path)
        if not is_stated:  # else TestSignature could compare the suite's own words with themselves
            tries.append({"signature": self.network(network).signature})
        refusal: BridgeError | None = None
        for said in tries:
            try:
                predictor = self.open(path, **said, **arguments)
            except (UnsupportedModel, OptionError) as error:
                refusal = refusal or error
                continue
            if is_stated or all(
                spec.dtype and spec.shape is not None for spec in predictor.signature.inputs
            ):
                return predictor
            predictor.close()
        assert refusal is not None, f"{path.name} states no dtypes, even where they are declared"
        raise refusal

    def open(self, model: object, **arguments: Any) -> bridge.Predictor:
        """``bridge.load`` with this backend and device; the caller closes the predictor."""
        return bridge.load(model, backend=self.backend.name, device=self.device, **arguments)

    def native(self, model: ModelRef, **arguments: Any) -> Native | None:
        """The runtime's own load and call, where the backend's package has a ``native.py``."""
        module = self.native_module
        return None if module is None else module.load(model, **arguments)

    @functools.cached_property
    def native_module(self) -> Any | None:
        """The module ``native`` of the backend's package, if there is one."""
        package = type(self.backend).__module__.rpartition(".")[0]
        if not package or importlib.util.find_spec(f"{package}.native") is None:
            return None
        return importlib.import_module(f"{package}.native")


def subject_of(config: pytest.Config, cls: type | None) -> Subject:
    """The subject of a test class: of ``suite_for``'s backend, else of ``--bridge-backend``.

    Raises:
        pytest.UsageError: No backend is named, or it is unknown or not available.
    """
    name = getattr(cls, "bridge_backend", None) or config.getoption("bridge_backend")
    known = config.stash.setdefault(_subjects, {})
    if name is None:
        raise pytest.UsageError(
            "no backend is named; wanted --bridge-backend NAME, or suite_for(NAME) in a test file."
        )
    if name not in known:
        try:
            backend = registry().backends.get(name)
            backend.require()
            chosen = config.getoption("bridge_device") or backend.device_kinds[0]
            known[name] = Subject(backend, Device.parse(chosen))
        except BridgeError as error:
            raise pytest.UsageError(str(error)) from error
    return known[name]


def _rank(name: str) -> int:
    return _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)


@functools.cache
def _states_inputs(model: Path) -> bool:
    return open_model(model, trust=True).facts.tells_inputs


def _written(format: str) -> Written:
    try:
        return written(format)
    except NotWritable as error:
        not_verified(str(error))
