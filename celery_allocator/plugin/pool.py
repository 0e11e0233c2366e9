"""What Celery's pool of processes assumes of a broker and does not hold here: mended on the pool itself.

Celery counts on its broker to deliver again what it drops. The gate has settled a delivery with the broker before the
pool sees it, and one grant starts once; so a job of ours that a child may have begun is not given to another, and one
that none has begun is not dropped when the broker's connection is lost.
"""

# ruff: noqa: SLF001  # none of this can be reached from outside

from __future__ import annotations

from typing import Any

_MENDED = "_allocator_mended"


def mend(pool: Any) -> None:
    """Mend a worker's pool, once. Pools of threads and the solo pool have nothing to mend."""
    inner = getattr(pool, "_pool", None)
    if not hasattr(inner, "on_job_process_down") or not hasattr(inner, "outbound_buffer") or hasattr(inner, _MENDED):
        return
    _read_before_giving_again(inner)
    _keep_over_flush(pool, inner)
    _watch_again(inner)
    setattr(inner, _MENDED, True)


def is_one_process(pool: Any) -> bool:
    """Whether tasks run in the worker's main process: a pool of threads, or the solo pool."""
    return not hasattr(getattr(pool, "_pool", None), "on_job_process_down")


def forget_termination(pool: Any, pid: int) -> None:
    """Process ``pid`` has begun another task, so it survived the one that was to be terminated.

    Else billiard would report that other task as terminated if its process were lost.
    """
    inner = getattr(pool, "_pool", None)
    for process in getattr(inner, "_pool", None) or []:
        if getattr(process, "pid", None) == pid and getattr(process, "_job_terminated", False):
            process._job_terminated = process._controlled_termination = False


def is_unbegun(request: Any, *, pool_stopped: bool) -> bool:
    """Whether no child can have begun it: it waits for a slot, or lies in a pool that has stopped."""
    if request.worker_pid is not None:
        return False
    if request._apply_result is None:
        return True
    job = request._apply_result()
    # A pool of processes notes which child a job is for before it writes a byte of it. Other pools note nothing.
    given = job is None or getattr(job, "_write_to", job) or getattr(job, "_scheduled_for", job)
    return pool_stopped and not given


def _read_before_giving_again(inner: Any) -> None:
    """A child says that it begins before it does; when it has died, hear it before its job goes to another.

    The pool reads what a dead child said only for those whose end it noticed first: of two that die at the same moment
    the second one's job was run again.
    """
    original = inner.on_job_process_down

    def on_job_process_down(job: Any, pid_gone: int) -> None:
        process = job._write_to or job._scheduled_for
        if not job._accepted and process is not None and not process._is_alive():
            inner.process_flush_queues(process)
            if job._accepted:
                return  # lost with its process, which the next look at the processes finds
        original(job, pid_gone)

    inner.on_job_process_down = on_job_process_down


def _keep_over_flush(pool: Any, inner: Any) -> None:
    """``flush``: the broker was lost, and will deliver again what no child has begun; but not what is ours."""
    original = pool.flush

    def flush() -> None:
        kept = {key: job for key, job in list(inner._cache.items()) if not job._accepted and _is_ours(job)}
        unsent = [job for job in inner.outbound_buffer if _is_ours(job)]
        for key in kept:
            inner._cache.pop(key, None)
        try:
            original()
        finally:
            inner._cache.update(kept)
            inner.outbound_buffer.extend(unsent)
            for job in kept.values():
                process = None if job in unsent else job._write_to or job._scheduled_for
                if process is not None and process._is_alive():
                    inner._busy_workers.add(process.inqW_fd)
                elif process is not None:
                    inner.on_job_process_down(job, process.pid)

    pool.flush = flush


def _watch_again(inner: Any) -> None:
    """When the consumer starts again, every child is watched again, also one that was taken for another.

    Where several children die at the same moment, a new one can get the number of a descriptor that the event loop is
    about to report for a dead one; the pool then stops watching the new one, and the next start of the consumer (after
    a lost broker) would end the whole worker with ``ValueError: file descriptor is None``.
    """
    original = inner._track_child_process

    def track(process: Any, hub: Any) -> None:
        if getattr(process, "_sentinel_poll", process) is None:
            del process._sentinel_poll
        original(process, hub)

    inner._track_child_process = track


def _is_ours(job: Any) -> bool:
    request = getattr(getattr(job, "_accept_callback", None), "__self__", None)
    return getattr(request, "_claim", None) is not None
