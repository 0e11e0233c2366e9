"""Operator actions on the circuit breakers of task names."""

from __future__ import annotations

import json
from dataclasses import dataclass

from celery_allocator.operations.commands import Command, Step
from celery_allocator.operations.effect import Effect


@dataclass(frozen=True)
class _Breaker(Command):
    """Sets the circuit breaker of a task name by hand; nothing but an operator changes it then."""

    name: str

    def _set(self, at: Step, allows: int | None, memory: str) -> Effect:
        done, left = at.ledger.set_breaker(self.name, allows, memory, publishes=at.publishes, note=at.note)
        aside = f"; {left} tasks are set aside" if left else ""
        state = "closed" if allows is None else "open"
        return Effect(done.entry, f"the breaker of {self.name} is {state}{aside}", done.grants)

    def undo(self, at: Step) -> Effect:
        allows = at.before["allows"]
        return self._set(at, None if allows == "" else int(allows), str(at.before["memory"]))


class OpenBreaker(_Breaker):
    """Grant no more tasks of that name, until the breaker is closed by hand."""

    action = "open-breaker"

    def do(self, at: Step) -> Effect:
        return self._set(at, 0, json.dumps({"by": "operator", "since": at.ledger.server_time()}))


class CloseBreaker(_Breaker):
    """Grant tasks of that name again; failures are counted from now on."""

    action = "close-breaker"

    def do(self, at: Step) -> Effect:
        now = at.ledger.server_time()
        return self._set(at, None, json.dumps({"phase": "closed", "since": now, "failed_probings": 0}))
