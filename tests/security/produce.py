"""A producer in a process of its own: ``python -m tests.security.produce``. URLs come from the environment.

One granted task, one revoked while it is delayed; with ``all`` also a plain task, a chord and remote control, for
which a worker has to consume the default queue too. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from celery import chord
from celery.exceptions import TaskRevokedError

from tests.support.allocator_app import app

#: Seconds for any one answer.
_SOON_S = 30


def main() -> None:
    tasks, said = app.tasks, dict[str, Any]()
    said["sum"] = tasks["zoo.add"].delay(1, 2).get(timeout=_SOON_S)
    later = tasks["zoo.add"].apply_async((1, 1), countdown=600)
    app.control.revoke(later.id)
    try:
        later.get(timeout=_SOON_S)
    except TaskRevokedError:
        said["revoked"] = True
    if "all" in sys.argv[1:]:
        said["plain"] = tasks["zoo.plain"].delay(5).get(timeout=_SOON_S)
        header = [tasks["zoo.add"].s(n, 1) for n in range(3)]
        said["chord"] = chord(header)(tasks["zoo.total"].s()).get(timeout=_SOON_S)
        said["pongs"] = len(app.control.ping(timeout=_SOON_S, limit=1))
    print(json.dumps(said))  # noqa: T201
    app.close()


if __name__ == "__main__":
    main()
