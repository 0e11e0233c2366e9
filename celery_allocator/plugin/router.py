"""The router: which requirements a call has.

Celery's router sees neither the task's id nor its ETA nor its body, so it cannot reserve anything: it resolves and
validates, and the sender submits. It wraps Celery's own router instead of standing in ``task_routes``, so that the
user's routes go on working, in whatever order they are set, and may carry ``resources`` themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery
from celery.app.routes import Router
from kombu.exceptions import OperationalError

from celery_allocator.allocating import auto
from celery_allocator.errors import LedgerUnavailable, RequirementsError
from celery_allocator.model import Requirements, Strategy, known_strategy
from celery_allocator.model.requirements import merge
from celery_allocator.plugin.envelope import own_header
from celery_allocator.plugin.session import session

RESOURCES = "resources"
STRATEGY = "strategy"


class AllocatorRouter(Router):
    """Celery's router, which also resolves ``resources`` and ``strategy`` to validated values in the options.

    Later wins: setting ``allocator_default_resources``, the task's decorator, the route, the headers of the message
    that a retry repeats, the call. What says ``auto`` is looked up at the ledger. Raises :class:`RequirementsError` at
    the call for what is malformed, and ``OperationalError`` where that cannot be looked up.
    """

    def route(
        self,
        options: dict[str, Any],
        name: str,
        args: Any = (),
        kwargs: Any = None,
        task_type: Any = None,
    ) -> dict[str, Any]:
        asked = options.get(RESOURCES)
        routed: dict[str, Any] = super().route(
            {key: value for key, value in options.items() if key != RESOURCES}, name, args, kwargs, task_type
        )
        task = task_type if task_type is not None else self.app.tasks.get(name)
        before = own_header(options.get("headers"))
        layers = (
            getattr(task, RESOURCES, None),
            routed.pop(RESOURCES, None),
            before.get(RESOURCES),
            asked,
        )
        # Celery's own tasks (backend_cleanup, chord_unlock, accumulate …) are not the user's.
        default = None if name.startswith("celery.") else session(self.app).settings.default_resources
        if default is None and all(layer is None for layer in layers):
            return routed
        strategy = (
            options.get(STRATEGY)
            or before.get(STRATEGY)
            or routed.get(STRATEGY)
            or getattr(task, STRATEGY, None)
            or session(self.app).settings.strategy
        )
        routed[RESOURCES] = Requirements(**self._resolved(name, merge(default, *layers)))
        routed[STRATEGY] = parse_strategy(strategy, session(self.app).settings.strategies)
        return routed

    def _resolved(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """With numbers where it says ``auto``. A ledger that cannot be reached is as a broker that is down."""
        if not auto.says_auto(asked):
            return asked
        current = session(self.app)
        try:
            return auto.resolve(asked, current.ledger, current.settings, name)
        except LedgerUnavailable as error:
            raise OperationalError(str(error)) from error


def parse_strategy(value: Any, registered: Iterable[str] = ()) -> Strategy:
    """A strategy by its name. Raises :class:`RequirementsError` naming those that exist."""
    try:
        return known_strategy(value, registered)
    except ValueError:
        names = ", ".join([*(strategy.value for strategy in Strategy), *registered])
        raise RequirementsError(STRATEGY, value, f"unknown strategy; known are {names}") from None


def requirements_header(allocation_id: str, requirements: Requirements, strategy: Strategy) -> Mapping[str, Any]:
    """What the message carries of the call, so that a retry asks for the same again."""
    return {"id": allocation_id, RESOURCES: requirements.as_dict(), STRATEGY: strategy.value}


def installed_router(app: Celery, queues: Any, create_missing: bool | None) -> AllocatorRouter:
    """The router for an app, as ``AMQP.Router`` makes Celery's."""
    amqp = app.amqp
    return AllocatorRouter(
        amqp.routes, queues or amqp.queues, app.either("task_create_missing_queues", create_missing), app=app
    )
