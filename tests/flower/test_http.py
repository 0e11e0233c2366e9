"""The tab's requests over HTTP, to real Flower processes: who sees, who acts, what comes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from celery_allocator.ledger import Ledger
from celery_allocator.overview import read_overview, read_waiting
from tests.flower import scene
from tests.flower.conftest import PASSWORD, USER
from tests.support.flower_process import Answer, FlowerProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

ME = f"{USER}:{PASSWORD}"
DATA = "/allocator/data"
WAITING = "alloc_" + f"{41:032x}"


def cordon(target: str = "gpu-node-1/gpu_3", reason: str = "") -> dict[str, Any]:
    return {"action": "cordon", "args": {"target": target}, "reason": reason}


def token(flower: FlowerProcess, user: str = ME) -> dict[str, str]:
    """The page's token and cookie, as its script sends them."""
    page = flower.ask("/allocator", user=user)
    found = re.search(r'data-xsrf="([^"]+)"', page.text)
    assert found is not None
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    return {"X-XSRFToken": found.group(1), "Cookie": cookie, "Origin": flower.url}


def act(flower: FlowerProcess, body: Any, **headers: str) -> Answer:
    return flower.ask("/allocator/act", body, user=ME, headers={**token(flower), **headers})


# --- who sees


def test_without_a_password_nothing_is_seen(flower: FlowerProcess) -> None:
    for path in ("/allocator", f"{DATA}/pool", "/api/allocator/pool"):
        assert flower.ask(path).status == 401
        assert flower.ask(path, user=f"{USER}:wrong").status == 401
        assert flower.ask(path, user=ME).status == 200
    assert flower.ask("/allocator/act", cordon()).status in (401, 403)
    # As Flower's own, these say nothing of the pool.
    assert flower.ask("/allocator/static/main.js").status == 200


def test_a_flower_without_users_shows_and_does_not_act(ledger: Ledger, start: Callable[..., FlowerProcess]) -> None:
    flower = start()
    page = flower.ask("/allocator")
    assert page.status == 200
    assert "start Flower with --basic_auth or --auth" in page.text
    assert 'data-acts="no"' in page.text
    assert flower.ask(f"{DATA}/pool").status == 200
    assert flower.ask("/api/allocator/pool").status == 401  # as Flower's own API
    refused = flower.ask("/allocator/act", cordon(), headers=token(flower, ""))
    assert (refused.status, ledger.journal()) == (403, ())


def test_by_flowers_switch_the_api_is_open_and_still_does_not_act(
    ledger: Ledger, start: Callable[..., FlowerProcess]
) -> None:
    flower = start(env={"FLOWER_UNAUTHENTICATED_API": "true"})
    assert flower.ask("/api/allocator/pool").json["pool"] == "default"
    assert flower.ask("/api/allocator/act", cordon()).status == 403
    assert ledger.journal() == ()


def test_read_only_does_not_act(ledger: Ledger, start: Callable[..., FlowerProcess]) -> None:
    flower = start("--read_only", f"--basic_auth={ME}")
    assert "--read_only" in flower.ask("/allocator", user=ME).text
    for path, headers in (("/allocator/act", token(flower)), ("/api/allocator/act", {})):
        refused = flower.ask(path, cordon(), user=ME, headers=headers)
        assert refused.status == 403
    assert ledger.journal() == ()


def test_stock_flower_has_the_tab_and_a_prefix_stays(ledger: Ledger, start: Callable[..., FlowerProcess]) -> None:
    flower = start("--url_prefix=mon", f"--basic_auth={ME}", command="flower", prefix="/mon")
    tasks = flower.ask("/tasks", user=ME).text
    assert 'href="/mon/allocator"' in tasks
    page = flower.ask("/allocator", user=ME).text
    for path in re.findall(r'(?:href|src|data-view|data-act)="(/[^"]*allocator[^"]*)"', page):
        assert path.startswith("/mon/allocator")
    assert flower.ask(f"{DATA}/pool", user=ME).json["pool"] == "default"
    assert flower.ask("/allocator/static/main.js").status == 200
    assert act(flower, cordon("nowhere")).status == 404


# --- what is seen


def test_the_pool_is_what_the_ledger_says(flower: FlowerProcess, ledger: Ledger) -> None:
    told = flower.ask(f"{DATA}/pool", user=ME).json
    seen = read_overview(ledger)
    cluster = seen.cluster
    assert (told["running"], told["waiting"], told["on_hold"]) == (cluster.running, cluster.waiting, cluster.on_hold)
    devices = {one["key"]: one for node in told["nodes"] for one in node["devices"]}
    assert devices.keys() == {view.device.key for view in seen.devices}
    for view in seen.devices:
        one = devices[view.device.key]
        assert (one["state"], one["worker"], one["held"]) == (view.device.state, view.device.worker, len(view.held))
        assert one["memory"] == (view.memory.as_dict() if view.device.is_gpu else None)
        assert one["slots"] == view.slots.as_dict()
    for node, told_node in zip(seen.nodes, told["nodes"], strict=True):
        assert told_node["cores_free"] == list(node.node.cpu_cores_free)
        held = {core for one in told_node["cores_held"] for core in one["cores"]}
        assert held == set(node.node.cpu_cores) - set(node.node.cpu_cores_free)
    assert "message" not in flower.ask(f"{DATA}/pool", user=ME).text


