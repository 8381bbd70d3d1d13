"""``python -m bridge_zoo MODEL --size SIZE -o DIR``: writes a model of the zoo.

``python -m bridge_zoo verify`` holds all of them to the oracle.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge_zoo import verification
from bridge_zoo.description import MODELS, SIZES
from bridge_zoo.formats import FORMATS, build

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the model and prints each format with its path."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["verify"]:
        return verification.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bridge_zoo",
        description="Write a ranking model with seeded weights in one or more formats, "
        "or 'verify' that all formats of all trained models agree.",
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--size", choices=SIZES, default="small", help="default: %(default)s")
    parser.add_argument(
        "--format",
        dest="formats",
        action="append",
        choices=FORMATS,
        help="may be given more than once; default: all",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights; default: 0")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(words)
    paths = build(
        given.model,
        folder=given.output,
        size=given.size,
        formats=given.formats or FORMATS,
        seed=given.seed,
    )
    for item, path in paths.items():
        print(f"{item}\t{path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
