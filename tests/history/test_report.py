"""Reports: numbers that can be worked out by hand, and what holds for any history."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from celery_allocator.errors import HistoryQueryError
from celery_allocator.history import History, open_history
from celery_allocator.history.entry import Entry
from celery_allocator.history.window import Window
from celery_allocator.history.writer import Hole
from celery_allocator.report import FIGURES, Report, make_report
from celery_allocator.report.build import dimensions
from celery_allocator.report.series import Series
from celery_allocator.settings import Settings
from celery_allocator.surfaces.report import html_page
from celery_allocator.surfaces.report.columns import use_rows
from tests.history.made import BEGAN, entry, grant, release, start, stored, submitted
from tests.history.test_fold import streams
from tests.history.told import HOUR, ZERO, at, entries, window, write

ADDED = [name for name in FIGURES if not name.endswith(("_s", "_rate", "_by_estimate", "_covered", "outcomes"))]
NOTHING = (
    dict.fromkeys(FIGURES, 0)
    | {"outcomes": {}, "success_rate": None, "used_gpu_hours": None}
    | dict.fromkeys(
        ["used_gb_hours", "wait_median_s", "wait_p95_s", "run_median_s", "run_p95_s", "estimate_error_median_s"]
    )
    | dict.fromkeys(["started_by_estimate", "dates_covered", "date_error_median_s", "wait_max_s"])
)


def figures(report: Report) -> dict[Any, dict[str, Any]]:
    """The groups' figures by key."""
    return {group.key: group.figures.as_dict() for group in report.groups}


def test_what_was_promised_and_used_by_name(history: History) -> None:
    told = []
    for number, (peak, ram, milli) in enumerate([(1_000, 500, 500), (3_000, 700, 1_500), (2_000, "", 1_000)]):
        name, at_ms = f"a{number}", number * HOUR
        told += [
            submitted(10 * number, "granted", name, at=at_ms, shape="6000:2:1000:t", device="n1/gpu_0",
                      warm="hit" if number else "miss"),
            start(10 * number + 1, name, at=at_ms),
            entry(10 * number + 2, "overuse", name, at=at_ms, resource="ram_mb", used_mb=1_500 + number),
            release(10 * number + 3, name, at=at_ms + 1000, peak_gpu_mb=peak, peak_ram_mb=ram, cpu_milli=milli),
        ]  # fmt: skip
    told += [
        submitted(40, "granted", "b", at=4 * HOUR, name="grew", shape="1000:1:0:t", device="n1/gpu_0"),
        start(41, "b", at=4 * HOUR, name="grew"),
        entry(42, "grown", "b", at=4 * HOUR, name="grew", device="n1/gpu_0", shape="1500:1:0:t"),
        entry(43, "cancelled", "b", at=4 * HOUR, name="grew", outcome="cancelled"),
        submitted(44, object_id="c", at=4 * HOUR, name="nothing known"),
        entry(45, "cancelled", "c", at=4 * HOUR, name="nothing known", outcome="cancelled"),
    ]
    write(history, told)
    report = make_report(history, window(0, 12), ("tenant",))
    uses = report.as_dict()["uses"]
    assert list(uses) == ["grew", "proj.infer"]
    infer = uses["proj.infer"]
    assert infer["gpu_memory_mb"] == {
        "runs": 3, "promised_max": 6000, "used_median": 2000, "used_max": 3000, "used_share": round(6 / 18, 6),
    }  # fmt: skip
    assert infer["ram_mb"] == {
        "runs": 2, "promised_max": 1000, "used_median": 500, "used_max": 700, "used_share": 0.6,
    }  # fmt: skip
    assert (infer["cpu_cores"]["promised_max"], infer["cpu_cores"]["used_max"]) == (2, 1.5)
    assert (infer["grown"], infer["overused"], uses["grew"]["grown"]) == (0, 3, 1)
    assert uses["grew"]["gpu_memory_mb"]["runs"] == 0
    totals = report.totals.as_dict()
    assert {name: totals[name] for name in ("grown", "overused", "affinity_hits", "affinity_misses")} == {
        "grown": 1, "overused": 3, "affinity_hits": 2, "affinity_misses": 1,
    }  # fmt: skip
    rows = use_rows(report)
    assert rows[0] == ("grew", *["-"] * 6, "1", "0")
    assert rows[1] == ("proj.infer", "GPU memory", "3", "6,000 MB", "2,000 MB", "3,000 MB", "33.3 %", "0", "3")
    assert rows[3][1:6] == ("cores", "3", "2", "1", "1.5")
    page = html_page(report)
    assert "Promised and used" in page and "3,000 MB" in page


