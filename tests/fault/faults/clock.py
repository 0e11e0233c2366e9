"""Workers whose clocks are wrong. The ledger's server has the only clock that counts."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fault.batch import Batch
from tests.fault.registry import FAILS, REVOKED, VISIBLE, Layout, fault
from tests.fault.site import Site
from tests.fault.stale import freed
from tests.support import wrong_clock

HOUR_S = 3600
#: How far each worker's clock is ahead (seconds).
AHEAD_S = {"gpu0": HOUR_S, "gpu1": -HOUR_S}
WITHIN_S = Layout.lease_s + 2.0


class WrongClockSite(Site):
    """One worker's clock is an hour ahead, another one's an hour behind, the third one's right."""

    def worker_env(self, name: str) -> Mapping[str, str]:
        ahead = AHEAD_S.get(name)
        return {} if ahead is None else wrong_clock.environ(self.directory, ahead)


@fault("clock: workers an hour ahead and an hour behind", "clock", site=WrongClockSite, at_once=8)
def wrong(batch: Batch) -> None:
    """Nothing is early, late or expired by a worker's clock, also not what a worker itself sends (retries)."""
    held = [run.task_id for run in batch.holding(2)]
    for _ in range(batch.rounds):
        batch.victim("fault.nap", 0.1, expires=40)
        batch.victim("fault.nap", 0.1, expires=40, countdown=1)
        retried = batch.victim("fault.die", "retry_in_a_second", ends=FAILS, expires=40)
        overdue = batch.victim("fault.nap", 0.1, ends=REVOKED, countdown=4, expires=1)
        batch.ended(*(task_id for task_id, task in list(batch.sent.items()) if task.victim and task_id not in held))
        batch.check(len(batch.site.history.runs(retried)) == 2, f"{retried} was not run twice")
        batch.check(not batch.site.history.runs(overdue), f"{overdue} ran after it had expired")
    batch.let_go()
    batch.ended(*held)
    for task_id in held:
        batch.check(len(batch.site.history.runs(task_id)) == 1, f"{task_id} was begun again", "doubled")


@fault("clock: a worker an hour ahead is killed", "clock", site=WrongClockSite, load_ends=VISIBLE, within_s=WITHIN_S)
def killed(batch: Batch) -> None:
    """Its lease is the server's: it ends neither at once nor in an hour."""
    runs = [*batch.holding(3, late=True, ends=VISIBLE), *batch.holding(3, ends=VISIBLE)]
    name = batch.site.worker_of(runs[0].device)
    mine = [run for run in runs if run.device == runs[0].device]
    batch.strike(*(run.task_id for run in mine))
    batch.site.process(name).kill()
    freed(batch, mine)
