"""The server behind the ledger changes: nothing is granted before the workers have reported, and nothing is lost."""

from __future__ import annotations

import dataclasses

import pytest
import redis

from celery_allocator.errors import LedgerSchemaError
from celery_allocator.ledger import Beat, Claim, Grant, Options, keys
from celery_allocator.ledger.announcer import SHORTEST_PAUSE_MS, Announcer
from celery_allocator.ledger.client import Ledger
from celery_allocator.model import Allocation, State
from tests.support.ledger_pool import LEASE_S, LedgerPool
from tests.support.waiting import wait_until

PAUSE_S = SHORTEST_PAUSE_MS / 1000


def change_server(cluster: LedgerPool) -> None:
    """As if the run of the server that last wrote had been another one."""
    cluster.ledger.tick()
    cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "meta"), "run", "a" * 40)


def forget(cluster: LedgerPool, allocation: Allocation) -> None:
    """As if what was written about it had not reached the replica: its grant, or all of it."""
    cluster.ledger.release(allocation.allocation_id, allocation.token, "forgotten")
    cluster.ledger.client.delete(keys.key(cluster.ledger.pool, "tomb", allocation.allocation_id))


def report(
    cluster: LedgerPool, device: str = "gpu_0", runs: tuple[str, ...] = (), **options: object
) -> tuple[Grant, ...]:
    number, _ = cluster.ledger.rejoin(f"w.n1.{device}", "", LEASE_S)
    return cluster.worker("n1", device, report=number, runs=runs, **options)


def test_tokens_leap_and_granting_pauses_until_every_worker_has_reported(cluster: LedgerPool) -> None:
    cluster.node()
    running = cluster.running(2_000)
    change_server(cluster)
    cluster.ledger.tick()
    waiting = cluster.submit(2_000).allocation
    assert waiting.state is State.WAITING
    assert cluster.ledger.heartbeat("w.n1.gpu_0", "one", LEASE_S) is Beat.REPORT
    cluster.at += PAUSE_S + 0.1
    report(cluster, "gpu_0", (running.allocation_id,))
    cluster.ledger.tick()
    assert cluster.ledger.get("a2").state is State.WAITING, "the worker for CPU work has not reported"
    assert cluster.ledger.heartbeat("w.n1.gpu_0", "one", LEASE_S) is Beat.KEPT
    (grant,) = report(cluster, "cpu")
    assert grant.allocation_id == "a2"
    assert grant.token > running.token + 1_000_000
    assert [e for e in cluster.happened() if e in ("epoch", "paused", "resumed")] == ["epoch", "paused", "resumed"]


def test_the_pause_lasts_its_shortest_time_though_all_have_reported(cluster: LedgerPool) -> None:
    cluster.node()
    change_server(cluster)
    cluster.ledger.tick()
    report(cluster, "gpu_0")
    report(cluster, "cpu")
    cluster.submit(2_000)
    cluster.at += PAUSE_S - 0.1
    assert cluster.ledger.tick().grants == ()
    cluster.at += 0.2
    assert [g.allocation_id for g in cluster.ledger.tick().grants] == ["a1"]


def test_a_worker_that_never_reports_holds_granting_up_for_its_lease(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.node("n2")
    change_server(cluster)
    cluster.ledger.tick()
    for device in ("gpu_0", "cpu"):
        report(cluster, device, lease_s=1000)
        cluster.worker("n2", device)
    cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "worker", "w.n2.gpu_0"), "run", "a" * 40)
    cluster.submit(2_000)
    cluster.at += LEASE_S - 1
    assert cluster.ledger.tick().grants == ()
    cluster.at += 2
    assert [g.allocation_id for g in cluster.ledger.tick().grants] == ["a1"]


