"""``app.control`` whose revoke also reaches what waits in the ledger, at once and with no worker online.

And whose broadcasts of the allocator's commands say who asks, and are one call however many workers carry it out.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from celery.app.control import Control

from celery_allocator.errors import LedgerError
from celery_allocator.operations import Actor
from celery_allocator.plugin.outcome import cancel_tasks
from celery_allocator.plugin.remote import CALL, CALLER, CONTROLS

logger = logging.getLogger(__name__)


#: Celery's commands that end tasks; `celery control` sends them without calling :meth:`Control.revoke`.
_REVOKING = ("revoke", "terminate")


class AllocatorControl(Control):
    """Celery's control (``app.control_cls``)."""

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Celery's, after what is revoked has been cancelled in the ledger if it has not started.

        A command of the allocator also carries this process's user and host, and a key of its own.
        """
        if command in _REVOKING:
            self._cancel((arguments or {}).get("task_id", kwargs.get("task_id")))
        if command in CONTROLS:
            arguments = {CALLER: Actor.of_process().name, CALL: uuid.uuid4().hex, **(arguments or {})}
        return super().broadcast(command, arguments, *args, **kwargs)

    def revoke(self, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; also takes any iterable of ids, which is read once."""
        return super().revoke(task_id if isinstance(task_id, str) else list(task_id), *args, **kwargs)

    def _cancel(self, task_id: Any) -> None:
        ids = [task_id] if isinstance(task_id, str) else list(task_id or ())
        try:
            cancel_tasks(self.app, ids)
        except LedgerError as error:
            logger.error("revoke: %s; tasks that wait there go on waiting", error)  # noqa: TRY400  # the text says it all
