"""A ledger on Redis Cluster: all of a pool on one node, found at each connection, also after that node has changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
import redis

from celery_allocator.errors import LedgerError, LedgerUnavailable, SettingsError, StaleTokenError
from celery_allocator.ledger import Ledger, connect, keys
from celery_allocator.ledger.connection import check_schema, durability_warnings
from celery_allocator.ledger.servers import open_client
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements, State
from celery_allocator.settings import Settings
from celery_allocator.updates import Intake, Listener, Relay, watch
from tests.security.environment import environment, produce, python
from tests.security.redis_cluster import RedisCluster
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet

GPU = Requirements(gpu_memory_mb=6000, cpu_cores=1)
CPU = Requirements(cpu_cores=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    made = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture
def ledger(cluster: RedisCluster, pool: str) -> Iterator[Ledger]:
    made = connect(Settings(backend_url=cluster.url, pool=pool))
    with made.client:
        yield made


def furnish(ledger: Ledger) -> None:
    """One node with one GPU of 8000 MB and a worker."""
    gpu = DeviceInventory("gpu_0", 0, "GPU-1", "simulated", 8000)
    ledger.register_node(NodeInventory("host1", (0, 1, 2, 3), 4096, (gpu,)), lease_s=600)
    ledger.register_worker("w", "life-1", "host1", "gpu_0", slots=2, queue="q", lease_s=600, runs=())


def test_the_life_of_allocations(ledger: Ledger, cluster: RedisCluster, pool: str) -> None:
    check_schema(ledger)
    furnish(ledger)
    first = ledger.submit("a1", "t1", "name", GPU, message=b"{}")
    second = ledger.submit("a2", "t2", "name", GPU, message=b"{}")
    assert (first.allocation.state, second.allocation.state) == (State.GRANTED, State.WAITING)
    token = first.allocation.token

    running = ledger.start("a1", token, "w", "life-1", nonce="n", repeatable=True)
    assert running.state is State.RUNNING
    assert ledger.still_held(["a1", "a2"]) == {"a1"}
    assert ledger.heartbeat("w", "life-1", 600)
    released = ledger.release("a1", token, "success")
    assert [grant.allocation_id for grant in released.grants] == ["a2"]
    with pytest.raises(StaleTokenError):
        ledger.start("a1", token, "w", "life-1", nonce="m", repeatable=True)

    state = ledger.snapshot()
    assert (state.waiting, state.granted, state.running) == (0, 1, 0)
    assert ledger.tick().ran
    assert ledger.cancel("a2").done
    assert ledger.events()
    assert ledger.verify() == []
    with cluster.holder(pool).client() as holder:
        assert ledger.run_id == holder.info("server")["run_id"]
        assert {key.decode().partition(":")[0] for key in holder.scan_iter(f"{{allocator:{pool}}}*")} == {"{allocator"}
        assert holder.exists(keys.key(pool, "meta"))


def test_pools_live_on_different_nodes(cluster: RedisCluster, pool: str) -> None:
    """Each client finds its own, whatever node it asks first."""
    found = {}
    for n in range(40):
        name = f"{pool}-{n}"
        holder = cluster.holder(name)
        if holder.port in found:
            continue
        ledger = connect(Settings(backend_url=f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", pool=name))
        with ledger.client, holder.client() as client:
            ledger.submit("a1", "t1", "name", CPU)
            assert client.exists(keys.key(name, "alloc", "a1"))
            found[holder.port] = name
    assert len(found) == 3


def test_forgotten_scripts_are_told_to_the_right_node(ledger: Ledger, cluster: RedisCluster, pool: str) -> None:
    ledger.submit("a1", "t1", "name", CPU)
    with cluster.holder(pool).client() as holder:
        holder.script_flush()
    assert ledger.submit("a2", "t2", "name", CPU).allocation.state is State.WAITING
    assert ledger.snapshot().waiting == 2


def test_what_is_told_about_the_server(ledger: Ledger, cluster: RedisCluster, pool: str) -> None:
    assert ledger.url == cluster.url
    assert durability_warnings(ledger) == []
    with cluster.holder(pool).client() as holder:
        holder.config_set("appendonly", "no")
        try:
            (warning,) = durability_warnings(ledger)
        finally:
            holder.config_set("appendonly", "yes")
    assert "appendonly yes" in warning


def test_worker_and_producer_with_another_broker(
    cluster: RedisCluster, redis_server: RedisServer, workers: WorkerFleet, pool: str
) -> None:
    env = environment(pool, broker=redis_server.url, backend=redis_server.url, ledger=cluster.url)
    workers.start("tests.support.allocator_app", "--gpu", "0", "--concurrency", "1", env=env)
    assert produce(env, workers) == {"sum": 3, "revoked": True}
    shown = python(env, "celery_allocator", "status")
    assert "gpu_0" in shown.stdout, shown.stderr
    assert workers.workers[0].stop() == 0


def test_while_its_slot_is_moved_the_pool_cannot_serve(ledger: Ledger, cluster: RedisCluster, pool: str) -> None:
    """Half of its keys are on each side. Afterwards it serves on the other side, as a server that has changed."""
    furnish(ledger)
    ledger.submit("a1", "t1", "name", GPU)
    old, to = ledger.run_id, cluster.another(than=cluster.holder(pool))
    cluster.begin_move(pool, to)
    with pytest.raises(LedgerUnavailable, match="being moved"):
        ledger.submit("a2", "t2", "name", CPU)
    with pytest.raises(LedgerUnavailable, match="being moved"):
        ledger.snapshot()
    with to.client() as client:
        assert not list(client.scan_iter(f"{{allocator:{pool}}}*"))
    cluster.end_move(pool, to)

    assert ledger.get("a1").state is State.GRANTED
    with to.client() as client:
        assert ledger.run_id == client.info("server")["run_id"] != old
    assert ledger.submit("a2", "t2", "name", CPU)
    assert ledger.verify() == []


def test_a_client_goes_on_after_a_failover(ledger: Ledger, cluster: RedisCluster, pool: str) -> None:
    """Its connection to the old primary stands; what it says there is that the pool has moved."""
    ledger.submit("a1", "t1", "name", CPU)
    old = ledger.run_id
    replica = cluster.add_replica(of=cluster.holder(pool))
    with replica.client() as client:

        def failed_over() -> bool:
            if client.info("replication")["role"] == "master":
                return True
            # A request that is lost (the nodes' own links may be new) is given up by the server after five seconds.
            with contextlib.suppress(redis.ResponseError):
                client.execute_command("CLUSTER", "FAILOVER")
            return False

        wait_until(failed_over, 60, "the failover", interval=2.0)
        new = client.info("server")["run_id"]

    def serves() -> bool:
        try:
            ledger.submit("a2", "t2", "name", CPU)
        except LedgerUnavailable:
            return False
        return True

    wait_until(serves, 30, "the ledger after the failover")
    assert ledger.run_id == new != old
    assert {a.allocation_id for a in ledger.queue()} == {"a1", "a2"}
    assert ledger.verify() == []


def test_nodes_that_are_not_there_and_a_server_that_is_no_cluster(redis_server: RedisServer, pool: str) -> None:
    for port, words in ((free_port(), "no node of the cluster"), (redis_server.port, "cluster support disabled")):
        ledger = connect(Settings(backend_url=f"redis+cluster://127.0.0.1:{port}", pool=pool))
        with ledger.client, pytest.raises(LedgerUnavailable, match=words):
            ledger.snapshot()


def test_a_cluster_has_no_databases() -> None:
    with pytest.raises(SettingsError, match="only one"):
        open_client("redis+cluster://127.0.0.1:7000/3")


def test_a_node_addressed_as_one_server_says_what_to_do(cluster: RedisCluster, pool: str) -> None:
    wrong = cluster.another(than=cluster.holder(pool))
    ledger = connect(Settings(backend_url=wrong.url, pool=pool))
    with ledger.client, pytest.raises(LedgerError, match=r"redis\+cluster://"):
        ledger.snapshot()


def test_updates_come_by_stream_and_channel_and_changes_go_out(
    ledger: Ledger, cluster: RedisCluster, pool: str
) -> None:
    """All streams lie with the pool; a channel is heard on every node."""
    furnish(ledger)

    def update(key: str, state: str) -> bytes:
        said = {"object": "node", "id": "host1", "op": "update", "fields": {"state": state}, "actor": "brain"}
        return json.dumps({**said, "idempotency_key": key}).encode()

    intake, listener, relay = Intake(), Listener(), Relay()
    ledger.send_update(update("k1", "cordoned"))
    assert intake.step(ledger, 1.0) == 1
    listener.step(ledger)
    elsewhere = next(node for node in cluster.nodes if node.port != cluster.holder(pool).port)
    with elsewhere.client() as brain:
        brain.publish(keys.key(pool, "updates"), update("k2", "ready"))
    wait_until(lambda: listener.step(ledger) or intake.step(ledger), 30, "what was published")
    while intake.step(ledger):
        pass
    listener.retire()
    assert [(reply["idempotency_key"], reply["status"]) for _, reply in ledger.replies()] == [
        ("k1", "applied"),
        ("k2", "applied"),
    ]
    relay.step(ledger)
    with cluster.holder(pool).client() as holder:
        assert holder.xlen(keys.key(pool, "changes")) == len(list(watch(ledger, block_s=0)))


def test_a_primary_that_dies_is_replaced(cluster: RedisCluster, pool: str) -> None:
    """The last test here: one node is gone after it."""
    holder = cluster.holder(pool)
    cluster.add_replica(of=holder)
    ledger = connect(Settings(backend_url=cluster.url, pool=pool))
    with ledger.client:
        ledger.submit("a1", "t1", "name", CPU)
        with holder.client() as client:
            client.execute_command("WAIT", 1, 5000)
        holder.kill()
        with pytest.raises(LedgerUnavailable):
            ledger.snapshot()

        def serves() -> bool:
            try:
                return ledger.snapshot().waiting == 1
            except LedgerUnavailable:
                return False

        wait_until(serves, 30, "another primary")
        assert [a.allocation_id for a in ledger.queue()] == ["a1"]
