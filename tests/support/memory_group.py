"""A control group with little memory: the kernel itself kills what takes more. For root, where it may be made."""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
#: Version 1: where groups are, the file that limits, and the one that counts kills; then the same of version 2.
_V1 = (_ROOT / "memory", "memory.limit_in_bytes", "memory.oom_control")
_V2 = (_ROOT, "memory.max", "memory.events")


class MemoryGroup:
    """``path`` is the group's folder (a process joins by writing its pid to ``cgroup.procs``).

    ``None``: there can be no such group here.
    """

    def __init__(self, limit_mb: int = 256) -> None:
        self.path: Path | None = None
        for root, limit, counts in (_V1, _V2):
            group = root / f"fault-{uuid.uuid4().hex[:8]}"
            try:
                group.mkdir()
            except OSError:  # not mounted, read-only, or not ours
                continue
            try:
                (group / limit).write_text(str(limit_mb * 2**20))
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
            except OSError:  # without the memory controller
                group.rmdir()
                continue
            self.path, self._counts = group, group / counts
            return

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed in it."""
        lines = self._counts.read_text().splitlines() if self.path else []
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def close(self) -> None:
        """Remove it; its processes must be ending."""
        deadline = time.monotonic() + 5
        while self.path is not None and self.path.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            time.sleep(0.05)
