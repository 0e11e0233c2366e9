"""How a worker's children come to be: not by a fork of a process that has initialised CUDA, and whole if spawned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from billiard import current_process
from celery import current_app, signals
from celery.app.trace import build_tracer
from celery.concurrency import get_implementation

from celery_allocator.isolation import cuda_is_initialised
from celery_allocator.plugin.fence import guard, is_guarded
from celery_allocator.plugin.isolating import MAIN

logger = logging.getLogger(__name__)

_WATCHED = "_allocator_watched"
_PREFORK = "celery.concurrency.prefork"
_WHY = (
    "the main process of this worker has initialised CUDA (an import of the app, or what it calls, used the GPU), and "
    "children that are forked from such a process cannot use it"
)
_DO = (
    "Use CUDA within tasks only: load models there, at their first use; in the main process neither create tensors nor "
    "call torch.cuda.is_available() (PYTORCH_NVML_BASED_CUDA_CHECK=1 makes that harmless). Or start the worker with "
    "--pool-start-method spawn (Celery 5.7) or --pool solo. allocator_cuda_in_parent=warn starts it as it is"
)


def forks(worker: Any) -> bool:
    """Whether a worker that is about to begin forks its children."""
    if getattr(worker, "pool_start_method", "fork") != "fork":
        return False
    # By name: to import that pool, which others do without, is the worker's own affair.
    classes = getattr(get_implementation(worker.pool_cls), "__mro__", ())
    return any(cls.__module__ == _PREFORK for cls in classes)


def check_main(worker: Any, on_cuda: str) -> str:
    """Why a worker that serves a GPU must not begin; empty where it may. ``on_cuda``: ``refuse`` or ``warn``."""
    if not forks(worker) or not cuda_is_initialised():
        return ""
    if on_cuda == "refuse":
        return f"{_WHY}. {_DO}"
    logger.warning("%s; its tasks will fail if they use the GPU. %s", _WHY, _DO)
    return ""


def watch_forks(pool: Any, on_cuda: str, stop: Callable[[], None]) -> None:
    """Look again before each child that replaces another; with ``refuse`` the worker is to ``stop`` taking grants."""
    inner = getattr(pool, "_pool", None)
    original = getattr(inner, "_create_worker_process", None)
    if original is None or hasattr(inner, _WATCHED):
        return

    def create(*args: Any) -> Any:
        if cuda_is_initialised():
            stops = on_cuda == "refuse"
            logger.critical("%s. %s%s", _WHY, "This worker takes no more tasks: start it anew. " if stops else "", _DO)
            if stops:
                stop()
        return original(*args)

    inner._create_worker_process = create  # type: ignore[union-attr]  # noqa: SLF001
    setattr(inner, _WATCHED, True)


def on_process_init(sender: Any = None, **_: Any) -> None:
    """A spawned child has made its tasks anew: they get the guard that forked ones have (``worker_process_init``)."""
    if current_process().name == MAIN:  # a solo pool: the worker's own tasks, which get it there
        return
    app: Any = current_app._get_current_object()  # noqa: SLF001
    for name, task in app.tasks.items():
        if not is_guarded(task):
            guard(task)
            task.__trace__ = build_tracer(name, task, app.loader, sender, app=app)


def connect_signals() -> None:
    """Connect the handler, once per process however often it is called."""
    signals.worker_process_init.connect(on_process_init, weak=False, dispatch_uid="celery_allocator.process_init")
