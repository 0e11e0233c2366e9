"""pytest-celery's nodes stand on local processes, and behave as its documentation says of containers."""

from __future__ import annotations

import psutil
import pytest
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from tests.support.process_nodes import WorkerSpec
from tests.support.waiting import wait_until

TIMEOUT_S = 30
#: The first test with RabbitMQ waits for its start, and the last for its end.
pytestmark = pytest.mark.timeout(300)


def test_a_task_comes_back(celery_setup: CeleryTestSetup) -> None:
    """Producer, broker, worker and result backend find each other."""
    assert celery_setup.ready(ping=True, control=True)
    assert celery_setup.app.send_task("plain.add", (1, 2)).get(timeout=TIMEOUT_S) == 3


def test_a_killed_worker_comes_back_and_takes_what_waited(celery_setup: CeleryTestSetup) -> None:
    """SIGKILL ends the worker with its children; a restart serves the tasks that came meanwhile."""
    worker = celery_setup.worker
    assert celery_setup.app.send_task("plain.add", (1, 2)).get(timeout=TIMEOUT_S) == 3
    pid = worker.container.process.pid
    children = psutil.Process(pid).children(recursive=True)
    assert children, "prefork has children"

    worker.kill()

    assert worker.container.status == "exited"
    wait_until(lambda: not any(_runs(child) for child in children), 30, "the children to be gone")
    waiting = celery_setup.app.send_task("plain.add", (3, 4))
    assert not waiting.ready()
    worker.restart()
    assert worker.container.status == "running"
    assert worker.container.process.pid != pid
    assert waiting.get(timeout=TIMEOUT_S) == 7
    assert worker.logs().count(" ready.") == 2


def test_a_terminated_worker_finishes_its_task_first(celery_setup: CeleryTestSetup) -> None:
    """SIGTERM is a warm shutdown.

    That plain Celery then ends is not waited for: on a loaded machine it was once seen to hang there.
    """
    worker = celery_setup.worker
    result = celery_setup.app.send_task("plain.sleep", (0.5,))
    worker.assert_log_exists("Task plain.sleep", timeout=TIMEOUT_S)
    worker.kill("SIGTERM")
    assert result.get(timeout=TIMEOUT_S) == 0.5
    worker.assert_log_exists("Warm shutdown", timeout=TIMEOUT_S)


# RabbitMQ says that it has a message on disk only to a publisher that asks for confirmation; Redis ignores the option.
@pytest.mark.parametrize("producer_config", [{"broker_transport_options": {"confirm_publish": True}}], indirect=True)
def test_a_killed_broker_comes_back_with_its_messages(celery_setup: CeleryTestSetup) -> None:
    """What the broker had acknowledged outlives its SIGKILL, and the worker reconnects."""
    worker, app = celery_setup.worker, celery_setup.app
    worker.kill()
    waiting = app.send_task("plain.add", (5, 6))
    celery_setup.broker.kill()
    assert celery_setup.broker.container.status == "exited"
    celery_setup.broker.restart()
    worker.restart()
    assert waiting.get(timeout=TIMEOUT_S) == 11


@pytest.mark.parametrize(
    "worker_specs",
    [
        (
            WorkerSpec(name="left", queues="left", env={"SIDE": "l"}, args=("--pool", "threads")),
            WorkerSpec(name="right", queues="right", env={"SIDE": "r"}, args=("--pool", "solo")),
        )
    ],
    indirect=True,
)
def test_each_worker_has_its_own_command_line_and_environment(
    celery_setup: CeleryTestSetup, celery_worker: CeleryTestWorker
) -> None:
    """Several workers, each as its spec says."""
    left, right = celery_setup.worker_cluster
    assert left == celery_worker
    assert left.hostname() in left.logs()
    for node, side in ((left, "l"), (right, "r")):
        task = celery_setup.app.send_task("plain.environment", ("SIDE",), queue=node.worker_queue)
        assert task.get(timeout=TIMEOUT_S) == side


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
