"""How many CPUs this process may use, and how many threads a predictor takes by default.

The first is what affinity and cgroup quota allow, not the machine's count. The second is
the same, unless the process has set a thread budget.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bridge.errors import OptionError

__all__ = [
    "THREADS_VARIABLE",
    "cpu_flags",
    "default_threads",
    "quota_cpus",
    "set_thread_budget",
    "thread_budget",
    "usable_cpus",
]

THREADS_VARIABLE = "BRIDGE_THREADS"
"""Environment variable that holds the thread budget of processes that set none."""

_budget: int | None = None


def set_thread_budget(threads: int | None) -> None:
    """Sets how many threads each predictor takes that is loaded from now on.

    For processes that hold several predictors, whose thread pools would else each take all
    CPUs: with a budget of CPUs ÷ predictors they do not compete. It holds where the options
    of a predictor do not say otherwise, in this process and in the workers it starts
    afterwards. With a budget, idle threads of a predictor also do not wait actively.

    Args:
        threads: Threads per predictor; ``None`` for the environment variable
            ``BRIDGE_THREADS``, and without it all CPUs that the process may use.

    Raises:
        OptionError: It is not a whole number of at least 1.
    """
    global _budget  # noqa: PLW0603 - one budget for the whole process
    if threads is not None and (type(threads) is not int or threads < 1):
        raise _bad_budget(repr(threads))
    _budget = threads


def thread_budget() -> int | None:
    """Threads per predictor as set here or in ``BRIDGE_THREADS``; ``None`` if neither is.

    Raises:
        OptionError: The variable is not a whole number of at least 1.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if _budget is not None or not text:
        return _budget
    if not text.isdecimal() or int(text) < 1:
        raise _bad_budget(f"{text!r} in {THREADS_VARIABLE}")
    return int(text)


def default_threads() -> int:
    """Threads that a predictor takes where its options do not say; at least 1.

    The CPUs that this process may use, or the thread budget if that is less.

    Raises:
        OptionError: ``BRIDGE_THREADS`` is not a whole number of at least 1.
    """
    budget = thread_budget()
    return usable_cpus() if budget is None else min(usable_cpus(), budget)


def usable_cpus(root: Path = Path("/")) -> int:
    """Number of CPUs that threads of this process can keep busy, at least 1.

    The smaller of the calling thread's affinity mask and the tightest cgroup quota
    (v1 and v2) on the way from this process's group up to the top, rounded up: with a
    quota of 1.5 CPUs two threads still finish sooner than one. Read anew at each call
    (well under a millisecond), because both can change while a process runs.

    Args:
        root: Where ``/proc`` and the cgroup mounts are looked up; for tests.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity masks
        count = os.cpu_count() or 1
    for quota, period in _quotas(root):
        count = min(count, -(-quota // period))
    return max(count, 1)


def quota_cpus(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the tightest cgroup quota allows; ``None`` without one."""
    return min((quota / period for quota, period in _quotas(root)), default=None)


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Instruction sets of the first CPU as Linux names them, such as ``avx512_bf16``.

    Empty where the kernel does not tell: then nothing is known, not that there are none.

    Args:
        root: Where ``/proc`` is looked up; for tests.
    """
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _bad_budget(got: str) -> OptionError:
    return OptionError(
        f"a thread budget is a whole number of at least 1; got {got}.",
        fix="Give the number of threads that each predictor may use, such as 2.",
        option="threads",
    )


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Every cgroup limit that holds for this process, as (quota, period) in µs.

    Source: cgroups(7), proc_pid_mountinfo(5), and the kernel's
    ``admin-guide/cgroup-v2.rst`` and ``scheduler/sched-bwc.rst``.
    """
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        is_v2 = number == "0" and not controllers
        if not is_v2 and "cpu" not in controllers.split(","):
            continue
        for kind, options, mount_root, mount_point in mounts:
            if kind != ("cgroup2" if is_v2 else "cgroup"):
                continue
            if not is_v2 and "cpu" not in options:
                continue
            top = root / mount_point.lstrip("/")
            inside = PurePosixPath(group)
            # In a container without a cgroup namespace the group is the host's path, and
            # the mount shows only the part below mount_root. A group outside of what is
            # mounted ("/../x", or another root) can only be judged by the mount itself.
            below: tuple[str, ...] = ()
            if inside.is_relative_to(mount_root) and ".." not in inside.parts:
                below = inside.relative_to(mount_root).parts
            for depth in range(len(below), -1, -1):
                limit = _limit(top.joinpath(*below[:depth]), is_v2)
                if limit is not None:
                    yield limit


def _limit(folder: Path, is_v2: bool) -> tuple[int, int] | None:
    if is_v2:
        words = _text(folder / "cpu.max").split()
    else:
        words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    # "max" (v2) and -1 (v1) mean no limit.
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        return None
    return int(words[0]), int(words[1])


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """The cgroup mounts: type, super options, root inside the file system, mount point."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, dash, right = line.partition(" - ")
        fields, about = left.split(), right.split()
        if dash and len(fields) >= 5 and about and about[0] in ("cgroup", "cgroup2"):
            yield about[0], about[-1].split(","), _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _text(path: Path) -> str:
    """Content of a file, empty where it is missing or may not be read: then it limits nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