def test_every_number_of_a_known_history(history: History) -> None:
    write(history, entries())
    report = make_report(history, window(0, 12))
    assert figures(report) == {
        ("proj.infer", "team"): NOTHING
        | {
            "tasks": 2,
            "live": 1,
            "successes": 1,
            "failures": 1,
            "outcomes": {"failure": 1, "success": 1},
            "success_rate": 0.5,
            "wait_median_s": 7200,
            "wait_p95_s": 14400,
            "run_median_s": 3600,
            "run_p95_s": 7200,
            "promised_gpu_hours": 6,
            "used_gpu_hours": 0.5,
            "unstarted_gpu_hours": 0.5,
            "lost_gpu_hours": 0.5,
            "unused_gpu_hours": 0.5,
            "waste_gpu_hours": 1.5,
            "promised_gb_hours": 48,
            "used_gb_hours": 6,
            "unstarted_gb_hours": 6,
            "lost_gb_hours": 6,
            "unused_gb_hours": 6,
            "waste_gb_hours": 18,
            "measured_gb_hours": 12,
            "core_hours": 16,
            "estimates": 2,
            "estimate_error_median_s": -3600,
            "started_by_estimate": 0.5,
            "dates_scored": 2,
            "dates_covered": 0.5,
            "date_error_median_s": 1800,
            "wait_max_s": 14400,
        },
        ("proj.train", "other"): NOTHING
        | {
            "tasks": 1,
            "successes": 1,
            "outcomes": {"success": 1},
            "success_rate": 1,
            "wait_median_s": 0,
            "wait_p95_s": 0,
            "run_median_s": 10800,
            "run_p95_s": 10800,
            "promised_gpu_hours": 4,
            "unstarted_gpu_hours": 1,
            "lost_gpu_hours": 1,
            "waste_gpu_hours": 2,
            "promised_gb_hours": 48,
            "unstarted_gb_hours": 12,
            "lost_gb_hours": 12,
            "waste_gb_hours": 24,
            "core_hours": 8,
            "wait_max_s": 0,
            "regrants": 1,
            "losses": 1,
        },
        ("Proj.cpu", ""): NOTHING
        | {
            "tasks": 1,
            "successes": 1,
            "outcomes": {"success": 1},
            "success_rate": 1,
            "wait_median_s": 0,
            "wait_p95_s": 0,
            "run_median_s": 3600,
            "run_p95_s": 3600,
            "core_hours": 2,
            "wait_max_s": 0,
        },
        ("<script>alert(1)</script>", "team"): NOTHING | {"tasks": 1, "others": 1, "outcomes": {"cancelled": 1}},
    }
    totals = report.totals.as_dict()
    assert {name: totals[name] for name in ("tasks", "live", "successes", "failures", "others")} == {
        "tasks": 5,
        "live": 1,
        "successes": 3,
        "failures": 1,
        "others": 1,
    }
    assert (totals["promised_gb_hours"], totals["promised_gpu_hours"], totals["waste_gpu_hours"]) == (96, 10, 3.5)
    assert (totals["wait_median_s"], totals["wait_p95_s"], totals["run_median_s"], totals["run_p95_s"]) == (
        *(0, 14400),
        *(3600, 10800),
    )
    assert list(totals) == list(FIGURES)


