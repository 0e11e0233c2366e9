"""Which allocations the history finds, on both databases; and the command that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from celery_allocator.errors import HistoryQueryError
from celery_allocator.history import History
from celery_allocator.history.query import Filter, allocations
from celery_allocator.history.writer import Hole
from celery_allocator.settings import Settings
from celery_allocator.surfaces.cli import allocator
from tests.history.made import BEGAN, entry, start, submitted
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
