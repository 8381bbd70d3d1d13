"""The one cache: optimised models, engines, conversions and zoo models, on disk.

::

    <root>/                     BRIDGE_CACHE_DIR, or inference-bridge in the XDG cache folder
      entries/<key>/            key: SHA-256 over kind and parts
        lock                    held shared by every process that uses the entry
        manifest.json           kind, parts, sizes, digests; written last
        files/                  what was built; what ``Cache.entry`` returns
      locks/<key>               held by the one process that builds or removes the entry
      tmp/<random>/             entries that are being built or removed

An entry is built in ``tmp``, synced, given its manifest and renamed into ``entries``:
it is there whole or not at all. Locks are ``flock`` locks, which the kernel releases
when their holder dies. An entry that is damaged in any way, or that another user could
have written, is never returned: it is built anew, with one warning. A cache that cannot
be used (read-only, full, unsafe) costs a warning and the time of the build, nothing
more: the result is then made in a temporary folder, which lives as long as the process.

On a hit the names and sizes of all files are compared with the manifest, and the
content of a file only if its time stamp changed: reading back gigabytes at each load
would cost more than many entries save. Entries marked ``executable`` (engines, native
code) are read in full each time, because a runtime may crash on a damaged one. Digests
find accidents; what keeps other users out is that the folders are private.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge import locks, manifest, staging
from bridge.errors import CacheError
from bridge.logs import logger
from bridge.manifest import JSON, Damaged, Entry

__all__ = ["JSON", "Cache", "Entry", "default_cache"]

_DEFAULT_SIZE_BYTES = 10 * 2**30
_KEY = re.compile(r"[0-9a-f]{64}")
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})

_log = logger("cache")


class _Unusable(Exception):
    """The cache cannot take this entry; its cause says why."""


class Cache:
    """A folder of entries that several processes may use at once.

    Args:
        root: The folder; None is ``BRIDGE_CACHE_DIR``, or else ``inference-bridge`` in
            ``XDG_CACHE_HOME`` or ``~/.cache``. Created with mode 0700 when first needed.
        max_bytes: Bound of all entries together; None is ``BRIDGE_CACHE_SIZE`` (such as
            ``500M`` or ``20G``, powers of 1024), or else 10 GiB. The entries that were
            not used for the longest time go first. Those in use by another process
            stay, so that the bound may be exceeded while that process lives.

    Raises:
        CacheError: ``BRIDGE_CACHE_SIZE`` is not a size.
    """

    def __init__(self, root: Path | None = None, max_bytes: int | None = None) -> None:
        self.root = (_default_root() if root is None else root).absolute()
        self.max_bytes = _default_size_bytes() if max_bytes is None else max_bytes
        self._entries = self.root / "entries"
        self._locks = self.root / "locks"
        self._tmp = self.root / "tmp"

    @staticmethod
    def key(kind: str, parts: Mapping[str, JSON]) -> str:
        """The key of an entry: equal for equal content, whatever the order of dicts.

        Args:
            kind: Lower-case name of what is built, such as ``"engine"``.
            parts: All that the result depends on: digests of the model and of its
                external data, options, versions of the tools, hardware. Never a path.

        Raises:
            CacheError: The kind is no such name, or a part is not a JSON value.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", kind):
            raise CacheError(
                f"cache kind {kind!r} is not a name.",
                fix="Use up to 64 lower-case letters, digits, '_', '-' and '.'.",
            )
        whole: JSON = {"schema": manifest.SCHEMA, "kind": kind, "parts": dict(parts)}
        return hashlib.sha256(manifest.canonical(whole)).hexdigest()

    def entry(
        self,
        kind: str,
        parts: Mapping[str, JSON],
        build: Callable[[Path], None],
        *,
        executable: bool = False,
    ) -> Path:
        """The folder with the files of an entry, built if it is not there yet.

        One process builds while others that want the same entry wait. Read only: the
        next hit finds a changed file. The entry is safe from removal by other processes
        until this one ends (or has asked for 64 others); a later, larger entry of this
        same process may push it out, which open files survive.

        Args:
            kind: As for ``key``.
            parts: As for ``key``.
            build: Writes files and folders into the empty folder it is given. It may be
                called twice: again in a temporary folder if the disk is full. It must
                not ask for the same entry.
            executable: Whether to compare every byte at each hit; for what a runtime
                executes or maps without checks of its own.

        Returns:
            A folder inside the cache, or a temporary one if the cache cannot be used:
            that one is removed when the process ends.

        Raises:
            CacheError: ``build`` wrote nothing, or something that is neither a file nor
                a folder; or ``key`` refuses the parts; or there is no temporary folder.
            Exception: Whatever ``build`` raises; nothing is kept then.
        """
        key = self.key(kind, parts)
        about = {"key": key, "kind": kind, "parts": dict(parts), "executable": executable}
        try:
            return self._cached(about, build)
        except _Unusable as error:
            reason = error.__cause__
        _log.warning("%s %.12s is built in a temporary folder: %s", kind, key, reason)
        return _uncached(build)

    def entry_of(self, path: Path) -> Entry | None:
        """The entry to which a file belongs, if that is sound down to the last byte.

        For loaders that trust what the bridge has built itself. None for any path that
        is not inside an entry of this cache.
        """
        with contextlib.suppress(ValueError, OSError, Damaged):
            self._check_folders()
            key, *inside = path.resolve().relative_to(self._entries.resolve()).parts
            if _KEY.fullmatch(key) and inside[:1] == ["files"]:
                manifest.check(self._entries / key, in_full=True)
                return manifest.look(self._entries / key)
        return None

    def ls(self) -> tuple[Entry, ...]:
        """All entries, the last used first; damaged ones too.

        Raises:
            CacheError: The cache folder cannot be read, or others may write to it.
        """
        found = []
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append(manifest.look(folder))
        return tuple(sorted(found, key=lambda entry: (-entry.used_s, entry.key)))

    def verify(self) -> tuple[tuple[Entry, str | None], ...]:
        """All entries, each with what is wrong with it or None; reads every byte.

        Raises:
            CacheError: As for ``ls``.
        """
        found: list[tuple[Entry, str | None]] = []
        for entry in self.ls():
            problem = None
            try:
                manifest.check(self._entries / entry.key, in_full=True)
            except (OSError, Damaged) as error:
                problem = manifest.reason(error)
            found.append((entry, problem))
        return tuple(found)

    def rm(self, keys: Iterable[str] | None = None) -> tuple[Entry, ...]:
        """Remove entries and return them; one that is being built stays.

        Args:
            keys: Keys, or beginnings that fit one key only; None removes all entries.

        Raises:
            CacheError: A key fits no entry, or several; or as for ``ls``.
        """
        there = self.ls()
        chosen = there if keys is None else [_chosen(key, there) for key in dict.fromkeys(keys)]
        try:
            return tuple(entry for entry in chosen if self._remove(entry.key, in_use_too=True))
        except OSError as error:
            raise CacheError(
                f"an entry of the cache '{self.root}' cannot be removed: {manifest.reason(error)}.",
                fix="Check the folder's owner and permissions.",
            ) from error

    def _cached(self, about: dict[str, Any], build: Callable[[Path], None]) -> Path:
        folder = self._entries / str(about["key"])
        with _unusable():
            self._check_folders(create=True)
            if _problem(folder, about) is None:
                return folder / "files"
            lock = locks.lock(self._locks / about["key"], wait=True)
        assert lock is not None
        try:
            with _unusable():
                problem = _problem(folder, about)
                if problem is None:
                    return folder / "files"
                if problem:
                    _log.warning(
                        "%s %.12s in the cache '%s' is built again: %s",
                        about["kind"],
                        about["key"],
                        self.root,
                        problem,
                    )
                staged, hold = staging.begin(self._tmp)
            return self._built(about, build, staged, hold)
        finally:
            os.close(lock)

    def _built(
        self, about: dict[str, Any], build: Callable[[Path], None], staged: Path, hold: int
    ) -> Path:
        folder = self._entries / str(about["key"])
        is_kept = False
        try:
            try:
                build(staged / "files")
            except Exception as error:
                if _is_disk_trouble(error):
                    raise _Unusable from error
                raise
            try:
                size_bytes = _sealed(staged / "files")
            except CacheError:
                raise
            except OSError as error:
                raise _Unusable from error
            if size_bytes > self.max_bytes:
                _log.warning(
                    "%s %.12s is not kept: %d bytes are more than the cache may hold, %d "
                    "(BRIDGE_CACHE_SIZE)",
                    about["kind"],
                    about["key"],
                    size_bytes,
                    self.max_bytes,
                )
                staging.delete_at_exit(staged)
                is_kept = True  # and the lock with it, so that nobody clears it away
                return staged / "files"
            with _unusable():
                manifest.write(staged, about)
                if os.path.lexists(folder):
                    self._discard(folder)
                staged.rename(folder)
                is_kept = True
                locks.remember(folder, hold)
                manifest.sync(self._entries)
        finally:
            if not is_kept:
                staging.delete(staged)
                os.close(hold)
        try:
            self._shrink(about["key"])
        except OSError as error:
            _log.warning("the cache '%s' cannot be tidied: %s", self.root, manifest.reason(error))
        return folder / "files"

    def _check_folders(self, *, create: bool = False) -> None:
        """Raise ``CacheError`` for a folder that others may write to; a missing one is safe."""
        if create:
            self.root.mkdir(0o700, parents=True, exist_ok=True)
        for folder in (self.root, self._entries, self._locks, self._tmp):
            if create and folder is not self.root:
                folder.mkdir(0o700, exist_ok=True)
            if not os.path.lexists(folder):
                continue
            try:
                # The root may be a link to a larger disk, if its user has made the link.
                about = folder.lstat()
                if folder is self.root and stat.S_ISLNK(about.st_mode):
                    if about.st_uid != os.geteuid():
                        raise Damaged(f"the link belongs to user {about.st_uid}")
                    about = folder.stat()
                manifest.check_private(about, "it", stat.S_ISDIR)
            except Damaged as error:
                raise CacheError(
                    f"the cache folder '{folder}' is not safe: {error}.",
                    fix="Make it yours alone (chown, chmod 700), or set BRIDGE_CACHE_DIR.",
                ) from None

    def _folders(self) -> list[Path]:
        try:
            if not self._entries.is_dir():
                return []
            self._check_folders()
            return [item for item in self._entries.iterdir() if _KEY.fullmatch(item.name)]
        except CacheError:
            raise
        except OSError as error:
            raise CacheError(
                f"the cache folder '{self.root}' cannot be read: {manifest.reason(error)}.",
                fix="Check its owner and permissions, or set BRIDGE_CACHE_DIR.",
            ) from error

    def _remove(self, key: str, *, in_use_too: bool = False) -> bool:
        """Remove an entry unless it is being built or, as a rule, in use elsewhere."""
        folder = self._entries / key
        lock = locks.lock(self._locks / key, wait=False)
        if lock is None:
            return False
        use = None
        try:
            if not in_use_too:
                try:
                    use = locks.claim(folder)
                except BlockingIOError:
                    return False
                except OSError:
                    use = None  # damaged: without a lock file nobody can be using it
            self._discard(folder)
            locks.release(folder)
            (self._locks / key).unlink()
            return True
        finally:
            if use is not None:
                os.close(use)
            os.close(lock)

    def _discard(self, folder: Path) -> None:
        grave = self._tmp / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(grave)
        staging.delete(grave)

    def _shrink(self, newest: str) -> None:
        """Clear away what killed processes left, then go back below the size bound."""
        staging.clear(self._tmp)
        entries = self.ls()
        total_bytes = sum(entry.size_bytes for entry in entries)
        for entry in reversed(entries):
            if total_bytes <= self.max_bytes:
                break
            if entry.key != newest and self._remove(entry.key):
                total_bytes -= entry.size_bytes


