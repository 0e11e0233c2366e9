"""Ctrl-C is how commands that go on for good end: quietly, and as done."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import by_hand
from tests.support.processes import OwnedProcess, clean_environment
from tests.support.redis_server import RedisServer


@pytest.mark.parametrize("command", [["watch", "--since", "-"], ["events", "--follow"]])
def test_interrupted(redis_server: RedisServer, pool: str, tmp_path: Path, command: Sequence[str]) -> None:
    by_hand.session(redis_server, pool).offer_host(600)
    argv = [sys.executable, "-m", "celery_allocator", *command]
    env = clean_environment(by_hand.environment(redis_server, pool))
    with OwnedProcess(argv, log=tmp_path / "log", env=env) as process:
        process.wait_for_output(by_hand.NODE)
        assert process.stop(signal.SIGINT) == 0
        assert "Aborted" not in process.output() and "Traceback" not in process.output()
