"""The command line without a ledger: help, options, settings, how text is laid out."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.model import FIELDS, Requirements
from celery_allocator.settings import table
from celery_allocator.surfaces.cli import allocator, text
from celery_allocator.surfaces.cli.console import print_json


def invoke(*args: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(allocator, args, env=env, prog_name="celery-allocator")


def commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    """Every command below, groups included."""
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands(command, *path, name)
    return found


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path in commands(allocator)} >= {
        *(
            "status",
            "queue",
            "devices",
            "show",
            "events",
            "verify",
            "settings",
            "allocate",
            "renew",
            "release",
            "cancel",
        ),
        *("cordon", "uncordon", "drain", "server start", "server stop", "server status", "workers", "demo"),
    }


@pytest.mark.parametrize("path", commands(allocator), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")

    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert f"Usage: celery-allocator {' '.join(path)}" in result.stdout
    if path not in [("server",), ("workers",), ("mcp",), ("history-db",)]:
        assert "--json" in result.stdout


def test_allocate_has_an_option_per_requirement() -> None:
    result = invoke("allocate", "--help")

    options = ("--gpu-memory", "--cpu-cores", "--ram", "--priority", "--gpu-count", "--expected-runtime")
    for option, field in zip(options, FIELDS.values(), strict=True):
        assert option in result.stdout
        assert field.doc.split(".")[0] in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["cordon"], "Missing argument"),
        (["queue", "--limit", "0"], "--limit"),
        (["workers"], "workers need an app"),
        (["-A", "no_such_module_at_all", "status"], "no_such_module_at_all"),
        (["--backend-url", "http://x", "status"], "the ledger needs redis://"),
        (["--pool", "a b", "status"], "ALLOCATOR_POOL"),
    ],
)
def test_misuse_is_told_on_standard_error_with_exit_code_2(args: list[str], words: str) -> None:
    result = invoke(*args)

    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_an_unreachable_ledger_is_told_in_text_and_json() -> None:
    plain = invoke("--backend-url", "redis://127.0.0.1:1/0", "status")
    as_json = invoke("--backend-url", "redis://:secret@127.0.0.1:1/0", "status", "--json")

    assert plain.exit_code == as_json.exit_code == 1
    assert plain.stdout == ""
    assert "redis://127.0.0.1:1/0 cannot be reached" in plain.stderr
    assert json.loads(as_json.stdout)["error"]["code"] == "ledger_unavailable"
    assert "secret" not in as_json.output + as_json.stderr


def test_settings_tell_value_source_and_meaning_and_no_password() -> None:
    env = {"ALLOCATOR_TTL_S": "77", "ALLOCATOR_BACKEND_URL": "redis://user:secret@host:1/0"}

    plain = invoke("--pool", "mine", "settings", env=env)
    rows = {row["name"]: row for row in json.loads(invoke("--pool", "mine", "settings", "--json", env=env).stdout)}

    assert list(rows) == [entry.name for entry in table()]
    assert (rows["allocator_ttl_s"]["value"], rows["allocator_ttl_s"]["from"]) == (77.0, "ALLOCATOR_TTL_S")
    assert (rows["allocator_pool"]["value"], rows["allocator_pool"]["from"]) == ("mine", "command line")
    assert (rows["allocator_tick_s"]["value"], rows["allocator_tick_s"]["from"]) == (1.0, "default")
    assert rows["allocator_backend_url"]["value"] == "redis://user:**@host:1/0"
    assert "secret" not in plain.stdout
    assert all(entry.name in plain.stdout for entry in table())


def test_devices_are_shown_as_workers_would_find_them_without_a_ledger() -> None:
    env = {"ALLOCATOR_DEVICES": "sim:2x24576:nvlink", "ALLOCATOR_NODE": "host1", "ALLOCATOR_CPU_CORES": "128"}

    plain = invoke("--backend-url", "redis://127.0.0.1:1/0", "devices", env=env).stdout
    told = json.loads(invoke("devices", "--json", env=env).stdout)

    assert "host1: 128 cores (0-127)" in plain and "GPU-sim-host1-1" in plain
    assert "gpu_0   gpu_1  NVLink" in plain
    assert told["links"] == [{"devices": ["gpu_0", "gpu_1"], "link": "nvlink"}]
    assert [(d["number"], d["memory_mb"], d["health"]) for d in told["devices"]] == [
        ("0", 24576, None),
        ("1", 24576, None),
    ]
    assert "No GPUs" in invoke("devices", env={"ALLOCATOR_DEVICES": "none"}).stdout
    assert invoke("devices", env={"ALLOCATOR_DEVICES": "sim:x"}).exit_code == 2


@given(st.lists(st.text(max_size=12), max_size=5))
def test_no_arguments_make_it_crash(args: list[str]) -> None:
    result = invoke("--backend-url", "redis://127.0.0.1:1/0", "allocate", *args)

    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    assert text.table(("NAME", "FREE", "WORKER"), [("a", 5, None), ("long name", 12345, "w@h")]) == (
        "NAME        FREE  WORKER\na              5  -\nlong name  12345  w@h"
    )
    assert text.table(("A", "B"), []) == "A  B"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (-1, "0 s"), (0.9, "0 s"), (59, "59 s"), (125, "2 min 5 s"), (3600, "1 h"), (90061, "1 d 1 h")],
)
def test_spans(seconds: float | None, words: str) -> None:
    assert text.span(seconds) == words


def test_shapes() -> None:
    assert text.shape(Requirements(2048, 2, 4096)) == "2048 MB GPU, 2 cores, 4096 MB RAM"
    assert text.shape(Requirements(cpu_cores=1)) == "1 core"


def test_json_of_half_a_character_can_be_printed(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Arguments may hold such; it is JSON's own escape for them."""
    print_json({"id": "\ud800ü"})
    printed = capsysbinary.readouterr().out
    assert printed == '{\n  "id": "\\ud800ü"\n}\n'.encode() and json.loads(printed) == {"id": "\ud800ü"}
