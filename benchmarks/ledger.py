"""What the ledger costs: submit and release against an empty script called with the same arguments, in the same run.

Measured from one client over a unix socket, on a private append-only server of this run's own. A pair is
``Ledger.submit`` and ``Ledger.release`` with everything that the client does around the scripts; an empty pair is two
EVALSHA of ``return 1`` with the arguments of such a submit and release, sent by the same redis-py. All sides are timed
in every round, in a new random order each time, so that load from outside hits all alike. The ratios are of medians.

Clusters have 8 GPUs of 81,920 MB per node (64 cores, 512,000 MB RAM) and one worker of 4 slots per GPU. On every GPU
one task of 41,000 to 61,000 MB runs before anything is measured, so that the index has something to choose from.

submit_over_empty_8     a granted pair (2,048 MB, 2 cores, 4,096 MB RAM, 600-byte message) on 8 GPUs over an empty pair
growth_gpus             the same on the largest cluster over the same on 8 GPUs
pairs_over_empty        pipelined pairs per second over pipelined empty pairs per second, 100 pairs at a time, on 8 GPUs
growth_waiting          the pair on 8 GPUs with the longest line over the same with nobody waiting. The line: 50 shapes
                        of 75,000 MB and more, none of which fits beside what runs. So the pair is granted past the
                        line, and its release looks at the head of each of the 50 shapes in vain.
growth_waiting_granting the other line: 8 GPUs, each held whole; a pair is a submit that goes to the end of the line and
                        a release that grants the first in it, with the longest line over an otherwise empty one (the
                        release then grants the task just submitted). The line: 50 shapes that take a whole GPU.
growth_waiting_tenants, growth_waiting_granting_tenants
                        the two before, with a line of 20 tenants that take turns, each with all shapes
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from paired import Progress, Ratio, Side, interleave, ratio

from celery_allocator.embedded import EmbeddedServer
from celery_allocator.ledger import Ledger, Options, new_allocation_id
from celery_allocator.model import DeviceInventory, NodeInventory, Requirements, State

GPU_MB, GPUS_PER_NODE, SLOTS = 81_920, 8, 4
NODE_CORES, NODE_RAM_MB = 64, 512_000
SHAPES, TENANTS = 50, 20
LEASE_S = 24 * 3600.0
MESSAGE = b"m" * 600
#: Room for one more than the longest line.
OPTIONS = Options(max_waiting=1_000_000)
PAIR = Requirements(2_048, 2, 4_096)
PIPELINED = 100


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    gpus: tuple[int, ...]
    waiting: tuple[int, ...]
    rounds: int
    pipelines: int


FULL = Effort(gpus=(8, 100, 1_000, 10_000), waiting=(0, 1_000, 100_000), rounds=3_000, pipelines=60)
QUICK = Effort(gpus=(8, 100, 1_000), waiting=(0, 1_000, 10_000), rounds=500, pipelines=15)


class Recorder:
    """Stands in for a client: keeps the arguments of the one call that is made through it."""

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()

    def execute_command(self, *args: Any) -> Any:
        self.args = args
        raise LookupError


def arguments(call: Callable[[Ledger], object], pool: str) -> tuple[Any, ...]:
    """The command that a ledger sends for ``call``."""
    recorder = Recorder()
    with contextlib.suppress(LookupError):
        call(Ledger(recorder, pool, options=OPTIONS))  # type: ignore[arg-type]
    return recorder.args


def cluster(client: redis.Redis, pool: str, gpus: int) -> Ledger:
    """A ledger with so many GPUs, their workers, and one running task on each."""
    ledger = Ledger(client, pool, options=OPTIONS)
    progress = Progress(f"cluster of {gpus:,} GPUs", gpus)
    for first in range(0, gpus, GPUS_PER_NODE):
        node = f"node{first // GPUS_PER_NODE:05}"
        here = range(min(GPUS_PER_NODE, gpus - first))
        devices = tuple(DeviceInventory(f"gpu_{i}", i, f"GPU-{node}-{i}", "H100", GPU_MB) for i in here)
        ledger.register_node(NodeInventory(node, tuple(range(NODE_CORES)), NODE_RAM_MB, devices), LEASE_S)
        for device in devices:
            queue = f"allocator.{pool}.{node}.{device.device_id}"
            name = f"{device.device_id}@{node}"
            ledger.register_worker(name, "1", node, device.device_id, slots=SLOTS, queue=queue, lease_s=LEASE_S)
        progress.at(first + len(devices))
    return ledger


def occupy(ledger: Ledger, gpus: int, whole: bool = False) -> list[str]:
    """One running task per GPU, of varied sizes or of the whole GPU; their allocation ids."""
    ids = []
    for i in range(gpus):
        # Above half of a GPU, so that no two share one.
        size = GPU_MB if whole else GPU_MB // 2 + 1 + (i * 7_919) % 20_000
        name = new_allocation_id()
        submitted = ledger.submit(name, name, "bench.hold", Requirements(size, 1, 1_000), message=MESSAGE)
        assert submitted.allocation.state is State.GRANTED, submitted
        ids.append(name)
    return ids


def line(ledger: Ledger, count: int, shape: Callable[[int], Requirements], tenants: int = 0) -> None:
    """So many waiting tasks of 50 shapes; of nobody in particular, or of so many tenants."""
    progress = Progress(f"line of {count:,}", max(1, count))
    for first in range(0, count, 1_000):
        pipeline = ledger.client.pipeline(transaction=False)
        for i in range(first, min(first + 1_000, count)):
            name = new_allocation_id()
            req = asked(shape, i, tenants)
            args = arguments(lambda to: to.submit(name, name, "bench.wait", req, message=MESSAGE), ledger.pool)  # noqa: B023
            pipeline.execute_command(*args)
        replies = pipeline.execute()
        assert {reply[0] for reply in replies} == {b"waiting"}, replies[0]
        progress.at(min(first + 1_000, count))


def asked(shape: Callable[[int], Requirements], i: int, tenants: int) -> Requirements:
    """What the ``i``-th in line asks for: every tenant comes to have every shape."""
    req = shape(i % SHAPES)
    return replace(req, tenant=f"tenant-{i // SHAPES % tenants}") if tenants else req


# --- sides: each does one thing and returns its seconds


def empty_pair(client: redis.Redis, sha: str) -> Side:
    """Two empty scripts with the arguments of a submit and a release."""
    submit, release = pair_arguments("empty")

    def side() -> float:
        submit[8] = submit[9] = release[8] = new_allocation_id()
        began = time.perf_counter()
        client.execute_command("EVALSHA", sha, *submit[2:])
        client.execute_command("EVALSHA", sha, *release[2:])
        return time.perf_counter() - began

    return side


def pair_arguments(pool: str) -> tuple[list[Any], list[Any]]:
    """The commands of one pair. The allocation id stands at 8 (and at 9, as the task id, in the first)."""
    name = "x" * len(new_allocation_id())
    submit = list(arguments(lambda to: to.submit(name, name, "bench.pair", PAIR, message=MESSAGE), pool))
    release = list(arguments(lambda to: to.release(name, 1_000_000, "success"), pool))
    where = [i for i, arg in enumerate(submit) if arg == name], [i for i, arg in enumerate(release) if arg == name]
    assert where == ([8, 9], [8]), where
    return submit, release


def granted_pair(ledger: Ledger) -> Side:
    """A submit that is granted at once, and its release."""

    def side() -> float:
        name = new_allocation_id()
        began = time.perf_counter()
        submitted = ledger.submit(name, name, "bench.pair", PAIR, message=MESSAGE)
        released = ledger.release(name, submitted.allocation.token, "success")
        seconds = time.perf_counter() - began
        assert released.done, submitted
        assert not released.grants
        return seconds

    return side


def granting_pair(ledger: Ledger, held: list[str], tenants: int = 0) -> Side:
    """A submit that waits at the end of the line, and a release that grants the first in it."""
    holders = deque(held)
    numbers = itertools.count()

    def side() -> float:
        name = new_allocation_id()
        req = asked(whole_gpu, next(numbers), tenants)
        holder = holders.popleft()
        began = time.perf_counter()
        submitted = ledger.submit(name, name, "bench.pair", req, message=MESSAGE)
        released = ledger.release(holder, None, "success")
        seconds = time.perf_counter() - began
        assert submitted.allocation.state is State.WAITING
        (grant,) = released.grants
        holders.append(grant.allocation_id)
        return seconds

    return side


def piped(client: redis.Redis, submit_sha: str, release_sha: str, pool: str) -> Side:
    """A hundred pairs in one pipeline."""
    submit, release = pair_arguments(pool)
    submit[1], release[1] = submit_sha, release_sha
    release[9] = ""  # the token is not known yet: whichever it is

    def side() -> float:
        pipeline = client.pipeline(transaction=False)
        began = time.perf_counter()
        for _ in range(PIPELINED):
            submit[8] = submit[9] = release[8] = new_allocation_id()
            pipeline.execute_command(*submit)
            pipeline.execute_command(*release)
        replies = pipeline.execute()
        seconds = time.perf_counter() - began
        assert len(replies) == 2 * PIPELINED
        return seconds

    return side


def too_large(shape: int) -> Requirements:
    """Does not fit beside anything."""
    return Requirements(75_000 + shape * 100, 1 + shape % 4, 1_000)


def whole_gpu(shape: int) -> Requirements:
    """Fits a GPU that nobody holds a part of."""
    return Requirements(GPU_MB, 1, 1_000 + shape)


# --- the parts


def measure(client: redis.Redis, effort: Effort) -> dict[str, Ratio]:
    """All ratios. One server holds every cluster and every line at once."""
    sha = client.script_load("return 1")
    empty = empty_pair(client, sha)
    found: dict[str, Ratio] = {}

    ledgers = {gpus: cluster(client, f"gpus-{gpus}", gpus) for gpus in effort.gpus}
    for gpus, ledger in ledgers.items():
        occupy(ledger, gpus)
    sides: dict[str, Side] = {f"{gpus}": granted_pair(ledger) for gpus, ledger in ledgers.items()}
    times = interleave({"empty": empty, **sides}, effort.rounds, label="clusters", warmup=50)
    show(times, "GPUs")
    found["submit_over_empty_8"] = ratio(times["8"], times["empty"])
    found["growth_gpus"] = ratio(times[str(effort.gpus[-1])], times["8"])

    submit, release = pair_arguments("gpus-8")
    both = {"pairs": piped(client, submit[1], release[1], "gpus-8"), "empty": piped(client, sha, sha, "gpus-8")}
    times = interleave(both, effort.pipelines, label="pipelines", warmup=3)
    for name, seconds in times.items():
        print(f"  {name:>10}: {PIPELINED / sorted(seconds)[len(seconds) // 2]:8.0f} pairs/s")
    found["pairs_over_empty"] = ratio(times["empty"], times["pairs"])

    return {**found, **measure_lines(client, effort, empty), **measure_lines(client, effort, empty, TENANTS)}


def measure_lines(client: redis.Redis, effort: Effort, empty: Side, tenants: int = 0) -> dict[str, Ratio]:
    """The ratios of lines, of nobody in particular or of so many tenants."""
    found: dict[str, Ratio] = {}
    suffix, who = ("_tenants", f" of {tenants} tenants") if tenants else ("", "")

    sides: dict[str, Side] = {}
    for count in effort.waiting:
        ledger = cluster(client, f"waiting{suffix}-{count}", 8)
        occupy(ledger, 8)
        line(ledger, count, too_large, tenants)
        sides[f"{count}"] = granted_pair(ledger)
    times = interleave({"empty": empty, **sides}, effort.rounds, label=f"lines{who} that do not fit", warmup=50)
    show(times, f"waiting{who}, none fits")
    found[f"growth_waiting{suffix}"] = ratio(times[str(effort.waiting[-1])], times[str(effort.waiting[0])])

    sides = {}
    for count in effort.waiting:
        ledger = cluster(client, f"granting{suffix}-{count}", 8)
        held = occupy(ledger, 8, whole=True)
        line(ledger, count, whole_gpu, tenants)
        sides[f"{count}"] = granting_pair(ledger, held, tenants)
    times = interleave({"empty": empty, **sides}, effort.rounds, label=f"lines{who} that are granted", warmup=50)
    show(times, f"waiting{who}, one granted")
    found[f"growth_waiting_granting{suffix}"] = ratio(times[str(effort.waiting[-1])], times[str(effort.waiting[0])])
    return found


def measure_tenants(client: redis.Redis, effort: Effort) -> dict[str, float]:
    """The ratios of lines of tenants alone, for another benchmark's report."""
    found = measure_lines(client, effort, empty_pair(client, client.script_load("return 1")), TENANTS)
    for name, value in found.items():
        print(f"{name}: {value}")
    return {name: round(value.value, 3) for name, value in found.items()}


