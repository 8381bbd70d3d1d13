"""Takes a picture of an HTML page with headless Chromium.

``python docs/screenshot.py report.html docs/report.png`` shows the top of the page;
``--height`` shows more. ``--dark`` and ``--width 400`` show it as other readers see it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def take(page: Path, picture: Path, *, width: int, height: int, dark: bool) -> None:
    """Writes the picture; ``FileNotFoundError`` without a browser or a page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is on the path.")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",  # the page is our own and holds no script
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--window-size={width},{height}",
                f"--screenshot={picture.resolve()}",
                page.resolve(strict=True).as_uri(),
            ],
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    if not picture.is_file():
        raise FileNotFoundError(f"{browser} took no picture.")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1480)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    take(asked.page, asked.picture, width=asked.width, height=asked.height, dark=asked.dark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
