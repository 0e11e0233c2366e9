"""The live screen on a real ledger: what it shows, what its keys do, and what becomes of the ledger by them."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

import pytest

from celery_allocator.allocating import Session
from celery_allocator.ledger import keys
from celery_allocator.model import State
from celery_allocator.operations import Actor, Operator, Pause
from celery_allocator.settings import Settings
from celery_allocator.surfaces.terminal.frame import PAGE
from tests.support.tcp_proxy import TcpProxy
from tests.terminal.conftest import LivePool
from tests.terminal.piloted import Piloted, piloted, run
from tests.terminal.scene import fill, uuid

SIZES = [(80, 24), (160, 50)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_everything_that_matters_is_seen(cluster: LivePool, reach: dict[str, str], size: tuple[int, int]) -> None:
    fill(cluster)

    async def look() -> None:
        async with piloted(reach, size=size) as top:
            await top.wait_for("6 running", "12 waiting", "1 on hold", "25.5G/24.0G GPU", uuid(0)[:8], uuid(1000)[:7])
            await top.wait_for("alloc_wait0  ")  # the selected row's details come with the next turn of the loop
            assert len(top.lines) == size[1]
            assert {len(line) for line in top.lines} == {size[0]}
            assert (
                reach["ALLOCATOR_POOL"] in top.lines[0]
                and f":{urlsplit(reach['ALLOCATOR_BACKEND_URL']).port}" in top.lines[0]
            )
            assert "2 nodes  3 GPUs" in top.text
            gpu = next(line for line in top.lines if "  gpu_0" in line)
            assert "ready" in gpu and "25.5G/24.0G GPU" in gpu and "83%" in gpu and "64°" in gpu and "3/4" in gpu
            assert {"█", "▒", "╳"} <= set(gpu)
            infer = top.line("shop.infer")
            assert uuid(0)[:8] in infer and "host1/gpu_" in infer and "8.0G" in infer
            assert "9.6G" in infer and "4.0G!" in infer  # it uses more than it has claimed
            first = next(line for line in top.lines if uuid(1000)[:7] in line)
            assert first.split()[:2] == ["1", "shop.train"] and "GPU mem" in first
            # Of the selected row all that matters stands below, whole.
            assert f"alloc_wait0  {uuid(1000)}" in top.text
            for key in ("? help", "/ find", "s sort", "q quit", "x cancel", "h hold", "u unhold", "p priority"):
                assert key in top.lines[-1]
            assert "▒ promised" in top.text and "╳ foreign" in top.text

    run(look)


def test_every_column_has_its_head_at_80(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    async def look() -> None:
        async with piloted(reach) as top:
            await top.wait_for("6 running", "NODE, DEVICE", "USED GPU,RAM", "WAITS FOR")
            text = " ".join(top.text.split())
            for heads in (
                "NODE, DEVICE STATE MEMORY LOAD TEMP CORES SLOTS",
                "NAME TASK DEVICE CLAIM GPU,C,RAM USED GPU,RAM FOR",
                "POS NAME TASK CLAIM GPU,C,RAM PRIO AGE STARTS IN WAITS FOR",
            ):
                assert heads in text

    run(look)


def test_a_cancel_asks_why_and_is_journalled(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("12 waiting")
            await top.press("x")
            await top.wait_for("Cancel shop.train", "REVOKED")
            await top.press("escape")
            await top.press("down", "x")
            await top.wait_for("Cancel research.finetune")
            await top.type("no budget")
            await top.press("enter")
            await top.wait_for("11 waiting")

    run(act)
    (entry,) = cluster.ledger.journal()
    assert (entry.action, entry.args["allocation_id"]) == ("cancel", "alloc_wait1")
    assert (entry.actor, entry.source, entry.reason) == ("ada@desk", "cli", "no budget")
    assert cluster.ledger.get("alloc_wait0").state is State.WAITING


def test_hold_unhold_and_priority(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("12 waiting")
            await top.press("p")
            await top.wait_for("Priority shop.train")
            await top.press(*["backspace"] * 3)
            await top.type("4000")
            await top.press("enter", "enter")
            await top.wait_for("no whole number from -1000 to 1000")
            await top.press(*["backspace"] * 4)
            await top.type("-7")
            await top.press("enter", "enter")
            await top.until(lambda: cluster.ledger.get("alloc_wait0").priority == -7, lambda: top.text)
            await top.press("h", "enter")
            await top.wait_for("2 on hold", "11 waiting")
            await top.press("v")
            await top.wait_for("ON HOLD  2", "alloc_")
            await top.press("home", "u", "enter")
            await top.wait_for("1 on hold", "12 waiting")

    run(act)
    assert [entry.action for entry in cluster.ledger.journal()] == ["unhold", "hold", "priority"]


def test_cordon_uncordon_and_drain(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster, waiting=0)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("6 running")
            await top.press("tab")  # from the last table to the first
            await top.press("down", "c")
            await top.wait_for("Cordon host1/gpu_0?")
            await top.type("fan is loud")
            await top.press("enter")
            await top.until(
                lambda: "cordoned" in top.line("gpu_0         ") if False else "cordoned" in top.text, lambda: top.text
            )
            await top.press("u", "enter")
            await top.until(lambda: cluster.device("host1/gpu_0").state == "ready", lambda: top.text)
            await top.press("home", "d")
            await top.wait_for("Drain host1?")
            await top.press("enter")
            await top.wait_for("draining")

    run(act)
    told = [(entry.action, entry.args["target"], entry.reason) for entry in cluster.ledger.journal()]
    assert told == [("drain", "host1", ""), ("uncordon", "host1/gpu_0", ""), ("cordon", "host1/gpu_0", "fan is loud")]
    assert cluster.device("host1/gpu_1").state == "draining"


def test_what_is_refused_is_told(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster, waiting=1)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("6 running")
            await top.press("shift+tab")
            await top.wait_for(f"alloc_run0  {uuid(0)}")
            await top.press("x")
            await top.wait_for("Cancel shop.infer")
            await top.press("enter")
            await top.until(
                lambda: any("control terminate" in told for told in top.told()), lambda: f"{top.told()} {top.text}"
            )

    run(act)
    assert cluster.ledger.journal() == ()


def test_read_only_changes_nothing_and_does_no_upkeep(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)
    cluster.by_hand(0, 1, ttl_s=0.2, id="alloc_over")

    async def act() -> None:
        async with piloted(reach, read_only=True) as top:
            await top.wait_for("7 running")
            assert "x cancel" not in top.lines[-1]
            for key in ("x", "h", "p"):
                await top.press(key)
            assert len(top.app.screen_stack) == 1
            assert {"Nothing is changed from here: --read-only."} == set(top.told())
            seen = top.app._frame
            await top.until(lambda: top.app._frame is not seen, lambda: top.text)

    run(act)
    assert cluster.ledger.journal() == ()
    assert cluster.ledger.get("alloc_over").state is State.RUNNING


def test_sorting_goes_through_the_columns_and_back(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    def names(top: Piloted) -> list[str]:
        table = top.app.query_one("#running").rows
        return [str(table.get_row_at(row)[0]).strip() for row in range(table.row_count)]

    async def act() -> None:
        async with piloted(reach, size=(160, 50)) as top:
            await top.wait_for("6 running")
            await top.press("shift+tab")
            before = names(top)
            await top.press("s")
            await top.wait_for("NAME▼")
            assert names(top) == sorted(before) != before
            await top.press("r")
            assert names(top) == sorted(before, reverse=True)
            await top.press("r", *["s"] * 3)
            await top.wait_for("CLAIM GPU,C,RAM▼")
            assert names(top)[0] == "research.finetune" and names(top)[-1] == "etl.clean"
            await top.press(*["s"] * 4)
            assert names(top) == before
            await top.press("shift+tab", "s")  # devices: below no node any more, so with its name
            await top.wait_for("host1/gpu_1")

    run(act)


def test_a_selected_row_stays_selected_wherever_it_goes(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("12 waiting")
            await top.press("down", "down")
            await top.wait_for("alloc_wait2 ")
            cluster.ledger.prioritize("alloc_wait2", 900)
            await top.until(
                lambda: any(line.split()[:2] == ["1", "shop.train"] and "900" in line for line in top.lines),
                lambda: top.text,
            )
            assert "alloc_wait2 " in top.text
            cluster.ledger.cancel("alloc_wait2")
            await top.wait_for("alloc_wait0 ")

    run(act)


def test_a_text_is_looked_for_everywhere(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    async def act() -> None:
        async with piloted(reach, size=(160, 50)) as top:
            await top.wait_for("12 waiting")
            await top.press("slash")
            await top.type("FINETUNE")
            await top.press("enter")
            await top.wait_for("12, 6 found", "1 of 6 tasks", "/FINETUNE")
            assert "shop.train" not in top.text
            await top.press("escape")
            await top.wait_for("shop.train", "6 tasks")
            await top.press("slash")
            await top.type("host2")
            await top.press("enter")
            await top.until(lambda: "host1" not in top.text, lambda: top.text)

    run(act)


def test_names_of_tasks_are_text_and_nothing_else(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1", gpus=(10_000,))
    cluster.running(10_000, 1, task_name="[red]x[/]", task_id="[bold]id[/]")
    cluster.submit(10_000, 1, id="alloc_evil", task_name="plain")
    evil = "\x1b[2J\x1b]0;title\x07\u202eab\r\n"
    for field in ("name", "task"):
        cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "alloc", "alloc_evil"), field, f"{field}{evil}")

    async def act() -> None:
        async with piloted(reach, size=(200, 50)) as top:
            await top.wait_for("[red]x[/]", "[bold]id[/]", r"name\x1b[2J\x1b]0;title\x07\u202e")
            assert not set(top.text) & set("\x1b\x07\u202e\r")
            await top.press("enter")
            await top.wait_for("task", r"name\x1b[2J\x1b]0;title\x07\u202eab\r\n")
            await top.press("escape", "x")
            await top.wait_for(r"Cancel name\x1b[2J")

    run(act)
    for field, text in (("name", "plain"), ("task", "task of alloc_evil")):
        cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "alloc", "alloc_evil"), field, text)


class _Counted(threading.Event):
    """Counts how often it has been waited for in vain."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        woken = super().wait(timeout)
        self.waits += not woken
        return woken


