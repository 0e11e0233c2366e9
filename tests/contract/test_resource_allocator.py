"""The function form on a real server, without any worker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_allocator.allocating import Session
from celery_allocator.allocating.reading import pool_status
from celery_allocator.ledger import keys, new_allocation_id
from celery_allocator.model import Kind, NodeInventory, Requirements, State, iso_utc
from celery_allocator.resource_allocator import (
    allocate_resources,
    allocation,
    release_resources,
    renew_resources,
)
from tests.support import by_hand
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.fixture
def session(redis_server: RedisServer, pool: str) -> Session:
    return by_hand.session(redis_server, pool)


def allocate(session: Session, task: str = "task_123", **given: Any) -> dict[str, Any]:
    """Half of one simulated GPU, unless ``given`` otherwise."""
    options = {name: given.pop(name) for name in ("allocation_strategy", "wait_s", "ttl_s") if name in given}
    needs = {"gpu_memory_mb": by_hand.GPU_MB // 2, "cpu_cores": 1, "ram_mb": 0, **given}
    return allocate_resources(task, "ml_inference", needs, session=session, **options)


def fill(session: Session, **options: Any) -> list[str]:
    """Take all GPU memory; returns the allocations."""
    replies = [allocate(session, f"filler_{n}", gpu_memory_mb=by_hand.GPU_MB, **options) for n in range(2)]
    assert all(reply["resources"] for reply in replies)
    return [reply["allocation_id"] for reply in replies]


def test_a_grant_has_the_documented_form(session: Session) -> None:
    reply = allocate_resources(
        "task_123", "ml_inference", {"gpu_memory_mb": 2048, "cpu_cores": 2, "ram_mb": 4096}, session=session
    )

    assert list(reply)[: len(by_hand.KEYS)] == by_hand.KEYS
    assert reply["success"] is True
    assert reply["allocation_id"].startswith("alloc_")
    assert reply["task_id"] == "task_123"
    assert reply["resources"] == {"gpu_id": "gpu_0", "gpu_memory_mb": 2048, "cpu_cores": [0, 1], "ram_mb": 4096}
    assert reply["queue_position"] == 0
    assert time.strptime(reply["estimated_start_time"], "%Y-%m-%dT%H:%M:%SZ")
    assert list(reply["metadata"]) == ["allocation_time_ms", "available_resources"]
    assert reply["metadata"]["available_resources"] == {
        "gpu_memory_mb": by_hand.GPU_MB - 2048,
        "cpu_cores": by_hand.CORES - 2,
        "ram_mb": by_hand.RAM_MB - 4096,
    }
    assert 0 < reply["metadata"]["allocation_time_ms"] < 5000
    assert reply["node"] == by_hand.NODE
    assert reply["gpu_uuid"] == "GPU-sim-host1-0"
    assert reply["state"] == "running"
    assert reply["token"] > 0
    assert json.loads(json.dumps(reply)) == reply


def test_a_task_type_gives_what_is_not_asked_for(session: Session) -> None:
    assert allocate_resources("a", "rendering", {"cpu_cores": 1}, session=session)["resources"] == {
        "gpu_id": "gpu_0",
        "gpu_memory_mb": 4096,
        "cpu_cores": [0],
        "ram_mb": 8192,
    }
    without_gpu = allocate_resources("b", "processing", session=session)
    assert without_gpu["resources"] == {"gpu_id": None, "gpu_memory_mb": 0, "cpu_cores": [1, 2], "ram_mb": 2048}
    assert without_gpu["gpu_uuid"] is None


def test_task_types_are_extended_by_settings(redis_server: RedisServer, pool: str) -> None:
    mine = by_hand.session(redis_server, pool, task_types={"embedding": {"gpu_memory_mb": 100, "cpu_cores": 3}})

    assert allocate_resources("a", "embedding", {}, session=mine)["resources"]["cpu_cores"] == [0, 1, 2]


@pytest.mark.parametrize(("strategy", "device"), [("first_fit", "gpu_0"), ("best_fit", "gpu_1"), ("priority", "gpu_1")])
def test_the_strategy_picks_the_device(session: Session, strategy: str, device: str) -> None:
    fullest = [allocate(session, f"t{n}", gpu_memory_mb=10_000 + n) for n in range(3)]
    assert [reply["resources"]["gpu_id"] for reply in fullest] == ["gpu_0", "gpu_0", "gpu_1"]
    # gpu_0 has 4575 MB left, gpu_1 14574; with the larger of the first two gone, gpu_1 is the fuller one.
    release_resources(fullest[0]["allocation_id"], session=session)
    allocate(session, "more", gpu_memory_mb=9000, allocation_strategy="first_fit")
    release_resources(fullest[1]["allocation_id"], session=session)

    reply = allocate(session, "chosen", gpu_memory_mb=1000, allocation_strategy=strategy)

    assert reply["resources"]["gpu_id"] == device
    assert reply["strategy"] == strategy


def test_what_does_not_fit_now_waits_in_line_and_is_granted_when_room_appears(session: Session) -> None:
    held, _ = fill(session)

    first = allocate(session, "first")
    second = allocate(session, "second")

    for reply, position in ((first, 1), (second, 2)):
        assert reply["success"] is True
        assert reply["resources"] is None
        assert reply["queue_position"] == position
        # No run time is known; what is held ends with its TTL at the latest.
        assert reply["estimated_start_time"] == iso_utc(session.ledger.get(held).expires_at)
        assert reply["state"] == "waiting"
        assert reply["metadata"]["available_resources"] == {
            "gpu_memory_mb": 0,
            "cpu_cores": by_hand.CORES - 2,
            "ram_mb": by_hand.RAM_MB,
        }
    assert allocation(second["allocation_id"], session=session)["queue_position"] == 2
    assert release_resources(held, session=session)["success"]
    granted = [allocation(reply["allocation_id"], session=session) for reply in (first, second)]
    assert [reply["resources"]["gpu_id"] for reply in granted] == ["gpu_0", "gpu_0"]
    assert [reply["queue_position"] for reply in granted] == [0, 0]
    assert session.ledger.verify() == []


def test_on_a_host_without_gpus_a_waiter_is_told_its_free_cores(redis_server: RedisServer, pool: str) -> None:
    bare = by_hand.session(redis_server, pool, devices="none")
    allocate(bare, "a", gpu_memory_mb=0, cpu_cores=5, ram_mb=1000)

    waiting = allocate(bare, "b", gpu_memory_mb=0, cpu_cores=4)

    left = {"gpu_memory_mb": 0, "cpu_cores": 3, "ram_mb": by_hand.RAM_MB - 1000}
    assert waiting["queue_position"] == 1
    assert waiting["metadata"]["available_resources"] == left
    assert allocation(waiting["allocation_id"], session=bare)["metadata"]["available_resources"] == left


def test_a_grant_after_waiting_lives_for_the_whole_ttl(redis_server: RedisServer, pool: str) -> None:
    session = by_hand.session(redis_server, pool, lease_s=2)
    held, _ = fill(session)
    releaser = threading.Timer(0.1, release_resources, (held,), {"session": session})
    releaser.start()
    reply = allocate(session, "patient", wait_s=30, ttl_s=500)
    releaser.join()
    kept = allocate(session, "late", wait_s=0.05, ttl_s=500, gpu_memory_mb=by_hand.GPU_MB)

    assert reply["resources"] and not kept["resources"]
    for one in (reply, kept):
        ends = session.ledger.get(one["allocation_id"]).expires_at
        assert ends is not None and ends - time.time() > 400
    assert 400 < lease_left_s(session) < 3601


def test_run_times_feed_the_estimate(session: Session) -> None:
    held, _ = fill(session)
    release_resources(held, session=session)
    fill_again = allocate(session, "again", gpu_memory_mb=by_hand.GPU_MB)

    waiting = allocate(session, "late")

    assert fill_again["resources"]
    assert waiting["estimated_start_time"] is not None


def test_waiting_ends_with_the_grant(session: Session) -> None:
    held, _ = fill(session)

    def release_when_someone_waits() -> None:
        wait_until(session.ledger.queue, 30, "somebody in line")
        release_resources(held, session=session)

    releaser = threading.Thread(target=release_when_someone_waits)
    releaser.start()
    reply = allocate(session, "patient", wait_s=30)
    releaser.join()

    assert reply["resources"]["gpu_id"] == "gpu_0"
    assert reply["queue_position"] == 0
    assert reply["metadata"]["available_resources"]["gpu_memory_mb"] == by_hand.GPU_MB // 2
    assert reply["metadata"]["allocation_time_ms"] > 1


def test_waiting_in_vain_keeps_the_place_in_line(session: Session) -> None:
    fill(session)

    reply = allocate(session, "patient", wait_s=0.1)

    assert reply["success"] is True
    assert reply["queue_position"] == 1
    assert reply["metadata"]["allocation_time_ms"] >= 100
    assert [a.task_id for a in session.ledger.queue()] == ["patient"]


def test_an_interrupted_wait_leaves_the_line(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(session)

    def interrupt(_seconds: float) -> None:
        assert [a.task_id for a in session.ledger.queue()] == ["impatient"]
        raise KeyboardInterrupt

    monkeypatch.setattr("celery_allocator.allocating.acquire.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        allocate(session, "impatient", wait_s=30)

    assert session.ledger.queue() == ()


def test_a_ttl_ends_without_any_worker(session: Session) -> None:
    fill(session, ttl_s=0.3)

    reply = allocate(session, "next", gpu_memory_mb=by_hand.GPU_MB, wait_s=30)

    assert reply["resources"]["gpu_memory_mb"] == by_hand.GPU_MB
    assert {event["outcome"] for _, event in session.ledger.events() if event["event"] == "released"} == {"ttl"}
    assert session.ledger.verify() == []


def test_an_ended_ttl_is_seen_by_whoever_asks_next(session: Session) -> None:
    reply = allocate(session, ttl_s=0.05)

    def ended() -> bool:
        return not allocation(reply["allocation_id"], session=session)["success"]

    wait_until(ended, 30, "the end of the TTL")
    assert session.ledger.held() == ()


def test_a_waiter_outlives_its_ttl_only_while_it_waits(session: Session) -> None:
    held, _ = fill(session)
    ttl_s = 3

    def release_after_two_lives() -> None:
        (waiting,) = wait_until(session.ledger.queue, 30, "somebody in line")
        wait_until(lambda: time.time() - waiting.submitted_at > 2 * ttl_s, 30)
        release_resources(held, session=session)

    releaser = threading.Thread(target=release_after_two_lives)
    releaser.start()
    assert allocate(session, "patient", wait_s=30, ttl_s=ttl_s)["resources"]
    releaser.join()

    abandoned = allocate(session, "abandoned", gpu_memory_mb=by_hand.GPU_MB, ttl_s=0.05)
    assert abandoned["queue_position"] == 1
    wait_until(lambda: not allocation(abandoned["allocation_id"], session=session)["success"], 30)


def test_renewing_extends_the_life(session: Session) -> None:
    reply = allocate(session, ttl_s=60)
    before = session.ledger.get(reply["allocation_id"]).expires_at

    renewed = renew_resources(reply["allocation_id"], 120, reply["token"], session=session)

    after = session.ledger.get(reply["allocation_id"]).expires_at
    assert before is not None and after is not None
    assert 59 < after - before < 65
    assert renewed["success"] and renewed["resources"] == reply["resources"]
    assert renewed["expires_at"] > reply["expires_at"]


@pytest.mark.parametrize("act", [renew_resources, release_resources], ids=["renew", "release"])
def test_an_old_token_changes_nothing(session: Session, act: Callable[..., dict[str, Any]]) -> None:
    reply = allocate(session)
    before = session.ledger.get(reply["allocation_id"])

    refused = act(reply["allocation_id"], token=reply["token"] + 1, session=session)

    assert refused["success"] is False
    assert refused["error"]["code"] == "stale_token"
    assert session.ledger.get(reply["allocation_id"]) == before


def test_releasing_gives_back_once(session: Session) -> None:
    reply = allocate(session)

    released = release_resources(reply["allocation_id"], reply["token"], session=session)
    again = release_resources(reply["allocation_id"], reply["token"], session=session)

    assert released["success"] is True
    assert released["state"] == "released"
    assert released["resources"] is None
    assert again["success"] is False
    assert again["error"]["code"] == "not_found"
    assert session.ledger.held() == ()
    assert session.ledger.verify() == []


def test_releasing_what_waits_takes_it_out_of_line(session: Session) -> None:
    fill(session)
    waiting = allocate(session, "waiting")

    assert release_resources(waiting["allocation_id"], session=session)["success"]

    assert session.ledger.queue() == ()
    assert len(session.ledger.held()) == 2


@pytest.mark.parametrize(
    ("needs", "dimension", "largest"),
    [
        ({"gpu_memory_mb": by_hand.GPU_MB + 1}, "gpu_memory_mb", by_hand.GPU_MB),
        ({"cpu_cores": by_hand.CORES + 1}, "cpu_cores", by_hand.CORES),
        ({"ram_mb": by_hand.RAM_MB + 1}, "ram_mb", by_hand.RAM_MB),
    ],
)
def test_what_can_never_fit_is_refused(session: Session, needs: dict[str, int], dimension: str, largest: int) -> None:
    reply = allocate(session, **needs)

    assert list(reply)[: len(by_hand.KEYS)] == by_hand.KEYS
    assert reply["success"] is False
    assert reply["allocation_id"] is None and reply["resources"] is None
    assert reply["task_id"] == "task_123"
    error = reply["error"]
    assert error["code"] == "never_fits"
    assert (error["dimension"], error["requested"], error["largest"]) == (dimension, needs[dimension], largest)
    assert dimension in error["message"] and str(largest) in error["message"]
    assert session.ledger.held() == session.ledger.queue() == ()


def test_a_host_without_gpus_says_what_to_try(redis_server: RedisServer, pool: str) -> None:
    bare = by_hand.session(redis_server, pool, devices="none")

    refused = allocate(bare)
    granted = allocate(by_hand.session(redis_server, pool))

    assert refused["error"]["code"] == "never_fits"
    assert "ALLOCATOR_DEVICES=sim:2x24576" in refused["error"]["message"]
    assert granted["resources"]["gpu_id"] == "gpu_0"


def test_a_refusal_keeps_the_host_registered_only_briefly(session: Session) -> None:
    allocate(session, gpu_memory_mb=by_hand.GPU_MB + 1, ttl_s=3600)

    assert 0 < lease_left_s(session) <= session.settings.lease_s


def test_the_host_is_offered_for_as_long_as_its_allocations_live(session: Session) -> None:
    first, second = allocate(session, "a", ttl_s=100), allocate(session, "b", ttl_s=50)
    assert 90 < lease_left_s(session) <= 101

    release_resources(first["allocation_id"], session=session)
    assert ready(session)
    release_resources(second["allocation_id"], session=session)

    session.upkeep()
    assert not ready(session)
    assert allocate(session, "c")["resources"]["gpu_id"] == "gpu_0"


def test_a_waiter_is_granted_on_a_host_whose_last_allocation_has_ended(session: Session) -> None:
    fill(session, ttl_s=3)
    waiting = allocate(session, "late", ttl_s=60)
    assert waiting["queue_position"] == 1

    def granted() -> Any:
        return allocation(waiting["allocation_id"], session=session)["resources"]

    assert wait_until(granted, 30, "the grant")["gpu_id"] == "gpu_0"
    assert allocate(session, "beside")["resources"]
    assert session.ledger.verify() == []


def test_a_host_that_workers_serve_is_left_as_they_described_it(session: Session) -> None:
    real = NodeInventory(by_hand.NODE, (0, 1, 2), 4000)
    session.ledger.register_node(real, 60)
    session.ledger.register_worker("cpu@host1", "i1", by_hand.NODE, "cpu", slots=2, queue="q", lease_s=60)

    refused = allocate(session)
    granted = allocate(session, gpu_memory_mb=0, cpu_cores=3)

    assert refused["error"]["code"] == "never_fits"
    assert granted["resources"]["cpu_cores"] == [0, 1, 2]
    node = session.ledger.node(by_hand.NODE)
    assert node is not None
    assert node.cpu_cores == (0, 1, 2) and node.ram_mb == 4000
    assert [device.device_id for device in node.devices] == ["cpu"]


def test_a_celery_tasks_allocation_is_its_workers_to_release(session: Session) -> None:
    ledger = session.ledger
    ledger.register_node(session.inventory, 60)
    ledger.register_worker("cpu@host1", "i1", by_hand.NODE, "cpu", slots=2, queue="q", lease_s=60)
    task = ledger.submit(new_allocation_id(), "t", "proj.t", Requirements(), kind=Kind.TASK, message=b"x").allocation
    assert task.state is State.GRANTED

    for act in (release_resources, renew_resources):
        refused = act(task.allocation_id, session=session)
        assert refused["error"]["code"] == "not_found"
        assert "belongs to" in refused["error"]["message"]

    assert ledger.get(task.allocation_id).state is State.GRANTED


def test_an_unknown_id_is_not_found(session: Session) -> None:
    for act in (allocation, renew_resources, release_resources):
        refused = act("alloc_nope", session=session)
        assert refused["success"] is False
        assert refused["error"]["code"] == "not_found"
        assert refused["allocation_id"] == "alloc_nope"


def test_ten_threads_for_eight_cores_get_exactly_eight(session: Session) -> None:
    session.ledger.register_node(session.inventory, 60)
    replies: list[dict[str, Any]] = []
    gate = threading.Barrier(10)

    def ask(number: int) -> None:
        gate.wait()
        replies.append(allocate(session, f"t{number}", gpu_memory_mb=0, cpu_cores=1))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    granted = [reply["resources"]["cpu_cores"][0] for reply in replies if reply["resources"]]
    assert sorted(granted) == list(range(8))
    assert sorted(reply["queue_position"] for reply in replies if not reply["resources"]) == [1, 2]
    assert session.ledger.verify() == []


def lease_left_s(session: Session) -> float:
    score = session.ledger.client.zscore(keys.key(session.settings.pool, "nodes"), by_hand.NODE)
    assert score is not None
    return float(score) / 1000 - time.time()


def ready(session: Session) -> bool:
    node = session.ledger.node(by_hand.NODE)
    assert node is not None
    return node.state == "ready"


def test_several_gpus_are_told_each_with_its_uuid(session: Session) -> None:
    reply = allocate(session, "both", gpu_memory_mb=1000, gpu_count=2, cpu_cores=2)

    held = reply["resources"]
    assert (held["gpu_id"], held["gpu_memory_mb"], len(held["cpu_cores"])) == ("gpu_0", 1000, 2)
    assert held["gpu_ids"] == ["gpu_0", "gpu_1"]
    assert held["gpu_uuids"] == [device.uuid for device in session.inventory.devices]
    assert reply["gpu_uuid"] == held["gpu_uuids"][0]
    assert held == pool_status(reply["allocation_id"], session=session)["resources"]
    free = {d["device"].split("/")[1]: d["gpu_memory_free_mb"] for d in pool_status(session=session)["devices"]}
    assert (free["gpu_0"], free["gpu_1"]) == (by_hand.GPU_MB - 1000, by_hand.GPU_MB - 1000)
    alone = allocate(session, "one", gpu_memory_mb=1000)
    assert "gpu_ids" not in alone["resources"]
    too_many = allocate(session, "three", gpu_memory_mb=1000, gpu_count=3)
    assert (too_many["error"]["dimension"], too_many["error"]["largest"]) == ("gpu_count", 2)
