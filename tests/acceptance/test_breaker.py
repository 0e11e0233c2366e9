"""Circuit breakers with real workers: a task that fails is not granted any more, until probes have gone well."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from tests.support.cluster import SOON_S, Cluster, worker_spec

BREAKER = {"failure_rate": 0.5, "window_s": 600, "min_samples": 4, "open_s": 1, "probes": 2}
ENV = {"ALLOCATOR_BREAKER": json.dumps(BREAKER), "ALLOCATOR_LEASE_S": "5"}

pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


def allows(cluster: Cluster) -> int | None:
    """How many more of the failing task may be granted; ``None`` while its breaker is closed."""
    return next((state.allows for state in cluster.ledger.breakers() if state.name == "zoo.fail_unless"), None)


def test_it_opens_sets_aside_probes_and_closes(new_cluster: Callable[..., Cluster]) -> None:
    """Two workers: one of them has the duty, and when it is killed the other goes on with it."""
    cluster = new_cluster()
    cluster.start(worker_spec("one", "0", env=ENV), worker_spec("two", "1", env=ENV))
    key = cluster.key()
    failing = [cluster.app.send_task("zoo.fail_unless", (key,)) for _ in range(4)]
    for result in failing:
        with pytest.raises(ValueError, match="not yet"):
            result.get(timeout=SOON_S)
    cluster.until(lambda: allows(cluster) is not None, "the breaker to open")
    # More than are probed until the key is set: two at a time, after 1, 2, 4, 8, … seconds.
    aside = [cluster.app.send_task("zoo.fail_unless", (key,)) for _ in range(12)]
    # Nobody else is held up.
    assert cluster.app.send_task("zoo.where").get(timeout=SOON_S)
    assert any(result.state == "PENDING" for result in aside)

    duty = f"{{allocator:{cluster.pool}}}:duty:breakers"
    holder = cluster.until(lambda: cluster.client.get(duty), "a worker on duty")
    on_duty = cluster.workers[holder.decode().partition("@")[0]]
    os.kill(on_duty.container.process.pid, signal.SIGKILL)
    cluster.client.set(key, "1")
    for result in aside:
        # Probes from before may have failed; all others wait for those that go well.
        result.get(timeout=SOON_S, propagate=False)
    states = [result.state for result in aside]
    assert set(states) <= {"SUCCESS", "FAILURE"}
    assert states.count("SUCCESS") >= 2
    cluster.until(lambda: allows(cluster) is None, "the breaker to close")
    assert cluster.app.send_task("zoo.fail_unless", (key,)).get(timeout=SOON_S) == "well"
