"""Processes of another version at one ledger."""

from __future__ import annotations

import json
import subprocess
import sys

from celery_allocator.ledger import keys
from tests.fault.app import SCHEMA
from tests.fault.batch import Batch
from tests.fault.registry import fault
from tests.support.processes import ROOT, OwnedProcess

_SEND = """
import json, sys
from tests.fault.app import make_app
make_app(**json.loads(sys.argv[1])).tasks["fault.nap"].apply_async((0.1,), task_id=sys.argv[2])
"""


def _refused(batch: Batch, schema: int) -> None:
    site = batch.site
    cluster = site.cluster
    says = f"schema {keys.SCHEMA}, this version of celery-allocator speaks {schema}"
    held = [run.task_id for run in (*batch.holding(2), *batch.holding(2, late=True))]
    env = cluster.environment({SCHEMA: str(schema)})

    command = [word.replace("%h", "old") for word in site.spec("stranger", "0", 4).command()]
    worker = OwnedProcess([sys.executable, "-m", *command], site.directory / "stranger.log", env=env)
    with worker:
        status = worker.wait(45)
    said = worker.output(newest_start=True)
    batch.check(status != 0, "a worker of another version ended as if all were well")
    batch.check(says in said and "run the same version everywhere" in said, f"a worker of another version said {said}")
    batch.check("Traceback" not in said, f"a worker of another version said {said}")

    config = {
        "broker_url": cluster.broker_url,
        "result_backend": cluster.backend.url,
        "allocator_backend_url": cluster.backend.url,
        "allocator_pool": cluster.pool,
        **cluster.config,
    }
    unsent = "sent-by-another-version"
    done = subprocess.run(
        [sys.executable, "-c", _SEND, json.dumps(config), unsent],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    batch.check(done.returncode and says in done.stderr, f"a caller of another version was told {done.stderr}")
    batch.check(not cluster.ledger.find(unsent), "a caller of another version has submitted a task", "leaked")

    batch.let_go()
    batch.ended(*held)
    for task_id in held:
        batch.check(len(site.history.runs(task_id)) == 1, f"{task_id} was begun again", "doubled")


@fault("version: an old worker and caller meet a newer ledger", "version")
def old(batch: Batch) -> None:
    """Refused with a clear message, before they touch anything; what runs there is not disturbed."""
    _refused(batch, keys.SCHEMA - 1)


@fault("version: a new worker and caller meet an older ledger", "version")
def new(batch: Batch) -> None:
    """The same the other way round."""
    _refused(batch, keys.SCHEMA + 1)
