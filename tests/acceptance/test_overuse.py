"""Who uses more than was promised: warned or killed, and what that gives back. Real processes, a scripted driver."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.result import AsyncResult
from click.testing import CliRunner

from celery_allocator.errors import ResourceOveruse
from celery_allocator.overview import explain, read_overview
from celery_allocator.plugin.processes import born, is_gone
from celery_allocator.surfaces.cli import allocator
from tests.support.cluster import SOON_S, Cluster, current
from tests.support.fake_nvml import FakeNvml, fake_nvml, nvml_library
from tests.support.redis_server import RedisServer
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import wait_until

__all__ = ["fake_nvml", "nvml_library"]  # fixtures

GPU_MB = 8192
pytestmark = pytest.mark.parametrize("broker_url", ["redis"], indirect=True)


class Host(ScriptedHost):
    """A node with one scripted GPU and a worker of two slots."""

    def __init__(self, new_cluster: Callable[..., Cluster], nvml: FakeNvml, action: str) -> None:
        small = {"ALLOCATOR_WATCH_S": "0.1", "ALLOCATOR_ON_OVERUSE": action, "ALLOCATOR_OVERUSE_FLOOR_MB": "32"}
        super().__init__(new_cluster, nvml, GPU_MB, **small)
        self.start()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For one test, which has to leave it empty."""
        with current(self.cluster):
            yield
            self.becomes()
            self.cluster.settle()

    def told(self, task_id: str) -> list[dict[str, str]]:
        """What became of a task that had begun, as the event stream has it."""
        events = [event for _, event in self.cluster.ledger.events(count=100_000) if event["task"] == task_id]
        return [event for event in events if event["event"] in ("overuse", "released", "lost", "requeued")]

    def recycled(self) -> int:
        """How many idle children were replaced, as the worker has told it."""
        use = self.device.use
        assert use is not None
        return use.children_recycled or 0

