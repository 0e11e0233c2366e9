"""Which process the embedded server is, so that no other is ever taken for it.

A process id alone proves nothing: ids are used again. The record beside the data also has when the process started,
and in which boot and process namespace that id means something.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from celery_allocator.errors import EmbeddedServerError

# Puts the server in the background and names it. The shell ends at once, so the server is nobody's child here: it
# leaves no zombie behind, and no caller's end or wait() touches it.
_LAUNCH = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'

_LAUNCH_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Record:
    """A server process that we started."""

    pid: int
    started: str
    system: str
    binary: str

    @classmethod
    def of(cls, pid: int, binary: Path) -> Record | None:
        """The record of a process that runs now; ``None`` if there is none of that id."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started, _system(), str(binary))

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """The record in that file; ``None`` if there is none, or not one of ours."""
        try:
            data = json.loads(path.read_text())
            record = cls(int(data["pid"]), str(data["started"]), str(data["system"]), str(data["binary"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if record.pid > 1 else None

    def save(self, path: Path) -> None:
        """Write the record; readers see the old one or the new one, never half of it."""
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)) + "\n")
        draft.replace(path)

    @property
    def can_be_checked(self) -> bool:
        """True if the id means something here: same boot, same process namespace."""
        return self.system == _system()

    @property
    def runs(self) -> bool:
        """True if that very process runs now."""
        return self.can_be_checked and _start_time(self.pid) == self.started


def launch(command: Sequence[str], log: Path, keep_open: int) -> int:
    """Start ``command`` in a session of its own, with no terminal; return its process id.

    ``keep_open`` is a file descriptor that the process inherits.
    """
    try:
        run = subprocess.run(
            ["/bin/sh", "-c", _LAUNCH, "sh", str(log), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(keep_open,),
            start_new_session=True,
            timeout=_LAUNCH_DEADLINE_S,
            check=True,
            text=True,
        )
        return int(run.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"cannot start {command[0]}: {error}") from error


def _start_time(pid: int) -> str | None:
    """When the process started, in a form that a change of the clock does not alter; ``None`` if it does not run."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():
            # The name in parentheses may hold blanks; the start is the 22nd field, the 20th after it.
            return stat.read_text().rpartition(")")[2].split()[19]
        return f"{process.create_time():.0f}"
    except (psutil.Error, OSError, IndexError):
        return None


def _system() -> str:
    """What process ids here are relative to."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{os.uname().nodename} {psutil.boot_time():.0f}"