def test_the_line_in_pages_with_reasons(flower: FlowerProcess, ledger: Ledger) -> None:
    page = flower.ask(f"{DATA}/waiting?limit=5&offset=3", user=ME).json
    seen = read_overview(ledger)
    expected = read_waiting(ledger, seen.cluster, seen.outlook, limit=5, offset=3)
    assert page["total"] == expected.total
    assert [row["task_id"] for row in page["rows"]] == [row.allocation.task_id for row in expected.rows]
    positions = [row["position"] for row in page["rows"]]
    assert positions == sorted(positions) == [row.allocation.queue_position for row in expected.rows]
    assert [row["reason"]["text"] for row in page["rows"]] == [row.reason.text for row in expected.rows]
    found = flower.ask(f"{DATA}/waiting?text=LORA", user=ME).json
    assert {row["name"] for row in found["rows"]} == {"train.lora"}
    assert 0 < found["matched"] == len(found["rows"]) < found["total"]


def test_dates_tenants_and_what_is_kept_for_whom(flower: FlowerProcess, ledger: Ledger) -> None:
    pool = flower.ask(f"{DATA}/pool", user=ME).json
    outlook = read_overview(ledger).outlook
    assert outlook.kept is not None and outlook.kept.device is not None
    assert pool["reservation"]["allocation_id"] == outlook.kept.holder.allocation_id
    kept = {one["key"]: one["kept"]["task_id"] for node in pool["nodes"] for one in node["devices"] if one["kept"]}
    assert kept == {outlook.kept.device: outlook.kept.holder.task_id}
    assert [one["name"] for one in pool["tenants"]] == ["llm", "speech", "train", "vision"]
    assert pool["tenants_total"] == 4
    by_name = {one["name"]: one for one in pool["tenants"]}
    assert (by_name["llm"]["quota"], by_name["llm"]["by"]) == ({"weight": 2}, "operator")
    assert by_name["vision"]["quota"]["gpu_memory_mb"] == 69_632
    assert sum(one["waiting"] for one in pool["tenants"]) == pool["waiting"]
    assert pool["accuracy"]["scored"] == 8
    rows = flower.ask(f"{DATA}/waiting?limit=200", user=ME).json["rows"]
    assert [row["allocation_id"] for row in rows if row["kept"]] == [outlook.kept.holder.allocation_id]
    assert all(0 < row["estimated_start_at"] <= row["estimated_start_p90_at"] for row in rows)


def test_what_runs_by_task_device_and_worker(flower: FlowerProcess, ledger: Ledger) -> None:
    everything = flower.ask(f"{DATA}/running?limit=200", user=ME).json
    assert {row["allocation_id"] for row in everything["rows"]} == {a.allocation_id for a in ledger.held()}
    on_one = flower.ask(f"{DATA}/running?text=gpu-node-1/gpu_0", user=ME).json
    assert {row["device"] for row in on_one["rows"]} == {"gpu-node-1/gpu_0"}
    row = on_one["rows"][0]
    assert row["use"]["gpu_memory_mb"] > 0
    assert flower.ask(f"{DATA}/running?tenant=nobody", user=ME).json["rows"] == []
    held = flower.ask(f"{DATA}/on_hold", user=ME).json
    assert [row["on_hold_by"] for row in held["rows"]] == ["ada@example.org"]


def test_placements_are_the_events_of_the_stream(flower: FlowerProcess, ledger: Ledger) -> None:
    told = flower.ask(f"{DATA}/placements", user=ME).json["minutes"]
    stream = [fields["event"] for _, fields in ledger.events(count=100_000)]
    assert len(told) == 60
    assert sum(row["granted"] for row in told) == stream.count("granted")
    assert sum(row["ended"] for row in told) == stream.count("released")
    latest = flower.ask(f"{DATA}/events?limit=3", user=ME).json["rows"]
    assert [row["event"] for row in latest] == stream[:-4:-1]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing", 404),
        ("waiting?limit=0", 400),
        ("waiting?limit=201", 400),
        ("waiting?limit=x", 400),
        ("waiting?offset=-1", 400),
        ("running?text=%00%1b[2J", 200),
        ("running?text=%ff", 400),
        ("waiting?text=" + "x" * 500, 200),
    ],
)
def test_what_makes_no_sense_is_refused(flower: FlowerProcess, path: str, status: int) -> None:
    assert flower.ask(f"{DATA}/{path}", user=ME).status == status


