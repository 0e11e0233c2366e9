"""A private RabbitMQ node with its own ports, cookie, data and port mapper."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.availability import missing
from tests.support.processes import OwnedProcess, clean_environment, free_port
from tests.support.waiting import wait_until

#: The wrapper in /usr/sbin changes user; the script it calls does not.
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")


class RabbitMQServer:
    """One node, plus the ``epmd`` it needs in the foreground: a daemonised one would outlive the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        script, epmd = _SCRIPTS / "rabbitmq-server", shutil.which("epmd")
        if not script.exists() or epmd is None:
            missing("rabbitmq-server", "apt-get install rabbitmq-server")
        home = directory / "home"
        home.mkdir(parents=True, exist_ok=True)
        (directory / "enabled_plugins").write_text("[].\n")
        (directory / "rabbitmq.conf").write_text(
            # Small machines in CI run with little free disk and memory: alarms would block every publisher.
            "log.connection.level = warning\n"
            "loopback_users = none\ndisk_free_limit.absolute = 1MB\nvm_memory_high_watermark.absolute = 1GB\n"
        )
        mapper_port = free_port()
        self.node = f"test{self.port}@localhost"
        self._env = clean_environment(
            {
                "HOME": str(home),
                "ERL_EPMD_PORT": str(mapper_port),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODENAME": self.node,
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.port),
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
                "RABBITMQ_LOG_BASE": str(directory / "logs"),
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
                "RABBITMQ_PID_FILE": str(directory / "pid"),
            }
        )
        self._mapper = OwnedProcess(
            [epmd, "-port", str(mapper_port), "-address", "127.0.0.1"], directory / "epmd.log", env=self._env
        )
        self.process = OwnedProcess([str(script)], directory / "log", env=self._env, cwd=directory)

    def url(self, vhost: str = "/") -> str:
        """AMQP URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{'' if vhost == '/' else vhost}"

    def start(self) -> RabbitMQServer:
        """Start it and wait until it takes connections."""
        if not self._mapper.alive:
            self._mapper.start()
        self.process.start()
        self.process.wait_for_output("Server startup complete", 60)
        return self

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self.process.stop(signal.SIGTERM, timeout=30)

    def kill(self) -> None:
        """SIGKILL the node's whole group; the port mapper stays for the next start."""
        self.process.kill()

    def restart(self) -> None:
        """Start it again with its data; stops it first if it runs."""
        if self.process.alive:
            self.stop()
        wait_until(lambda: self.node.split("@")[0] not in self._names(), 30, "the old node's name to be free")
        self.start()

    def ensure(self) -> None:
        """Start it if a test left it down."""
        if not self.process.alive:
            self.restart()

    def close(self) -> None:
        """End everything. Its data is thrown away: it need not spend its time on an orderly end."""
        self.process.kill()
        self._mapper.kill()

    def add_vhost(self, name: str) -> str:
        """Make a fresh virtual host that ``guest`` may use, and return its URL: the isolation between tests."""
        self._evaluate(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"test">>),'
            f'ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>,'
            ' <<".*">>, <<".*">>, <<".*">>, <<"test">>).'
        )
        return self.url(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with its queues."""
        self._evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"test">>).')

    def _evaluate(self, expression: str) -> str:
        done = subprocess.run(
            [str(_SCRIPTS / "rabbitmqctl"), "--quiet", "eval", expression],
            env=self._env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"rabbitmqctl eval {expression}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def _names(self) -> str:
        done = subprocess.run(
            [self._mapper.argv[0], "-port", self._env["ERL_EPMD_PORT"], "-names"],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return done.stdout
