"""Building without the device: the runtime's builder alone, then the bridge's adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bridge.adapter import Adapter
from bridge.errors import BridgeError
from bridge.loading import open_model
from bridge.model import ModelRef
from bridge.registry import registry
from bridge_conformance.claims import full, not_verified, refuses, requires
from bridge_conformance.datasets import onnx_cases
from bridge_conformance.subject import Subject, subject_of

_FORMAT = "onnx"


@full
@pytest.mark.builds
@refuses("predicts")
@requires("format")
class TestBuilding:
    """What the runtime's builder makes of ONNX's node cases alone, it makes through the bridge."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each node case, where models can be built but not run."""
        claims = subject_of(metafunc.config, metafunc.cls).claims
        names: Sequence[str] = ("any",)
        if _FORMAT in claims.formats and not claims.predicts and onnx_cases.is_installed():
            names = onnx_cases.names("node")
        metafunc.parametrize(("format", "name"), [(_FORMAT, name) for name in names], ids=names)

    def test_case(
        self,
        subject: Subject,
        format: str,
        name: str,
        tmp_path: Path,
        record_property: Callable[[str, object], None],
    ) -> None:
        """A model is built where the builder alone builds it, else refused by the bridge's error.

        Such a refusal is no failure, and is counted as what it is.
        """
        if not onnx_cases.is_installed():
            not_verified("onnx, which holds the cases, is not installed.")
        model = open_model(onnx_cases.case(name).model)
        alone = _alone(subject, model)
        record_property("native", "failed" if alone else "passed")
        try:
            _adapter(subject).convert(model, tmp_path / "built")
        except BridgeError as error:
            ours = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - it fails the test, by its class
            pytest.fail(
                f"{type(error).__name__} instead of an error of the bridge's own: {error}",
                pytrace=False,
            )
        else:
            return
        if alone is None:
            pytest.fail(
                f"{subject.backend.name} alone builds this case; the bridge fails: {ours}",
                pytrace=False,
            )
        record_property("refused", ours)


def _adapter(subject: Subject) -> Adapter:
    """The adapter that builds what the backend loads; ends the test where there is none."""
    formats = subject.claims.formats
    fitting = [one for one in registry().adapters if _FORMAT in one.sources]
    found = next((one for one in fitting if one.target in formats), None)
    if found is None:
        not_verified(f"no adapter builds from ONNX what {subject.backend.name} loads.")
    return found


def _alone(subject: Subject, model: ModelRef) -> str | None:
    """Why the builder alone builds nothing; ``None`` if it does."""
    build = getattr(subject.native_module, "build", None)
    if build is None:
        not_verified(f"native.py of {subject.backend.name} has no build, to compare with.")
    try:
        build(model)
    except Exception as error:  # noqa: BLE001 - whatever it raises, it has not built
        return f"{type(error).__name__}: {error}"
    return None
