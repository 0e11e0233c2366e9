"""How the suite is handed out to several processes."""

from __future__ import annotations

import pytest

from tests.support.processes import ROOT
from tests.support.scheduling import LONG, portion


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("tests/unit/test_shape.py::test_text[1-redis]", "tests/unit/test_shape.py"),
        ("tests/acceptance/test_waiting.py::test_order[redis]", "tests/acceptance[redis]"),
        ("tests/acceptance/test_canvas.py::test_chain[rabbitmq]", "tests/acceptance[rabbitmq]"),
        ("tests/acceptance/test_endings.py::test_ends[rabbitmq-waiting]", "tests/acceptance[rabbitmq]"),
        ("tests/acceptance/test_capacity.py::test_pools[threads-redis]", "tests/acceptance[redis]"),
        ("tests/acceptance/test_process_nodes.py::test_a_task[celery_redis_broker-x]", "RabbitMQ"),
        ("tests/configs/test_running.py::test_a_task", "RabbitMQ"),
        ("tests/acceptance/test_demo.py::test_ctrl_c", "tests/acceptance/test_demo.py"),
        ("tests/docs/test_snippets.py::test_page[docs/a.md]", "tests/docs/test_snippets.py[docs/a.md]"),
        ("tests/docs/test_snippets.py::test_links", "tests/docs/test_snippets.py"),
    ],
)
def test_what_shares_servers_and_workers_stays_together(test: str, name: str) -> None:
    assert portion(test) == name


def test_what_is_said_to_take_long_is_there() -> None:
    for name in LONG.keys() - {"RabbitMQ"}:
        where, _, page = name.partition("[")
        assert (ROOT / where).exists(), name
        assert not page.endswith(".md]") or (ROOT / page.rstrip("]")).exists(), name
