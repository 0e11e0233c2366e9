"""The server of the results goes away: nobody's lease waits for it."""

from __future__ import annotations

import os
import time

from tests.fault.batch import Batch
from tests.fault.ledger_site import LedgerSite
from tests.fault.registry import REVOKED, Layout, fault

#: Seconds for which it is away: longer than a lease.
AWAY_S = 30.0 if os.environ.get("FAULT_LONG") else Layout.lease_s + 4.0


@fault("results: server killed, back with its file", "results", layout=Layout(broker="redis"), site=LedgerSite)
def away(batch: Batch) -> None:
    """What runs goes on, though results are to be written meanwhile; they are written when it is back."""
    site = batch.site
    assert isinstance(site, LedgerSite)
    held = [run.task_id for run in (*batch.holding(2), *batch.holding(2, late=True))]
    expiring = [batch.victim("fault.nap", 0.1, ends=REVOKED, countdown=3, expires=0.5) for _ in range(2)]
    site.backend.kill()
    time.sleep(AWAY_S)
    site.backend.start()
    batch.ended(*expiring)
    batch.let_go()
    batch.ended(*held)
    for task_id in held:
        batch.check(len(site.history.runs(task_id)) == 1, f"{task_id} was begun again", "doubled")
