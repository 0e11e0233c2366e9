#!/usr/bin/env python3
"""Run one worker in the foreground, for one GPU or for CPU-only work.

The same as ``celery -A proj worker --gpu WHICH`` with the name and the slots that the launcher would give it:

    python workers/gpu_worker.py WHICH -A proj [-- options for the worker]

WHICH is the GPU's index or UUID, or ``none`` for CPU-only work. The process becomes the worker, so a supervisor signals
and watches the worker itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from celery.app.utils import find_app

from celery_allocator.errors import AllocatorError, InventoryError
from celery_allocator.inventory import discover
from celery_allocator.launcher import WorkerCommand, plan
from celery_allocator.launcher.launch import split_extra
from celery_allocator.launcher.plan import NO_GPU
from celery_allocator.settings import Settings


def command(which: str, app: str, extra: list[str]) -> WorkerCommand:
    """The worker's command. Raises :class:`InventoryError` for a GPU that this host does not have."""
    settings = Settings.load(find_app(app).conf)
    inventory = discover(settings)
    if which == NO_GPU:
        name = "cpu"
    else:
        device = inventory.device(which)
        if device is None:
            known = ", ".join(f"{device.index} ({device.uuid})" for device in inventory.devices) or "none at all"
            raise InventoryError(f"no GPU {which!r} on this host; there is {known}")
        name = f"gpu{device.index}"
    return next(worker for worker in plan(app, inventory, settings, extra=extra) if worker.name == name)


def main() -> NoReturn:
    """Become the worker; exits with code 2 when that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", help="the GPU's index or UUID, or none")
    parser.add_argument("-A", "--app", required=True, help="the Celery app, as `celery -A` takes it")
    parser.usage = "%(prog)s WHICH -A APP [-- options for the worker, such as --loglevel INFO]"
    own, extra = split_extra(sys.argv[1:])
    options = parser.parse_args(own)
    try:
        worker = command(options.which, options.app, extra)
    except AllocatorError as error:
        parser.exit(2, f"error: {error}\n")
    os.execve(worker.argv[0], worker.argv, {**os.environ, **worker.environ})  # noqa: S606 (a list, and no shell)


if __name__ == "__main__":
    main()
