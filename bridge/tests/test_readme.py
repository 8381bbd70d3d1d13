"""The README's example prints what it says, and its table is the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.checkout
def test_the_readme_is_true() -> None:
    for runtime in ("onnx", "openvino"):
        pytest.importorskip(runtime)
    done = subprocess.run(
        [sys.executable, CHECKOUT / "docs" / "readme.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