def test_nothing_from_the_ledger_is_markup(flower: FlowerProcess) -> None:
    assert scene.EVIL not in flower.ask("/allocator", user=ME).text
    asked = flower.ask("/allocator?text=%22%3E%3Cscript%3E", user=ME).text
    assert '"><script>' not in asked
    answer = flower.ask(f"{DATA}/waiting?limit=200", user=ME)
    assert scene.EVIL in answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# --- who acts


def test_an_action_is_journalled_in_the_users_name(flower: FlowerProcess, ledger: Ledger) -> None:
    done = act(flower, cordon(reason="a new driver"))
    assert (done.status, done.json["success"]) == (200, True)
    (entry,) = ledger.journal(1)
    assert (entry.number, entry.action, entry.actor) == (done.json["entry"], "cordon", USER)
    assert (entry.source, entry.reason) == ("flower", "a new driver")
    # At once, not after what was kept has grown old.
    nodes = flower.ask(f"{DATA}/pool", user=ME).json["nodes"]
    states = {one["key"]: one["state"] for node in nodes for one in node["devices"]}
    assert states["gpu-node-1/gpu_3"] == "cordoned"
    api = flower.ask("/api/allocator/act", {"action": "uncordon", "args": {"target": "gpu-node-1/gpu_3"}}, user=ME)
    assert api.json["text"] == "gpu-node-1/gpu_3 is ready"


def test_what_waits_is_held_let_go_and_given_another_priority(flower: FlowerProcess, ledger: Ledger) -> None:
    def one(action: str, **more: int) -> Any:
        return act(flower, {"action": action, "args": {"allocation_id": WAITING, **more}}).json

    assert one("priority", priority=7)["success"] is True
    assert ledger.get(WAITING).priority == 7
    assert one("front")["success"] is True
    assert ledger.queue(1)[0].allocation_id == WAITING
    one("hold")
    assert ledger.get(WAITING).on_hold_by == "operator"
    one("unhold")
    assert ledger.get(WAITING).state.value == "waiting"
    assert one("priority", priority=5000)["error"]["code"] == "bad_requirements"


def test_another_site_cannot_act(flower: FlowerProcess, ledger: Ledger) -> None:
    before = ledger.journal(1)
    good = token(flower)
    for headers in (
        {},  # a password that the browser sends by itself is not enough
        {**good, "X-XSRFToken": "made up"},
        {key: value for key, value in good.items() if key != "Cookie"},
        {**good, "Origin": "https://elsewhere.example"},
        {**good, "Sec-Fetch-Site": "cross-site"},
    ):
        assert flower.ask("/allocator/act", cordon(), user=ME, headers=headers).status == 403, headers
    form = {**good, "Content-Type": "application/x-www-form-urlencoded"}
    assert flower.ask("/allocator/act", b"action=cordon", user=ME, headers=form).status == 415
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert flower.ask("/api/allocator/act", cordon(), user=ME, headers=headers).status == 403
    plain = {"Content-Type": "text/plain"}
    assert flower.ask("/api/allocator/act", b"{}", user=ME, headers=plain).status == 415
    assert ledger.journal(1) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        ({}, 400),
        ({"action": "release", "args": {}}, 400),
        ({"action": "open_breaker", "args": {"name": "x"}}, 400),
        ({"action": "cordon", "args": []}, 400),
        ({"action": "cordon", "args": {}}, 400),
        ({"action": "cordon", "args": {"target": "nowhere"}}, 404),
        ({"action": "cancel", "args": {"allocation_id": "alloc_nobody"}}, 409),
        ({"action": "cordon", "args": {"target": "edge-1"}, "reason": "x\n" * 200}, 400),
        (b'{"action": "cordon", "pad": "' + b"x" * 20_000 + b'"}', 413),
    ],
)
def test_a_bad_action_says_what_is_wrong(flower: FlowerProcess, ledger: Ledger, body: Any, status: int) -> None:
    before = ledger.journal(1)
    answer = act(flower, body)
    assert answer.status == status, answer.text
    assert ledger.journal(1) == before


def test_a_ledger_that_is_away_is_said_so_and_comes_back(
    flower: FlowerProcess, ledger: Ledger, server: RedisServer
) -> None:
    server.kill()
    try:
        wait_until(lambda: flower.ask(f"{DATA}/pool", user=ME).status == 503, 30, "Flower to notice")
        gone = flower.ask(f"{DATA}/pool", user=ME)
        assert gone.json["error"]["code"] == "ledger_unavailable"
        assert "cannot be reached" in gone.json["error"]["message"]
        assert flower.ask("/allocator", user=ME).status == 200
        assert act(flower, cordon()).status == 503
    finally:
        server.start()
    wait_until(lambda: flower.ask(f"{DATA}/pool", user=ME).status == 200, 30, "the ledger to be back")
