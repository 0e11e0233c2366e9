"""The command line in this process, as tests call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner

from celery_allocator.allocating import Session
from celery_allocator.ledger import new_allocation_id
from celery_allocator.model import Kind, Requirements
from celery_allocator.surfaces.cli import allocator
from tests.support import by_hand
from tests.support.redis_server import RedisServer

Run = Callable[..., Any]


def runner(server: RedisServer, pool: str) -> Run:
    """Runs a command; it must not fail unless ``code`` says so. With ``--json``, the parsed output."""
    env = by_hand.environment(server, pool)

    def invoke(*args: str, code: int = 0, obj: Any = None) -> Any:
        result = CliRunner().invoke(allocator, args, env=env, prog_name="celery-allocator", obj=obj)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        if "--json" in args and code != 2:
            return json.loads(result.stdout)
        return result.stdout if code == 0 else result.stderr

    return invoke


def allocate(run: Run, task: str = "t", *options: str) -> dict[str, Any]:
    """One core, unless otherwise said."""
    reply: dict[str, Any] = run(
        "allocate", task, "--task-type=processing", "--ram=0", "--cpu-cores=1", "--json", *options
    )
    return reply


def submit_task(session: Session, task: str, cores: int = 1, tenant: str = "") -> str:
    """A Celery task's claim, as the sender would submit it (its message is not one)."""
    name, needs = new_allocation_id(), Requirements(cpu_cores=cores, tenant=tenant)
    return session.ledger.submit(name, task, "proj.work", needs, kind=Kind.TASK).allocation.allocation_id
