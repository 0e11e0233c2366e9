"""Runs whose worker has lost its lease and does not know yet: what of them is judged, and until when."""

from __future__ import annotations

from collections.abc import Iterable

from tests.fault.batch import Batch
from tests.fault.history import Run


def freed(batch: Batch, runs: Iterable[Run], timeout: float = 30.0) -> None:
    """Wait until the ledger has the slots of these back."""
    grants = {run.grant for run in runs}
    batch.until(lambda: grants <= batch.site.freed.keys(), "the slots to be free", timeout)


def lapse(batch: Batch, stale: Iterable[Run]) -> None:
    """What the ledger has taken back holds nothing by right from that instant on."""
    for run in stale:
        # What the ledger took back is seen a little later than it happens.
        if run.grant in batch.site.freed:
            run.lapsed = batch.site.freed[run.grant] - 0.5


def await_end(batch: Batch, stale: list[Run], within_s: float) -> None:
    """Their worker can notice now: what is not its own any more has to end within ``within_s`` seconds."""

    def ended() -> bool:
        for run in stale:
            if run.end is None and run.grant not in batch.site.freed:
                # Nobody else had got it, so it is its own again, under the grant that it has: it was not struck.
                run.lapsed = None
                if run.task_id in batch.sent:
                    batch.sent[run.task_id].struck = None
        return all(run.end is not None or run.grant not in batch.site.freed for run in stale)

    try:
        batch.until(ended, "stale runs to be stopped", within_s)
    except AssertionError:
        left = [run.task_id for run in stale if run.end is None and run.grant in batch.site.freed]
        batch.check(False, f"{left} went on {within_s} s after their worker could notice", "overlaps")
