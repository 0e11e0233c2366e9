"""From events to rows."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.history.dates import kept
from celery_allocator.history.entry import Entry, moment, ordinal, parse, whole
from celery_allocator.history.fold import Changes
from celery_allocator.history.records import AllocationRecord
from tests.history.made import BEGAN, entry, folded, grant, release, start, submitted


def at(seconds: float) -> datetime:
    """A time after the beginning."""
    return datetime.fromtimestamp(BEGAN / 1000, tz=timezone.utc) + timedelta(seconds=seconds)


def row(*entries: Entry) -> AllocationRecord:
    """The row of a1."""
    return Changes().fold(entries).allocations["a1"]


def test_a_whole_life() -> None:
    record = row(
        submitted(0, position=4, estimate=BEGAN + 9000, estimate_p90=BEGAN + 12_000, expires=BEGAN + 60_000),
        grant(5),
        start(7),
        release(10, peak_gpu_mb=512, peak_ram_mb=300, cpu_milli=1900),
    )
    assert record == AllocationRecord(
        allocation_id="a1",
        last_event_id=f"{BEGAN + 10_000}-10",
        last_event_at=at(10),
        task_id="task of a1",
        task_name="proj.infer",
        tenant="team",
        kind="task",
        gpu_memory_mb=6144,
        gpu_count=1,
        cpu_cores=2,
        ram_mb=4096,
        priority=3,
        strategy="best_fit",
        submitted_at=at(0),
        expires_at=at(60),
        estimated_start_at=at(9),
        estimated_start_p90_at=at(12),
        queue_position=4,
        granted_at=at(5),
        started_at=at(7),
        ended_at=at(10),
        state="released",
        outcome="success",
        node="n1",
        device="gpu_0",
        worker="w1",
        cores="0,1",
        token=1,
        grants=1,
        wait_s=7.0,
        run_s=3.0,
        held_s=5.0,
        peak_gpu_memory_mb=512,
        peak_ram_mb=300,
        cpu_cores_used=1.9,
    )


def test_a_delayed_task_waits_from_its_eta() -> None:
    record = row(submitted(0, "delayed", eta=BEGAN + 5000), entry(5, "waiting"), grant(5), start(6))
    assert (record.eta_at, record.wait_s, record.state) == (at(5), 1.0, "running")


def test_one_made_by_hand_runs_when_it_is_granted() -> None:
    record = row(submitted(0, shape="0:1:0:m"), grant(2, device="n1/cpu"), entry(5, "released", outcome="ttl"))
    assert (record.kind, record.wait_s, record.run_s, record.held_s) == ("manual", 2.0, 3.0, 3.0)
    assert record.outcome == "ttl"


def test_several_tries_add_up() -> None:
    record = row(
        submitted(0),
        grant(1),
        start(2),
        entry(5, "lost", device="n1/gpu_0", token=1, again=1),
        grant(6),
        entry(7, "withdrawn"),
        grant(8, device="n2/gpu_1"),
        start(9),
        entry(11, "requeued"),
        grant(12),
        start(13),
        entry(14, "lost", again=0),
    )
    assert (record.grants, record.losses, record.outcome) == (4, 2, "lost")
    assert record.run_s == 3 + 2 + 1
    assert record.held_s == 4 + 1 + 3 + 2
    assert record.wait_s == 2.0


def test_what_ran_out_of_gpu_memory_is_shown_with_its_larger_claim() -> None:
    grown = entry(
        5, "grown", device="n1/gpu_0", token=1, **{"from": 1024, "to": 1536}, shape="1536:1:0:t", oom_retries=1
    )
    record = row(submitted(0), grant(1), start(2), grown)
    assert (record.state, record.gpu_memory_mb, record.run_s, record.outcome) == ("waiting", 1536, 3.0, None)
    again = row(submitted(0), grant(1), start(2), grown, grant(6), start(7), release(9))
    assert (again.grants, again.losses, again.run_s, again.outcome) == (2, 0, 3.0 + 2.0, "success")


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (entry(4, "cancelled", outcome="revoked"), "revoked"),
        (entry(4, "cancelled"), "cancelled"),
        (entry(4, "expired"), "expired"),
        (entry(4, "parked", reason="x"), "parked"),
        (entry(4, "lost", again=0), "lost"),
    ],
)
def test_every_ending(last: Entry, outcome: str) -> None:
    record = row(submitted(0), grant(1), last)
    assert (record.state, record.outcome, record.ended_at, record.held_s) == ("released", outcome, at(4), 3.0)
    after = row(submitted(0), grant(1), last, entry(5, "settled", outcome="x"), entry(6, "discarded"))
    assert (after.outcome, after.ended_at) == (outcome, at(4))


def test_a_parked_task_that_is_requeued_lives_again() -> None:
    record = row(submitted(0), entry(1, "parked"), entry(2, "requeued"))
    assert (record.state, record.outcome, record.ended_at) == ("waiting", None, None)


def test_what_is_reclaimed_goes_on() -> None:
    lost = [submitted(0), grant(1), start(2), entry(5, "lost", again=1)]
    record = row(*lost, entry(6, "reclaimed", device="n1/gpu_0", token=1), release(8))
    assert (record.run_s, record.held_s, record.grants, record.outcome) == (3.0 + 2.0, 4.0 + 2.0, 1, "success")
    forgotten = row(entry(6, "reclaimed", name="proj.x", device="n1/gpu_0", token=1), release(8))
    assert (forgotten.run_s, forgotten.task_name, forgotten.submitted_at) == (2.0, "proj.x", None)


PROMISED = {"position": 2, "estimate": BEGAN + 3000, "estimate_p90": BEGAN + 5000}


@pytest.mark.parametrize(("started", "error_s", "covered"), [(2, -1.0, True), (5, 2.0, True), (6, 3.0, False)])
def test_what_came_of_a_promise(started: int, error_s: float, covered: bool) -> None:
    record = row(submitted(0, **PROMISED), grant(1), start(started), release(9))
    assert kept(record) == (error_s, covered)
    # A second try is nothing that was promised.
    again = row(submitted(0, **PROMISED), grant(1), start(started), entry(8, "lost", again=1), grant(9), start(10))
    assert kept(again) == (error_s, covered)


@pytest.mark.parametrize(
    "rearranged",
    [
        [entry(1, "moved", position=1, **{"from": 4})],
        [entry(1, "priority", priority=2)],
        [entry(1, "held", by="me"), entry(2, "unheld", to="waiting")],
    ],
)
def test_what_is_moved_has_no_promise_any_more(rearranged: list[Entry]) -> None:
    record = row(submitted(0, **PROMISED), *rearranged, grant(4), start(5))
    assert (kept(record), record.rearranged_at, record.estimated_start_at) == (None, at(1), at(3))
    started = row(submitted(0, **PROMISED), grant(4), start(5), entry(6, "requeued"), *rearranged)
    assert kept(started) == (2.0, True)


def test_no_promise_is_no_date() -> None:
    assert kept(row(submitted(0, position=1, estimate="", estimate_p90=""), grant(1), start(2))) is None
    assert kept(row(submitted(0, **PROMISED), grant(1))) is None
    older = row(submitted(0, position=1, estimate=BEGAN), grant(1), start(2))
    assert kept(older) == (2.0, None)


def test_what_is_kept_for_one() -> None:
    record = row(submitted(0), *(entry(n, "reserved", device="n1/gpu_0", until="") for n in (3, 5)))
    assert (record.reserved_at, record.state, record.node) == (at(3), "waiting", None)
    assert "a1" not in Changes().fold([entry(3, "reserved", device="n1/gpu_0", until="")]).allocations


def test_several_gpus() -> None:
    record = row(submitted(0, "granted", shape="4096:2:0:m:2", device="n1/gpu_0", devices="n1/gpu_0 n1/gpu_1"))
    assert (record.gpu_memory_mb, record.gpu_count, record.device) == (4096, 2, "gpu_0")
    assert record.devices == "n1/gpu_0 n1/gpu_1"


def test_a_share_and_what_it_came_to() -> None:
    waits = submitted(0, shape="0:2:0:t:1:s=250;m=A100;l.zone=a")
    asked = row(waits)
    assert (asked.gpu_memory_mb, asked.gpu_count, asked.more) == (0, 1, "s=250;m=A100;l.zone=a")
    record = row(waits, grant(1, shape="6144:2:0:t:1:s=250;m=A100;l.zone=a", warm="miss"))
    assert (record.gpu_memory_mb, record.more, record.affinity) == (6144, "s=250;m=A100;l.zone=a", "miss")
    assert row(waits, grant(1, warm="hit"), entry(2, "requeued"), grant(3)).affinity is None
    plain = row(submitted(0), grant(1))
    assert (plain.more, plain.affinity) == (None, None)


def test_a_claim_that_grew() -> None:
    told = [submitted(0, shape="1000:1:0:t"), grant(1), start(2)]
    for number, mb in ((4, 1500), (8, 2250)):
        told += [
            entry(number, "grown", device="n1/gpu_0", to=mb, shape=f"{mb}:1:0:t", **{"from": 1000}),
            grant(number + 1),
            start(number + 2),
        ]
    record = row(*told, release(12))
    assert (record.grown, record.gpu_memory_mb, record.grants, record.losses) == (2, 2250, 3, 0)
    assert record.run_s == 2 + 2 + 2 and record.wait_s == 2


def test_the_largest_overuse_is_kept() -> None:
    def over(number: int, resource: str, used: Any) -> Entry:
        return entry(number, "overuse", resource=resource, promised_mb=10, used_mb=used, action="warn")

    record = row(submitted(0), grant(1), over(2, "ram_mb", 30), over(3, "ram_mb", 20), over(4, "gpu_memory_mb", 99),
                 over(5, "something", 5), over(6, "ram_mb", "x"))  # fmt: skip
    assert (record.overuse_ram_mb, record.overuse_gpu_memory_mb, record.state) == (30, 99, "granted")


def test_what_is_withheld_of_nodes_and_devices() -> None:
    amounts = {"withheld_mb": 330, "foreign_mb": 300, "leftover_mb": 20, "overuse_mb": 10, "pids_hidden": 0}
    changes = Changes().fold([entry(1, "withheld", "n1/gpu_0", **amounts), entry(2, "withheld", "n1", withheld_mb=0)])
    device, node = changes.states
    assert (device.node, device.device, device.state) == ("n1", "gpu_0", None)
    assert (device.withheld_mb, device.foreign_mb, device.leftover_mb, device.overuse_mb) == (330, 300, 20, 10)
    assert (node.device, node.withheld_mb, node.foreign_mb) == (None, 0, None)


def test_holding_back_and_priority() -> None:
    record = row(submitted(0), entry(1, "held", by="me"))
    assert record.state == "on_hold"
    record = row(submitted(0), entry(1, "held"), entry(2, "unheld", to="waiting"), entry(3, "priority", priority=-7))
    assert (record.state, record.priority) == ("waiting", -7)
    delayed = [submitted(0, "delayed", eta=BEGAN + 9000), entry(1, "held"), entry(2, "unheld", to="delayed")]
    assert row(*delayed).state == "delayed"
    assert row(submitted(0, "held")).submitted_at == at(0)


@pytest.mark.parametrize(
    ("to", "state"), [("waiting", "waiting"), ("delayed", "delayed"), ("on_hold", "on_hold"), ("running", "waiting")]
)
def test_an_end_that_an_operator_undid(to: str, state: str) -> None:
    back = [submitted(0), grant(1), start(2), release(4), entry(5, "restored", to=to)]
    record = row(*back)
    assert (record.state, record.outcome, record.ended_at) == (state, None, None)
    record = row(*back, grant(6), start(7), release(9))
    assert (record.outcome, record.run_s, record.held_s, record.grants) == ("success", 4.0, 6.0, 2)


def test_where_the_beginning_was_missed() -> None:
    record = row(entry(9, "released", name="proj.x", device="n1/gpu_0", token=4, outcome="success", held_ms=2500))
    assert (record.task_name, record.node, record.run_s, record.held_s) == ("proj.x", "n1", 2.5, 2.5)
    assert (record.submitted_at, record.wait_s, record.grants) == (None, None, 0)
    assert folded([entry(1, "settled"), entry(2, "renewed"), entry(3, "republished"), entry(4, "discarded")]) == {}
    assert row(submitted(0), entry(3, "settled", outcome="cancelled")).outcome == "cancelled"


def test_nodes_devices_and_actions() -> None:
    changes = Changes().fold(
        [
            entry(1, "node", "n1", cores=8, ram_mb=64_000, devices=2, gpu_memory_mb="gpu_0:24576 gpu_1:x :9"),
            entry(2, "worker", "w1", device="n1/gpu_0", slots=4),
            entry(3, "cordoned", "n1"),
            entry(4, "draining", "n1/gpu_0"),
            entry(5, "worker_lost", "w1", device="n1/gpu_0"),
            entry(6, "operated", "node:n1", entry=7, action="cordon", actor="me", reason="", state="done"),
            entry(7, "epoch", ""),
            entry(8, "worker", "w9", device=""),
            entry(9, "something new", "n1"),
        ]
    )
    found = [(s.event, s.node, s.device, s.state, s.worker) for s in changes.states]
    assert found == [
        ("node", "n1", None, "online", None),
        ("node", "n1", "gpu_0", "online", None),
        ("node", "n1", "gpu_1", "online", None),
        ("worker", "n1", "gpu_0", "serving", "w1"),
        ("cordoned", "n1", None, "cordoned", None),
        ("draining", "n1", "gpu_0", "draining", None),
        ("worker_lost", "n1", "gpu_0", "idle", "w1"),
    ]
    assert changes.states[0].cpu_cores == 8 and changes.states[3].slots == 4
    assert [s.memory_mb for s in changes.states[1:3]] == [24576, None]
    assert [action.fields["action"] for action in changes.actions] == ["cordon"]
    assert changes.allocations == {}


def test_damage_is_kept_as_what_it_is() -> None:
    assert parse("17-3", {"event": "granted"}) == Entry("17-3", "granted", moment("17"), "", "", {})  # type: ignore[arg-type]
    odd = parse("1-0", {"event": "released", "at": "9" * 18, "id": "a\0b", "name": "n" * 9999})
    assert odd.object_id == "a\ufffdb" and odd.at == moment("1") and len(odd.fields["name"]) == 512
    broken = submitted(0, shape="x:2", priority="high", expires="9" * 400, position=2**40)
    record = row(broken, grant(1, token="none", device="nowhere"))
    assert (record.priority, record.expires_at, record.token, record.node, record.kind) == (None,) * 5
    assert record.queue_position is None
    assert whole(str(2**31)) is None and whole(str(2**31), 2**40) == 2**31


def test_ids_sort_as_the_stream_does() -> None:
    ids = ["9-0", "9-1", "9-10", "10-2", "1700000000000-999999", "1700000000001-0"]
    assert sorted(ids, key=ordinal) == ids
    assert ordinal(f"{2**42}-{2**60}") < 2**63


EVENTS = st.sampled_from(
    ["delayed", "waiting", "granted", "started", "released", "requeued", "republished", "withdrawn", "cancelled",
     "expired", "renewed", "settled", "lost", "parked", "discarded", "reclaimed", "held", "unheld", "restored",
     "priority", "moved", "reserved", "tenant", "node", "node_lost", "worker", "left", "cordoned", "uncordoned",
     "operated", "epoch", "overuse", "grown", "withheld", "unheard of"]
)  # fmt: skip


@st.composite
def streams(draw: Any) -> list[Entry]:
    """Any events of a few allocations, also such as no ledger would write in that order."""
    made = []
    for number in range(draw(st.integers(1, 40))):
        fields: dict[str, Any] = {"again": draw(st.integers(0, 1)), "token": number, "outcome": "success"}
        fields["device"] = draw(st.sampled_from(["n1/gpu_0", "n2/cpu", ""]))
        if draw(st.booleans()):
            fields |= {
                "new": 1,
                "shape": draw(st.sampled_from(["1:1:1:t", "0:1:0:m", "1:1:0:m:2", "bad"])),
                "priority": 1,
            }
        ms = number * 1000 + draw(st.integers(-3000, 3000))
        made.append(entry(number, draw(EVENTS), draw(st.sampled_from(["a1", "a2", "n1"])), at=ms, **fields))
    return made


@given(streams(), st.lists(st.integers(0, 40), max_size=8))
def test_batches_may_be_cut_anywhere(entries: list[Entry], cuts: list[int]) -> None:
    """A fold that goes on from the rows of the batch before ends as one over all of it."""
    whole_fold = Changes().fold(entries)
    places = [0, *sorted(min(cut, len(entries)) for cut in cuts), len(entries)]
    rows: dict[str, AllocationRecord] = {}
    states, actions = [], []
    for begin, end in itertools.pairwise(places):
        changes = Changes(rows).fold(entries[begin:end])
        rows = dict(changes.allocations)
        states += changes.states
        actions += changes.actions
    assert rows == whole_fold.allocations
    assert (states, actions) == (whole_fold.states, whole_fold.actions)
    for record in rows.values():
        assert record.run_s >= 0 and record.held_s >= 0
        assert (record.ended_at is None) == (record.outcome is None) == (record.state != "released")