def test_pool_paused_and_screen_paused(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("12 waiting")
            Operator(cluster.ledger, Actor("ada")).run(Pause())
            await top.wait_for("STOPPED: an operator has paused the pool")
            await top.press("space")
            await top.wait_for("paused ")
            seen = top.app._frame
            cluster.ledger.cancel("alloc_wait3")
            await top.press("v")  # asked for by hand, so it looks
            await top.wait_for("ON HOLD  1", "11 waiting")
            seen = top.app._frame
            cluster.ledger.cancel("alloc_wait4")
            wake = _Counted()
            top.app._watcher._wake = wake
            await top.until(lambda: wake.waits >= 3, lambda: f"{wake.waits} waits")
            assert top.app._frame is seen
            await top.press("space")
            await top.wait_for("10 waiting")

    run(act)


def test_a_ledger_that_is_away_is_told_and_comes_back(cluster: LivePool, reach: dict[str, str]) -> None:
    fill(cluster)
    parts = urlsplit(reach["ALLOCATOR_BACKEND_URL"])

    async def act(proxy: TcpProxy) -> None:
        there = {**reach, "ALLOCATOR_BACKEND_URL": f"redis://:secret@127.0.0.1:{proxy.port}/0"}
        there["ALLOCATOR_BACKEND_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        async with piloted(there) as top:
            await top.wait_for("12 waiting")
            proxy.refuse()
            await top.wait_for("cannot be reached", "tried again every 0.2 s")
            assert "12 waiting" in top.text  # what was seen last
            proxy.heal()
            await top.until(lambda: "cannot be reached" not in top.text, lambda: top.text)
            # One that does not answer holds up nobody.
            proxy.cut()
            await top.press("question_mark")
            await top.wait_for("next table, table before")
            await top.press("escape", "x")
            await top.wait_for("Cancel")
            await top.press("enter")
            assert "12 waiting" in top.text
            proxy.heal()
            await top.wait_for("11 waiting")

    with TcpProxy((parts.hostname or "", parts.port or 0)) as proxy:
        run(lambda: act(proxy))


def test_200_gpus_and_10000_waiting_are_read_in_pages(cluster: LivePool, reach: dict[str, str]) -> None:
    for node in range(25):
        cluster.node(f"host{node:02}", gpus=(1000,) * 8, cores=64, lease_s=600)
    cluster.ledger.pause(stop=True)
    for number in range(10_000):
        cluster.submit(1000, 1, id=f"alloc_{number:05}", task_name=f"work.{number % 10}")
    settings = Settings(backend_url=reach["ALLOCATOR_BACKEND_URL"], pool=reach["ALLOCATOR_POOL"])
    session = Session(settings)
    asked: list[tuple[int, int]] = []
    read = session.ledger.queue

    def queue(limit: int = 100, offset: int = 0) -> object:
        asked.append((limit, offset))
        return read(limit, offset)

    session.ledger.queue = queue

    async def act() -> None:
        async with piloted(reach, session=session, interval=0.5) as top:
            await top.wait_for("10,000 waiting", "25 nodes  200 GPUs", "WAITING  10,000; 1 to 100 shown")
            await top.press("n", "n")
            await top.wait_for("201 to 300 shown")
            await top.press("b")
            await top.wait_for("101 to 200 shown", "alloc_00100")
            await top.press("tab", "end")  # the last of 225 devices and nodes
            await top.wait_for("host24/cpu")
            await top.press("z")
            await top.until(
                lambda: "WAITING" not in top.text and len([line for line in top.lines if "ready" in line]) == 15,
                lambda: top.text,
            )

    run(act)
    assert {limit for limit, _ in asked} == {PAGE}
    assert {offset for _, offset in asked} == {0, 100, 200}


def test_a_line_that_has_become_shorter_than_where_one_stands(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1", gpus=(1000,))
    cluster.ledger.pause(stop=True)
    for number in range(250):
        cluster.submit(1000, 1, id=f"alloc_{number:05}")

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("1 to 100 shown")
            await top.press("n", "n")
            await top.wait_for("201 to 250 shown")
            for number in range(200):
                cluster.ledger.cancel(f"alloc_{number:05}")
            await top.wait_for("WAITING  50")
            await top.press("n")
            await top.wait_for("alloc_00200")

    run(act)