@pytest.mark.parametrize("left", ["granted", "nothing"])
def test_what_runs_is_claimed_again_where_the_server_forgot_its_start(cluster: LedgerPool, left: str) -> None:
    cluster.node()
    granted = cluster.submit(2_000, 2, 500).allocation
    running = dataclasses.replace(granted, started_at=cluster.at, state=State.RUNNING)
    if left == "nothing":
        forget(cluster, granted)
    assert cluster.ledger.reclaim(running, "w.n1.gpu_0", repeatable=True, message=b"message")[0] is Claim.STANDS
    found = cluster.ledger.get(running.allocation_id)
    assert (found.state, found.token, found.cpu_cores) == (State.RUNNING, running.token, running.cpu_cores)
    assert cluster.device("n1/gpu_0").memory_free_mb == 8_000
    assert cluster.ledger.find(running.task_id) == (found,)
    assert cluster.ledger.release(running.allocation_id, running.token, "success").done


def test_what_waits_again_is_claimed_back_from_the_line(cluster: LedgerPool) -> None:
    cluster.node(slots=1)
    running = cluster.running(2_000, repeatable=True)
    cluster.at += LEASE_S
    cluster.ledger.tick()
    assert cluster.ledger.get("a1").state is State.WAITING
    assert cluster.ledger.reclaim(running, "w.n1.gpu_0", repeatable=True)[0] is Claim.STANDS
    cluster.node(slots=None)
    report(cluster, "gpu_0", ("a1",), incarnation="two", slots=1)
    found = cluster.ledger.get("a1")
    assert (found.state, found.token, found.worker) == (State.RUNNING, running.token, "w.n1.gpu_0")
    assert cluster.device("n1/gpu_0").slots_free == 0


def test_what_has_moved_on_is_not_claimed_back(cluster: LedgerPool) -> None:
    cluster.node()
    moved = cluster.running(2_000, repeatable=True)
    ended = cluster.running(2_000)
    cluster.ledger.release(ended.allocation_id, ended.token, "success")
    cluster.ledger.release(moved.allocation_id, moved.token, "requeue")
    again = cluster.start(cluster.ledger.get(moved.allocation_id), nonce="delivery 2")
    assert "runs" in cluster.ledger.reclaim(moved, "w.n1.gpu_0")[1]
    assert "has ended" in cluster.ledger.reclaim(ended, "w.n1.gpu_0")[1]
    assert cluster.ledger.get(moved.allocation_id).token == again.token


@pytest.mark.parametrize("what", ["GPU memory", "core", "RAM"])
def test_what_was_given_to_others_is_not_claimed_back(cluster: LedgerPool, what: str) -> None:
    cluster.node(ram=1_000)
    granted = cluster.submit(6_000, 5, 600).allocation
    forget(cluster, granted)
    cluster.by_hand(**{"GPU memory": {"gpu": 6_000}, "core": {"cores": 5}, "RAM": {"ram": 600}}[what])  # type: ignore[arg-type]
    assert what in cluster.ledger.reclaim(granted, "w.n1.gpu_0", message=b"message")[1]
    assert cluster.ledger.find(granted.task_id) == ()


def test_what_a_worker_does_not_report_has_ended_and_its_result_is_to_be_written(cluster: LedgerPool) -> None:
    cluster.node()
    known, unknown = cluster.running(2_000), cluster.running(2_000)
    unstarted = cluster.submit(2_000).allocation
    report(cluster, "gpu_0", (known.allocation_id,))
    ticked = cluster.ledger.tick()
    assert [(o.allocation_id, o.outcome) for o in ticked.obituaries] == [(unknown.allocation_id, "unreported")]
    assert [g.allocation_id for g in ticked.grants] == [unstarted.allocation_id], "its message may have gone"
    assert [a.allocation_id for a in cluster.ledger.held()] == [known.allocation_id, unstarted.allocation_id]


def test_the_result_of_an_unreported_task_is_its_retrys(cluster: LedgerPool) -> None:
    cluster.node()
    first = cluster.running(2_000, task_id="t")
    cluster.submit(2_000, task_id="t")
    report(cluster, "gpu_0")
    assert cluster.ledger.tick().obituaries == ()
    assert [a.allocation_id for a in cluster.ledger.find("t")] == ["a2"]
    assert first.allocation_id == "a1"


