"""Hosts of one machine: network namespaces on a bridge, whose links a test can take down. For root, with iproute2."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import uuid
from types import TracebackType

from tests.support.availability import missing
from tests.support.processes import claim

#: The namespaces' own network; the harness is its first address. One at a time on a machine.
_NETWORK = "10.214.{net}.{host}"
#: What it claims begins above all ports.
_CLAIMED = 100_000


def unavailable() -> str:
    """Why there can be no network namespaces here, or nothing."""
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"probe-{uuid.uuid4().hex[:8]}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


class NetworkHosts:
    """So many hosts. ``gateway`` is the harness's address as they see it; put a proxy to a server there."""

    def __init__(self, count: int = 2) -> None:
        if reason := unavailable():
            missing("a network namespace", reason)
        self.tag = uuid.uuid4().hex[:6]
        self.bridge = f"br{self.tag}"
        # No other tests on this machine may have the same network.
        self._net = next(net for net in random.sample(range(1, 251), 250) if claim(_CLAIMED + net))
        self.gateway = _NETWORK.format(net=self._net, host=1)
        self.names = [f"host{n}-{self.tag}" for n in range(1, count + 1)]
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def command(self, number: int) -> tuple[str, ...]:
        """What stands before a command that shall run on a host (counted from 0). It keeps its pid."""
        return ("ip", "netns", "exec", self.names[number])

    def cut(self, number: int) -> None:
        """Pull the cable: nothing arrives, nothing is refused, and nobody is told."""
        _ip("link", "set", self._port(number), "down")

    def heal(self, number: int) -> None:
        """Plug it in again."""
        _ip("link", "set", self._port(number), "up")
        # Who still waits for an answer to "who has this address?", asked while it was down, is told that there is no
        # route. Both sides forget that they have asked.
        _ip("-n", self.names[number], "neigh", "flush", "all")
        _ip("neigh", "flush", "dev", self.bridge)

    def close(self) -> None:
        """Remove everything. Processes on the hosts must be gone."""
        for name in self.names:
            with contextlib.suppress(AssertionError):
                _ip("netns", "del", name)
        with contextlib.suppress(AssertionError):
            _ip("link", "del", self.bridge)

    def __enter__(self) -> NetworkHosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _port(self, number: int) -> str:
        return f"p{number}{self.tag}"

    def _make(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for number, name in enumerate(self.names):
            port, inside = self._port(number), f"v{number}{self.tag}"
            _ip("netns", "add", name)
            _ip("link", "add", port, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", name)
            _ip("link", "set", port, "master", self.bridge, "up")
            address = _NETWORK.format(net=self._net, host=number + 2)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", inside)
            _ip("-n", name, "link", "set", inside, "up")
            _ip("-n", name, "link", "set", "lo", "up")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
