"""``bridge cache``: what the bridge keeps on disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_cli import exit_codes
from bridge_cli.arguments import AsJson

if TYPE_CHECKING:
    from bridge.cache import Entry

__all__ = ["app"]

app = typer.Typer(
    name="cache",
    help="List, remove and verify what is kept on disk.\n\n"
    "That is optimised models, engines and conversions.",
    epilog="""
\b
Example:
  bridge cache ls
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    epilog="""
\b
Example:
  bridge cache ls

\b
Exit status: 0; 7 if the cache cannot be read.
"""
)
def ls(as_json: AsJson = False) -> None:
    """List the entries, the last used first."""
    from bridge.cache import default_cache
    from bridge_cli import units
    from bridge_cli.render import print_json, print_line, print_table

    cache = default_cache()
    entries = cache.ls()
    if as_json:
        print_json(
            {
                "root": str(cache.root),
                "max_bytes": cache.max_bytes,
                "entries": [_document(one) for one in entries],
            }
        )
        return
    total = sum(one.size_bytes for one in entries)
    print_line(
        f"{cache.root}: {_count(len(entries))}, {units.size(total)} of at most "
        f"{units.size(cache.max_bytes)}"
    )
    if entries:
        now = time.time()
        print_table(
            ("kind", "size", "built", "last used", "key"),
            [
                (
                    one.kind,
                    units.size(one.size_bytes),
                    f"{units.age(now - one.created_s)} ago",
                    f"{units.age(now - one.used_s)} ago",
                    one.key[:12],
                )
                for one in entries
            ],
            right=("size",),
        )


@app.command(
    epilog="""
\b
Examples:
  bridge cache rm 3f2a
  bridge cache rm --all

\b
Exit status: 0; 7 if a key fits no entry, or several, or one cannot be removed.
"""
)
def rm(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="Keys, or beginnings that fit one key only."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all entries.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries; one that is being built stays."""
    if bool(keys) == everything:
        raise typer.BadParameter("name the keys to remove, or write --all", param_hint="KEY")

    from bridge.cache import default_cache
    from bridge_cli import units
    from bridge_cli.render import print_json, print_line

    cache = default_cache()
    removed = cache.rm(None if everything else keys)
    freed_bytes = sum(one.size_bytes for one in removed)
    if as_json:
        print_json(
            {
                "root": str(cache.root),
                "removed": [_document(one) for one in removed],
                "freed_bytes": freed_bytes,
            }
        )
        return
    for one in removed:
        print_line(f"removed {one.kind} {one.key[:12]}, {units.size(one.size_bytes)}")
    print_line(f"{_count(len(removed))} removed, {units.size(freed_bytes)} freed")


@app.command(
    epilog="""
\b
Example:
  bridge cache verify

\b
Exit status: 0 if every entry is sound, 1 if not; 7 if the cache cannot be read.
"""
)
def verify(as_json: AsJson = False) -> None:
    """Read every byte and compare it with what was written."""
    from bridge.cache import default_cache
    from bridge_cli.render import print_json, print_line, print_table

    cache = default_cache()
    found = cache.verify()
    bad = [(one, problem) for one, problem in found if problem is not None]
    if as_json:
        print_json(
            {
                "root": str(cache.root),
                "is_sound": not bad,
                "entries": [{**_document(one), "problem": problem} for one, problem in found],
            }
        )
    else:
        print_line(f"{cache.root}: {_count(len(found))}, {len(bad)} damaged")
        if bad:
            print_table(
                ("kind", "key", "problem"),
                [(one.kind, one.key[:12], problem) for one, problem in bad],
            )
            print_line()
            print_line("A damaged entry is never used, and built anew when it is next needed.")
    if bad:
        raise typer.Exit(exit_codes.FINDING)


def _document(one: Entry) -> dict[str, Any]:
    return {
        "key": one.key,
        "kind": one.kind,
        "parts": dict(one.parts),
        "path": str(one.path),
        "size_bytes": one.size_bytes,
        "created_s": one.created_s,
        "used_s": one.used_s,
        "is_executable": one.is_executable,
    }


def _count(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"
