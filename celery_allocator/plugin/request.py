"""The request: hears of every ending of a task in the worker's main process, and has the keeper release it.

No set of signals covers every ending; Celery's ``Request`` does. What each hook means is in the worker: after
``on_success`` (and a failure that the child returned) the child is alive and idle; after any other failure its process
is dead or dying, and its GPU memory is free only when it is gone.
"""

from __future__ import annotations

import copy
from typing import Any

from celery.worker.request import Request

from celery_allocator.model import Allocation
from celery_allocator.plugin.envelope import own_header
from celery_allocator.plugin.running import GRANT
from celery_allocator.plugin.session import session

_LOST = "lost"


class AllocationHooks:
    """Mixed into a request class: release on every ending. Requests without an allocation pass through."""

    _claim: Allocation | None = None
    _ending = "ended"

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)  # type: ignore[call-arg]
        grant = own_header(self._request_dict).get(GRANT)  # type: ignore[attr-defined]
        if grant:
            self._claim = Allocation.from_wire(grant)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery derives a class per task that overrides on_success without calling ours: wrap what it defines.
        super().__init_subclass__(**kwargs)
        original = cls.__dict__.get("on_success")
        if original is not None:

            def on_success(self: Any, failed__retval__runtime: Any, **options: Any) -> Any:
                try:
                    return original(self, failed__retval__runtime, **options)
                finally:
                    self._child_idle(by_child=True)

            cls.on_success = on_success  # type: ignore[attr-defined]

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The child returned a failure (``return_ok``), or was lost."""
        try:
            survivable = exc_info if self._claim is None else _without_memory_error(exc_info)
            return super().on_failure(  # type: ignore[misc]
                survivable, send_failed_event=send_failed_event, return_ok=return_ok
            )
        finally:
            if return_ok:
                self._child_idle(by_child=True)
            else:
                self._child_dying()

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """A time limit passed; after the hard one the child is killed."""
        try:
            return super().on_timeout(soft, timeout)  # type: ignore[misc]
        finally:
            if not soft:
                self._child_dying()

    def reject(self, requeue: bool = False) -> Any:
        """Celery gives the message back: for the ledger that is a return to the line, once the process is gone."""
        if not self.acknowledged:  # type: ignore[attr-defined]
            self._ending = "requeue" if requeue else "rejected"
            if self._never_accepted:
                self._child_idle()
        return super().reject(requeue)  # type: ignore[misc]

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> Any:
        self._ending = "expired" if expired else "revoked"
        try:
            return super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        finally:
            if self._never_accepted:
                self._child_idle()
            else:
                self._child_dying()

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> Any:
        # A cold shutdown, or a broker that was lost. What may be repeated goes back into line; the rest stays claimed
        # until the worker has left, and then counts as lost with it: its result says so.
        self._ending = "requeue" if self.task.acks_late else _LOST  # type: ignore[attr-defined]
        return super()._announce_cancelled(*args, **kwargs)  # type: ignore[misc]

    @property
    def _never_accepted(self) -> bool:
        return self.worker_pid is None  # type: ignore[attr-defined]

    def _child_idle(self, by_child: bool = False) -> None:
        keeper = session(self._app).keeper  # type: ignore[attr-defined]
        if self._claim is not None and keeper is not None:
            keeper.ended(self._claim, self._ending, by_child=by_child)

    def _child_dying(self) -> None:
        keeper = session(self._app).keeper  # type: ignore[attr-defined]
        if self._claim is not None and keeper is not None and self._ending != _LOST:
            keeper.gone(self._claim, self._ending, self.worker_pid)  # type: ignore[attr-defined]


def _without_memory_error(exc_info: Any) -> Any:
    """A ``MemoryError`` under another name: Celery's worker would exit, and take all other tasks of the GPU along.

    The result has been written with the real one by then. CuPy's out-of-memory error is a MemoryError.
    """
    error = getattr(exc_info.exception, "exc", exc_info.exception)
    if not isinstance(error, MemoryError):
        return exc_info
    renamed = copy.copy(exc_info)
    renamed.exception = RuntimeError(f"{type(error).__name__}: {error}")
    return renamed


class AllocatorRequest(AllocationHooks, Request):
    """Celery's request with the hooks."""
