"""Commands on what waits, in this process on a real server: one by its id, many by filters."""

from __future__ import annotations

import pytest

from celery_allocator.allocating import Session
from celery_allocator.ledger import keys
from celery_allocator.model import Allocation, State
from celery_allocator.surfaces.cli.console import Console
from celery_allocator.surfaces.cli.meant import Meant
from tests.support import by_hand
from tests.support.command_line import Run, allocate, submit_task


def test_hold_priority_and_unhold(run: Run, session: Session) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    first, second = submit_task(session, "one"), submit_task(session, "two")

    assert run("hold", "one") == f"{first} is on hold\n"
    assert "1 waiting, 0 delayed, 1 on hold" in run("status")
    assert "on hold by" in run("show", "one")
    assert run("priority", second, "7") == f"{second} has priority 7; it was 0\n"
    run("priority", "one", "--", "-3")
    assert [row["done"] for row in run("unhold", "one", "--json")["allocations"]] == [True]
    line = run("queue", "--json")
    assert [(row["task_id"], row["requirements"]["priority"]) for row in line] == [("two", 7), ("one", -3)]
    assert "is not on hold" in run("unhold", "one", code=1)
    assert "Invalid value for 'PRIORITY'" in run("priority", "one", "5000", code=2)
    reply = run("hold", "holder", "--json", code=1)
    assert (reply["success"], reply["allocations"][0]["error"]["code"]) == (False, "action_refused")


def test_to_the_front_and_back(run: Run, session: Session) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    _, second = submit_task(session, "one"), submit_task(session, "two")
    assert run("front", "two") == f"{second} is number 1 in line; it was number 2\n"
    assert [row["task_id"] for row in run("queue", "--json")] == ["two", "one"]
    assert "it is not in line any more" in run("front", "holder", code=1)
    assert run("undo") == f"undone 2: {second} is number 2 in line; it was number 1\n"
    assert run("redo", "--json")["done"] == [
        {"entry": 2, "text": f"{second} is number 1 in line; it was number 2"}
    ]  # fmt: skip


def test_many_by_filters_and_one_undo(run: Run, session: Session) -> None:
    def in_line() -> list[str]:
        """By place in line, whatever tenants' turns are."""
        ids = session.ledger.client.zrange(keys.key(session.ledger.pool, "waiting"), 0, -1)
        return [session.ledger.get(name.decode()).task_id for name in ids]

    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    names = [submit_task(session, f"t{number}") for number in range(3)]
    allocate(run, "mine", "--cpu-cores=2", "--tenant=blue")

    planned = run("cancel", "--name", "proj.*", "--dry-run")
    assert all(name in planned for name in names) and planned.endswith("would cancel: 3\n")
    assert run("cancel", "--name", "proj.*", "--dry-run", "--json")["meant"] == 3
    assert session.ledger.snapshot().waiting == 4, "nothing was done"
    declined = run("cancel", "--name", "proj.*", code=1)
    assert "Cancel these 3?" in declined and "Aborted" in declined
    assert "add --yes" in run("cancel", "--name", "proj.*", "--json", code=2)
    assert session.ledger.snapshot().waiting == 4, "nor then"

    reply = run("cancel", "--name", "proj.*", "--yes", "--json")
    assert (reply["success"], reply["meant"], reply["done"]) == (True, 3, 3)
    assert [row["allocation_id"] for row in reply["allocations"]] == names
    assert [a.task_id for a in session.ledger.queue()] == ["mine"]
    assert run("undo", "3") == f"undone 3: {names[0]} is waiting again\n"
    plan = run("undo", "5", "--batch", "--dry-run", "--json")["plan"]
    assert [row["entry"] for row in plan] == [5, 4] and plan[0]["batch"] == plan[1]["batch"] != ""
    assert run("undo", "5", "--batch", "--yes").splitlines() == [
        f"undone 5: {names[2]} is waiting again",
        f"undone 4: {names[1]} is waiting again",
    ]
    assert in_line() == ["t0", "t1", "t2", "mine"]
    done = run("redo", "4", "--batch", "--yes", "--json")["done"]
    assert [row["entry"] for row in done] == [3, 4, 5]
    run("undo", "--batch", "--yes")

    told = run("hold", "--all", "--yes")
    assert told.startswith("hold: 4 of 4 done; undo them all: celery-allocator undo ")
    assert run("unhold", "--tenant", "blue").endswith(" goes on\n"), "one is not asked for"
    assert run("priority", "--state", "on_hold", "7", "--yes").startswith("prioritise: 3 of 3 done")
    assert run("unhold", "--older-than", "1h") == "Nothing is meant.\n"
    run("unhold", "--all", "--yes")
    assert in_line() == ["t0", "t1", "t2", "mine"]
    run("priority", "--all", "--yes", "0")
    run("front", "--shape", "0:2:*")
    assert in_line() == ["mine", "t0", "t1", "t2"]
    run("front", "--name", "proj.*", "--yes")
    assert in_line() == ["t0", "t1", "t2", "mine"], "in their order"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("cancel",), "Give the id of an allocation or a task, or filters (--name, …), or --all"),
        (("cancel", "one", "--all"), "one of the three"),
        (("cancel", "--name", "x", "--all"), "one of the three"),
        (("hold", "--older-than", "soon"), "--older-than='soon': must be a length of time such as 90s"),
        (("hold", "--state", "on_hold"), "'on_hold' is not one of 'waiting', 'delayed'"),
        (("front", "--shape", "8G"), "each a number or *"),
        (("priority", "--all"), "Missing argument 'PRIORITY'"),
        (("priority", "--all", "much"), "Invalid value for 'PRIORITY'"),
    ],
)
def test_which_are_meant_must_be_said(run: Run, args: tuple[str, ...], told: str) -> None:
    assert told in run(*args, code=2)


