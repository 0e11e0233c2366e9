"""Name, core ids and RAM of this host, within the affinity mask and the control groups of this process."""

from __future__ import annotations

import math
import os
import re
import socket

import psutil

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import cgroup
from celery_allocator.settings import Settings

_MB = 2**20


def node_name(configured: str | None) -> str:
    """``configured`` or the host name, with ``-`` for what is not a letter, a digit, ``_``, ``.`` or ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", configured or socket.gethostname()) or "localhost"


def cores(settings: Settings, limits: cgroup.Limits | None = None) -> tuple[int, ...]:
    """Core ids this host offers to tasks, ascending.

    A CPU quota of the control group counts as that many whole cores, at least one. ``cpu_cores`` overrides the
    quota; above what the host has it is a simulation, with ids 0 … n-1. Reserved are the highest ids.
    """
    limits = cgroup.read() if limits is None else limits
    here = _mask()
    if limits.cpuset and here & limits.cpuset:
        here &= limits.cpuset
    ids = sorted(here)
    if settings.cpu_cores is None:
        if limits.cpus is not None:
            ids = ids[: max(1, math.floor(limits.cpus))]
    elif settings.cpu_cores <= len(ids):
        ids = ids[: settings.cpu_cores]
    else:
        ids = list(range(settings.cpu_cores))
    if settings.reserve_cpu_cores >= len(ids):
        raise _nothing_left("reserve_cpu_cores", settings.reserve_cpu_cores, f"{len(ids)} cores")
    return tuple(ids[: len(ids) - settings.reserve_cpu_cores])


def ram_mb(settings: Settings, limits: cgroup.Limits | None = None) -> int:
    """RAM this host offers to tasks, in MB: the machine's or the control group's, whichever is less, or as set."""
    if settings.ram_mb is not None:
        total_mb = settings.ram_mb
    else:
        limits = cgroup.read() if limits is None else limits
        total = psutil.virtual_memory().total
        total_mb = (total if limits.memory_bytes is None else min(total, limits.memory_bytes)) // _MB
    if settings.reserve_ram_mb >= total_mb:
        raise _nothing_left("reserve_ram_mb", settings.reserve_ram_mb, f"{total_mb} MB")
    return int(total_mb) - settings.reserve_ram_mb


def ram_used_mb(used: int | None = None) -> int:
    """RAM in use, in MB: the control group's where that has the limit, else the machine's. ``used``: the former."""
    group = cgroup.memory_used_bytes() if used is None else used
    if group is not None:
        return group // _MB
    machine = psutil.virtual_memory()
    return int(machine.total - machine.available) // _MB


def _mask() -> set[int]:
    """Core ids this process may run on; every core where the system has no affinity masks (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return set(psutil.Process().cpu_affinity() or ())
    return set(range(psutil.cpu_count() or 1))


def _nothing_left(name: str, value: int, have: str) -> SettingsError:
    return SettingsError(f"allocator_{name} (ALLOCATOR_{name.upper()}) is {value}, but this host has {have} in all")
