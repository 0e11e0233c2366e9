"""Cores and RAM of this host, and the control groups that limit them."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import psutil
import pytest

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import cgroup, discover, host
from celery_allocator.inventory.cgroup import Limits
from celery_allocator.settings import Settings

NO_LIMITS = Limits()


@pytest.fixture
def mask(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """An affinity mask with a gap, whatever this machine has."""
    cores = {2, 3, 5, 8, 9, 10}
    monkeypatch.setattr(host, "_mask", lambda: set(cores))
    return cores


def test_without_settings_it_is_the_process_s_mask_and_the_machine_s_ram() -> None:
    assert set(host.cores(Settings(), NO_LIMITS)) == os.sched_getaffinity(0)
    assert host.ram_mb(Settings(), NO_LIMITS) == psutil.virtual_memory().total // 2**20


def test_a_narrower_mask_of_the_process_is_respected() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})
        assert discover(Settings(devices="none")).cpu_cores == (max(before),)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), (2, 3, 5, 8, 9, 10)),
        (Limits(cpus=2.0), (2, 3)),
        (Limits(cpus=2.9), (2, 3)),
        (Limits(cpus=0.5), (2,)),
        (Limits(cpus=64.0), (2, 3, 5, 8, 9, 10)),
        (Limits(cpuset=frozenset({5, 8, 99})), (5, 8)),
        (Limits(cpus=1.0, cpuset=frozenset({5, 8})), (5,)),
        # A set that shares nothing with the mask is stale: the kernel lets the process run where the mask says.
        (Limits(cpuset=frozenset({99})), (2, 3, 5, 8, 9, 10)),
    ],
)
def test_cores_within_the_control_group(mask: set[int], limits: Limits, expected: tuple[int, ...]) -> None:
    assert host.cores(Settings(), limits) == expected


@pytest.mark.parametrize(
    ("asked", "reserved", "expected"),
    [
        (3, 0, (2, 3, 5)),
        (6, 0, (2, 3, 5, 8, 9, 10)),
        (8, 0, tuple(range(8))),  # more than there are: a simulation
        (None, 2, (2, 3, 5, 8)),
        (3, 1, (2, 3)),
        (8, 3, tuple(range(5))),
    ],
)
def test_cores_as_set(mask: set[int], asked: int | None, reserved: int, expected: tuple[int, ...]) -> None:
    assert host.cores(Settings(cpu_cores=asked, reserve_cpu_cores=reserved), NO_LIMITS) == expected


def test_cores_as_set_win_over_the_quota(mask: set[int]) -> None:
    assert host.cores(Settings(cpu_cores=4), Limits(cpus=1.0)) == (2, 3, 5, 8)


def test_a_reservation_of_everything_is_refused(mask: set[int]) -> None:
    with pytest.raises(SettingsError, match=r"ALLOCATOR_RESERVE_CPU_CORES\) is 6, but this host has 6 cores"):
        host.cores(Settings(reserve_cpu_cores=6), NO_LIMITS)
    with pytest.raises(SettingsError, match=r"ALLOCATOR_RESERVE_RAM_MB\) is 100, but this host has 100 MB"):
        host.ram_mb(Settings(ram_mb=100, reserve_ram_mb=100), NO_LIMITS)


def test_ram_is_the_tightest_of_machine_and_control_group() -> None:
    assert host.ram_mb(Settings(), Limits(memory_bytes=512 * 2**20)) == 512
    assert host.ram_mb(Settings(), Limits(memory_bytes=2**60)) == psutil.virtual_memory().total // 2**20
    assert host.ram_mb(Settings(reserve_ram_mb=12), Limits(memory_bytes=512 * 2**20)) == 500
    assert host.ram_mb(Settings(ram_mb=10**6, reserve_ram_mb=5), Limits(memory_bytes=2**20)) == 10**6 - 5


def test_ram_in_use_is_the_groups_where_that_has_a_limit() -> None:
    machine = psutil.virtual_memory()
    assert host.ram_used_mb(300 * 2**20) == 300
    assert 0 < host.ram_used_mb() <= machine.total // 2**20


def test_the_node_is_named_as_set_or_by_its_host() -> None:
    assert host.node_name("rack-1.gpu_2") == "rack-1.gpu_2"
    assert host.node_name("räck 1/2:3") == "r-ck-1-2-3"
    assert host.node_name(None) == re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())


class Tree:
    """A made-up ``/proc/self`` and control group file system under one folder."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.mounts = folder / "sys fs"  # with a blank, which the kernel escapes
        self.proc.mkdir()

    def memberships(self, *lines: str) -> None:
        (self.proc / "cgroup").write_text("\n".join(lines) + "\n")

    def mount(self, name: str, kind: str, options: str, root: str = "/") -> Path:
        point = self.mounts / name
        point.mkdir(parents=True)
        escaped = str(point).replace(" ", "\\040")
        with (self.proc / "mountinfo").open("a") as file:
            file.write(f"30 25 0:26 {root} {escaped} rw,relatime shared:4 - {kind} {kind} {options}\n")
        return point

    def read(self) -> Limits:
        return cgroup.read(self.proc)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_version_2_takes_the_tightest_limit_of_the_group_and_those_above(tree: Tree) -> None:
    top = tree.mount("unified", "cgroup2", "rw")
    tree.memberships("0::/team/job")
    _write(top / "team", cpu__max="150000 100000", memory__max="2000000")
    _write(top / "team/job", cpu__max="400000 100000", memory__max="max", cpuset__cpus__effective="0-2,5")
    _write(top / "other", cpu__max="1000 100000", memory__max="1")

    assert tree.read() == Limits(1.5, frozenset({0, 1, 2, 5}), 2000000)


