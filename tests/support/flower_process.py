"""Flower as a process, on a free port of this host."""

from __future__ import annotations

import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT, OwnedProcess, clean_environment, free_port
from tests.support.waiting import wait_until

MODULE = "tests.support.allocator_app"


@dataclass(frozen=True)
class Answer:
    """What a request got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FlowerProcess(OwnedProcess):
    """``celery -A … allocator-flower`` (or another ``command``) with these options."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *options: str,
        command: str = "allocator-flower",
        module: str = MODULE,
        prefix: str = "",
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}{prefix}"
        argv = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            module,
            command,
            "--address=127.0.0.1",
            f"--port={port}",
            *options,
        ]
        super().__init__(
            argv, directory / "flower.log", env=clean_environment({"PYTHONPATH": str(ROOT), **environment})
        )

    def ready(self) -> FlowerProcess:
        """Start it, and wait until it answers."""
        self.start()

        def answers() -> bool:
            assert self.alive, self.output()
            try:
                return self.ask("/healthcheck").status == 200
            except OSError:
                return False

        wait_until(answers, 60, lambda: f"Flower to answer: {self.output()[-2000:]}")
        return self

    def ask(self, path: str, body: Any = None, *, user: str = "", headers: Mapping[str, str] | None = None) -> Answer:
        """GET, or POST where there is a ``body`` (an object is sent as JSON). ``user``: ``name:password``."""
        sent = dict(headers or {})
        if user:
            sent["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())