def test_some_of_many_that_are_refused_are_told(run: Run, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    first, second = submit_task(session, "one"), submit_task(session, "two")
    found = Meant.found

    def late(self: Meant, console: Console) -> list[Allocation]:
        listed = found(self, console)
        session.ledger.cancel(first)
        return listed

    monkeypatch.setattr(Meant, "found", late)
    told = run("hold", "--all", "--yes", code=1)
    assert f"no live allocation '{first}'" in told
    assert session.ledger.get(second).state is State.ON_HOLD


def test_more_than_the_journal_remembers_is_refused_before_it_is_asked_for(
    run: Run, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOCATOR_JOURNAL_MAXLEN", "2")
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    for name in ("one", "two", "three"):
        submit_task(session, name)
    told = run("cancel", "--all", code=1)
    assert "would be 3 actions" in told and told.endswith("or add --no-undo\n")
    assert run("cancel", "--all", "--yes", "--no-undo").startswith("cancel: 3 of 3 done")
    assert len(run("undo", "--batch", "--yes").splitlines()) == 2


def test_what_is_on_hold_is_listed(run: Run, session: Session) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    name = submit_task(session, "task")
    assert run("queue", "--on-hold") == "Nothing is on hold.\n"
    run("hold", "task")
    assert "--on-hold" in run("queue"), "says where it went"
    (row,) = run("queue", "--on-hold", "--json")
    assert (row["allocation_id"], row["task_id"], row["on_hold_by"]) == (name, "task", "operator")
    assert name in run("queue", "--on-hold")
    assert run("queue", "--json") == []
    assert "is on hold" in run("hold", "task", code=1)


def test_a_negative_priority_needs_no_dashes(run: Run, session: Session) -> None:
    allocate(run, "holder", f"--cpu-cores={by_hand.CORES}")
    name = submit_task(session, "task")
    assert run("priority", "task", "-5", "--reason", "may wait") == f"{name} has priority -5; it was 0\n"
    assert run("priority", "task", "--", "-15") == f"{name} has priority -15; it was -5\n"
    assert "--bogus" in run("priority", "task", "1", "--bogus", code=2)
