"""An operator killed between an action and what should follow it: ``python -m tests.fault.operator URL POOL``."""

from __future__ import annotations

import os
import signal
import sys

import redis

from celery_allocator.ledger import Ledger
from celery_allocator.operations import Actor, Effect, Operator, Resume


def killed(effect: Effect) -> None:
    """In place of publishing."""
    if effect.grants:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    url, pool = sys.argv[1:]
    Operator(Ledger(redis.Redis.from_url(url), pool), Actor("killed", "test"), killed).run(Resume())
