"""usable_cpus: affinity, cgroup v1 and v2, nested groups, containers, no cgroups at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from bridge.child import Child
from bridge.cpus import (
    cpu_flags,
    default_threads,
    set_thread_budget,
    thread_budget,
    usable_cpus,
)
from bridge.errors import OptionError

V2_MOUNT = "31 23 0:28 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "32 31 0:29 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def machine(
    root: Path,
    groups: str,
    mounts: list[str],
    files: dict[str, str] | None = None,
) -> Path:
    """A fake root folder with /proc/self/{cgroup,mountinfo} and cgroup files."""
    for name, text in {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "\n".join(
            ["22 1 254:0 / / rw,relatime - ext4 /dev/root rw", *mounts]
        ),
        **(files or {}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def v2(root: Path, group: str, files: dict[str, str], mount_root: str = "/") -> Path:
    mount = V2_MOUNT.format(root=mount_root, point="/sys/fs/cgroup")
    return machine(
        root, f"0::{group}", [mount], {f"sys/fs/cgroup/{k}": v for k, v in files.items()}
    )


def v1(root: Path, group: str, files: dict[str, str], mount_root: str = "/") -> Path:
    mount = V1_MOUNT.format(root=mount_root, point="/sys/fs/cgroup/cpu,cpuacct")
    return machine(
        root,
        f"5:memory:/elsewhere\n4:cpu,cpuacct:{group}\n0::/",
        [mount],
        {f"sys/fs/cgroup/cpu,cpuacct/{k}": v for k, v in files.items()},
    )


def test_this_machine() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


def test_follows_the_real_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("eight_cpus")
def test_no_cgroups_leaves_the_affinity(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 8


def test_without_affinity_masks_counts_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        ("max 100000", 8),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("100001 100000", 2),
        ("150000 100000", 2),
        ("400000 100000", 4),
        ("1600000 100000", 8),
        ("garbage", 8),
        ("", 8),
        ("100000 0", 8),
    ],
)
def test_v2_quota_is_rounded_up(tmp_path: Path, limit: str, wanted: int) -> None:
    assert usable_cpus(v2(tmp_path, "/app", {"app/cpu.max": limit})) == wanted


@pytest.mark.usefixtures("eight_cpus")
def test_v2_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "a/cpu.max": "200000 100000",
        "a/b/cpu.max": "max 100000",
        "a/b/c/cpu.max": "500000 100000",
        "other/cpu.max": "100000 100000",
    }
    assert usable_cpus(v2(tmp_path, "/a/b/c", files)) == 2


@pytest.mark.usefixtures("eight_cpus")
def test_v2_limit_at_the_mount_itself(tmp_path: Path) -> None:
    assert usable_cpus(v2(tmp_path, "/", {"cpu.max": "300000 100000"})) == 3


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "period", "wanted"),
    [("-1", "100000", 8), ("50000", "100000", 1), ("250000", "100000", 3), ("10", "0", 8)],
)
def test_v1_quota(tmp_path: Path, quota: str, period: str, wanted: int) -> None:
    files = {"app/cpu.cfs_quota_us": quota, "app/cpu.cfs_period_us": period}
    assert usable_cpus(v1(tmp_path, "/app", files)) == wanted


@pytest.mark.usefixtures("eight_cpus")
def test_v1_walks_up(tmp_path: Path) -> None:
    files = {
        "app/cpu.cfs_quota_us": "200000",
        "app/cpu.cfs_period_us": "100000",
        "app/job/cpu.cfs_quota_us": "-1",
        "app/job/cpu.cfs_period_us": "100000",
    }
    assert usable_cpus(v1(tmp_path, "/app/job", files)) == 2


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize("build", [v1, v2])
def test_container_that_sees_the_hosts_group_names(tmp_path: Path, build: object) -> None:
    files = {
        "cpu.max": "200000 100000",
        "cpu.cfs_quota_us": "200000",
        "cpu.cfs_period_us": "100000",
        "deep/cpu.max": "700000 100000",
    }
    assert callable(build)
    root = build(tmp_path, "/docker/0123/deep", files, mount_root="/docker/0123")
    assert usable_cpus(root) == 2


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize("group", ["/../../outside", "/not/below"])
def test_group_outside_of_the_mount_is_judged_by_the_mount(tmp_path: Path, group: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/cpu.max").write_text("100000 100000\n")
    root = v2(tmp_path, group, {"cpu.max": "500000 100000"}, mount_root="/slice")
    assert usable_cpus(root) == 5


@pytest.mark.usefixtures("eight_cpus")
def test_hybrid_machine_takes_the_tighter_of_both(tmp_path: Path) -> None:
    mounts = [
        V1_MOUNT.format(root="/", point="/sys/fs/cgroup/cpu"),
        V2_MOUNT.format(root="/", point="/sys/fs/cgroup/unified"),
    ]
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/unified/cpu.max": "600000 100000",
    }
    assert usable_cpus(machine(tmp_path, "1:cpu:/\n0::/", mounts, files)) == 3


@pytest.mark.usefixtures("eight_cpus")
def test_escaped_mount_point(tmp_path: Path) -> None:
    mount = V2_MOUNT.format(root="/", point=r"/my\040mounts/cg")
    root = machine(tmp_path, "0::/", [mount], {"my mounts/cg/cpu.max": "200000 100000"})
    assert usable_cpus(root) == 2


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize("text", ["", "nonsense", "0:", ":::", "4:cpu"])
def test_odd_cgroup_files_limit_nothing(tmp_path: Path, text: str) -> None:
    root = v2(tmp_path, "/", {})
    (root / "proc/self/cgroup").write_text(text)
    (root / "proc/self/mountinfo").write_text("x - cgroup2\n\n - cgroup\n1 2 3\n")
    assert usable_cpus(root) == 8


def test_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc/cpuinfo"
    assert cpu_flags(tmp_path) == frozenset()
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(tmp_path) == {"fpu", "avx2"}
    info.write_text("processor\t: 0\nFeatures\t: fp asimdhp\n")
    assert cpu_flags(tmp_path) == {"fp", "asimdhp"}


@pytest.fixture
def _no_budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BRIDGE_THREADS", raising=False)
    yield
    set_thread_budget(None)


@pytest.mark.usefixtures("_no_budget")
def test_a_thread_budget_bounds_the_default_but_not_the_cpus() -> None:
    assert default_threads() == usable_cpus()
    set_thread_budget(1)
    assert (thread_budget(), default_threads()) == (1, 1)
    set_thread_budget(10_000)
    assert default_threads() == usable_cpus()
    set_thread_budget(None)
    assert thread_budget() is None


@pytest.mark.usefixtures("_no_budget")
def test_a_thread_budget_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_THREADS", "1")
    assert default_threads() == 1
    set_thread_budget(10_000)
    assert default_threads() == usable_cpus(), "what the process sets counts for more"
    set_thread_budget(None)
    monkeypatch.setenv("BRIDGE_THREADS", "some")
    with pytest.raises(OptionError, match="BRIDGE_THREADS"):
        default_threads()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
@pytest.mark.usefixtures("_no_budget")
def test_a_bad_thread_budget_is_refused_and_changes_nothing(threads: Any) -> None:
    with pytest.raises(OptionError, match="whole number"):
        set_thread_budget(threads)
    assert thread_budget() is None


@pytest.mark.usefixtures("_no_budget")
def test_a_child_has_the_thread_budget_of_its_parent() -> None:
    set_thread_budget(1)
    child = Child()
    variables = b""
    deadline = monotonic() + 10
    try:
        # Empty, or still this process's own, while the kernel starts the program.
        while b"BRIDGE_THREADS=1" not in variables.split(b"\0") and monotonic() < deadline:
            variables = Path(f"/proc/{child.process.pid}/environ").read_bytes()
    finally:
        child.close()
    assert b"BRIDGE_THREADS=1" in variables.split(b"\0")
