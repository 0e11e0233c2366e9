"""The command `recorder`, and what history commands show, where a server is away."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from celery_allocator.history import Progress
from celery_allocator.surfaces.cli import allocator
from celery_allocator.surfaces.cli.recording import _Report
from tests.support import by_hand
from tests.support.redis_server import RedisServer

AWAY = "postgresql://127.0.0.1:1/db?user=u&password=geheim1&sslpassword=geheim2"


def run(env: dict[str, str], *args: str) -> Any:
    return CliRunner().invoke(allocator, args, env=env, prog_name="celery-allocator")


def test_once_does_not_wait_for_a_database_that_is_away(redis_server: RedisServer, pool: str) -> None:
    env = {**by_hand.environment(redis_server, pool), "ALLOCATOR_HISTORY_BACKEND_URL": AWAY}
    done = run(env, "recorder", "--once")
    assert done.exit_code == 1
    assert "cannot be reached" in done.stderr


def test_once_does_not_wait_for_a_ledger_that_is_away(tmp_path: Any) -> None:
    env = {
        "ALLOCATOR_BACKEND_URL": "redis://127.0.0.1:1/0",
        "ALLOCATOR_HISTORY_BACKEND_URL": f"sqlite:///{tmp_path / 'history.sqlite3'}",
    }
    done = run(env, "recorder", "--once", "--json")
    assert done.exit_code == 1
    assert "ledger_unavailable" in done.stdout


@pytest.mark.parametrize("command", [["history-db", "current"], ["recorder", "--once"]])
def test_a_password_among_the_options_is_not_shown(redis_server: RedisServer, pool: str, command: list[str]) -> None:
    env = {**by_hand.environment(redis_server, pool), "ALLOCATOR_HISTORY_BACKEND_URL": AWAY}
    done = run(env, *command)
    assert "user=u" in done.stderr
    assert "geheim" not in done.output


def test_lines_that_say_the_same_are_not_repeated(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("celery_allocator.surfaces.cli.recording._LINES_S", 0)
    report = _Report(as_json=False, quiet=False)
    for progress in (
        Progress("standing by"),
        Progress("recording", "1-0", recorded=1),
        Progress("recording", "1-0", recorded=1),
        Progress("recording", "2-0", recorded=2),
    ):
        report(progress)
    assert capsys.readouterr().err.splitlines() == [
        "standing by",
        "recording, at 1-0, 0 behind, 1 recorded, 0/s",
        "recording, at 2-0, 0 behind, 2 recorded, 0/s",
    ]
