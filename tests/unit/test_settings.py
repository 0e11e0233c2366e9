"""Settings: one table, three sources, one kind of error."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from celery import Celery
from celery.app.utils import filter_hidden_settings

from celery_allocator.errors import SettingsError
from celery_allocator.settings import Settings, env_name, table

NAMES = [field.name for field in dataclasses.fields(Settings)]
#: A valid value of each setting that is not its default, and its spelling in the environment.
OTHER: dict[str, tuple[Any, str]] = {
    "backend_url": ("redis://elsewhere/3", "redis://elsewhere/3"),
    "pool": ("night", "night"),
    "embedded_dir": ("/somewhere", "/somewhere"),
    "events_maxlen": (7, "7"),
    "history_backend_url": ("postgresql://elsewhere/history", "postgresql://elsewhere/history"),
    "history_days": (0, "0"),
    "recorder": (True, "yes"),
    "node": ("host9", "host9"),
    "devices": ("sim:2x1024", "sim:2x1024"),
    "cpu_cores": (3, "3"),
    "ram_mb": (512, "512"),
    "reserve_cpu_cores": (1, "1"),
    "reserve_ram_mb": (64, "64"),
    "labels": ({"zone": "a"}, '{"zone": "a"}'),
    "strategy": ("first_fit", "first_fit"),
    "strategies": ({"mine": "mine.lua"}, '{"mine": "mine.lua"}'),
    "never_fits": ("wait", "wait"),
    "default_resources": ({"cpu_cores": 2}, '{"cpu_cores": 2}'),
    "task_types": ({"training": {"gpu_memory_mb": 9}}, '{"training": {"gpu_memory_mb": 9}}'),
    "backfill": ("greedy", "greedy"),
    "max_bypass": (7, "7"),
    "max_bypass_s": (60.0, "60"),
    "age_weight": (0.5, "0.5"),
    "affinity_s": (60.0, "60"),
    "affinity_wait_s": (30.0, "30"),
    "affinity_keeps": (2, "2"),
    "tenants": ({"vision": {"weight": 2}}, '{"vision": {"weight": 2}}'),
    "runtime_decay": (0.5, "0.5"),
    "recommend_margin": (0.3, "0.3"),
    "auto_gpu_memory_mb": (4096, "4096"),
    "auto_ram_mb": (2048, "2048"),
    "max_message_bytes": (2048, "2048"),
    "max_waiting": (9, "9"),
    "journal_maxlen": (9, "9"),
    "updates": (False, "off"),
    "changes": (True, "on"),
    "celery_events": (False, "no"),
    "breaker": ({"probes": 2}, '{"probes": 2}'),
    "lease_s": (30.0, "30"),
    "heartbeat_s": (2.5, "2.5"),
    "tick_s": (0.25, "0.25"),
    "start_deadline_s": (4.0, "4"),
    "max_losses": (0, "0"),
    "ttl_s": (60.0, "60"),
    "mcp_tokens": ("/etc/tokens.toml", "/etc/tokens.toml"),
    "measure_s": (2.0, "2"),
    "health_s": (4.0, "4"),
    "reconcile": (False, "0"),
    "gpu_margin_mb": (512, "512"),
    "on_overuse": ("kill", "kill"),
    "overuse_tolerance": (0.5, "0.5"),
    "overuse_floor_mb": (0, "0"),
    "watch_s": (0.5, "0.5"),
    "tracing": (False, "off"),
    "metrics_port": (9808, "9808"),
    "metrics_host": ("0.0.0.0", "0.0.0.0"),
    "pin_cores": (False, "off"),
    "thread_hints": (False, "off"),
    "gpu_memory_caps": (False, "off"),
    "cuda_in_parent": ("warn", "warn"),
    "oom_retries": (0, "0"),
    "oom_growth": (2.0, "2"),
    "worker_concurrency": (5, "5"),
    "worker_cpu_concurrency": (6, "6"),
    "worker_pool": ("threads", "threads"),
}


def test_every_setting_is_tried_below() -> None:
    """A new setting needs a value here."""
    assert sorted(OTHER) == sorted(NAMES)


def test_defaults_need_nothing() -> None:
    """With no configuration at all there are settings."""
    assert Settings.load(environ={}) == Settings()
    assert Settings().heartbeat_interval_s == Settings().lease_s / 3
    assert Settings(heartbeat_s=1.5).heartbeat_interval_s == 1.5


@pytest.mark.parametrize("name", NAMES)
def test_each_source_sets_each_setting(name: str) -> None:
    """``app.conf``, the environment and the caller, each on its own."""
    value, spelling = OTHER[name]
    assert getattr(Settings(), name) != value
    assert getattr(Settings.load({f"allocator_{name}": value}, {}), name) == value
    assert getattr(Settings.load({}, {f"ALLOCATOR_{name.upper()}": spelling}), name) == value
    assert getattr(Settings.load({}, {}, **{name: value}), name) == value


def test_the_caller_wins_over_the_environment_over_the_app() -> None:
    """The order that lets one host of many, and one command of many, differ."""
    conf, environ = {"allocator_pool": "app"}, {"ALLOCATOR_POOL": "host"}
    assert Settings.load(conf, {}).pool == "app"
    assert Settings.load(conf, environ).pool == "host"
    assert Settings.load(conf, environ, pool="call").pool == "call"
    assert Settings.load(conf, {"ALLOCATOR_POOL": ""}, pool=None).pool == "app"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an explicit environment the real one counts."""
    monkeypatch.setenv("ALLOCATOR_POOL", "real")
    assert Settings.load().pool == "real"


