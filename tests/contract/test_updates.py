"""Updates from other systems on a real ledger: each kind, each verdict, and what a crash at any point leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celery_allocator.errors import LedgerUnavailable, UpdateNotFound
from celery_allocator.ledger import Ledger, Options
from celery_allocator.model import Requirements, State
from celery_allocator.operations import Actor, Cordon, Effect, Operator
from celery_allocator.updates import MAX_BYTES, Intake, Listener
from tests.support.ledger_pool import LedgerPool


def body(kind: str, name: str, key: str, op: str = "update", actor: str = "brain", **fields: Any) -> bytes:
    said = {"object": kind, "id": name, "op": op, "fields": fields, "actor": actor, "idempotency_key": key}
    return json.dumps(said).encode()


def send(cluster: LedgerPool, *args: Any, **fields: Any) -> str:
    return cluster.ledger.send_update(body(*args, **fields))


def told(cluster: LedgerPool, *args: Any, **fields: Any) -> dict[str, Any]:
    """Send one update, have it taken, and return its reply."""
    sent = send(cluster, *args, **fields)
    take(cluster)
    (reply,) = [reply for _, reply in cluster.ledger.replies() if reply["update"] == sent]
    return reply


def take(cluster: LedgerPool, intake: Intake | None = None) -> int:
    intake = intake or Intake()
    count = 0
    while some := intake.step(cluster.ledger):
        count += some
    return count


def waiting(cluster: LedgerPool, count: int = 2, tenant: str = "") -> list[str]:
    names = []
    for number in range(count):
        name = f"{tenant or 'w'}{number}"
        requirements = Requirements(10_000, 1, 0, 0, tenant)
        cluster.ledger.submit(name, f"task of {name}", "work", requirements, message=b"m")
        names.append(name)
    return names


@pytest.fixture
def busy(cluster: LedgerPool) -> LedgerPool:
    """A node whose GPU is full."""
    cluster.node()
    cluster.running(10_000, 1, id="holder")
    return cluster


# --- what each object can be told


@pytest.mark.parametrize("target", ["node:n1", "device:n1/gpu_0"])
def test_nodes_and_devices(cluster: LedgerPool, target: str) -> None:
    cluster.node()
    kind, _, name = target.partition(":")
    for number, (state, action) in enumerate(
        [("cordoned", "cordon"), ("draining", "drain"), ("ready", "uncordon")], start=1
    ):
        reply = told(cluster, kind, name, f"k{number}", state=state)
        assert (reply["status"], reply["entries"]) == ("applied", [number])
        assert cluster.device("n1/gpu_0").state == state
        entry = cluster.ledger.entry(number)
        assert (entry.action, entry.actor, entry.source) == (action, "brain", "updates")
        assert entry.reason == f"update {reply['update']}"
    Operator(cluster.ledger, Actor("ada")).undo(3)
    assert cluster.device("n1/gpu_0").state == "draining"


def test_an_allocation_is_put_on_hold_moved_and_let_go(busy: LedgerPool) -> None:
    first, second = waiting(busy)
    reply = told(busy, "allocation", first, "k1", priority=7, state="on_hold")
    assert (reply["status"], reply["entries"]) == ("applied", [1, 2])
    assert [busy.ledger.entry(n).action for n in (1, 2)] == ["priority", "hold"]
    held = busy.ledger.get(first)
    assert (held.state, held.priority) == (State.ON_HOLD, 7)
    again = told(busy, "allocation", first, "k2", priority=7, state="on_hold")
    assert (again["status"], again["entries"], again["unchanged"]) == ("applied", [], 1)
    told(busy, "allocation", first, "k3", state="waiting")
    assert [a.allocation_id for a in busy.ledger.queue()] == [first, second]


def test_a_delete_cancels_what_waits_and_releases_what_is_held_by_hand(busy: LedgerPool) -> None:
    (first,) = waiting(busy, 1)
    effects: list[Effect] = []
    send(busy, "allocation", first, "k1", "delete")
    take(busy, Intake(effects.append))
    assert [o.allocation_id for effect in effects for o in effect.obituaries] == [first]
    busy.by_hand(0, 1, id="by-hand")
    reply = told(busy, "allocation", "by-hand", "k2", "delete")
    assert reply["status"] == "applied"
    assert [busy.ledger.entry(n).action for n in (1, 2)] == ["cancel", "release"]
    runs = told(busy, "allocation", "holder", "k3", "delete")
    assert (runs["status"], runs["code"]) == ("rejected", "action_refused")
    assert "celery control terminate" in runs["reason"]
    busy.ledger.settle([first])


def test_a_task_is_all_its_allocations_or_none(busy: LedgerPool) -> None:
    for name in ("first", "second"):
        busy.submit(10_000, id=name, task_id="job")
    reply = told(busy, "task", "job", "k1", priority=3)
    assert (reply["status"], reply["entries"]) == ("applied", [1, 2])
    busy.ledger.release("holder")  # grants one of them
    reply = told(busy, "task", "job", "k2", state="on_hold")
    assert (reply["status"], reply["entries"]) == ("rejected", [])
    assert "is granted" in reply["reason"]
    assert [a.allocation_id for a in busy.ledger.queue()] == ["second"]
    assert told(busy, "task", "nobody", "k3", priority=1)["code"] == "not_found"


def test_a_tenant_is_all_that_has_not_been_granted(busy: LedgerPool) -> None:
    blue, red = waiting(busy, 3, "blue"), waiting(busy, 1, "red")
    busy.ledger.hold(blue[0])
    reply = told(busy, "tenant", "blue", "k1", state="on_hold")
    assert (reply["status"], len(reply["entries"]), reply["unchanged"]) == ("applied", 2, 1)
    assert [a.allocation_id for a in busy.ledger.queue()] == red
    reply = told(busy, "tenant", "blue", "k2", state="waiting", priority=5)
    assert (reply["status"], len(reply["entries"])) == ("applied", 6)
    assert [a.allocation_id for a in busy.ledger.queue()] == blue + red
    assert told(busy, "tenant", "green", "k3", priority=1)["entries"] == []
    assert told(busy, "tenant", "blue", "k4", "delete")["status"] == "rejected"


def test_more_than_the_journal_remembers_is_refused(busy: LedgerPool) -> None:
    waiting(busy, 3, "blue")
    busy.ledger.options = Options(journal_maxlen=2)
    reply = told(busy, "tenant", "blue", "k1", state="on_hold")
    assert (reply["status"], reply["code"]) == ("rejected", "action_refused")
    assert len(busy.ledger.queue()) == 3


def test_granting_is_the_one_setting(cluster: LedgerPool) -> None:
    assert told(cluster, "setting", "granting", "k1", paused=True)["status"] == "applied"
    assert cluster.ledger.snapshot().paused == "stopped"
    assert told(cluster, "setting", "granting", "k2", paused=False)["status"] == "applied"
    assert cluster.ledger.snapshot().paused == ""
    reply = told(cluster, "setting", "lease_s", "k3", value=3)
    assert (reply["status"], reply["code"]) == ("rejected", "bad_request")
    assert "read when a process starts" in reply["reason"]


@pytest.mark.parametrize(
    ("kind", "name", "op", "fields", "code"),
    [
        ("node", "n9", "update", {"state": "cordoned"}, "unknown_target"),
        ("node", "n1", "update", {"state": "asleep"}, "bad_request"),
        ("node", "n1", "update", {"state": ["ready"]}, "bad_request"),
        ("node", "n1", "update", {}, "bad_request"),
        ("node", "n1", "update", {"state": "ready", "cores": 3}, "bad_request"),
        ("node", "n1", "delete", {}, "bad_request"),
        ("node", "n1/gpu_0", "update", {"state": "ready"}, "bad_request"),
        ("device", "n1", "update", {"state": "ready"}, "bad_request"),
        ("allocation", "nobody", "update", {"priority": 1}, "not_found"),
        ("allocation", "holder", "update", {"priority": 1}, "action_refused"),
        ("allocation", "w0", "update", {"priority": 5000}, "bad_requirements"),
        ("allocation", "w0", "update", {"priority": True}, "bad_requirements"),
        ("allocation", "w0", "update", {"state": "running"}, "bad_request"),
        ("allocation", "w0", "delete", {"why": 1}, "bad_request"),
        ("setting", "granting", "update", {"paused": 1}, "bad_request"),
    ],
)
def test_what_cannot_be_is_rejected_and_nothing_is_done(
    busy: LedgerPool, kind: str, name: str, op: str, fields: dict[str, Any], code: str
) -> None:
    waiting(busy, 1)
    reply = told(busy, kind, name, "k1", op, **fields)
    assert (reply["status"], reply["code"], reply["entries"]) == ("rejected", code, [])
    assert reply["reason"]
    assert busy.ledger.journal() == ()


# --- duplicates


def test_the_same_key_again_has_no_effect(cluster: LedgerPool) -> None:
    cluster.node()
    first = told(cluster, "node", "n1", "k1", state="cordoned")
    told(cluster, "node", "n1", "k2", state="ready")
    again = told(cluster, "node", "n1", "k1", state="cordoned")
    assert (again["status"], again["entries"], again["first"]) == ("duplicate", [1], first["update"])
    assert cluster.device("n1/gpu_0").state == "ready"
    other = told(cluster, "node", "n1", "k1", state="draining")
    assert (other["status"], other["code"]) == ("rejected", "key_reused")
    assert len(cluster.ledger.journal()) == 2


def test_a_key_that_somebody_else_used_in_the_journal(cluster: LedgerPool) -> None:
    cluster.node()
    Operator(cluster.ledger, Actor("ada", once="k1")).run(Cordon("n1"))
    reply = told(cluster, "node", "n1", "k1", state="ready")
    assert (reply["status"], reply["entries"]) == ("duplicate", [1])
    assert cluster.device("n1/gpu_0").state == "cordoned"


# --- what cannot be read


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no JSON",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 30_000,
        b'{"a": NaN}',
        body("node", "n1", "k").replace(b'"update"', b'"upsert"'),
        body("planet", "n1", "k"),
        body("node", "", "k"),
        body("node", "n1", "k" * 201),
        body("node", "n1", "k", actor="a\nb"),
        body("node", "n1", "k").replace(b'"n1"', b'["n1"]'),
        body("node", "n1", "k").replace(b'"op"', b'"id": "n2", "op"'),
        body("node", "n1", "k").replace(b"}}", b'}, "more": 1}').replace(b'"fields": {}', b'"fields": []'),
        body("node", "n1", "k", state="x" * MAX_BYTES),
    ],
)
def test_what_cannot_be_read_is_parked_and_answered(cluster: LedgerPool, text: bytes) -> None:
    sent = cluster.ledger.send_update(text)
    assert take(cluster) == 1
    ((_, reply),) = cluster.ledger.replies()
    ((_, parked),) = cluster.ledger.parked_updates()
    assert (reply["update"], reply["status"], reply["code"]) == (sent, "malformed", "malformed_update")
    assert (parked["from"], parked["error"]) == (sent, reply["reason"])
    assert len(parked["update"]) <= MAX_BYTES + 1
    assert take(cluster) == 0


def test_an_entry_of_another_form_names_its_fields(cluster: LedgerPool) -> None:
    cluster.ledger.client.xadd(f"{{allocator:{cluster.ledger.pool}}}:updates", {"object": "node", "id": "n1"})
    take(cluster)
    ((_, reply),) = cluster.ledger.replies()
    assert "'id', 'object'" in reply["reason"]


def test_a_parked_update_is_retried_or_discarded(cluster: LedgerPool) -> None:
    for text in (b"one", b"two"):
        cluster.ledger.send_update(text)
    take(cluster)
    (first, _), (second, _) = cluster.ledger.parked_updates()
    assert cluster.ledger.readmit(first, retry=True) == cluster.ledger.updates(1, new=True)[0][0]
    assert cluster.ledger.readmit(second, retry=False) == ""
    take(cluster)
    ((_, parked),) = cluster.ledger.parked_updates()
    assert parked["update"] == "one"
    with pytest.raises(UpdateNotFound):
        cluster.ledger.readmit(second, retry=True)


# --- a crash at any point


class Died(BaseException):
    """As a kill -9 has it: nothing is caught, nothing is tidied up."""


def die(*args: Any, **kwargs: Any) -> Any:
    raise Died


def _after(call: Callable[..., Any]) -> Callable[..., Any]:
    def done(*args: Any, **kwargs: Any) -> Any:
        call(*args, **kwargs)
        raise Died

    return done


POINTS: dict[str, Callable[[Ledger], Any]] = {
    "before it was looked at": lambda ledger: ("remembered", die),
    "before the plan is written": lambda ledger: ("remember", die),
    "after the plan is written": lambda ledger: ("remember", _after(ledger.remember)),
    "after the first action": lambda ledger: ("prioritize", _after(ledger.prioritize)),
    "before the answer": lambda ledger: ("answer", die),
    "after the answer": lambda ledger: ("answer", _after(ledger.answer)),
}


@pytest.mark.parametrize("point", POINTS)
def test_who_takes_over_finishes_it_and_nothing_is_done_twice(
    busy: LedgerPool, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = waiting(busy, 1)
    sent = send(busy, "allocation", name, "k1", priority=7, state="on_hold")
    with monkeypatch.context() as patch:
        patch.setattr(busy.ledger, *POINTS[point](busy.ledger))
        with pytest.raises(Died):
            Intake().step(busy.ledger)
    send(busy, "allocation", name, "k2", state="waiting")
    take(busy)
    replies = [reply for _, reply in busy.ledger.replies()]
    assert [(r["idempotency_key"], r["status"], r["entries"]) for r in replies] == [
        ("k1", "applied", [1, 2]),
        ("k2", "applied", [3]),
    ]
    assert replies[0]["update"] == sent
    assert [e.action for e in reversed(busy.ledger.journal())] == ["priority", "hold", "unhold"]
    assert busy.ledger.get(name).priority == 7


def test_a_single_action_after_a_crash_is_no_duplicate(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.node()
    send(cluster, "node", "n1", "k1", state="cordoned")
    with monkeypatch.context() as patch:
        patch.setattr(cluster.ledger, "answer", die)
        with pytest.raises(Died):
            Intake().step(cluster.ledger)
    take(cluster)
    ((_, reply),) = cluster.ledger.replies()
    assert (reply["status"], reply["entries"]) == ("applied", [1])
    assert len(cluster.ledger.journal()) == 1


def test_two_that_take_the_same_answer_once(cluster: LedgerPool) -> None:
    """One that was paused and has lost its duty comes back while the other is at it."""
    cluster.node()
    send(cluster, "node", "n1", "k1", state="cordoned")
    nested = Intake()
    first = Intake(lambda effect: take(cluster, nested) and None)
    assert first.step(cluster.ledger) == 1
    assert [reply["status"] for _, reply in cluster.ledger.replies()] == ["applied"]
    assert len(cluster.ledger.journal()) == 1


def test_an_outage_leaves_it_for_the_next_step(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.node()
    send(cluster, "node", "n1", "k1", state="cordoned")

    def away(*args: Any, **kwargs: Any) -> Any:
        raise LedgerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.ledger, "set_state", away)
        with pytest.raises(LedgerUnavailable):
            Intake().step(cluster.ledger)
    take(cluster)
    assert [reply["status"] for _, reply in cluster.ledger.replies()] == ["applied"]


def test_a_mistake_of_ours_blocks_nothing_behind_it(cluster: LedgerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.node()
    send(cluster, "node", "n1", "k1", state="cordoned")
    with monkeypatch.context() as patch:
        patch.setattr(cluster.ledger, "set_state", lambda *args, **kwargs: 1 // 0)
        take(cluster)
    told(cluster, "node", "n1", "k2", state="ready")
    assert [reply["code"] for _, reply in cluster.ledger.replies()] == ["internal_error", ""]


# --- the channel


def test_what_is_published_goes_the_same_way(cluster: LedgerPool) -> None:
    cluster.node()
    channel = f"{{allocator:{cluster.ledger.pool}}}:updates"
    assert cluster.ledger.client.publish(channel, body("node", "n1", "k0", state="cordoned")) == 0  # nobody listens
    listener = Listener()
    listener.step(cluster.ledger)
    assert cluster.ledger.client.publish(channel, body("node", "n1", "k1", state="draining")) == 1
    assert cluster.ledger.client.publish(channel, b"x" * (2 * MAX_BYTES)) == 1
    heard = 0
    while heard < 2:
        heard += listener.step(cluster.ledger)
    take(cluster)
    listener.retire()
    assert [(r["idempotency_key"], r["status"]) for _, r in cluster.ledger.replies()] == [
        ("k1", "applied"),
        ("", "malformed"),
    ]
    assert cluster.ledger.client.publish(channel, b"") == 0
