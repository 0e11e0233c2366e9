"""How many threads the libraries of a task start: as many as it was granted cores.

A pinned process that starts a thread for every core of the machine has them wait for each other. Only for processes
that run one task at a time (prefork and solo pools).
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from typing import Any

from celery_allocator.isolation.variables import set_variables

logger = logging.getLogger(__name__)

#: Read by a library when it is loaded, or first used: set for those that are not loaded yet, and for programs that the
#: task starts.
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
#: Where one of these is loaded, so may be a BLAS.
_WITH_BLAS = ("numpy", "scipy", "torch")


def limit_threads(undo: ExitStack, count: int) -> None:
    """Have libraries use ``count`` threads each; closing ``undo`` puts back what they used before.

    Variables that are set already stay as they are. Where ``OMP_NUM_THREADS`` is among them, loaded libraries have
    followed that, and are left alone, too. No library is imported for it but threadpoolctl (the extra ``threads``).
    """
    told = "OMP_NUM_THREADS" in os.environ
    set_variables(undo, {name: str(count) for name in VARIABLES if name not in os.environ})
    if told:
        return
    for limit in (_limit_blas, _limit_torch):
        try:
            limit(undo, count)
        except Exception as error:  # noqa: BLE001  # a hint, no more: whatever a library raises
            logger.debug("threads are not limited to %d (%s): %s", count, limit.__name__, error)


def _limit_blas(undo: ExitStack, count: int) -> None:
    if not any(name in sys.modules for name in _WITH_BLAS):
        return
    try:
        import threadpoolctl
    except ImportError:
        return
    limits = threadpoolctl.threadpool_limits(limits=count)
    undo.callback(limits.restore_original_limits)


def _limit_torch(undo: ExitStack, count: int) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
        undo.callback(torch.set_num_threads, before)
