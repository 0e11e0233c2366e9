"""Processes whose clock is wrong: a small library, preloaded, that shifts the time of day and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.availability import missing

_SOURCE = Path(__file__).with_name("wrong_clock.c")


def environ(folder: Path, seconds: int) -> dict[str, str]:
    """What to add to a process's environment so that its clock is so many seconds ahead (below 0: behind).

    The library is compiled into ``folder``, once.
    """
    target = folder / "wrong_clock.so"
    if not target.exists():
        compiler = shutil.which("cc") or missing("a C compiler (cc)", "apt-get install gcc libc6-dev")
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
        subprocess.run([*command, "-o", str(target), str(_SOURCE), "-ldl"], check=True)
    return {"LD_PRELOAD": str(target), "WRONG_CLOCK_S": str(seconds)}
