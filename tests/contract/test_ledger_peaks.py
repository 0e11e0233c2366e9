"""What tasks turn out to use: what is learned of it, from which runs, and what is suggested."""

from __future__ import annotations

import pytest

from celery_allocator.ledger import Capacity, Recommendation, keys
from celery_allocator.model import Peaks
from tests.support.ledger_pool import LedgerPool

RUN = Peaks(3000, 700, 1.9)


def known(cluster: LedgerPool, name: str = "work", size: str = "") -> Recommendation:
    return next(r for r in cluster.ledger.recommend(name) if r.size == size)


def test_a_run_that_succeeded_is_learned_from_and_told(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.used("work", RUN, Peaks(2000, 900, 0.5), Peaks(3200, 800, 1.95), gpu=4096, cores=2, ram=1000)
    found = known(cluster)
    assert (found.task_name, found.runs, found.at) == ("work", 3, cluster.at)
    gpu, ram, cores = found.gpu_memory_mb, found.ram_mb, found.cpu_cores
    assert gpu is not None
    assert ram is not None
    assert cores is not None
    assert (gpu.declared, gpu.runs, gpu.most, gpu.suggested, gpu.verdict) == (4096, 3, 3200, 3840, "")
    assert gpu.p50 == pytest.approx(3000, rel=0.05)
    assert (ram.declared, ram.most, ram.suggested, ram.verdict) == (1000, 900, 1280, "")
    assert (cores.declared, cores.most, cores.suggested, cores.verdict) == (2, 1.95, 2, "all busy")
    assert found.suggested == {"gpu_memory_mb": 3840, "cpu_cores": 2, "ram_mb": 1280}
    released = [fields for _, fields in cluster.ledger.events() if fields["event"] == "released"]
    assert [released[0][name] for name in ("peak_gpu_mb", "peak_ram_mb", "cpu_milli")] == ["3000", "700", "1900"]


@pytest.mark.parametrize("outcome", ["failure", "requeue", "retry", "lost"])
def test_what_did_not_succeed_teaches_nothing(cluster: LedgerPool, outcome: str) -> None:
    """A run that failed used less than it needs, perhaps."""
    cluster.node()
    running = cluster.running()
    cluster.ledger.release(running.allocation_id, running.token, outcome, peaks=RUN)
    assert cluster.ledger.recommend() == ()
    if outcome == "failure":
        assert cluster.ledger.newest_events(1)[0][1]["peak_ram_mb"] == "700"


def test_what_was_not_measured_is_not_learned_as_nothing(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.used("work", *[Peaks(ram_mb=500)] * 3, Peaks(), gpu=1000)
    found = known(cluster)
    assert (found.gpu_memory_mb, found.cpu_cores, found.runs) == (None, None, 3)
    assert found.suggested == {"ram_mb": 576}
    assert found.ram_mb is not None
    assert found.ram_mb.verdict == "not declared"
    cluster.used("other", Peaks())
    assert [r.task_name for r in cluster.ledger.recommend()] == ["work"]


def test_nothing_is_suggested_before_three_runs(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.used("work", RUN, RUN)
    assert known(cluster).suggested == {}
    cluster.used("work", RUN)
    assert known(cluster).suggested == {"gpu_memory_mb": 3584, "cpu_cores": 2, "ram_mb": 832}


@pytest.mark.parametrize(
    ("gpu", "ram", "cores", "said"),
    [
        (2999, 600, 2, ("too small", "too small", "all busy")),
        (3000, 700, 3, ("", "", "")),
        (8000, 1664, 4, ("much too large", "", "much too large")),
        (0, 2000, 8, ("not declared", "much too large", "much too large")),
    ],
)
def test_what_is_declared_wrongly_is_said(
    cluster: LedgerPool, gpu: int, ram: int, cores: int, said: tuple[str, ...]
) -> None:
    """By what the last one had asked for."""
    cluster.node()
    cluster.used("work", RUN, RUN, gpu=1, ram=1)
    cluster.used("work", RUN, gpu=gpu, ram=ram, cores=cores)
    found = known(cluster)
    usages = (found.gpu_memory_mb, found.ram_mb, found.cpu_cores)
    assert tuple(usage.verdict for usage in usages if usage) == said


def test_a_size_is_learned_apart_and_with_its_name(cluster: LedgerPool) -> None:
    cluster.node()
    cluster.used("train", *[Peaks(ram_mb=100)] * 3, size="small")
    cluster.used("train", Peaks(ram_mb=8000), size="large")
    told = {r.size: r.suggested.get("ram_mb") for r in cluster.ledger.recommend("train")}
    assert told == {"": 9216, "large": None, "small": 128}
    learned = cluster.ledger.learned_of("train", "small")
    assert {r.size for r in learned.recommendations} == {"", "small"}
    assert learned.of("train", "large") is None
    assert set(learned.devices) == {Capacity(10_000, 8, 64_000), Capacity(0, 8, 64_000)}


def test_the_number_of_names_is_bounded(cluster: LedgerPool) -> None:
    """A new one takes the place of one of which nothing has been told for long."""
    cluster.node()
    client, key = cluster.ledger.client, keys.key(cluster.ledger.pool, "peaks")
    cluster.used("old", RUN)
    packed = client.hget(key, "old")
    client.hset(key, mapping={f"old-{i}": packed for i in range(1999)})
    cluster.at += 100
    cluster.used("new", RUN)
    cluster.used("newer", RUN)
    assert client.hlen(key) == 2000
    assert client.hexists(key, "newer")


@pytest.mark.parametrize("damage", [b"", b"\xc0", b"\x93\x01\x02\x03", b"peaks", b"\x9d" + b"\xa1x" * 13], ids=repr)
def test_what_cannot_be_read_is_learned_anew(cluster: LedgerPool, damage: bytes) -> None:
    cluster.node()
    cluster.ledger.client.hset(keys.key(cluster.ledger.pool, "peaks"), "work", damage)
    assert cluster.ledger.recommend() == ()
    cluster.used("work", RUN)
    assert known(cluster).runs == 1


def test_what_was_learned_is_given_back(cluster: LedgerPool) -> None:
    cluster.node()
    ledger = cluster.ledger
    assert ledger.learn_peaks("work", [RUN, RUN, RUN], Peaks(4096, None, 2.0))
    found = known(cluster)
    assert (found.runs, found.suggested["gpu_memory_mb"]) == (3, 3584)
    assert found.gpu_memory_mb is not None
    assert found.gpu_memory_mb.declared == 4096
    assert not ledger.learn_peaks("work", [Peaks(1, 1, 1.0)], Peaks())
    assert known(cluster) == found
    assert ledger.learn_peaks("work", [Peaks(1, 1, 1.0)], Peaks(), overwrite=True)
    assert known(cluster).runs == 1
    assert not ledger.learn_peaks("nothing", [Peaks()], Peaks())


def test_declared_is_what_was_claimed_and_not_what_it_grew_to(cluster: LedgerPool) -> None:
    """A share by what it comes to; after an out-of-memory, the true peak is learned."""
    cluster.node(gpus=(10_000,))
    cluster.used("shares", *[RUN] * 3, share=0.25)
    shares = known(cluster, "shares").gpu_memory_mb
    assert shares is not None
    assert (shares.declared, shares.verdict) == (2500, "too small")
    cluster.used("grows", RUN, gpu=1000)
    running = cluster.running(gpu=1000, task_name="grows", id="g")
    cluster.ledger.grow(running.allocation_id, running.token, growth=4.0, most=2)
    again = cluster.start(cluster.ledger.get("g"), nonce="delivery 2")
    assert again.gpu_memory_mb == 4000
    cluster.ledger.release("g", again.token, "success", peaks=Peaks(3900, 1, 1.0))
    grown = known(cluster, "grows").gpu_memory_mb
    assert grown is not None
    assert (grown.declared, grown.most) == (1000, 3900)