def test_dates_are_told_by_day_tenant_and_name(history: History) -> None:
    moved = [
        submitted(30, object_id="moved", position=1, estimate=BEGAN, estimate_p90=BEGAN),
        *(entry(31, "moved", "moved", position=1), grant(32, "moved"), start(33, "moved"), release(34, "moved")),
    ]
    write(history, [*entries(), *moved])
    dates = make_report(history, window(0, 12), ("node",)).as_dict()["dates"]
    late = {"dates_scored": 1, "dates_covered": 0.0, "date_error_median_s": 1800}
    early = {"dates_scored": 1, "dates_covered": 1.0, "date_error_median_s": 3600}
    both = {"dates_scored": 2, "dates_covered": 0.5, "date_error_median_s": 1800}
    assert dates == {
        "day": {"2023-11-15": both},
        "tenant": {"team": both},
        "name": {"proj.infer": both},
    }
    assert make_report(history, window(0, 4.5)).as_dict()["dates"]["name"] == {"proj.infer": late}
    assert make_report(history, window(4.5, 12)).as_dict()["dates"]["name"] == {"proj.infer": early}


def test_several_gpus_count_each(history: History) -> None:
    """Two GPUs for two hours: memory twice, cores once, each on its own device."""
    two = {"shape": "6144:2:4096:m:2", "name": "both", "device": "n1/gpu_0", "devices": "n1/gpu_0 n1/gpu_1"}
    told = [
        entry(0, "node", "n1", at=0, cores=8, ram_mb=65536, devices=2, gpu_memory_mb="gpu_0:12288 gpu_1:6144"),
        submitted(1, "granted", "two", at=HOUR, token=1, cores="0,1", **two),
        entry(2, "released", "two", at=3 * HOUR, name="both", device="n1/gpu_0", token=1, outcome="released"),
    ]
    write(history, told)
    by_device = figures(make_report(history, window(0, 12), ("device",)))
    names = ("promised_gb_hours", "promised_gpu_hours", "core_hours", "tasks")
    assert {key[0]: tuple(value[name] for name in names) for key, value in by_device.items()} == {
        "n1/gpu_0": (12, 1, 4, 1),
        "n1/gpu_1": (12, 2, 0, 0),
    }


def test_time_counts_where_and_when_it_passed(history: History) -> None:
    write(history, entries())
    by_device = figures(make_report(history, window(0, 12), ("device",)))
    assert {key[0]: value["promised_gb_hours"] for key, value in by_device.items()} == {
        "n1/gpu_0": 72,
        "n1/gpu_1": 24,
        "n1/cpu": 0,
        None: 0,
    }
    assert {key[0]: value["tasks"] for key, value in by_device.items()} == {
        "n1/gpu_0": 3,
        "n1/gpu_1": 0,
        "n1/cpu": 1,
        None: 1,
    }
    (row,) = make_report(history, window(3, 8.5), ("node",)).groups
    told = row.figures.as_dict()
    assert (row.key, told["tasks"], told["live"]) == (("n1",), 2, 2)
    # ok: one hour and its half unused; bad: lost; twice: lost, not started, running; live: half an hour.
    assert told["promised_gb_hours"] == 6 + 6 + 12 + 12 + 18 + 3
    assert (told["lost_gb_hours"], told["unstarted_gb_hours"], told["unused_gb_hours"]) == (18, 12, 3)
    days = figures(make_report(history, window(0, 12), ("day", "name")))
    midnight = (datetime(2023, 11, 15, tzinfo=timezone.utc) - ZERO) / timedelta(hours=1)
    assert days["2023-11-14", "proj.infer"]["promised_gb_hours"] == pytest.approx((midnight - 1) * 6, abs=1e-5)
    assert days["2023-11-15", "proj.infer"]["promised_gb_hours"] == pytest.approx(48 - (midnight - 1) * 6, abs=1e-5)
    assert (days["2023-11-15", "proj.infer"]["live"], days["2023-11-14", "proj.infer"]["tasks"]) == (1, 0)


