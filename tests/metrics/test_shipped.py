"""What is shipped for Prometheus and Grafana, without a pool: it is valid, whole, and speaks of what there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from celery_allocator.metrics.table import COUNTER, HISTOGRAM, METRICS, PREFIX
from celery_allocator.surfaces.cli import allocator
from tests.metrics.dashboard import load, panels, queries
from tests.support.processes import ROOT
from tests.support.prometheus_server import binary

CONFIGS = ROOT / "configs"
RULES: list[dict[str, Any]] = yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"][0]["rules"]
#: What may stand in queries besides our metrics.
SERIES = {
    PREFIX + metric.name + suffix
    for metric in METRICS.values()
    for suffix in (("_bucket", "_sum", "_count") if metric.type == HISTOGRAM else ("",))
} - {PREFIX + "estimate_error_seconds" + suffix for suffix in ("_sum", "_count")}


def promtool(*args: str, cwd: Path = CONFIGS) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary("promtool"), *args], cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def test_the_configuration_is_valid() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["celery-allocator", "celery-exporter", "flower", "dcgm"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_passes_its_test_and_fails_it_without_the_alert(rule: dict[str, Any], tmp_path: Path) -> None:
    text = (CONFIGS / "alerts.yml").read_text()
    tests = yaml.safe_load((CONFIGS / "alerts.test.yml").read_text())
    tests["tests"] = [test for test in tests["tests"] if test["name"] == rule["alert"]]
    (tmp_path / "one.test.yml").write_text(yaml.safe_dump(tests))
    (tmp_path / "alerts.yml").write_text(text)
    assert promtool("test", "rules", "one.test.yml", cwd=tmp_path).returncode == 0
    (tmp_path / "alerts.yml").write_text(text.replace(f"- alert: {rule['alert']}\n", "- alert: Somebody\n"))
    assert promtool("test", "rules", "one.test.yml", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert len(rule["annotations"]["runbook"].split()) >= 10
    assert set(re.findall(r"celery_allocator_\w+", rule["expr"])) <= SERIES


def test_runbooks_name_commands_and_settings_that_there_are() -> None:
    text = (CONFIGS / "alerts.yml").read_text()
    commands = allocator.list_commands(click.Context(allocator))
    assert set(re.findall(r"`celery-allocator ([a-z-]+)", text)) <= set(commands)
    from celery_allocator.settings import table

    assert set(re.findall(r"\ballocator_\w+", text)) <= {row.name for row in table()}


def test_every_metric_is_on_the_dashboard_or_is_left_out_on_purpose() -> None:
    shown = " ".join(query.expression for panel in panels(load()) for query in queries(panel))
    named = set(re.findall(r"celery_allocator_\w+", shown))
    assert named <= SERIES
    left_out = {
        metric.name for metric in METRICS.values() if not any(name.startswith(metric.full_name) for name in named)
    }
    assert left_out == {
        *("info", "granting_paused", "events_total", "recorder_missed_entries_total"),
        "gpu_process_ids_hidden",  # of what foreign is
        "idle_gap_seconds",  # how long each was; the panel shows them while they last
    }


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    board = load()
    assert (board["uid"], board["id"]) == ("celery-allocator", None)
    assert [given["name"] for given in board["__inputs"]] == ["DS_PROMETHEUS"]
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "hostname", "gpu"]
    assert [panel["title"] for panel in board["panels"] if panel["type"] == "row"] == [
        "Capacity",
        "Queue",
        "Tenants and dates",
        "Latency",
        "Health",
        "Hardware",
    ]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", panels(load()), ids=lambda panel: panel["title"])
def test_each_panel_has_a_unit_a_source_and_a_description(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["legendFormat"]
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert labels <= {label for metric in METRICS.values() for label in metric.labels}


def test_no_two_panels_lie_on_each_other_and_none_leaves_the_grid() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in load()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_counters_are_asked_for_by_rate_and_gauges_are_not() -> None:
    counters = {metric.full_name for metric in METRICS.values() if metric.type == COUNTER}
    texts = [query.expression for panel in panels(load()) for query in queries(panel)]
    for text in [*texts, *(rule["expr"] for rule in RULES)]:
        for name in set(re.findall(r"celery_allocator_\w+", text)):
            grows = name in counters or name.endswith(("_bucket", "_sum"))
            ranged = re.search(rf"(rate|increase)\({name}(\{{[^}}]*\}})?\[", text) is not None
            assert ranged == grows, text
