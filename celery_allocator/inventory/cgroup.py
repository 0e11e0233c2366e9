"""Limits that Linux control groups put on this process, for versions 1 and 2 and mixtures of them.

A limit may stand at the process's own group or at any group above it; the tightest one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: Version 1 reports "no limit" as the largest multiple of the page size that fits 63 bits.
_UNLIMITED_BYTES = 2**62


@dataclass(frozen=True)
class Limits:
    """``None`` is no limit. ``cpus`` is CPU time per wall time, so 1.5 is one and a half cores."""

    cpus: float | None = None
    cpuset: frozenset[int] | None = None
    memory_bytes: int | None = None


def read(proc: Path = Path("/proc/self")) -> Limits:
    """The limits of the process that ``proc`` describes; no limits where there are no control groups."""
    cpus: list[float] = []
    memory: list[int] = []
    cpuset: frozenset[int] | None = None
    for folder in _folders(proc):
        cpus += _cpus(folder)
        memory += _memory(folder)
        # The first found is the process's own: a group's effective set is within its parent's already.
        cpuset = cpuset or _cpuset(folder)
    return Limits(min(cpus, default=None), cpuset, min(memory, default=None))


def memory_used_bytes(proc: Path = Path("/proc/self")) -> int | None:
    """Memory in use in the group whose limit counts, without cached files; ``None`` where no group limits memory."""
    tightest: tuple[int, int] | None = None
    for folder in _folders(proc):
        for limit in _memory(folder):
            used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
            if used is not None and used.isdecimal() and (tightest is None or limit < tightest[0]):
                tightest = (limit, max(0, int(used) - _cached_files(folder)))
    return tightest[1] if tightest else None


def _cached_files(folder: Path) -> int:
    """Cached files, which the kernel drops for whoever needs the memory (as in the machine's ``MemAvailable``).

    Files in shared memory are not among them: those are counted with what processes have.
    """
    told = dict(line.partition(" ")[::2] for line in (_text(folder / "memory.stat") or "").splitlines())
    # Version 1 counts the groups below in the second; version 2, in the first, which is all it has.
    amounts = (told.get(f"total_{name}", told.get(name, "")) for name in ("inactive_file", "active_file"))
    return sum(int(amount) for amount in amounts if amount.isdecimal())


def _folders(proc: Path) -> Iterator[Path]:
    """The process's folder in each hierarchy, and those above it up to the mount point."""
    groups: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):  # version 2 is the empty name
            groups[controller] = path
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount_point = (_unescaped(text) for text in before.split(" ")[3:5])
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        controllers_here = [""] if kind == "cgroup2" else options.split(",")
        own = next((groups[name] for name in controllers_here if name in groups), None)
        if own is None:
            continue
        # In a container without its own cgroup namespace, the mount shows only the part below `root`.
        inside = PurePosixPath(own)
        inside = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
        top = Path(mount_point)
        folder = top / str(inside).lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _cpus(folder: Path) -> Iterator[float]:
    quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
    if not period:
        quota = _text(folder / "cpu.cfs_quota_us") or ""
        period = _text(folder / "cpu.cfs_period_us") or ""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # else "max", "-1" or nothing
        yield int(quota) / int(period)


def _memory(folder: Path) -> Iterator[int]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _text(folder / name)
        if text is not None and text.isdecimal() and int(text) < _UNLIMITED_BYTES:
            yield int(text)


def _cpuset(folder: Path) -> frozenset[int] | None:
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        text = _text(folder / name)
        if text:
            return core_list(text)
    return None


def core_list(text: str) -> frozenset[int]:
    """Core ids of the kernel's list form: ``0-2,5`` is {0, 1, 2, 5}."""
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _unescaped(text: str) -> str:
    """The kernel writes blanks in paths as octal escapes."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
