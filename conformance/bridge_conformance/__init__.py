"""The conformance suite: what a backend has to prove, and the certificate that says so.

Run it with ``bridge conform NAME``, with ``pytest --pyargs bridge_conformance
--bridge-backend NAME``, or from a test file of a backend's own::

    from bridge_conformance import suite_for

    globals().update(suite_for("mine"))

Models in formats that the suite does not know are written by a ``Writer``, which a
plugin registers with the hook ``register_conformance_models``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge_conformance.network import Network, Node
    from bridge_conformance.selection import suite_for
    from bridge_conformance.writing import NotExpressible, Writer

__all__ = ["Network", "Node", "NotExpressible", "Writer", "suite_for"]

_HOMES = {
    "Network": "network",
    "Node": "network",
    "NotExpressible": "writing",
    "Writer": "writing",
    "suite_for": "selection",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
