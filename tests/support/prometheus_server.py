"""A private Prometheus on its own port and data directory, scraping what it is told to."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.availability import missing
from tests.support.processes import OwnedProcess, free_port
from tests.support.waiting import wait_until

_CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: celery-allocator
    scrape_timeout: 250ms
    static_configs:
      - targets: ["{target}"]
"""


def binary(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is."""
    return shutil.which(name) or missing(name, "apt-get install --no-install-recommends prometheus")


class PrometheusServer:
    """Scrapes ``target`` (host:port) four times a second, and evaluates ``rules``."""

    def __init__(self, directory: Path, target: str, rules: Sequence[Path] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        config = directory / "prometheus.yml"
        config.write_text(_CONFIG.format(target=target, rules=", ".join(json.dumps(str(path)) for path in rules)))
        argv = [binary("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"]
        argv += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        self.process = OwnedProcess(argv, directory / "log", cwd=directory)

    def start(self) -> PrometheusServer:
        """Start it and wait until it answers."""
        self.process.start()
        wait_until(self._ready, 30, self.process.output)
        return self

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series that a query yields, at that time or now."""
        data: list[dict[str, Any]] = self._ask("query", query=expression, **({} if at is None else {"time": at}))
        return data

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The same over a stretch of time; ``values``: pairs of time and value (a text)."""
        data: list[dict[str, Any]] = self._ask("query_range", query=expression, start=start, end=end, step=step)
        return data

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that it evaluates, with its health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def kill(self) -> None:
        """End it."""
        self.process.kill()

    def _ready(self) -> bool:
        assert self.process.alive, self.process.output()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _ask(self, what: str, **arguments: Any) -> Any:
        return self._get(f"{what}?{urllib.parse.urlencode(arguments)}")["result"]

    def _get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{url}: {error.read().decode()}") from None