def test_memory_of_a_device_that_nobody_told_is_no_gpu_hour(history: History) -> None:
    node, *others = entries()
    write(history, [node._replace(fields={**node.fields, "gpu_memory_mb": "gpu_0:12288"}), *others])
    report = make_report(history, window(0, 12))
    totals = report.totals.as_dict()
    assert (totals["promised_gb_hours"], totals["promised_gpu_hours"], totals["unplaced_gb_hours"]) == (96, 6, 24)
    assert report.unit == "gb_hours"
    (only,) = make_report(history, window(10.5, 12)).groups
    assert (only.figures.as_dict()["promised_gpu_hours"], only.figures.as_dict()["promised_gb_hours"]) == (None, 9)


def test_series_say_the_same(history: History) -> None:
    write(history, entries())
    told = make_report(history, window(0, 12)).as_dict()["series"]
    assert told["step_s"] == 900
    assert {name: sum(values) for name, values in told["gb_hours"].items()} == pytest.approx(
        {"proj.infer": 48, "proj.train": 48}, abs=1e-4
    )
    assert {name: sum(values) for name, values in told["gpu_hours"].items()} == pytest.approx(
        {"proj.infer": 6, "proj.train": 4}, abs=1e-4
    )
    assert {name: device["average"] for name, device in told["devices"].items()} == pytest.approx(
        {"n1/gpu_0": 6 / 12, "n1/gpu_1": 4 / 12}, abs=1e-5
    )
    assert max(share for device in told["devices"].values() for share in device["shares"]) == 1
    assert told["endings"]["proj.infer"] == {"failures": 1, "successes": 1}
    assert told["waits"] == [2, 0, 0, 0, 0, 0, 0, 0, 2, 0]


def test_gaps_in_the_window_are_told(history: History) -> None:
    holes = [
        Hole(f"{BEGAN + hours * HOUR}-1", f"{BEGAN + (hours + 1) * HOUR}-0", hours, "trimmed") for hours in (2, 20)
    ]
    write(history, entries(), *holes)
    report = make_report(history, window(0, 12))
    assert [(gap.start, gap.end, gap.entries) for gap in report.gaps] == [(at(2), at(3), 2)]
    assert report.as_dict()["gaps"] == [
        {"since": "2023-11-15T00:13:20Z", "until": "2023-11-15T01:13:20Z", "entries": 2}
    ]


def test_hours_of_what_lost_its_events_come_from_its_row(history: History) -> None:
    """Old events are deleted before the row that they made."""
    life = [
        *(submitted(0, "granted", device="n1/gpu_0", token=1, cores="0"), start(1)),
        *(entry(2, "requeued", device="n1/gpu_0", token=1), grant(10), start(10), release(20)),
    ]
    write(history, life)
    with history.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM events")
    totals = make_report(history, window(0, 1)).totals.as_dict()
    assert totals["promised_gb_hours"] == pytest.approx(6 * 12 / 3600, abs=1e-6)


@pytest.mark.parametrize("by", ["", "color", "name,", "name,name", "name tenant"])
def test_what_reports_cannot_be_grouped_by(by: str) -> None:
    with pytest.raises(HistoryQueryError, match="by="):
        dimensions(by)


def test_a_window_must_not_be_empty(history: History) -> None:
    write(history, [])
    with pytest.raises(HistoryQueryError, match="must be before until"):
        make_report(history, window(1, 1))
    assert make_report(history, window(0, 1)).groups == ()


