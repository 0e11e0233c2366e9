"""``python -m celery_allocator``: the console script, where it is not on the path."""

from __future__ import annotations

from celery_allocator.surfaces.cli import main

if __name__ == "__main__":
    main()
