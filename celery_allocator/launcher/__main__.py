"""``python -m celery_allocator.launcher -A proj``: the launcher without the ``celery`` command around it."""

from __future__ import annotations

import argparse
import sys

from celery.app.utils import find_app

from celery_allocator.errors import AllocatorError
from celery_allocator.launcher.launch import run_workers, split_extra
from celery_allocator.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Parse ``argv`` and run. Returns the exit code: 2 for a setting that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m celery_allocator.launcher",
        description="Run one Celery worker per GPU of this host and one for CPU-only work, supervised.",
        usage="%(prog)s -A APP [--no-cpu-worker] [-- options for every worker, such as --loglevel INFO]",
        epilog="Settings come from the environment (ALLOCATOR_*), then the app's configuration.",
    )
    parser.add_argument("-A", "--app", required=True, help="the Celery app, as `celery -A` takes it")
    parser.add_argument("--no-cpu-worker", action="store_true", help="start workers for GPUs only")
    own, extra = split_extra(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(own)
    try:
        settings = Settings.load(find_app(options.app).conf)
        return run_workers(options.app, settings, extra=extra, cpu_worker=not options.no_cpu_worker)
    except AllocatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
