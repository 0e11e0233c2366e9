"""The commands of live updates, in this process on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from celery_allocator.ledger import Ledger
from celery_allocator.surfaces.cli import allocator
from tests.support import by_hand
from tests.support.redis_server import RedisServer

Run = Callable[..., str]


@pytest.fixture
def ledger(redis_server: RedisServer, pool: str) -> Ledger:
    session = by_hand.session(redis_server, pool)
    session.offer_host(600)
    return session.ledger


@pytest.fixture
def node(ledger: Ledger) -> str:
    return ledger.snapshot().nodes[0].node


@pytest.fixture
def run(redis_server: RedisServer, pool: str) -> Run:
    def invoke(*args: str, code: int = 0) -> str:
        env = by_hand.environment(redis_server, pool)
        result = CliRunner().invoke(allocator, args, env=env, prog_name="celery-allocator")
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stdout if code == 0 else result.stderr

    return invoke


def update(node: str, key: str, state: str = "cordoned") -> bytes:
    said: dict[str, Any] = {"object": "node", "id": node, "op": "update", "fields": {"state": state}}
    return json.dumps({**said, "actor": "brain", "idempotency_key": key}).encode()


def test_apply_takes_what_is_there(ledger: Ledger, node: str, run: Run) -> None:
    assert run("updates", "apply", "--once") == ""
    sent = [ledger.send_update(body) for body in (update(node, "k1"), update("nobody", "k2"), b"no JSON")]
    first, second, third = run("updates", "apply", "--once").splitlines()
    assert first == f"{sent[0]} applied: update node {node} by brain; entries 1"
    assert second.startswith(f"{sent[1]} rejected: update node nobody by brain; no node or device 'nobody'")
    assert third.startswith(f"{sent[2]} malformed: cannot be read; the update is not JSON")
    replies = [json.loads(line) for line in run("updates", "replies", "--json").splitlines()]
    assert [reply["status"] for reply in replies] == ["applied", "rejected", "malformed"]
    assert run("updates", "replies", "--since", replies[1]["entry"]).count("\n") == 1
    assert "cordon" in run("journal") and "updates" in run("journal")


def test_who_takes_them_already_is_not_disturbed(ledger: Ledger, node: str, run: Run) -> None:
    assert ledger.take_duty("updates", "w@h", 60)
    ledger.send_update(update(node, "k1"))
    assert "takes updates already" in run("updates", "apply", "--once", code=1)
    assert ledger.replies() == []
    assert not ledger.take_duty("updates", "other", 60)  # and it has them still


def test_parked_ones_are_shown_retried_and_discarded(ledger: Ledger, run: Run) -> None:
    assert run("updates", "parked") == "No update is parked.\n"
    for body in (b"one", b"two"):
        ledger.send_update(body)
    run("updates", "apply", "--once")
    assert "the update is not JSON" in run("updates", "parked")
    first, second = (row["parked_id"] for row in json.loads(run("updates", "parked", "--json"))["parked"])
    assert "is update" in run("updates", "retry", first)
    assert json.loads(run("updates", "discard", second, "--json")) == {"success": True}
    assert "no update" in run("updates", "discard", second, code=1)
    assert json.loads(run("updates", "parked", "--json"))["parked"] == []


@pytest.mark.parametrize("bad", ["", "x", "1-2-3"])
def test_ids_that_are_none(ledger: Ledger, run: Run, bad: str) -> None:
    assert f"no update '{bad}' is parked" in run("updates", "discard", bad, code=1)
    assert f"no update '{bad}' is parked" in run("updates", "retry", bad, code=1)
    for args in (["updates", "replies"], ["watch"], ["events"]):
        assert f"since='{bad}': it is the" in run(*args, "--since", bad, code=1)


def test_watch_prints_changes_and_goes_on(ledger: Ledger, node: str, run: Run) -> None:
    ledger.cordon(node)
    lines = run("watch", "--since", "-", "--no-follow").splitlines()
    assert lines[-1].endswith(f"node:{node} cordoned state=cordoned by=allocator")
    changes = [json.loads(line) for line in run("watch", "--since", "-", "--no-follow", "--json").splitlines()]
    assert len(changes) == len(lines)
    last = changes[-1]["idempotency_key"]
    ledger.uncordon(node)
    (later,) = run("watch", "--since", last, "--no-follow", "--object", "node", "--json").splitlines()
    assert json.loads(later)["fields"]["state"] == "ready"
    assert run("watch", "--no-follow") == ""
    assert run("watch", "--since", "-", "--no-follow", "--object", "tenant") == ""


def test_watch_tells_of_a_gap(ledger: Ledger, node: str, run: Run) -> None:
    position = ledger.position()
    for _ in range(3):
        ledger.cordon(node)
    ledger.client.xtrim(f"{{allocator:{ledger.pool}}}:events", maxlen=1, approximate=False)
    said = run("watch", "--since", position, "--no-follow", code=1)
    assert "not all there any more" in said and "--since - goes on from there" in said