def test_version_2_in_a_container_reads_the_root_of_its_namespace(tree: Tree) -> None:
    top = tree.mount("unified", "cgroup2", "rw")
    tree.memberships("0::/")
    _write(top, cpu__max="50000 100000", memory__max="536870912")

    assert tree.read() == Limits(0.5, None, 536870912)


def test_version_1_with_one_mount_per_controller(tree: Tree) -> None:
    tree.memberships("4:memory:/app", "3:cpuset:/", "2:cpu,cpuacct:/app", "1:name=systemd:/other")
    _write(tree.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct") / "app", cpu__cfs_quota_us="250000")
    _write(tree.mounts / "cpu,cpuacct/app", cpu__cfs_period_us="100000")
    _write(tree.mount("memory", "cgroup", "rw,memory") / "app", memory__limit_in_bytes="1073741824")
    _write(tree.mounts / "memory", memory__limit_in_bytes="9223372036854771712")
    _write(tree.mount("cpuset", "cgroup", "rw,cpuset"), cpuset__cpus="4-7")

    assert tree.read() == Limits(2.5, frozenset({4, 5, 6, 7}), 1073741824)


def test_version_1_in_a_container_without_a_namespace(tree: Tree) -> None:
    # The membership is the host's path; the mount shows only the container's part of the hierarchy.
    tree.memberships("4:memory:/docker/abc/inner")
    top = tree.mount("memory", "cgroup", "rw,memory", root="/docker/abc")
    _write(top, memory__limit_in_bytes="300")
    _write(top / "inner", memory__limit_in_bytes="200")

    assert tree.read().memory_bytes == 200


def test_memory_in_use_is_that_of_the_group_with_the_tightest_limit(tree: Tree) -> None:
    top = tree.mount("unified", "cgroup2", "rw")
    tree.memberships("0::/team/job")
    _write(top / "team", memory__max="2000000", memory__current="900000")
    (top / "team/memory.stat").write_text("anon 500000\ninactive_file 99000\nactive_file 1000\n")
    _write(top / "team/job", memory__max="3000000", memory__current="400000")

    assert cgroup.memory_used_bytes(tree.proc) == 800000


def test_memory_in_use_by_version_1_and_without_a_limit(tree: Tree) -> None:
    tree.memberships("4:memory:/app")
    top = tree.mount("memory", "cgroup", "rw,memory") / "app"
    _write(top, memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="700")
    assert cgroup.memory_used_bytes(tree.proc) is None
    _write(top, memory__limit_in_bytes="1000", memory__usage_in_bytes="700")
    (top / "memory.stat").write_text("cache 300\ntotal_inactive_file 150\ntotal_active_file 50\n")
    assert cgroup.memory_used_bytes(tree.proc) == 500


def test_no_limits_are_none_and_not_zero(tree: Tree) -> None:
    top = tree.mount("unified", "cgroup2", "rw")
    tree.memberships("0::/", "2:cpu:/", "4:memory:/")
    _write(top, cpu__max="max 100000", memory__max="max", cpuset__cpus__effective="")
    _write(tree.mount("cpu", "cgroup", "rw,cpu"), cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    _write(tree.mount("memory", "cgroup", "rw,memory"), memory__limit_in_bytes="9223372036854771712")

    assert tree.read() == Limits(None, None, None)


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroup.read(tmp_path) == Limits()


def test_this_machine_s_own_limits_can_be_read() -> None:
    limits = cgroup.read()

    assert limits.cpus is None or limits.cpus > 0
    assert limits.memory_bytes is None or limits.memory_bytes > 2**20
    assert limits.cpuset is None or limits.cpuset & os.sched_getaffinity(0)
