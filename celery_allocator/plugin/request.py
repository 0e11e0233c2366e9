"""The request: hears of every ending of a task in the worker's main process, and has the keeper release it.

No set of signals covers every ending; Celery's ``Request`` does. What each hook means is in the worker: after
``on_success`` (and a failure that the child returned) the child is alive and idle; after the loss of a process or a
time limit it is dead or dying, and its GPU memory is free only when it is gone.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request
from celery.worker.state import task_ready

from celery_allocator.errors import ResourceOveruse
from celery_allocator.model import Allocation
from celery_allocator.plugin.envelope import own_header
from celery_allocator.plugin.moved import MovedOn, Unfit
from celery_allocator.plugin.running import GRANT, error_name
from celery_allocator.plugin.session import Keeper, session

logger = logging.getLogger(__name__)

#: Outcomes of what Celery tells by an exception, and is no failure.
_NO_FAILURE = {Retry: "retry", Ignore: "ignored", Reject: "rejected"}
#: What main is told of when the process of a task is gone or going. Anything else was returned by a child that lives.
_PROCESS_LOST = (WorkerLostError, Terminated, TimeLimitExceeded, SystemExit, KeyboardInterrupt)


class AllocationHooks:
    """Mixed into a request class: release on every ending. Requests without an allocation pass through."""

    _claim: Allocation | None = None
    #: Outcome to release with; ``None``: the claim stays until this worker has left, and is lost with it.
    _ending: str | None = "ended"
    #: Class of the exception it failed with.
    _error = ""
    _process_lost = False
    #: Why this worker may not run it any more; its process is being killed.
    stale = ""
    #: What it used beyond its promise, so that its process was killed.
    overuse: ResourceOveruse | None = None
    #: It has gone back into line, so it must not begin here.
    given_back = False

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)  # type: ignore[call-arg]
        grant = own_header(self._request_dict).get(GRANT)  # type: ignore[attr-defined]
        if grant:
            self._claim = Allocation.from_wire(grant)
            if self._keeper is not None:
                self._keeper.holds(self._claim, self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery derives a class per task that overrides on_success without calling ours: wrap what it defines.
        super().__init_subclass__(**kwargs)
        original = cls.__dict__.get("on_success")
        if original is not None:

            def on_success(self: Any, failed__retval__runtime: Any, **options: Any) -> Any:
                if not failed__retval__runtime[0] and self._ending == "ended":
                    self._ending = "success"
                try:
                    return original(self, failed__retval__runtime, **options)
                finally:
                    self._child_idle(by_child=True)

            cls.on_success = on_success  # type: ignore[attr-defined]

    def revoked(self) -> bool:
        """Asked before the pool is given the task."""
        if self.stale or self.given_back:
            task_ready(self)
            return True
        return bool(super().revoked())  # type: ignore[misc]

    def maybe_expire(self) -> bool | None:
        """The ledger has judged that, by its own clock, when the task passed the gate: this host's has no say."""
        return None if self._claim is not None else super().maybe_expire()  # type: ignore[misc]

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        """A child has begun it."""
        if self._keeper is not None:
            if self._claim is not None:
                self._keeper.begun(self._claim, pid)
            else:
                self._keeper.begun_other(pid)
        return super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The child returned a failure (``return_ok``), could not begin it, or was lost."""
        if self.stale:  # killed by the keeper: what becomes of the task is for its new holder, or the ledger, to say
            task_ready(self)
            return None
        if self.overuse is not None and isinstance(_error_of(exc_info), WorkerLostError):
            return self._killed_for_overuse(self.overuse, exc_info)
        if isinstance(_error_of(exc_info), MovedOn):
            self._ending = "requeue"
        elif self._ending == "ended":
            self._ending, self._error = _failure(exc_info)
        self._process_lost = not return_ok and isinstance(_error_of(exc_info), _PROCESS_LOST)
        try:
            survivable = exc_info if self._claim is None else _without_memory_error(exc_info)
            return super().on_failure(  # type: ignore[misc]
                survivable, send_failed_event=send_failed_event, return_ok=return_ok
            )
        finally:
            if self._process_lost:
                self._child_dying()
            else:
                self._child_idle(by_child=return_ok)
            if return_ok and isinstance(_error_of(exc_info), Unfit) and self._keeper is not None:
                self._keeper.replace_child(self.worker_pid)  # type: ignore[attr-defined]

    def _killed_for_overuse(self, error: ResourceOveruse, lost: Any) -> Any:
        """Its process was killed: it fails with that error, and is not repeated, whatever is said for lost processes.

        Unless it had written its result by then: that stands.
        """
        stored = getattr(super(), "_success_was_stored", lambda: False)()
        self._process_lost = True
        if self._ending == "ended":
            self._ending, self._error = ("success", "") if stored else ("failure", error_name(error))
        try:
            return super().on_failure(lost if stored else _exception_info(error))  # type: ignore[misc]
        finally:
            self._child_dying()

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """A time limit passed; after the hard one the child is killed."""
        self._process_lost = not soft
        if not soft and self._ending == "ended":
            self._ending, self._error = "failure", TimeLimitExceeded.__name__
        try:
            return super().on_timeout(soft, timeout)  # type: ignore[misc]
        finally:
            if not soft:
                self._child_dying()

    def reject(self, requeue: bool = False) -> Any:
        """Celery gives the message back: for the ledger that is a return to the line, once the process is gone.

        For a lost process that counts as a loss, so that a task which kills its process does not go on for good.
        """
        if not self.acknowledged and self.overuse is None:  # type: ignore[attr-defined]
            self._ending = ("lost" if self._process_lost else "requeue") if requeue else "rejected"
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
        self._ending = "requeue" if self.task.acks_late else None  # type: ignore[attr-defined]
        return super()._announce_cancelled(*args, **kwargs)  # type: ignore[misc]

    @property
    def _keeper(self) -> Keeper | None:
        return session(self._app).keeper  # type: ignore[attr-defined]

    @property
    def _never_accepted(self) -> bool:
        return self.worker_pid is None  # type: ignore[attr-defined]

    def _child_idle(self, by_child: bool = False) -> None:
        if self._claim is not None and self._keeper is not None and not self.stale:
            self._keeper.ended(self._claim, self._ending or "ended", error=self._error, by_child=by_child)

    def _child_dying(self) -> None:
        if self._claim is not None and self._keeper is not None and not self.stale and self._ending is not None:
            pid: int | None = self.worker_pid  # type: ignore[attr-defined]
            self._keeper.gone(self._claim, self._ending, pid, error=self._error)


def _error_of(exc_info: Any) -> Any:
    return getattr(exc_info.exception, "exc", exc_info.exception)


def _failure(exc_info: Any) -> tuple[str, str]:
    """Outcome and class of the error, where the child has not told the ledger."""
    told = exc_info.exception
    for kind, outcome in _NO_FAILURE.items():
        if isinstance(told, kind) or isinstance(_error_of(exc_info), kind):
            return outcome, ""
    error = _error_of(exc_info)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):  # so the result says, too
        return "failure", WorkerLostError.__name__
    return "failure", error_name(error)


def _exception_info(error: Exception) -> Any:
    """As if it had been raised here."""
    try:
        raise error from None
    except type(error):
        return ExceptionInfo()


def _without_memory_error(exc_info: Any) -> Any:
    """A ``MemoryError`` under another name: Celery's worker would exit, and take all other tasks of the GPU along.

    The result has been written with the real one by then. CuPy's out-of-memory error is a MemoryError.
    """
    error = _error_of(exc_info)
    if not isinstance(error, MemoryError):
        return exc_info
    renamed = copy.copy(exc_info)
    renamed.exception = RuntimeError(f"{type(error).__name__}: {error}")
    return renamed


class AllocatorRequest(AllocationHooks, Request):
    """Celery's request with the hooks."""
