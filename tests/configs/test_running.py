"""What docker-compose.yml would start, started here as processes: the commands, environments and files are its own.

There is no container engine in the tests. Valkey, RabbitMQ and PostgreSQL are those of the suite, at other addresses;
their images, the network between containers and the image of ours are not tried.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import compose
from tests.support.compose import CONFIGS
from tests.support.postgres_server import PostgresServer
from tests.support.processes import ROOT, OwnedProcess, clean_environment, free_port
from tests.support.redis_server import redis_binary
from tests.support.waiting import wait_until

SOON_S = 60.0
VARIABLES = {
    **{name: f"{name.lower().replace('_', '')}1" for name in compose.example_variables() if name.endswith("PASSWORD")},
    "ALLOCATOR_NODE": "node7",
}


@dataclass
class Machine:
    """The services that are started, each as a process, at the addresses that these tests have for them."""

    directory: Path
    broker_url: str
    history_port: int
    ledger_port: int = field(default_factory=free_port)
    exporter_port: int = field(default_factory=free_port)
    flower_port: int = field(default_factory=free_port)
    running: dict[str, OwnedProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.services: dict[str, Any] = compose.interpolate(compose.load(), VARIABLES)["services"]

    def environment(self, name: str) -> dict[str, str]:
        """A service's environment."""
        found = {key: self._here(value) for key, value in self.services[name].get("environment", {}).items()}
        if "CELERY_BROKER_URL" in found:
            found["CELERY_BROKER_URL"] = self.broker_url
        return clean_environment({**found, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"})

    def start(self, name: str, *more: str) -> OwnedProcess:
        """Start a service by its command."""
        words = [self._here(word) for word in self.services[name]["command"]]
        programs = {
            "celery": [sys.executable, "-m", "celery"],
            "celery-allocator": [sys.executable, "-m", "celery_allocator"],
            "valkey-server": [redis_binary()],
        }
        argv = [*programs[words[0]], *words[1:], *more]
        # The project is mounted where the image's commands run.
        process = OwnedProcess(argv, self.directory / f"{name}.log", env=self.environment(name), cwd=CONFIGS / "proj")
        self.running[name] = process.start()
        return process

    def producer(self, code: str) -> str:
        """What a program of the project's prints, in the worker's environment."""
        argv = [sys.executable, "-c", code]
        env = self.environment("worker")
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=SOON_S, env=env, cwd=CONFIGS / "proj"
        )
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout.strip()

    def command(self, name: str, *words: str) -> Any:
        """JSON that a command prints, in a service's environment."""
        argv = [sys.executable, "-m", "celery_allocator", *words, "--json"]
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=SOON_S, env=self.environment(name)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{process.output()[-3000:]}" for name, process in self.running.items())

    def close(self) -> None:
        for process in reversed(self.running.values()):
            process.kill()

    def _here(self, word: str) -> str:
        for there, here in (
            ("@ledger:6379", f"@127.0.0.1:{self.ledger_port}"),
            ("@history:5432", f"@127.0.0.1:{self.history_port}"),
            ("/etc/valkey/valkey.conf", str(CONFIGS / "redis.conf")),
            ("/data", str(self.directory)),
            ("0.0.0.0", "127.0.0.1"),
            ("9808", str(self.exporter_port)),
            ("--port=5555", f"--port={self.flower_port}"),
        ):
            word = word.replace(there, here)
        return word


@pytest.fixture
def machine(tmp_path: Path, rabbitmq_url: str, postgres_server: PostgresServer) -> Iterator[Machine]:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE allocator LOGIN")
        connection.execute("CREATE DATABASE allocator OWNER allocator")
    machine = Machine(tmp_path, rabbitmq_url, postgres_server.port)
    yield machine
    machine.close()
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE allocator WITH (FORCE)")
        connection.execute("DROP ROLE allocator")


@pytest.mark.rabbitmq
def test_a_task_goes_all_the_way(machine: Machine) -> None:
    machine.start("ledger", "--port", str(machine.ledger_port)).wait_for_output("Ready to accept connections")
    worker, recorder = machine.start("worker"), machine.start("recorder")
    wait_until(lambda: worker.output().count(" ready.") == 3, SOON_S, machine.logs)

    told = machine.producer("from proj import infer; t = infer.delay('a.png'); print(t.id, t.get(timeout=45))")
    task, _, result = told.partition(" ")
    assert result.startswith("a.png: 2048 MB of gpu_"), result
    state = machine.command("exporter", "status")
    assert {node["node"] for node in state["nodes"]} == {"node7"}
    assert len(state["workers"]) == 3

    def recorded() -> Any:
        rows = machine.command("recorder", "history", "--task", task)
        return rows and rows[0]["outcome"] == "success" and rows

    wait_until(recorded, SOON_S, machine.logs, interval=0.5)
    # As `docker compose stop` does: what runs is finished, and all end well.
    assert worker.stop() == 0, worker.output()
    assert machine.command("exporter", "status")["workers"] == []
    assert recorder.stop() == 0, recorder.output()


def test_the_ledger_asks_for_its_password(machine: Machine) -> None:
    machine.start("ledger", "--port", str(machine.ledger_port)).wait_for_output("Ready to accept connections")
    env = machine.environment("recorder")
    env["ALLOCATOR_BACKEND_URL"] = f"redis://127.0.0.1:{machine.ledger_port}/0"
    argv = [sys.executable, "-m", "celery_allocator", "status"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=SOON_S, env=env)
    assert done.returncode != 0 and "authenticate" in done.stderr
    assert machine.command("recorder", "status")["nodes"] == []


def test_flower_asks_for_the_password(machine: Machine) -> None:
    machine.start("ledger", "--port", str(machine.ledger_port)).wait_for_output("Ready to accept connections")
    machine.start("flower")
    url = f"http://127.0.0.1:{machine.flower_port}/"

    def status(**headers: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SOON_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            assert machine.running["flower"].alive, machine.logs()
            return 0

    wait_until(lambda: status() == 401, SOON_S, machine.logs)
    login = base64.b64encode(f"allocator:{VARIABLES['FLOWER_PASSWORD']}".encode()).decode()
    assert status(Authorization=f"Basic {login}") == 200


def test_the_exporter_serves_what_scales_the_workers(machine: Machine) -> None:
    machine.start("ledger", "--port", str(machine.ledger_port)).wait_for_output("Ready to accept connections")
    machine.start("exporter").wait_for_output("/metrics")
    with urllib.request.urlopen(f"http://127.0.0.1:{machine.exporter_port}/metrics", timeout=SOON_S) as response:
        text = response.read().decode()
    assert 'celery_allocator_allocations{state="waiting"} 0.0' in text
