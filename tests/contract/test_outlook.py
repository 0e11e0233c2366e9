"""What the overview tells of turns and times to come, against a real ledger."""

from __future__ import annotations

import json
from collections.abc import Callable

from celery_allocator.model import Kind, Requirements
from celery_allocator.overview import explain, read_outlook, read_overview, read_waiting
from celery_allocator.overview.waiting import Waiting
from tests.support.ledger_pool import LedgerPool


def line(cluster: LedgerPool) -> dict[str, Waiting]:
    seen = read_overview(cluster.ledger)
    rows = read_waiting(cluster.ledger, seen.cluster, seen.outlook).rows
    told = {row.allocation.allocation_id: row for row in rows}
    for name, row in told.items():  # `why` says the same
        assert explain(cluster.ledger, cluster.ledger.get(name)).reason == row.reason
    return told


def test_who_waits_for_its_tenants_cap_is_told_so(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    cluster.quota("vision", gpu_memory_mb=5_000, tasks=2)
    cluster.running(4_000, 1, tenant="vision")
    cluster.submit(2_000, 1, tenant="vision", id="much")
    told = line(cluster)["much"].reason
    assert (told.code, told.lacks) == ("cap", ())
    assert told.text == "Its tenant vision has 4000 of at most 5000 MB of GPU memory; it needs 2000."
    cluster.submit(1_000, 1, tenant="vision", id="second")
    assert cluster.state("second") == "granted"
    cluster.submit(0, 1, tenant="vision", id="third")
    assert line(cluster)["third"].reason.text == "Its tenant vision has 2 of at most 2 tasks."
    # Another's does not wait for that.
    assert cluster.submit(2_000, 1, tenant="text").allocation.state.value == "granted"


def test_what_is_kept_for_the_first_in_line_is_told_to_all(cluster: LedgerPool) -> None:
    cluster.node("n1", gpus=(10_000,), lease_s=1e6)
    cluster.node("n2", gpus=(4_000,), lease_s=1e6)
    cluster.ran("slow", *[5_000] * 10)
    cluster.ran("work", *[100] * 10)
    cluster.running(4_000, 1, id="beside", task_name="work")
    cluster.running(6_000, 1, id="now")
    cluster.submit(10_000, 1, id="big", task_name="train")
    assert read_outlook(cluster.ledger).kept is None
    cluster.submit(4_000, 1, id="long", task_name="slow")
    seen = read_overview(cluster.ledger)
    kept = seen.outlook.kept
    assert kept is not None
    assert (kept.device, kept.holder.allocation_id) == ("n1/gpu_0", "big")
    assert kept.reservation.starts_at is not None
    assert {view.device.key: view.kept for view in seen.devices if view.kept} == {"n1/gpu_0": kept}
    told = line(cluster)
    assert told["big"].reason.code == "room"
    text = "There is room on n1/gpu_0, and that is kept for train (task task of big), which goes first."
    assert (told["long"].reason.code, told["long"].reason.text) == ("kept", text)
    assert (told["big"].kept, told["long"].kept) == (kept.reservation, None)
    plain = json.loads(json.dumps(seen.as_dict()))
    assert plain["reservation"]["task_id"] == "task of big"
    assert [d["kept"] and d["kept"]["name"] for n in plain["nodes"] for d in n["devices"]].count("train") == 1
    # Nothing is kept any more once it does not wait.
    cluster.ledger.cancel("big")
    assert read_outlook(cluster.ledger).kept is None


def test_one_whose_turn_has_not_come_is_behind(pools: Callable[..., LedgerPool]) -> None:
    cluster = pools(backfill="none")
    cluster.node(gpus=(10_000,), cores=8)
    cluster.running(6_000, 1)
    cluster.submit(10_000, 1, id="big")
    cluster.submit(1_000, 1, id="small")
    told = line(cluster)
    assert told["big"].reason.code == "room"
    assert (told["small"].reason.code, told["small"].reason.text) == (
        "behind",
        "There is room for it now; one that is before it in line may go first.",
    )


def test_tenants_are_told_where_there_are_any(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    assert not read_outlook(cluster.ledger).is_shared
    cluster.running(5_000, 1)
    assert not read_outlook(cluster.ledger).is_shared  # nobody in particular, alone
    cluster.running(2_500, 2, tenant="text")
    found = read_outlook(cluster.ledger)
    assert found.is_shared
    assert [(one.name, one.gpu_memory_mb, one.cpu_cores, one.tasks) for one in found.tenants] == [
        ("", 5_000, 1, 1),
        ("text", 2_500, 2, 1),
    ]
    assert found.tenant("vision") is None
    other = LedgerPool(cluster.ledger.client, f"{cluster.ledger.pool}-other")
    other.quota("vision", weight=2)
    assert not read_outlook(other.ledger).is_shared
    from_settings = json.dumps({"weight": 2, "by": "settings"})
    other.ledger.restore_tenant("vision", from_settings)
    assert read_outlook(other.ledger).is_shared


def test_dates_are_told_once_one_was_scored(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000,), cores=8)
    cluster.ran("work", 10, 10, 10)
    running = cluster.running(10_000, 1)
    cluster.submit(10_000, 1, id="next")
    assert read_outlook(cluster.ledger).scored is None
    cluster.at += 10
    assert cluster.ends(running.allocation_id) == ["next"]
    cluster.start(cluster.ledger.get("next"))
    scored = read_outlook(cluster.ledger).scored
    assert scored is not None
    assert scored.scored == 1


def test_several_gpus_lack_in_the_line_as_in_why(cluster: LedgerPool) -> None:
    cluster.node(gpus=(10_000, 10_000), cores=8)
    cluster.running(6_000, 1)
    asked = Requirements(5_000, 1, gpu_count=2)
    cluster.ledger.submit("pair", "t", "work", asked, kind=Kind.MANUAL, ttl_s=60)
    reason = line(cluster)["pair"].reason
    assert (reason.code, [lack.dimension for lack in reason.lacks]) == ("room", ["gpu_memory_mb", "gpu_count"])