def default_cache() -> Cache:
    """The cache that the environment names; the same object while that stays the same.

    Raises:
        CacheError: ``BRIDGE_CACHE_SIZE`` is not a size.
    """
    return _cache_at(_default_root(), _default_size_bytes())


@functools.cache
def _cache_at(root: Path, max_bytes: int) -> Cache:
    return Cache(root, max_bytes)


def _default_root() -> Path:
    named = os.environ.get("BRIDGE_CACHE_DIR")
    if named:
        return Path(named).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():  # the XDG specification: ignore relative ones
        return Path(xdg) / "inference-bridge"
    try:
        return Path.home() / ".cache" / "inference-bridge"
    except RuntimeError:  # no HOME and no such user: containers with a bare user id
        return Path(tempfile.gettempdir()) / f"inference-bridge-{os.geteuid()}"


def _default_size_bytes() -> int:
    text = os.environ.get("BRIDGE_CACHE_SIZE", "").strip()
    if not text:
        return _DEFAULT_SIZE_BYTES
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:I?B)?", text.upper())
    if match is None:
        raise CacheError(
            f"BRIDGE_CACHE_SIZE is {text!r}; wanted a size in bytes.",
            fix="Write for example 500M or 20G.",
            value=text,
        )
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def _uncached(build: Callable[[Path], None]) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="bridge-"))
    except OSError as error:
        raise CacheError(
            f"neither the cache nor a temporary folder can be written: {manifest.reason(error)}.",
            fix="Set BRIDGE_CACHE_DIR or TMPDIR to a folder with free space.",
        ) from error
    try:
        files = folder / "files"
        files.mkdir(0o700)
        build(files)
        _sealed(files)
    except BaseException:
        staging.delete(folder)
        raise
    staging.delete_at_exit(folder)
    return files