def show(times: dict[str, list[float]], what: str) -> None:
    """Medians of this run, for whoever watches."""
    for name, seconds in times.items():
        label = "empty script" if name == "empty" else f"{int(name):,} {what}"
        print(f"  {label:>28}: {sorted(seconds)[len(seconds) // 2] * 1e6:7.1f} µs")


@contextlib.contextmanager
def server(binary: Path | None) -> Iterator[redis.Redis]:
    """A client of a server of this run's own, which is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="ledger-bench-") as folder:
        embedded = EmbeddedServer(Path(folder), binary)
        url = embedded.ensure()
        try:
            with redis.Redis.from_url(url) as client:
                status = embedded.status()
                print(f"{status.binary}, version {status.version}")
                yield client
        finally:
            embedded.stop()


def main() -> None:
    """Measure everything, print it, and last one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 GPUs and 10,000 waiting, fewer rounds")
    parser.add_argument("--server", type=Path, help="a redis-server or valkey-server (default: the embedded one)")
    args = parser.parse_args()
    effort = QUICK if args.quick else FULL
    with server(args.server) as client:
        found = measure(client, effort)
    for name, value in found.items():
        print(f"{name}: {value}")
    sizes = {"gpus": effort.gpus, "waiting": effort.waiting}
    print(json.dumps({**{name: round(value.value, 3) for name, value in found.items()}, **sizes}))


if __name__ == "__main__":
    main()
