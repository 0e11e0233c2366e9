"""A small history whose every number can be worked out by hand, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from celery_allocator.history import History
from celery_allocator.history.entry import Entry
from celery_allocator.history.turns import turns_to_write
from celery_allocator.history.window import Window
from celery_allocator.history.writer import Hole
from tests.history.made import BEGAN, entry, grant, release, start, submitted

ZERO = datetime.fromtimestamp(BEGAN / 1000, tz=timezone.utc)
NOW = ZERO + timedelta(days=1)
#: An hour in ms.
HOUR = 3_600_000


def at(hours: float) -> datetime:
    """So many hours after the beginning (2023-11-14T22:13:20Z)."""
    return ZERO + timedelta(hours=hours)


def window(start_h: float, end_h: float) -> Window:
    """Between two such moments."""
    return Window(at(start_h), at(end_h))


def write(history: History, entries: Iterable[Entry], *holes: Hole) -> None:
    """Make the tables, if need be, and write."""
    if history.schema.current() is None:
        history.schema.upgrade()
    with turns_to_write(history._url, history.pool, history.schema) as take:
        writer = take()
        assert writer is not None
        writer.write(list(entries), NOW)
        for hole in holes:
            writer.note(hole, NOW)


def entries() -> list[Entry]:
    """Two devices of 12288 and 6144 MB, and the life of six allocations.

    ====  ===========  =======  =======  =====================================================================
    id    name         tenant   GPU MB   what happened (hours)
    ====  ===========  =======  =======  =====================================================================
    ok    proj.infer   team     6144     waits 0; granted 1, started 2, success 4 on gpu_0, peak 3072
    bad   proj.infer   team     6144     waits 0; granted 4, started 4, failure 5 on gpu_0
    twice proj.train   other    12288    granted 5 on gpu_0, started 5, lost 6; granted 6, started 7, success 9
    live  proj.infer   team     6144     granted 8 on gpu_1, started 8; runs
    cpu   Proj.cpu     ""       0        granted 1, started 1, success 2; 2 cores
    wait  <script>     team     6144     waits from 9, cancelled 10
    ====  ===========  =======  =======  =====================================================================
    """
    soon = BEGAN + HOUR + HOUR // 2
    cpu = {"shape": "0:2:512:t", "tenant": "", "name": "Proj.cpu"}
    large = {"shape": "12288:2:4096:t", "tenant": "other", "name": "proj.train"}
    small = {"device": "n1/gpu_1"}
    lost = {"again": 1, "device": "n1/gpu_0", "token": 5}

    def ms(hours: float) -> int:
        return int(hours * HOUR)

    return [
        entry(0, "node", "n1", at=0, cores=8, ram_mb=65536, devices=2, gpu_memory_mb="gpu_0:12288 gpu_1:6144"),
        entry(1, "worker", "w0", at=0, device="n1/gpu_0", slots=2),
        entry(2, "worker", "w1", at=0, **small, slots=2),
        entry(3, "worker", "w2", at=0, device="n1/cpu", slots=2),
        submitted(4, object_id="ok", at=ms(0), position=1, estimate=soon, estimate_p90=soon + HOUR // 4),
        submitted(5, object_id="bad", at=ms(0), position=2, estimate=BEGAN + 5 * HOUR, estimate_p90=BEGAN + 6 * HOUR),
        grant(6, "ok", at=ms(1)),
        submitted(7, "granted", "cpu", at=ms(1), device="n1/cpu", token=7, cores="2,3", **cpu),
        entry(8, "started", "cpu", at=ms(1), device="n1/cpu", token=7, worker="w2"),
        start(9, "ok", at=ms(2)),
        entry(10, "released", "cpu", at=ms(2), device="n1/cpu", token=7, outcome="success", held_ms=HOUR),
        release(11, "ok", at=ms(4), peak_gpu_mb=3072),
        grant(12, "bad", at=ms(4)),
        start(13, "bad", at=ms(4)),
        release(14, "bad", "failure", at=ms(5)),
        submitted(15, "granted", "twice", at=ms(5), device="n1/gpu_0", token=15, cores="0,1", **large),
        start(16, "twice", at=ms(5)),
        entry(17, "lost", "twice", at=ms(6), name="proj.train", **lost),
        grant(18, "twice", at=ms(6), name="proj.train"),
        start(19, "twice", at=ms(7)),
        submitted(20, "granted", "live", at=ms(8), token=20, cores="4,5", **small),
        entry(21, "started", "live", at=ms(8), **small, token=20, worker="w1"),
        release(22, "twice", at=ms(9)),
        submitted(23, object_id="wait", at=ms(9), name="<script>alert(1)</script>", position=1),
        entry(24, "cancelled", "wait", at=ms(10), outcome="cancelled", **{"from": "waiting"}),
    ]
