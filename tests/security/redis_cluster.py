"""A Redis Cluster of three primaries, and on demand a replica of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis.crc import key_slot

from celery_allocator.ledger import keys
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

SLOTS = 16384
#: Seconds for the nodes to agree.
_SOON_S = 30.0


class Node(RedisServer):
    """One node. Left alone it would talk to the others on its port + 10000, which may be no port."""

    def __init__(self, directory: Path) -> None:
        self.bus = free_port()
        options = ("--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-node-timeout", "3000")
        super().__init__(directory, *options, "--repl-diskless-sync-delay", "0")


class RedisCluster:
    """Every slot is served from the start; which node serves a pool depends on the pool's name."""

    def __init__(self, directory: Path, nodes: int = 3) -> None:
        self.directory = directory
        self.nodes: list[Node] = [Node(directory / f"n{n}") for n in range(nodes)]

    @property
    def url(self) -> str:
        """``redis+cluster://`` with all first nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def start(self) -> RedisCluster:
        """Start the nodes, deal out the slots, and wait until all agree."""
        bounds = [n * SLOTS // len(self.nodes) for n in range(len(self.nodes) + 1)]
        for epoch, node in enumerate(self.nodes, 1):
            node.start()
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[epoch - 1], bounds[epoch] - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            self._meet(node)
        self._agree()
        return self

    def holder(self, pool: str) -> Node:
        """The node that holds a pool, by what the nodes themselves say."""
        slot = slot_of(pool)
        rows = _cluster(self.nodes[0], "SLOTS")
        port = next(named[1] for first, last, named, *_ in rows if first <= slot <= last)
        return next(node for node in self.nodes if node.port == port)

    def another(self, than: Node) -> Node:
        """Some other primary."""
        return next(node for node in self.nodes if node is not than and node.port in self._primaries())

    def add_replica(self, of: Node) -> Node:
        """Start another node that copies one of the primaries."""
        replica = Node(self.directory / f"n{len(self.nodes)}")
        replica.start()
        self.nodes.append(replica)
        self._meet(replica)
        with replica.client() as client:
            wait_until(lambda: _id(of) in _cluster(replica, "NODES"), _SOON_S, "the new node to know the others")
            _cluster(replica, "REPLICATE", _id(of))
            wait_until(lambda: client.info("replication").get("master_link_status") == "up", _SOON_S, "a copy")
        self._agree()
        return replica

    def begin_move(self, pool: str, to: Node) -> None:
        """The pool's slot is being moved: its holder says ASK for keys that it does not have."""
        holder = self.holder(pool)
        _cluster(to, "SETSLOT", slot_of(pool), "IMPORTING", _id(holder))
        _cluster(holder, "SETSLOT", slot_of(pool), "MIGRATING", _id(to))

    def end_move(self, pool: str, to: Node) -> None:
        """Move the keys, and tell everybody."""
        holder = self.holder(pool)
        while found := _cluster(holder, "GETKEYSINSLOT", slot_of(pool), 100):
            with holder.client() as client:
                client.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *found)
        primaries = self._primaries()
        for node in (to, holder, *(node for node in self.nodes if node.port in primaries)):
            _cluster(node, "SETSLOT", slot_of(pool), "NODE", _id(to))
        self._agree()

    def kill(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def _meet(self, node: Node) -> None:
        _cluster(self.nodes[0], "MEET", "127.0.0.1", node.port, node.bus)

    def _agree(self) -> None:
        wait_until(lambda: all(self._knows_all(node) for node in self.nodes), _SOON_S, "the nodes to agree")

    def _knows_all(self, node: Node) -> bool:
        info, rows = _cluster(node, "INFO"), _cluster(node, "SLOTS")
        ok = "cluster_state:ok" in info and f"cluster_known_nodes:{len(self.nodes)}" in info
        return ok and sum(last - first + 1 for first, last, *_ in rows) == SLOTS

    def _primaries(self) -> set[int]:
        return {named[1] for _, _, named, *_ in _cluster(self.nodes[0], "SLOTS")}


def slot_of(pool: str) -> int:
    """The slot of all of a pool's keys."""
    return key_slot(keys.prefix(pool).encode())


def _cluster(node: Node, *args: object) -> Any:
    with node.client(decode_responses=True) as client:
        return client.execute_command("CLUSTER", *args)


def _id(node: Node) -> str:
    return str(_cluster(node, "MYID"))
