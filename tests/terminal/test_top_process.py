"""``top`` as a process: on a real pseudo-terminal, into a pipe, and as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from celery_allocator.model import Kind
from tests.support.processes import ROOT, OwnedProcess, clean_environment, free_port
from tests.support.pty_screen import pty_screen
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until
from tests.terminal.conftest import LivePool
from tests.terminal.scene import fill, uuid

BIN = Path(sys.executable).parent
TOP = [str(BIN / "celery-allocator"), "top"]
#: Sequences that set a colour.
_COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")


def environment(reach: dict[str, str], **more: str) -> dict[str, str]:
    return clean_environment({**reach, "PYTHONPATH": str(ROOT), **more})


def test_a_person_drains_a_device_at_80_by_24(cluster: LivePool, reach: dict[str, str], tmp_path: Path) -> None:
    fill(cluster)
    env = environment(reach)
    with pty_screen([*TOP, "--interval", "0.2", "--actor", "ada"], env=env, cwd=tmp_path) as screen:
        # The last is the selected task's whole id.
        screen.wait_for("6 running", "12 waiting", "host1", "shop.infer", "? help", uuid(1000))
        assert len(screen.lines) == 24 and screen.lines[-1].startswith(" ? help")
        screen.type("\t\x1b[B")
        screen.wait_for("GPU-host1-0")
        screen.type("d")
        screen.wait_for("Drain host1/gpu_0?", "Enter: do it")
        screen.type("it is hot\r")
        screen.wait_for("draining", "(journal 1)")
        screen.resize(100, 30)
        wait_until(lambda: screen.lines[-1].startswith(" ? help"), 30, lambda: screen.text)
        screen.type("q")
        assert screen.wait_for_end() == 0
        assert b"Traceback" not in screen.raw
        assert screen.raw.rindex(b"\x1b[?1049l") > screen.raw.rindex(b"\x1b[?1049h")  # the old screen is back
    (entry,) = cluster.ledger.journal()
    assert (entry.action, entry.actor, entry.source, entry.reason) == ("drain", "ada", "cli", "it is hot")
    assert cluster.device("host1/gpu_0").state == "draining"


@pytest.mark.parametrize("colours", [True, False])
def test_without_colours_everything_can_be_told(
    cluster: LivePool, reach: dict[str, str], tmp_path: Path, colours: bool
) -> None:
    fill(cluster)
    env = environment(reach)
    env.pop("NO_COLOR", None)
    with pty_screen([*TOP], env=env if colours else {**env, "NO_COLOR": "1"}, cwd=tmp_path) as screen:
        screen.wait_for("6 running", "▒", "╳", "4.0G!", "WAITING")
        screen.type("\x03")
        assert screen.wait_for_end() == 0
        assert bool(_COLOUR.search(screen.raw)) is colours
        assert colours or re.search(rb"\x1b\[(?:[0-9]+;)*7[;m]", screen.raw)  # the selected row is reversed


def test_leaving_waits_for_no_ledger(reach: dict[str, str], tmp_path: Path) -> None:
    with TcpProxy(("127.0.0.1", 1)) as silent:
        silent.cut()
        env = environment({**reach, "ALLOCATOR_BACKEND_URL": f"redis://127.0.0.1:{silent.port}/0"})
        with pty_screen(TOP, env=env, cwd=tmp_path) as screen:
            screen.wait_for("looking at the ledger")
            screen.type("q")
            # The socket's timeouts alone, with its retries, take longer.
            assert screen.wait_for_end(timeout=15) == 0


def test_a_ledger_that_is_not_there_at_first_is_found_later(
    cluster: LivePool, reach: dict[str, str], redis_server: RedisServer, tmp_path: Path
) -> None:
    cluster.node("host1")
    with TcpProxy(("127.0.0.1", redis_server.port)) as proxy:
        proxy.refuse()
        env = environment({**reach, "ALLOCATOR_BACKEND_URL": f"redis://127.0.0.1:{proxy.port}/0"})
        with pty_screen([*TOP, "--interval", "0.3"], env=env, cwd=tmp_path) as screen:
            screen.wait_for("cannot be reached")
            proxy.heal()
            screen.wait_for("host1", "0 running")
            screen.wait_until_gone("cannot be reached")


def test_a_cancelled_task_has_its_result(redis_server: RedisServer, pool: str, tmp_path: Path) -> None:
    """Under ``celery -A proj`` what an action sets off is done here, as with the other commands."""
    broker = redis_server.url
    (tmp_path / "shop.py").write_text(
        "from celery import Celery\nfrom celery_allocator import install\n"
        f"app = install(Celery('shop', broker={broker!r}, backend={broker!r}))\n"
        f"app.conf.allocator_pool = {pool!r}\napp.conf.allocator_never_fits = 'wait'\n"
        "@app.task(resources={'gpu_memory_mb': 2048})\ndef infer(): pass\n"
    )
    send = "from shop import infer; print(infer.delay().id)"
    env = {**clean_environment({}), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    sent = subprocess.run(
        [sys.executable, "-c", send], env=env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    command = [str(BIN / "celery"), "-A", "shop", "allocator", "top", "--interval", "0.2"]
    with pty_screen(command, env=env, cwd=tmp_path) as screen:
        screen.wait_for("1 waiting", "shop.infer", "no device")
        screen.type("x")
        screen.wait_for("Cancel shop.infer")
        screen.type("not needed\r")
        screen.wait_for("0 waiting", "is cancelled")
        screen.type("q")
        assert screen.wait_for_end() == 0
    ask = f"from shop import app; print(app.AsyncResult({sent.stdout.strip()!r}).state)"
    state = subprocess.run(
        [sys.executable, "-c", ask], env=env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert state.stdout.strip() == "REVOKED"


def run(arguments: list[str], env: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*TOP, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


@pytest.mark.parametrize("columns", [80, 160])
def test_a_pipe_gets_one_frame_of_plain_text(cluster: LivePool, reach: dict[str, str], columns: int) -> None:
    fill(cluster)
    cluster.submit(81920, 1, task_name="[red]x[/]")
    text = run([], environment(reach, COLUMNS=str(columns))).stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns and "\x1b" not in text
    for part in ("6 running", "13 waiting", "host2", "gpu_0", "shop.infer", "4.0G!", "[red]x[/]", "▒ promised"):
        assert part in text
    only = run(["--filter", "x[/]"], environment(reach)).stdout
    assert "13, 1 found" in only and "research.finetune" not in only


def test_json_once_and_per_look(cluster: LivePool, reach: dict[str, str], tmp_path: Path) -> None:
    fill(cluster)
    env = environment(reach)
    data = json.loads(run(["--json", "--once"], env).stdout)
    assert (data["pool"], data["running"], data["waiting"]) == (reach["ALLOCATOR_POOL"], 6, 12)
    assert [node["node"] for node in data["nodes"]] == ["host1", "host2"]
    assert data["nodes"][0]["devices"][0]["memory"]["foreign"] == 1500
    assert data["queue"]["total"] == 12 and data["queue"]["rows"][0]["reason"]["code"] == "room"
    process = OwnedProcess([*TOP, "--json", "--interval", "0.2"], tmp_path / "log", env=env, cwd=tmp_path)
    process.start()
    try:
        wait_until(lambda: process.output().count("\n") >= 3, 30, process.output)
    finally:
        process.kill()
    looks = [json.loads(line) for line in process.output().splitlines()[:3]]
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]


def test_a_ledger_that_is_away_fails_what_looks_once(tmp_path: Path) -> None:
    env = environment({"ALLOCATOR_BACKEND_URL": f"redis://127.0.0.1:{free_port()}/0"})
    assert "cannot be reached" in run(["--once"], env, code=1).stderr
    told = json.loads(run(["--once", "--json"], env, code=1).stdout)
    assert (told["success"], told["error"]["code"]) == (False, "ledger_unavailable")


def test_without_its_extra_it_says_what_to_install(cluster: LivePool, reach: dict[str, str], tmp_path: Path) -> None:
    cluster.node("host1")
    without = (
        "import sys; sys.modules['textual'] = None\n"
        "from celery_allocator.surfaces.cli import main\nsys.argv = ['celery-allocator', 'top', *sys.argv[1:]]\nmain()"
    )
    with pty_screen([sys.executable, "-c", without], env=environment(reach), cwd=tmp_path, columns=160) as screen:
        screen.wait_for("pip install 'celery-allocator[top]'")
        assert screen.wait_for_end() == 1
    done = subprocess.run(
        [sys.executable, "-c", without, "--once"],
        env=environment(reach),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "host1" in done.stdout


def test_by_hand_what_is_over_ends_while_somebody_looks(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("host1")
    held = cluster.by_hand(0, 1, ttl_s=0.05).allocation
    assert held.kind is Kind.MANUAL
    wait_until(lambda: "0 running" in run(["--once"], environment(reach)).stdout, 30, "its end")
