"""The launcher's entry: from an app's name and its settings to supervised workers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import discover
from celery_allocator.launcher.output import Console
from celery_allocator.launcher.plan import plan
from celery_allocator.launcher.supervisor import Policy, Supervisor
from celery_allocator.settings import Settings


def run_workers(
    app: str,
    settings: Settings,
    *,
    extra: Sequence[str] = (),
    cpu_worker: bool = True,
    policy: Policy | None = None,
) -> int:
    """Run one Celery worker per device of this host and one for CPU-only work, until told to stop.

    ``app`` is what ``celery -A`` takes; ``extra`` are options for every worker, such as ``("--loglevel", "INFO")``.
    The first SIGTERM or SIGINT lets the workers finish what they run, the second makes them drop it, the third (or
    ten seconds) kills them. Returns the exit code: 0 when all stopped as asked, 1 when a worker was given up because
    it kept failing at start. Call it from the main thread.
    """
    commands = plan(app, discover(settings), settings, extra=extra, cpu_worker=cpu_worker)
    if not commands:
        raise SettingsError("nothing to start: this host has no device, and the CPU worker was left out")
    stream = sys.stdout.buffer
    console = Console(stream, [command.name for command in commands], colour=_wants_colour())
    supervisor = Supervisor(commands, console, policy)
    with _signals_to(supervisor):
        return supervisor.run()


def app_name(app: Any, argv: Sequence[str] | None = None) -> str:
    """What to hand to ``celery -A`` for an app that the ``celery`` command has already loaded.

    The command keeps only the object, so the name is read where it came from (its own arguments, then the
    environment), and else looked for among the loaded modules. Raises :class:`SettingsError` if it is nowhere.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for position, argument in enumerate(arguments):
        if argument in ("-A", "--app") and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith("--app="):
            return argument.removeprefix("--app=")
        if argument.startswith("-A") and len(argument) > 2:
            return argument[2:]
    if os.environ.get("APP"):  # Celery's own variable for --app
        return os.environ["APP"]
    for module_name, module in list(sys.modules.items()):
        for attribute, value in list(vars(module).items()) if module_name != "__main__" and module else ():
            if value is app and not module_name.startswith("celery."):
                return f"{module_name}:{attribute}"
    raise SettingsError("the app's name is not known: name it, as in `celery -A proj allocator workers`")


def split_extra(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's own arguments, and those after ``--``, which are for the workers."""
    arguments = list(argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


@contextmanager
def _signals_to(supervisor: Supervisor) -> Iterator[None]:
    def handle(_number: int, _frame: FrameType | None) -> None:
        supervisor.request_stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wants_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