def test_time_without_a_server_does_not_count_against_leases(cluster: LedgerPool) -> None:
    cluster.node()
    running = cluster.running(2_000)
    cluster.by_hand(1_000, ttl_s=70)
    cluster.ledger.tick()
    cluster.at += LEASE_S * 10
    ticked = cluster.ledger.tick(away_s=LEASE_S * 10)
    assert (ticked.lost_workers, ticked.obituaries) == ((), ())
    assert {a.allocation_id for a in cluster.ledger.held()} == {running.allocation_id, "a2"}


def test_a_caller_that_alone_was_cut_off_puts_no_lease_off(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(2_000)
    cluster.ledger.tick()
    cluster.at += LEASE_S - 1
    cluster.ledger.tick()
    cluster.at += 2
    assert set(cluster.ledger.tick(away_s=LEASE_S).lost_workers) == set()
    cluster.at += 1.5
    assert "w.n1.gpu_0" in cluster.ledger.tick().lost_workers, "others ticked until 2 s ago: by no more is it put off"


def test_a_ledger_that_was_lost_waits_a_lease_for_its_workers(cluster: LedgerPool) -> None:
    cluster.ledger.tick()
    assert cluster.ledger.rejoin("w.n1.gpu_0", "b" * 40, LEASE_S)[1]
    assert not cluster.ledger.rejoin("w.n1.cpu", "b" * 40, LEASE_S)[1], "once for each run of the server"
    cluster.node()
    cluster.submit(2_000)
    assert cluster.ledger.tick().grants == ()
    cluster.at += LEASE_S + 1
    for device in ("gpu_0", "cpu"):
        cluster.ledger.heartbeat(f"w.n1.{device}", "one", LEASE_S)
    assert [g.allocation_id for g in cluster.ledger.tick().grants] == ["a1"]


def test_what_arrives_of_a_report_after_a_later_one_has_no_effect(cluster: LedgerPool) -> None:
    cluster.node()
    number, _ = cluster.ledger.rejoin("w.n1.gpu_0", "", LEASE_S)
    ended = cluster.running(2_000)
    report(cluster, "gpu_0", (ended.allocation_id,))
    forget(cluster, ended)
    begun = cluster.running(2_000)
    assert "later report" in cluster.ledger.reclaim(ended, "w.n1.gpu_0", message=b"message", report=number)[1]
    cluster.worker("n1", "gpu_0", report=number, runs=(ended.allocation_id,))
    assert [a.allocation_id for a in cluster.ledger.held()] == [begun.allocation_id]
    assert cluster.ledger.tick().obituaries == ()


def test_a_tick_that_was_long_on_its_way_puts_leases_off(ledger_client: redis.Redis, pool: str) -> None:
    """It was sent before its caller could have noticed that the server was away."""
    cluster = LedgerPool(ledger_client, pool)
    cluster.ledger = Ledger(ledger_client, pool)
    cluster.node(lease_s=0.2)
    cluster.ledger.tick()
    assert cluster.ledger._met is not None
    cluster.ledger._met -= 60  # as if sent a minute ago
    ledger_client.hincrby(keys.key(pool, "meta"), "alive", -60_000)
    wait_until(lambda: not any(w.lease_left_s > 0 for w in cluster.ledger.snapshot().workers), 30, "the leases to end")
    assert cluster.ledger.tick().lost_workers == ()
    assert all(w.lease_left_s > 50 for w in cluster.ledger.snapshot().workers)


def test_a_lost_process_counts_until_it_was_lost_too_often(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(2_000)
    for loss in range(3):
        live = cluster.start(cluster.ledger.get("a1"), repeatable=True, nonce=f"delivery {loss}")
        assert (live.losses, cluster.ledger.release("a1", live.token, "lost").done) == (loss, True)
    assert [(o.allocation_id, o.outcome) for o in cluster.ledger.tick().obituaries] == [("a1", "lost")]
    assert cluster.ledger.held() == ()


def test_every_connection_asks_and_another_schema_is_refused(ledger_client: redis.Redis, pool: str) -> None:
    options = Options()
    announcer = Announcer(pool, options)
    connection = ledger_client.connection_pool.make_connection()
    connection.connect()
    try:
        announcer(connection)
        run_id = ledger_client.info("server")["run_id"]
        assert announcer.run_id == run_id
        assert ledger_client.hget(keys.key(pool, "meta"), "run") == run_id.encode()
        ledger_client.hset(keys.key(pool, "meta"), "schema", keys.SCHEMA + 1)
        with pytest.raises(LedgerSchemaError, match=f"schema {keys.SCHEMA + 1}"):
            announcer(connection)
    finally:
        connection.disconnect()
    ledger_client.delete(keys.key(pool, "meta"))
    assert Ledger(ledger_client, pool, options=options, announcer=announcer).run_id == run_id


def test_a_command_after_an_outage_drops_no_worker_that_had_no_chance_to_be_heard(cluster: LedgerPool) -> None:
    """It may come first when the server is back. A worker that is not heard even then is dropped by the next one."""
    cluster.node()
    running = cluster.running(2_000)
    cluster.ledger.tick()
    cluster.at += LEASE_S + 1
    assert cluster.ledger.tick(away_s=None).lost_workers == ()
    assert cluster.ledger.heartbeat("w.n1.gpu_0", "one", LEASE_S)
    assert [a.allocation_id for a in cluster.ledger.held()] == [running.allocation_id]
    cluster.at += 11
    assert cluster.ledger.tick(away_s=None).lost_workers == ("w.n1.cpu",)
    cluster.at += LEASE_S
    assert cluster.ledger.tick(away_s=None).lost_workers == (), "it was heard since: one more chance"
    cluster.at += 11
    assert cluster.ledger.tick(away_s=None).lost_workers == ("w.n1.gpu_0",)


def test_a_command_beside_workers_that_tick_drops_a_dead_one(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.running(2_000)
    cluster.at += LEASE_S - 1
    cluster.ledger.tick()
    cluster.at += 1.5
    assert set(cluster.ledger.tick(away_s=None).lost_workers) == {"w.n1.gpu_0", "w.n1.cpu"}


def test_what_ended_unheard_goes_before_what_took_its_place_is_claimed(cluster: LedgerPool) -> None:
    """The server has lost the end of one task and the start of the next one, in the same memory."""
    cluster.node()
    ended = cluster.running(6_000)
    cluster.ledger.release(ended.allocation_id, ended.token)
    successor = cluster.running(6_000)
    # The rollback: the successor is forgotten, the predecessor runs again.
    forget(cluster, successor)
    cluster.ledger.client.delete(keys.key(cluster.ledger.pool, "tomb", ended.allocation_id))
    assert cluster.ledger.reclaim(ended, "w.n1.gpu_0")[0] is Claim.STANDS
    number, _ = cluster.ledger.rejoin("w.n1.gpu_0", "", LEASE_S)
    runs = (successor.allocation_id,)
    assert not cluster.ledger.unreported("w.n1.gpu_0", "two", "n1/gpu_0", number, runs), "a predecessor's are not meant"
    assert cluster.ledger.unreported("w.n1.gpu_0", "one", "n1/gpu_0", number, runs)
    verdict, _ = cluster.ledger.reclaim(successor, "w.n1.gpu_0", message=b"message", report=number)
    assert verdict is Claim.STANDS
    cluster.worker("n1", "gpu_0", report=number, runs=runs)
    assert [a.allocation_id for a in cluster.ledger.held()] == [successor.allocation_id]
    assert [o.outcome for o in cluster.ledger.tick().obituaries] == ["unreported"]
    assert not cluster.ledger.unreported("w.n1.gpu_0", "one", "n1/gpu_0", number, ()), "late: it has no effect"
    assert not cluster.ledger.unreported("w.n1.cpu", "one", "n1/gpu_0", number + 99, ()), "not its device"


def test_while_granting_is_paused_what_others_hold_may_go_away(cluster: LedgerPool) -> None:
    """Its worker is told to ask again, and counts as having reported when all is clear."""
    cluster.node(gpus=(8_000, 8_000), cores=2)
    mine = cluster.running(1_000, 2)
    cluster.ledger.release(mine.allocation_id, mine.token)
    theirs = cluster.running(1_000, 2)  # the same cores
    change_server(cluster)
    cluster.ledger.tick()
    verdict, reason = cluster.ledger.reclaim(mine, "w.n1.gpu_0", message=b"m", run_id="b" * 40, patient=True)
    # Its tomb says that it has ended: as if the server had lost that as well.
    assert (verdict, reason) == (Claim.STALE, "it has ended: released")
    cluster.ledger.client.delete(keys.key(cluster.ledger.pool, "tomb", mine.allocation_id))
    verdict, reason = cluster.ledger.reclaim(mine, "w.n1.gpu_0", message=b"m", run_id="b" * 40, patient=True)
    assert verdict is Claim.LATER
    assert "was given to others" in reason
    cluster.ledger.release(theirs.allocation_id, theirs.token)
    verdict, _ = cluster.ledger.reclaim(mine, "w.n1.gpu_0", message=b"m", run_id="b" * 40, patient=True)
    assert verdict is Claim.STANDS


@pytest.mark.parametrize("repeatable", [False, True])
def test_what_has_begun_and_cannot_be_claimed_again_ends_visibly(cluster: LedgerPool, repeatable: bool) -> None:
    """Its record is lost, its cores are somebody else's: with its message its result can still be written."""
    cluster.node(cores=2)
    mine = cluster.running(1_000, 2, repeatable=repeatable)
    forget(cluster, mine)
    cluster.running(1_000, 2)
    verdict, _ = cluster.ledger.reclaim(mine, "w.n1.gpu_0", message=b"message", repeatable=repeatable)
    assert verdict is Claim.STALE
    assert [(o.allocation_id, o.outcome, o.message) for o in cluster.ledger.tick().obituaries] == [
        (mine.allocation_id, "lost", b"message")
    ]


def test_a_worker_that_slept_long_does_not_bring_back_what_has_ended(cluster: LedgerPool) -> None:
    """The ledger remembers ends for two minutes; a record that is missing on the same server has ended."""
    cluster.node()
    old = cluster.running(2_000, repeatable=True)
    cluster.ledger.tick()
    forget(cluster, old)
    run = cluster.ledger.client.hget(keys.key(cluster.ledger.pool, "meta"), "run")
    assert isinstance(run, bytes)
    assert cluster.ledger.reclaim(old, "w.n1.gpu_0", message=b"m", run_id=run.decode()) == (Claim.STALE, "it has ended")
    assert cluster.ledger.held() == ()
    assert cluster.ledger.reclaim(old, "w.n1.gpu_0", message=b"m", run_id="b" * 40)[0] is Claim.STANDS


def test_what_is_claimed_again_by_a_worker_that_never_registers_is_lost_with_it(cluster: LedgerPool) -> None:
    cluster.node()
    running = cluster.running(2_000, repeatable=False)
    cluster.ledger.tick()
    meta = keys.key(cluster.ledger.pool, "meta")
    cluster.at += LEASE_S + 1
    cluster.ledger.tick()
    assert cluster.ledger.held() == ()
    forget_obituaries = [o.allocation_id for o in cluster.ledger.tick().obituaries]
    cluster.ledger.settle(forget_obituaries)
    cluster.ledger.client.delete(keys.key(cluster.ledger.pool, "tomb", running.allocation_id))
    cluster.ledger.client.hset(meta, "rejoined", cluster.ledger.client.hget(meta, "run") or b"")
    assert cluster.ledger.reclaim(running, "w.n1.gpu_0", message=b"m")[0] is Claim.STANDS
    assert len(cluster.ledger.held()) == 1
    assert cluster.ledger.verify() == []
    cluster.at += 11
    cluster.ledger.tick()
    assert cluster.ledger.held() == ()
    assert cluster.ledger.verify() == []


def test_a_lost_run_whose_retry_lives_on_is_not_failed(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.submit(2_000, task_id="t")
    cluster.start(cluster.ledger.get("a1"))
    cluster.submit(2_000, task_id="t", eta_at=cluster.at + 500)
    cluster.at += LEASE_S + 1
    assert "w.n1.gpu_0" in cluster.ledger.tick().lost_workers
    assert cluster.ledger.tick().obituaries == ()
    assert [a.allocation_id for a in cluster.ledger.find("t")] == ["a2"]
