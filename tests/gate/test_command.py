"""``celery-allocator gate`` as a process: its exit codes, its table, JSON, and JUnit XML."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_allocator.gate import kinds
from celery_allocator.surfaces.cli import allocator
from tests.gate.book import Book
from tests.support import by_hand
from tests.support.processes import ROOT, clean_environment
from tests.support.redis_server import RedisServer

SINCE = ("--since", "2026-01-01T12:00:00Z", "--until", "2026-01-01T13:00:00Z")
HISTORY_RULES = "[rules.success_rate]\nmin = 0.9\n[rules.losses]\nmax = 0\nmin_samples = 0\n"
LIVE_RULES = "[rules.waiting_now]\nmax = 0\n[rules.ledger_differences]\nmax = 0\n"


@pytest.fixture
def home(tmp_path: Path, redis_server: RedisServer, pool: str) -> dict[str, str]:
    """The environment of the commands: a ledger, and where a history may be."""
    url = f"sqlite:///{tmp_path / 'history.sqlite3'}"
    return by_hand.environment(redis_server, pool, history_backend_url=url)


@pytest.fixture
def recorded(home: dict[str, str], pool: str) -> Any:
    """The history there, empty."""
    book = Book(home["ALLOCATOR_HISTORY_BACKEND_URL"], pool)
    yield book
    book.close()


def gate(home: dict[str, str], cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        # Like every command it leaves its connection to the end of the process.
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:unclosed:ResourceWarning",
            "-m",
            "celery_allocator",
            "gate",
            *args,
        ],
        env=clean_environment({"PYTHONPATH": str(ROOT), **home}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write(tmp_path: Path, text: str, name: str = "gate.toml") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("outcomes", "code", "verdict"), [("good", 0, "pass"), ("bad", 1, "fail"), ("none", 2, "not enough data")]
)
def test_the_verdict_is_the_exit_code(
    home: dict[str, str], recorded: Book, tmp_path: Path, outcomes: str, code: int, verdict: str
) -> None:
    for outcome in {"good": ["success"] * 10, "bad": ["success"] * 8 + ["failure"] * 2, "none": []}[outcomes]:
        recorded.ended(outcome)
    recorded.value("losses")  # writes the rows
    done = gate(home, tmp_path, write(tmp_path, HISTORY_RULES), *SINCE, "--junit", "out.xml")
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines()[-1] == f"gate: {verdict}"
    assert done.stdout.splitlines()[0].split() == ["RULE", "VALUE", "UNIT", "BOUND", "SAMPLES", "WINDOW", "VERDICT"]
    if code == 1:
        assert "success_rate: 0.8 is not ≥ 0.9\n    2 × failure\n" in done.stdout
    suite = ET.parse(tmp_path / "out.xml").getroot().find("testsuite")
    assert suite is not None
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped")] == [
        "2",
        "1" if code == 1 else "0",
        "1" if code == 2 else "0",
        "0",
    ]


def test_live_rules_need_no_history(home: dict[str, str], tmp_path: Path) -> None:
    done = gate(home, tmp_path, write(tmp_path, LIVE_RULES), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    reply = json.loads(done.stdout)
    assert (reply["passed"], reply["exit_code"], reply["pool"]) == (True, 0, home["ALLOCATOR_POOL"])
    assert [(r["rule"], r["value"], r["verdict"]) for r in reply["results"]] == [
        ("waiting_now", 0.0, "pass"),
        ("ledger_differences", 0.0, "pass"),
    ]
    assert not (tmp_path / "history.sqlite3").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 64, "CONFIG is missing"),
        (["none.toml"], 64, "'none.toml' does not exist"),
        (["--nonsense"], 64, "No such option"),
        (["bad.toml"], 64, "bad.toml: rule 'wait_p59': kind: no kind of rule"),
        (["live.toml", "--since", "yesterday"], 64, "'yesterday' is neither a length of time"),
        (["live.toml", "--since", "1h", "--until", "2h"], 64, "before it begins"),
        (["live.toml", "--junit", "no/such/folder/out.xml"], 64, "--junit no/such/folder/out.xml: No such file"),
        (["history.toml"], 69, "there is no history at"),
        (["broken.toml"], 70, "rule 'breaks_down' (breaks_down) broke down: ZeroDivisionError"),
    ],
)
def test_what_is_no_verdict_has_other_codes(
    home: dict[str, str], tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    write(tmp_path, LIVE_RULES, "live.toml")
    write(tmp_path, HISTORY_RULES, "history.toml")
    write(tmp_path, "[rules.wait_p59]\nmax = 1\n", "bad.toml")
    write(tmp_path, 'imports = ["breaking"]\n[rules.breaks_down]\nmax = 1\n', "broken.toml")
    (tmp_path / "breaking.py").write_text(
        "from celery_allocator.gate import rule\n\n"
        '@rule("breaks_down", unit="count")\ndef breaks_down(evidence):\n    "Breaks down."\n    return 1 / 0\n'
    )
    done = gate(home, tmp_path, *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ledger_that_is_away(home: dict[str, str], tmp_path: Path) -> None:
    away = {**home, "ALLOCATOR_BACKEND_URL": "redis://127.0.0.1:1/0"}
    done = gate(away, tmp_path, write(tmp_path, LIVE_RULES), "--json")
    assert done.returncode == 69
    assert json.loads(done.stdout)["error"]["code"] == "ledger_unavailable"


def test_the_settings_of_an_app_count(home: dict[str, str], redis_server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / write(tmp_path, LIVE_RULES)
    app = Celery("proj", broker=redis_server.url, set_as_current=False)
    app.conf.allocator_pool = "of-the-app"
    env = {key: value for key, value in home.items() if key != "ALLOCATOR_POOL"}
    obj = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(allocator, ["gate", str(path), "--json"], env=env, obj=obj)
    assert (result.exit_code, json.loads(result.stdout)["pool"]) == (0, "of-the-app")
    app.close()


def test_without_the_extra_live_rules_work_and_others_say_what_to_install(home: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['sqlalchemy'] = None\n"
        "from celery_allocator.gate import check\nfrom celery_allocator.errors import HistoryExtraMissing\n"
        "assert check('live.toml').passed\n"
        "try:\n    check('history.toml')\nexcept HistoryExtraMissing as error:\n    print(error)\n"
    )
    write(tmp_path, LIVE_RULES, "live.toml")
    write(tmp_path, HISTORY_RULES, "history.toml")
    env = clean_environment({"PYTHONPATH": str(ROOT), **home})
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'celery-allocator[history]'" in done.stdout


def test_every_kind_is_listed() -> None:
    plain = CliRunner().invoke(allocator, ["gate", "--list"])
    assert plain.exit_code == 0
    assert all(f"\n{name}  [" in f"\n{plain.stdout}" for name in kinds())
    rows = json.loads(CliRunner().invoke(allocator, ["gate", "--list", "--json"]).stdout)
    assert [row["kind"] for row in rows] == sorted(kinds())
    (row,) = (row for row in rows if row["kind"] == "wait_percentile")
    assert row["options"] == {"percent": {"type": "float", "default": 90}}
