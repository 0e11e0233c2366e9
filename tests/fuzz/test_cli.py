"""Every command with arbitrary words: an exit code and a message, never a traceback, and bad input changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from celery_allocator.allocating import Session
from celery_allocator.surfaces.cli import allocator
from tests.fuzz.material import FUZZ, state, text
from tests.support import by_hand
from tests.support.ledger_checks import assert_right
from tests.support.redis_server import RedisServer

#: Not here: what starts processes or servers or goes on for good, and what changes something with no argument at all.
COMMANDS = sorted(
    set(allocator.commands)
    - {"demo", "server", "workers", "recorder", "exporter", "mcp", "watch", "updates"}
    - {"tick", "pause", "resume", "undo", "redo", "restore", "history-db"}
)
OPTIONS = sorted(
    {
        name
        for command in COMMANDS
        for option in allocator.commands[command].params
        if isinstance(option, click.Option)
        for name in option.opts
    }
    - {"--follow", "--wait", "--repair", "--yes"}
)
words = st.one_of(
    text,
    text.map(lambda word: f"--{word}"),
    st.sampled_from(OPTIONS),
    st.tuples(st.sampled_from(OPTIONS), text).map("=".join),
    st.integers().map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e400", "9" * 5000, "\udcff", "a/b/c", "+", "-", "--", "processing"]),
)


@pytest.fixture
def session(redis_server: RedisServer, pool: str) -> Iterator[Session]:
    made = by_hand.session(redis_server, pool)
    made.offer_host(10**6)
    yield made
    assert_right(made.ledger)
    made.ledger.client.close()


@FUZZ
@given(st.sampled_from(COMMANDS), st.lists(words, max_size=4))
def test_any_words(redis_server: RedisServer, pool: str, session: Session, command: str, rest: list[str]) -> None:
    before = state(session.ledger)
    env = by_hand.environment(redis_server, pool, history_backend_url="sqlite:////nowhere/history.sqlite3")
    result = CliRunner().invoke(allocator, [command, *rest], env=env, prog_name="celery-allocator")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2) or (command == "gate" and result.exit_code in (64, 69))
    if result.exit_code:
        assert result.stderr.strip() or result.stdout.strip()
        assert state(session.ledger) == before
