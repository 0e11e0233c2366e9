"""Without the extra ``history`` everything else works, and what needs it says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import clean_environment


@pytest.mark.parametrize("library", ["sqlalchemy", "alembic", "psycopg"])
@pytest.mark.parametrize(
    "command", [["recorder", "--once"], ["restore"], ["history-db", "current"], ["history"], ["report"]]
)
def test_a_command_says_what_to_install(library: str, command: list[str]) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from celery_allocator.surfaces.cli import allocator\n"
        f"allocator({command!r}, prog_name='celery-allocator')"
    )
    env = clean_environment({"ALLOCATOR_BACKEND_URL": "redis://127.0.0.1:1/0"})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'celery-allocator[history]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_else_needs_it() -> None:
    code = (
        "import sys\n"
        "for name in ('sqlalchemy', 'alembic', 'psycopg'): sys.modules[name] = None\n"
        "import celery_allocator.plugin, celery_allocator.history\n"
        "from celery_allocator.surfaces.cli import allocator\n"
        "allocator(['--help'])"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
