"""Which allocations the history finds, on both databases; and the command that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from celery_allocator.errors import HistoryQueryError
from celery_allocator.history import History
from celery_allocator.history.entry import Entry
from celery_allocator.history.query import Filter, allocations
from celery_allocator.history.writer import Hole
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli import allocator
from tests.history.made import BEGAN, entry, grant, start, submitted
from tests.history.told import HOUR, at, entries, write

Run = Callable[..., Any]


@pytest.fixture
def run(settings: Settings) -> Run:
    """Run a command on this history, without a ledger. ``code``: its exit code. With ``--json``: parsed."""
    assert settings.history_backend_url is not None
    env = {"ALLOCATOR_HISTORY_BACKEND_URL": settings.history_backend_url, "ALLOCATOR_POOL": settings.pool}

    def invoke(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(allocator, args, env=env, prog_name="celery-allocator")
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        if "--json" in args and result.stdout:
            return json.loads(result.stdout)
        return result.stdout if code == 0 else result.stderr

    return invoke


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (Filter(), "wait live twice cpu bad ok"),
        (Filter(task="task of bad"), "bad"),
        (Filter(task="nobody's"), ""),
        (Filter(name="proj.*"), "live twice bad ok"),
        (Filter(name="Proj.*"), "cpu"),
        (Filter(name="proj.[i-t]????"), "live twice bad ok"),
        (Filter(name="proj.i*r"), "live bad ok"),
        (Filter(name="proj%"), ""),
        (Filter(name="proj_infer"), ""),
        (Filter(name="*script*"), "wait"),
        (Filter(tenant="other"), "twice"),
        (Filter(tenant=""), "cpu"),
        (Filter(node="n1"), "live twice cpu bad ok"),
        (Filter(node="n2"), ""),
        (Filter(device="n1/gpu_1"), "live"),
        (Filter(device="n1/gpu_0", node="n1"), "twice bad ok"),
        (Filter(device="n2/gpu_0"), ""),
        (Filter(outcome="live"), "live"),
        (Filter(outcome="success"), "twice cpu ok"),
        (Filter(outcome="failure", name="proj.*", tenant="team"), "bad"),
        (Filter(outcome="parked"), ""),
        (Filter(since=at(8)), "wait live twice"),
        (Filter(until=at(8)), "twice cpu bad ok"),
        (Filter(since=at(2), until=at(5)), "cpu bad ok"),
    ],
)
def test_filters(history: History, chosen: Filter, found: str) -> None:
    write(history, entries())
    assert " ".join(row.allocation_id for row in allocations(history, chosen, 100)) == found
    assert [row.allocation_id for row in allocations(history, chosen, 2)] == found.split()[:2]


def test_an_outcome_of_ones_own_can_be_asked_for(history: History) -> None:
    """Whoever releases by hand may say any."""
    write(history, [*entries(), submitted(30, object_id="own"), entry(31, "released", "own", outcome="gave_up")])
    assert [row.allocation_id for row in allocations(history, Filter(outcome="gave_up"), 9)] == ["own"]
    with pytest.raises(HistoryQueryError, match=r"outcome='sucess': no allocation has ended so; there are live, canc"):
        allocations(history, Filter(outcome="sucess"), 9)


def test_those_whose_submit_was_missed_come_last(history: History) -> None:
    write(history, [start(1, "unknown"), submitted(2, object_id="known")])
    assert [row.allocation_id for row in allocations(history, Filter(), 9)] == ["known", "unknown"]


def test_the_table(run: Run, history: History) -> None:
    write(history, entries())
    head, *rows = run("history", "--limit", "3").splitlines()
    assert " ".join(head.split()) == "SUBMITTED NAME TASK TENANT ASKED FOR DEVICE WAIT PROMISED RUN OUTCOME"
    assert [row.split()[-1] for row in rows] == ["cancelled", "running", "success"]
    assert "proj.train" in rows[2] and "12288 MB GPU, 2 cores, 4096 MB RAM  n1/gpu_0  0 s          -  3 h " in rows[2]
    (promised,) = run("history", "--task", "task of ok").splitlines()[1:2]
    assert "n1/gpu_0  2 h   1 h 30 min / 1 h 45 min  2 h  success" in promised
    assert run("history", "--name", "nothing*") == "No allocation matches.\n"


def test_what_happened_to_a_task_step_by_step(run: Run, history: History) -> None:
    write(history, entries())
    shown = run("history", "--task", "task of twice")
    assert shown.partition("\n\n")[2] == (
        "twice (proj.train)\n"
        "  2023-11-15T03:13:20.000Z        submitted: granted on n1/gpu_0, token 15, cores 0,1\n"
        "  2023-11-15T03:13:20.000Z  +0 s  started by w1\n"
        "  2023-11-15T04:13:20.000Z  +1 h  lost on n1/gpu_0, in line again\n"
        "  2023-11-15T04:13:20.000Z  +0 s  granted on n1/gpu_0, token 18, cores 0,1\n"
        "  2023-11-15T05:13:20.000Z  +1 h  started by w1\n"
        "  2023-11-15T07:13:20.000Z  +2 h  released: success, ran 0 s\n"
    )
    waiting = run("history", "--task", "task of ok")
    assert "submitted: waiting at position 1, start estimated for 2023-11-14T23:43:20.000Z, in nine of ten " in waiting
    assert "in nine of ten cases by 2023-11-14T23:58:20.000Z\n" in waiting
    cancelled = run("history", "--task", "task of wait")
    assert "+1 h  cancelled: cancelled, from waiting" in cancelled


def test_what_others_did_on_its_device_meanwhile(run: Run, history: History) -> None:
    """Foreign memory, a claim that grew, overuse, what was loaded there, what it used: all in one life."""

    def withheld(number: int, hours: float, device: str, foreign: int, leftover: int = 0) -> Entry:
        amounts = {"withheld_mb": foreign + leftover, "foreign_mb": foreign, "leftover_mb": leftover, "overuse_mb": 0}
        return entry(number, "withheld", f"n1/{device}", at=int(hours * HOUR), **amounts, pids_hidden=0)

    told = [
        withheld(1, 0.5, "gpu_0", 900),
        withheld(2, 0.5, "gpu_1", 7_000),
        submitted(3, "granted", "a", at=HOUR, device="n1/gpu_0", shape="1000:1:0:t:1:w=sdxl", token=1, cores="0",
                  warm="miss"),
        start(4, "a", at=HOUR),
        withheld(5, 1.5, "gpu_0", 30_000, 200),
        entry(6, "overuse", "a", at=2 * HOUR, resource="ram_mb", promised_mb=64, used_mb=99, action="warn"),
        entry(7, "grown", "a", at=2 * HOUR, device="n1/gpu_0", to=1500, shape="1500:1:0:t:1:w=sdxl", **{"from": 1000}),
        withheld(8, 2.5, "gpu_0", 1),
        grant(9, "a", device="n1/gpu_1", at=3 * HOUR, warm="hit"),
        entry(10, "started", "a", at=3 * HOUR, device="n1/gpu_1", token=9, worker="w1"),
        withheld(11, 3.5, "gpu_0", 5_000),
        entry(12, "left", "w1", at=4 * HOUR - 1000, device="n1/gpu_1"),
        entry(13, "released", "a", at=4 * HOUR, device="n1/gpu_1", outcome="success", held_ms=HOUR, peak_gpu_mb=1400,
              peak_ram_mb=70, cpu_milli=950),
        withheld(14, 5, "gpu_1", 3_000),
    ]  # fmt: skip
    write(history, told)
    lines = run("history", "--task", "task of a").partition("\n\n")[2].splitlines()
    assert [line.split("Z  ", 1)[1].lstrip() for line in lines[1:]] == [
        "submitted: granted on n1/gpu_0, token 1, cores 0, its affinity is not loaded there",
        "+0 s  started by w1",
        "+0 s  meanwhile 900 MB of n1/gpu_0 are withheld (900 MB foreign)",
        "+30 min  meanwhile 30,200 MB of n1/gpu_0 are withheld (30,000 MB foreign, 200 MB leftover)",
        "+30 min  overuse of RAM: 99 MB, 64 MB promised; it is warned of",
        "+0 s  grown on n1/gpu_0, in line again with 1500 MB of GPU memory, from 1000",
        "+1 h  granted on n1/gpu_1, token 9, cores 0,1, its affinity is loaded there",
        "+0 s  started by w1",
        "+0 s  meanwhile 7,000 MB of n1/gpu_1 are withheld (7,000 MB foreign)",
        "+1 h  released: success, ran 1 h, used at most 1,400 MB of GPU memory and 70 MB of RAM and 0.95 cores",
    ]
    (row,) = run("history", "--task", "task of a", "--json")
    assert (row["more"], row["affinity"], row["grown"], row["gpu_memory_mb"]) == ("w=sdxl", "hit", 1, 1500)
    assert (row["overuse_ram_mb"], row["overuse_gpu_memory_mb"], row["cpu_cores_used"]) == (99, None, 0.95)
    assert [(one["device"], one["withheld_mb"]) for one in row["withheld"]] == [
        ("n1/gpu_0", 900),
        ("n1/gpu_0", 30_200),
        ("n1/gpu_1", 7_000),
    ]
    assert "1500 MB GPU, 1 core, near sdxl" in run("history")


def test_json_is_one_list(run: Run, history: History) -> None:
    write(history, entries())
    found = run("history", "--json")
    assert [row["allocation_id"] for row in found] == ["wait", "live", "twice", "cpu", "bad", "ok"]
    (ok,) = run("history", "--task", "task of ok", "--json")
    assert (ok["wait_s"], ok["run_s"], ok["held_s"], ok["submitted_at"]) == (
        *(7200, 7200, 10800),
        "2023-11-14T22:13:20.000Z",
    )
    assert [event["event"] for event in ok["events"]] == ["waiting", "granted", "started", "released"]
    assert run("history", "--name", "nothing*", "--json") == []


def test_gaps_are_told_beside_the_list(run: Run, settings: Settings, history: History) -> None:
    write(history, entries(), Hole(f"{BEGAN}-7", f"{BEGAN + HOUR}-0", 4, "trimmed"), Hole("5-0", "6-0", None, "gone"))
    assert settings.history_backend_url is not None
    env = {"ALLOCATOR_HISTORY_BACKEND_URL": settings.history_backend_url, "ALLOCATOR_POOL": settings.pool}
    result = CliRunner().invoke(allocator, ["history", "--json", "--since", "2023-11-14T22:30:00Z"], env=env)
    assert len(json.loads(result.stdout)) == 6
    assert result.stderr == (
        "4 entries are missing between 2023-11-14T22:13:20.000Z and 2023-11-14T23:13:20.000Z (trimmed)\n"
    )
    everything = CliRunner().invoke(allocator, ["history"], env=env)
    assert "An unknown number of entries is missing between 1970-01-01T00:00:00.005Z and" in everything.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "gpu_0"], "device='gpu_0': must be NODE/DEVICE, such as host1/gpu_0"),
        (["--device", "host1/"], "must be NODE/DEVICE"),
        (["--task", "\ud800"], "task='\\ud800': has characters that no name has"),
        (["--tenant", "a\0b"], "has characters that no name has"),
        (["--since", "yesterday"], "since='yesterday': is neither a length of time such as 90s"),
        (["--until", "5"], "until='5': is neither"),
        (["--since", "1h", "--until", "2h"], "must be after since"),
        (["--outcome", "sucess"], "no allocation has ended so; there are live, cancelled"),
        (["--limit", "0"], "0 is not in the range"),
    ],
)
def test_bad_filters(run: Run, history: History, options: list[str], complaint: str) -> None:
    write(history, entries())
    assert complaint in " ".join(run("history", *options, code=2).split())


def test_a_bad_filter_is_json_too(run: Run, history: History) -> None:
    write(history, [])
    error = run("history", "--json", "--outcome", "sucess", code=2)["error"]
    assert (error["code"], error["key"]) == ("history_query", "outcome")


@pytest.mark.parametrize("command", ["history", "report"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_history_yet(run: Run, command: str) -> None:
    assert "there is no history at" in run(command, code=1)