def _sealed(files: Path) -> int:
    try:
        return manifest.seal(files)
    except Damaged as error:
        raise CacheError(
            f"what was built for the cache cannot be kept: {error}.",
            fix="Have it write files and folders into the folder it is given.",
        ) from None


def _problem(folder: Path, about: Mapping[str, Any]) -> str | None:
    """Why an entry cannot be used, empty if it is not there; None if all is well.

    A sound entry is then marked as in use, and as used now.
    """
    if not os.path.lexists(folder):
        return ""
    try:
        manifest.check_private(folder.lstat(), "the entry", stat.S_ISDIR)
        locks.hold(folder)
        manifest.check(folder, in_full=about["executable"])
    except (OSError, Damaged) as error:
        locks.release(folder)
        return manifest.reason(error)
    with contextlib.suppress(OSError):  # a read-only disk still serves hits
        os.utime(folder)
    return None


def _chosen(beginning: str, there: Iterable[Entry]) -> Entry:
    found = [entry for entry in there if beginning and entry.key.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    raise CacheError(
        f"'{beginning}' is the beginning of {len(found)} cache keys; wanted one.",
        fix="'bridge cache ls' shows the keys.",
        key=beginning,
        found=[entry.key for entry in found],
    )


@contextlib.contextmanager
def _unusable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unusable from error


def _is_disk_trouble(error: BaseException | None) -> bool:
    """Whether a disk error is this exception, or what led to it."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
