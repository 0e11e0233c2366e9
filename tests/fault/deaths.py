"""Ways for a run to end. Each is a function of the task and the victim's arguments; add yours here."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery.app.task import Task


def sigkill(task: Task) -> None:
    """As the kernel's out-of-memory killer, or an operator."""
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once(task: Task) -> None:
    """No handler, no ``finally``."""
    os._exit(3)


def memory_error(task: Task) -> Any:
    """As CuPy on a full GPU."""
    raise MemoryError("as on a full GPU")
