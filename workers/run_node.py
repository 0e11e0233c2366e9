#!/usr/bin/env python3
"""Run every worker of this host: one per GPU and one for CPU-only work, supervised in the foreground.

The same as ``celery -A proj allocator workers``, for a service unit or a container's command:

    python workers/run_node.py -A proj [--no-cpu-worker] [-- options for every worker]
"""

from __future__ import annotations

import sys

from celery_allocator.launcher.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
