"""Runs a page's blocks in order, in a folder and with servers of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from celery_allocator.embedded import EmbeddedServer
from tests.docs.blocks import Block, Page, commands, matches
from tests.docs.interpreter import Interpreter
from tests.support.processes import ROOT, OwnedProcess, clean_environment
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer

COMMAND_TIMEOUT_S = 60
#: A variable that the reader sets for all that follows.
_EXPORT = re.compile(r"export (?P<name>\w+)=(?P<value>\S+)$")
#: A host like the one the pages speak of, whatever the tests run on.
HOST = {"ALLOCATOR_NODE": "host1", "ALLOCATOR_CPU_CORES": "8", "ALLOCATOR_RAM_MB": "65536"}


class Trial:
    """One page being tried."""

    def __init__(self, page: Page, directory: Path, env: dict[str, str]) -> None:
        self.page = page
        self.directory = directory
        self.env = env
        self._written = ""
        self._background: list[OwnedProcess] = []
        self._interpreter: Interpreter | None = None

    def run(self) -> None:
        """Run every block; fails at the first that does not do what the page says."""
        for block in self.page.blocks:
            if "not-run" in block.marks or "drawing" in block.marks:
                continue
            if block.language == "stop":
                self.stop_background()
            elif "file" in block.marks:
                self._write(block)
            elif "same-as" in block.marks:
                self._compare(block)
            elif "output" in block.marks:
                self._check(block, block.text, self._written)
            elif "background" in block.marks:
                self._start(block)
            elif block.language == "python":
                self._run_python(block)
            else:
                self._run_console(block)

    def stop_background(self) -> None:
        """Ask what runs in the background to end, last started first, and see that it does."""
        for process in reversed(self._background):
            if process.alive:
                process.stop(signal.SIGTERM, timeout=30)
            process.kill()
        self._background.clear()

    def kill_background(self) -> None:
        """End it all, whatever the state of the page."""
        for process in self._background:
            process.kill()
        if self._interpreter is not None:
            self._interpreter.close()

    def _write(self, block: Block) -> None:
        path = self.directory / block.marks["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text + "\n", encoding="utf-8")

    def _compare(self, block: Block) -> None:
        path = ROOT / block.marks["same-as"]
        assert block.text in path.read_text(encoding="utf-8"), f"{self._at(block)}: not the text of {path}"

    def _start(self, block: Block) -> None:
        (command,) = commands(block)
        log = self.directory / "logs" / f"line{block.line}.log"
        process = OwnedProcess(["/bin/bash", "-c", f"exec {command.text}"], log, env=self.env, cwd=self.directory)
        self._background.append(process)
        process.start()
        process.wait_for_output(block.marks["until"], COMMAND_TIMEOUT_S)

    def _run_python(self, block: Block) -> None:
        if self._interpreter is None:
            self._interpreter = Interpreter(self.directory, self.env)
        try:
            self._written = self._interpreter.run(block.text, COMMAND_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{self._at(block)}: {error}\n{self._logs()}") from None

    def _run_console(self, block: Block) -> None:
        todo = commands(block)
        for position, command in enumerate(todo):
            if (exported := _EXPORT.match(command.text)) is not None:
                self.env[exported["name"]] = exported["value"]
                continue
            text = command.text.replace("make ", f"make -n -C {ROOT} ", 1) if "dry-run" in block.marks else command.text
            wanted = int(block.marks.get("exit", 0)) if position == len(todo) - 1 else 0
            self._execute(block, ["/bin/bash", "-c", text], wanted)
            if command.shown:
                self._check(block, command.shown, self._written)

    def _execute(self, block: Block, argv: list[str], wanted: int) -> None:
        done = subprocess.run(
            argv,
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        self._written = done.stdout
        assert done.returncode == wanted, (
            f"{self._at(block)}: exit code {done.returncode}, not {wanted}\n{block.text}\n"
            f"--- stdout\n{done.stdout[-4000:]}\n--- stderr\n{done.stderr[-4000:]}\n{self._logs()}"
        )

    def _check(self, block: Block, shown: str, written: str) -> None:
        assert matches(shown, written), (
            f"{self._at(block)}: the page shows\n{shown}\n--- but this was written\n{written}\n{self._logs()}"
        )

    def _at(self, block: Block) -> str:
        return f"{self.page.path.relative_to(ROOT)}:{block.line}"

    def _logs(self) -> str:
        return "\n".join(f"--- {process.log.name}\n{process.output()[-3000:]}" for process in self._background)


@contextmanager
def trial(page: Page, directory: Path) -> Iterator[Trial]:
    """A trial of a page with the servers it needs; everything it started is gone afterwards."""
    if "django" in page.needs and find_spec("django") is None:
        pytest.skip("Django is not installed")
    with ExitStack() as stack:
        home = directory / "home"
        home.mkdir(parents=True)
        env = clean_environment({**HOST, "HOME": str(home), "NO_COLOR": "1"})
        env.pop("XDG_STATE_HOME", None)
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
        # What a page's embedded server lies in; stopped whether or not a page said so.
        stack.callback(EmbeddedServer(home / ".local" / "state" / "celery-allocator").stop)
        if "redis" in page.needs:
            server = RedisServer(directory / "redis")
            stack.callback(server.process.kill)
            server.start()
            env |= {"CELERY_BROKER_URL": server.url, "CELERY_RESULT_BACKEND": server.url.replace("/0", "/1")}
        if "rabbitmq" in page.needs:
            broker = RabbitMQServer(directory / "rabbitmq")
            stack.callback(broker.close)
            broker.start()
            env["CELERY_BROKER_URL"] = broker.url()
        work = directory / "work"
        work.mkdir()
        tried = Trial(page, work, {**env, **page.env})
        stack.callback(tried.kill_background)
        yield tried