@given(st.integers(0, 10**9), st.floats(1, 10**9), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_buckets_cover_a_window_of_any_length(start_s: int, length_s: float, cuts: list[float]) -> None:
    begin = datetime.fromtimestamp(start_s, tz=timezone.utc)
    series = Series(Window(begin, begin + timedelta(seconds=length_s)))
    assert 1 <= len(series.starts_s) <= 66
    assert all(later - earlier == series.step_s for earlier, later in pairwise(series.starts_s))
    first, last = min(cuts) * length_s + start_s, max(cuts) * length_s + start_s
    series.held("name", "n/d", 1024, 1024, first, last)
    assert sum(sum(line) for line in series.gb_hours.values()) == pytest.approx((last - first) / 3600, abs=1e-6)


# --- any history


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('history') / 'history.sqlite3'}"
    with open_history(Settings(history_backend_url=url)) as history:
        history.schema.upgrade()
    return url


BYS = st.lists(st.sampled_from(["name", "tenant", "node", "device", "day"]), min_size=1, unique=True).map(tuple)


@st.composite
def lives(draw: Any) -> list[Entry]:
    """Any events of a few allocations whose clock does not go back, and of which the first may have been missed."""
    met: set[str] = set()
    made = []
    for found in draw(streams()):
        ms = round((found.at - ZERO).total_seconds() * 1000)
        told = {name: value for name, value in found.fields.items() if name not in ("new", "shape")}
        if found.object_id not in met and draw(st.booleans()):
            told |= {"new": "1", "name": f"name of {found.object_id}"}
        told["shape"] = draw(st.sampled_from(["2048:1:1:t", "0:1:0:t", ""]))
        if draw(st.booleans()):
            told["peak_gpu_mb"] = "1024"
        met.add(found.object_id)
        made.append((found.event, found.object_id, ms, told))
    made.sort(key=lambda item: item[2])
    began = min(ms for _, _, ms, _ in made)
    return [entry(number, event, name, at=ms - began, **told) for number, (event, name, ms, told) in enumerate(made)]


@hypothesis_settings(deadline=None, max_examples=40)
@given(lives(), BYS, st.integers(0, 60))
def test_groups_and_adjoining_windows_add_up(sqlite_url: str, told: list[Entry], by: tuple[str, ...], cut: int) -> None:
    with open_history(Settings(history_backend_url=sqlite_url, pool=uuid.uuid4().hex)) as history:
        write(history, told)
        rows = stored(history)
        begin, end = ZERO - timedelta(days=1), ZERO + timedelta(days=1)
        whole = make_report(history, Window(begin, end), by)
        middle = ZERO + timedelta(seconds=cut)
        parts = [make_report(history, Window(*edges), by) for edges in ((begin, middle), (middle, end))]
    totals = whole.totals.as_dict()
    for name in ADDED:
        assert sum(g.figures.as_dict()[name] or 0 for g in whole.groups) == pytest.approx(totals[name] or 0, abs=1e-4)
        if name != "live":  # what lives at the end of the first part may end in the second
            both = sum(part.totals.as_dict()[name] or 0 for part in parts)
            assert both == pytest.approx(totals[name] or 0, abs=1e-4), name
    # What the rows say, added up in another way.
    ended = [row for row in rows.values() if row["ended_at"] is not None]
    assert (totals["tasks"], totals["live"]) == (len(ended), len(rows) - len(ended))
    assert (
        sum(totals["outcomes"].values())
        == totals["tasks"]
        == sum(totals[name] for name in ("successes", "failures", "others"))
    )
    assert totals["losses"] == sum(row["losses"] for row in ended)
    held = 0.0
    for row in rows.values():
        gb, seconds = (row["gpu_memory_mb"] or 0) / 1024, row["held_s"]
        if row["ended_at"] is None and row["state"] in ("granted", "running") and row["granted_at"] is not None:
            seconds += (end - row["granted_at"]).total_seconds()
        held += gb * seconds / 3600
    assert totals["promised_gb_hours"] == pytest.approx(held, abs=1e-4)
    assert totals["waste_gb_hours"] <= totals["promised_gb_hours"] + 1e-4
