"""A producer that is killed between submit and publish: ``python -m tests.fault.producer '{"config": …, "ids": […]}'``.

One process for each task id, forked from this one. The patch is here and nowhere else: what would publish, kills.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from celery_allocator.plugin import sender
from tests.fault.app import make_app


def killed(*args: Any, **options: Any) -> None:
    """In place of publishing."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Returns how many were killed, which a task that had to wait does not cause."""
    work = json.loads(sys.argv[1])
    sender.publish = killed
    children = []
    for task_id in work["ids"]:
        pid = os.fork()
        if pid == 0:
            app = make_app(**work["config"])
            app.tasks["fault.nap"].apply_async((0.1,), task_id=task_id, resources=work["resources"])
            os._exit(0)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    return sum(os.WIFSIGNALED(status) for status in statuses)


if __name__ == "__main__":
    print(main())  # noqa: T201
