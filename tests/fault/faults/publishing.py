"""Processes killed between a step in the ledger and the message that should follow it.

Where the broker is the ledger's own Redis the script delivers, and there is nothing in between.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from tests.fault.app import DIE_IN_CHILD, DIE_IN_MAIN
from tests.fault.batch import VICTIM, Batch
from tests.fault.registry import VISIBLE, fault
from tests.support.processes import ROOT, clean_environment

BROKERS = ("redis", "rabbitmq")


@fault("producer: killed between submit and publish", "producer", brokers=BROKERS, at_once=8)
def producer(batch: Batch) -> None:
    """The ledger has the message: it is published when the grant has not started in time."""
    cluster = batch.site.cluster
    config = {
        "broker_url": cluster.broker_url,
        "result_backend": cluster.backend.url,
        "allocator_backend_url": cluster.backend.url,
        "allocator_pool": cluster.pool,
        **cluster.config,
    }
    killed = 0
    while killed < batch.rounds:
        ids = [str(uuid.uuid4()) for _ in range(batch.rounds - killed)]
        for task_id in ids:
            batch.sent_elsewhere(task_id, "fault.nap")
        work = json.dumps({"config": config, "ids": ids, "resources": VICTIM})
        command = [sys.executable, "-m", "tests.fault.producer", work]
        done = subprocess.run(
            command, env=clean_environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        # One whose task had to wait had nothing to publish: another try.
        killed += int(done.stdout)
        batch.ended(*ids)


@fault("operator: killed between resume and publish", "operator", brokers=BROKERS)
def operator(batch: Batch) -> None:
    """The journal and the grants stand in the ledger: what was granted is published when it has not started in time."""
    cluster = batch.site.cluster
    cluster.ledger.pause(stop=True)
    batch.until(lambda: not cluster.ledger.held(), "what runs to end")
    ids = [batch.victim("fault.nap", 0.1) for _ in range(4)]
    command = [sys.executable, "-m", "tests.fault.operator", cluster.backend.url, cluster.pool]
    done = subprocess.run(command, env=clean_environment(), cwd=ROOT, capture_output=True, timeout=60, check=False)
    batch.check(done.returncode == -signal.SIGKILL, f"the operator was not killed: {done.stderr.decode()}")
    batch.check(cluster.ledger.journal(1)[0].action == "resume", "the action is not in the journal")
    batch.ended(*ids)


def _released(batch: Batch, flag: str) -> list[Path]:
    files = [batch.site.history.path.with_name(f"{flag}-{n}") for n in range(batch.rounds)]
    for file in files:
        file.touch()
    return files


@fault("releaser: child killed before it publishes the next grants", "releaser", brokers=BROKERS, at_once=8,
       load_ends=VISIBLE)  # fmt: skip
def child(batch: Batch) -> None:
    """The grants stand in the ledger: they are published when they have not started in time."""
    files = _released(batch, DIE_IN_CHILD)
    batch.until(lambda: not any(file.exists() for file in files), "children to release and die", 90)


@fault("releaser: worker killed before it publishes the next grants", "releaser", brokers=BROKERS, load_ends=VISIBLE)
def main(batch: Batch) -> None:
    """A main process dies with grants in hand, its own and others'."""
    (file,) = _released(batch, DIE_IN_MAIN)
    alive = [batch.site.process(name) for name in batch.site.cluster.workers]
    while file.exists():
        # Only what a child could not release is released by its worker.
        batch.ended(batch.victim("fault.die", "sigkill", ends=VISIBLE))
    batch.until(lambda: not all(process.alive for process in alive), "the worker to end")
