"""Which requirements a call has: setting, decorator, route, retried message, call; later wins, key by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_allocator.errors import RequirementsError
from celery_allocator.model import Requirements, Strategy
from celery_allocator.plugin.envelope import HEADER

LAYERS: tuple[str, ...] = ("default", "decorator", "route", "retried", "call")


def route(app: Celery, name: str, **options: Any) -> dict[str, Any]:
    """As ``apply_async`` and ``send_task`` do."""
    return dict(app.amqp.router.route(options, name, (), {}))


@pytest.mark.parametrize("last", range(len(LAYERS)))
def test_each_layer_wins_over_those_before_it(make_app: Callable[..., Celery], last: int) -> None:
    """``priority`` is set by every layer up to ``last``, another key by the first alone."""
    here = LAYERS[: last + 1]
    own = {name: {"priority": n} for n, name in enumerate(here)}
    own["default"]["ram_mb"] = 77
    app = make_app(
        allocator_default_resources=own["default"],
        task_routes={"work": {"resources": own["route"]}} if "route" in own else {},
    )

    @app.task(name="work", shared=False, resources=own.get("decorator"))
    def work() -> None: ...

    options: dict[str, Any] = {}
    if "retried" in own:
        options["headers"] = {HEADER: {"id": "alloc_1", "resources": own["retried"], "strategy": "first_fit"}}
    if "call" in own:
        options["resources"] = own["call"]
    routed = route(app, "work", **options)
    assert routed["resources"] == Requirements(priority=last, ram_mb=77)
    assert routed["strategy"] is (Strategy.FIRST_FIT if "retried" in own else Strategy.BEST_FIT)


def test_without_requirements_it_is_celerys(make_app: Callable[..., Celery]) -> None:
    """Nothing is added; a route's queue counts."""
    app = make_app(task_routes={"work": {"queue": "special"}})
    routed = route(app, "work", priority=3)
    assert set(routed) == {"queue", "priority"}
    assert routed["queue"].name == "special"


def test_default_requirements_are_not_for_celerys_own_tasks(make_app: Callable[..., Celery]) -> None:
    """``celery.backend_cleanup`` and the like."""
    app = make_app(allocator_default_resources={"cpu_cores": 1})
    assert "resources" not in route(app, "celery.backend_cleanup")
    assert "resources" in route(app, "mine")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"resources": {"gpu_memory_mb": -1}}, "gpu_memory_mb=-1: must be at least 0"),
        ({"resources": {"gpu_memory_mb": True}}, "gpu_memory_mb=True: must be a whole number"),
        ({"resources": {"gpus": 1}}, "gpus=1: unknown requirement"),
        ({"resources": {"gpu": 2}}, "gpu=2: must be a share from 0 to 1"),
        ({"resources": 2048}, "resources=2048: must be a mapping"),
        ({"resources": {}, "strategy": "worst_fit"}, "strategy='worst_fit': unknown strategy; known are first_fit"),
        ({"resources": {"gpu_count": 2}}, "gpu_count=2: needs gpu_memory_mb above 0"),
    ],
)
def test_what_is_malformed_is_refused_at_the_call(
    make_app: Callable[..., Celery], options: dict[str, Any], problem: str
) -> None:
    """The error names the key, the value and the rule."""
    with pytest.raises(RequirementsError, match=problem.replace("(", r"\(")):
        make_app().send_task("anything", **options)


def test_a_registered_strategy_is_one_like_the_others(make_app: Callable[..., Celery]) -> None:
    """In the call, the decorator, a route and the setting; without being registered it is refused."""
    mine = {"allocator_strategies": {"mine": "mine.lua"}, "allocator_default_resources": {"cpu_cores": 1}}
    app = make_app(**mine)

    @app.task(name="decorated", strategy="mine", shared=False)
    def decorated() -> None:
        """Nothing to do."""

    assert app.amqp.router.route({"strategy": "mine"}, "work")["strategy"] == Strategy("mine")
    assert route(app, "decorated")["strategy"] == Strategy("mine")
    assert route(app, "work")["strategy"] is Strategy.BEST_FIT
    app.conf.update(task_routes={"work": {"strategy": "mine"}})
    assert route(app, "work")["strategy"] == Strategy("mine")
    assert route(make_app(allocator_strategy="mine", **mine), "work")["strategy"] == Strategy("mine")
    with pytest.raises(RequirementsError, match=r"known are first_fit, best_fit, priority, spread, fgd$"):
        make_app().send_task("anything", resources={"cpu_cores": 1}, strategy="mine")


def test_routes_may_change_later(make_app: Callable[..., Celery]) -> None:
    """As with plain Celery."""
    app = make_app()
    assert "resources" not in route(app, "work")
    app.conf.update(task_routes={"work": {"resources": {"cpu_cores": 2}}})
    assert route(app, "work")["resources"] == Requirements(cpu_cores=2)
