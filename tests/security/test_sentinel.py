"""A primary that Sentinel names: found, lost, found again elsewhere. Behind it ledger, broker and results alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_allocator.errors import AllocatorError, LedgerUnavailable, SettingsError
from celery_allocator.ledger import Ledger, connect
from celery_allocator.ledger.servers import open_client
from celery_allocator.model import NodeInventory, Requirements
from celery_allocator.plugin.session import session
from celery_allocator.settings import Settings
from tests.security.environment import environment, produce
from tests.security.sentinel_set import MASTER, PASSWORD, SENTINEL_PASSWORD, SentinelSet
from tests.support.allocator_app import make_app
from tests.support.processes import free_port
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet

CPU = Requirements(cpu_cores=1)


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    made = SentinelSet(tmp_path_factory.mktemp("sentinel"))
    try:
        yield made.start()
    finally:
        made.kill()


def url_of(sentinels: SentinelSet, master: str = MASTER) -> str:
    """The first of the Sentinels is not there."""
    hosts = ",".join([f"127.0.0.1:{free_port()}", *sentinels.addresses])
    return f"redis+sentinel://:{PASSWORD}@{hosts}/{master}/0?sentinel_password={SENTINEL_PASSWORD}"


def celerys(sentinels: SentinelSet) -> dict[str, object]:
    """Broker and results as Celery's users write them."""
    url = ";".join(f"sentinel://:{PASSWORD}@{address}" for address in sentinels.addresses)
    options = {"master_name": MASTER, "sentinel_kwargs": {"password": SENTINEL_PASSWORD}}
    return {"broker": url, "backend": url, "options": options}


def test_where_the_ledger_is_is_told_without_passwords(sentinels: SentinelSet, pool: str) -> None:
    ledger = connect(Settings(backend_url=url_of(sentinels), pool=pool))
    with ledger.client:
        ledger.submit("a1", "t1", "name", CPU)
        assert ledger.url.startswith("redis+sentinel://127.0.0.1:")
        assert ledger.url.endswith(f"/{MASTER}/0")
        assert "secret" not in ledger.url
        with sentinels.primary().client() as primary:
            assert ledger.run_id == primary.info("server")["run_id"]


def test_an_unknown_master_and_a_wrong_password(sentinels: SentinelSet, pool: str) -> None:
    for url, words in (
        (url_of(sentinels, "nobody"), "No master found for 'nobody'"),
        (url_of(sentinels).replace(SENTINEL_PASSWORD, "wrong"), "cannot be reached"),
        (url_of(sentinels).replace(PASSWORD, "wrong"), "cannot be reached"),
    ):
        ledger = connect(Settings(backend_url=url, pool=pool))
        with ledger.client, pytest.raises(LedgerUnavailable, match=words) as raised:
            ledger.snapshot()
        assert "secret" not in str(raised.value)


def test_celerys_own_form_needs_the_masters_name() -> None:
    with pytest.raises(SettingsError, match="master_name"):
        open_client("sentinel://127.0.0.1:26379")


def test_worker_and_producer_with_broker_results_and_ledger_behind_sentinels(
    sentinels: SentinelSet, workers: WorkerFleet, pool: str
) -> None:
    """The ledger is where the broker is: nothing is configured for it."""
    given = celerys(sentinels)
    conf = dict.fromkeys(("broker_transport_options", "result_backend_transport_options"), given["options"])
    env = environment(pool, broker=str(given["broker"]), backend=str(given["backend"]), **conf)
    workers.start("tests.support.allocator_app", "--gpu", "0", "--concurrency", "1", env=env)
    assert produce(env, workers) == {"sum": 3, "revoked": True}

    app = make_app(broker_url=given["broker"], result_backend=given["backend"], allocator_pool=pool, **conf)
    ledger = session(app).ledger
    with ledger.client, sentinels.primary().client() as primary:
        (worker,) = ledger.snapshot().workers
        assert (worker.node, worker.device_id) == ("host1", "gpu_0")
        # Found the same way, broker and ledger are known to be one server: granted messages are put there by script.
        box = primary.hget(f"{{allocator:{pool}}}:dev:host1/gpu_0", "box")
        assert box == f"allocator.{pool}.host1.gpu_0".encode()
    app.close()


def goes_on(ledger: Ledger, n: int) -> bool:
    """One whole life of an allocation."""
    try:
        ledger.submit(f"b{n}", f"t{n}", "name", CPU)
        ledger.cancel(f"b{n}")
    except LedgerUnavailable:
        return False
    return True


def test_a_client_goes_on_after_a_failover(sentinels: SentinelSet, pool: str) -> None:
    """Also one that is idle meanwhile, and one that asks all the time."""
    idle, busy = (connect(Settings(backend_url=url_of(sentinels), pool=pool)) for _ in range(2))
    with idle.client, busy.client:
        busy.register_node(NodeInventory("host1", (0, 1), 4096), lease_s=600)
        busy.submit("a1", "t1", "name", CPU)
        assert idle.snapshot().waiting == 1
        old = busy.run_id
        with sentinels.primary().client() as primary:
            primary.execute_command("WAIT", 1, 5000)  # so that this failover loses nothing
            # The old primary serves on until a Sentinel reaches it; so it does not take what would be lost.
            primary.config_set("min-replicas-to-write", 1)

        sentinels.fail_over()

        for n, ledger in enumerate((busy, idle)):
            wait_until(lambda n=n, ledger=ledger: goes_on(ledger, n), 30, "the ledger after the failover")
            assert ledger.run_id != old
        assert idle.run_id == busy.run_id
        assert [a.allocation_id for a in idle.queue()] == ["a1"]
        assert idle.verify() == []


def test_with_all_sentinels_gone_nothing_is_found(sentinels: SentinelSet, pool: str) -> None:
    """A connection that stands is used on; a new client finds nobody."""
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/{MASTER}"
    ledger = connect(Settings(backend_url=url, pool=pool))
    with ledger.client, pytest.raises(AllocatorError, match="No master found"):
        ledger.snapshot()