def test_a_celery_app_configures_it_with_and_without_a_namespace() -> None:
    """Lower case in ``app.conf``, and Django's ``CELERY_`` prefix."""
    plain = Celery("plain", set_as_current=False)
    plain.conf.update(allocator_pool="a", allocator_pin_cores=False)
    django = Celery("django", set_as_current=False)
    django.config_from_object({"CELERY_ALLOCATOR_POOL": "b", "CELERY_TASK_ALWAYS_EAGER": True}, namespace="CELERY")
    assert (Settings.load(plain.conf, {}).pool, Settings.load(plain.conf, {}).pin_cores) == ("a", False)
    assert Settings.load(django.conf, {}).pool == "b"
    assert django.conf.task_always_eager is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics_port", -1),
        ("metrics_port", 65536),
        ("pool", ""),
        ("pool", "a:b"),
        ("pool", "a{b}"),
        ("pool", 3),
        ("strategy", "worst_fit"),
        ("strategies", {"Mine": "mine.lua"}),
        ("strategies", {"a" * 33: "mine.lua"}),
        ("strategies", {"fgd": "mine.lua"}),
        ("strategies", {"mine": ""}),
        ("strategies", {"mine": 3}),
        ("never_fits", "explode"),
        ("backfill", "always"),
        ("cuda_in_parent", "ignore"),
        ("oom_retries", -1),
        ("oom_growth", 1.0),
        ("oom_growth", float("nan")),
        ("max_bypass", -1),
        ("max_bypass", 1.5),
        ("max_bypass_s", -1.0),
        ("max_bypass_s", float("inf")),
        ("age_weight", -0.1),
        ("age_weight", 1001.0),
        ("age_weight", float("nan")),
        ("affinity_s", -1.0),
        ("affinity_wait_s", -1.0),
        ("affinity_keeps", 0),
        ("tenants", ["vision"]),
        ("lease_s", 0),
        ("lease_s", -1.0),
        ("lease_s", float("nan")),
        ("lease_s", float("inf")),
        ("lease_s", True),
        ("heartbeat_s", 0),
        ("cpu_cores", 0),
        ("cpu_cores", 1.5),
        ("cpu_cores", True),
        ("reserve_ram_mb", -1),
        ("gpu_margin_mb", -1),
        ("labels", {"zone": 1}),
        ("runtime_decay", 0),
        ("recommend_margin", -0.1),
        ("auto_gpu_memory_mb", 0),
        ("runtime_decay", 1.5),
        ("pin_cores", 1),
        ("task_types", []),
        ("events_maxlen", 0),
    ],
)
def test_a_bad_value_names_the_setting_and_the_value(name: str, value: object) -> None:
    """In both of its spellings, as whoever reads the message may have used either."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({f"allocator_{name}": value}, {})
    assert f"allocator_{name}" in str(caught.value)
    assert env_name(name) in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("cpu_cores", "two"), ("lease_s", "soon"), ("pin_cores", "maybe"), ("task_types", "{"), ("task_types", "[1]")],
)
def test_a_bad_environment_variable_is_named(name: str, text: str) -> None:
    """A typo in a unit file is found at once."""
    with pytest.raises(SettingsError, match=env_name(name)):
        Settings.load({}, {env_name(name): text})


def test_an_unknown_override_is_refused() -> None:
    """The caller's typos too."""
    with pytest.raises(SettingsError, match="lease_seconds"):
        Settings.load({}, {}, lease_seconds=3)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("No", False)])
def test_booleans_are_spelt_as_people_spell_them(text: str, value: bool) -> None:
    """In the environment."""
    assert Settings.load({}, {"ALLOCATOR_PIN_CORES": text}).pin_cores is value


def test_the_table_has_every_setting_with_its_meaning() -> None:
    """The documentation is rendered from it."""
    rows = table()
    assert [row.name for row in rows] == [f"allocator_{name}" for name in NAMES]
    for row in rows:
        assert row.env == row.name.upper()
        assert row.doc.endswith((".", ")"))
        assert row.default == getattr(Settings(), row.name.removeprefix("allocator_"))


def test_settings_cannot_be_changed() -> None:
    """Neither a value nor a shared default."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().pool = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings().task_types["x"] = {}  # type: ignore[index]
    assert json.dumps(dict(Settings().task_types)) == "{}"


def test_celery_masks_the_passwords_in_our_urls() -> None:
    """``celery inspect conf`` and Flower show settings; Celery knows a URL to mask by its name."""
    shown = filter_hidden_settings(
        {
            "allocator_backend_url": "redis://:secret@host/0",
            "allocator_history_backend_url": "postgresql://user:secret@host:5432/history",
        }
    )
    assert shown["allocator_history_backend_url"] == "postgresql://user:********@host:5432/history"
    assert "secret" not in str(shown)
    urls = [row.name for row in table() if row.name.endswith("_url")]
    assert sorted(shown) == sorted(urls)
