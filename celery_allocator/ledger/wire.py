"""How the scripts' replies become values."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from celery_allocator.errors import AllocatorError, LedgerError, RequestError
from celery_allocator.model import (
    NOTHING,
    Allocation,
    ClusterState,
    DeviceState,
    Kind,
    NodeState,
    Requirements,
    Shape,
    State,
    Strategy,
    Withheld,
    WorkerState,
    WorkerUse,
)

#: Id of a stream's entry.
ENTRY_ID = re.compile(r"\d{1,20}(-\d{1,20})?")

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])

#: What reading a record raises that does not hold what the scripts write: text for a number, an unknown word, no UTF-8.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def after(entry_id: str) -> str:
    """The start of a range of a stream behind ``entry_id``; ``-``: from its oldest. Raises :class:`RequestError`."""
    if entry_id in ("-", "+"):
        return entry_id
    if not ENTRY_ID.fullmatch(entry_id):
        raise RequestError(f"since={entry_id!r}: it is the id of an entry, such as 1700000000000-0, or -")
    return f"({entry_id}"


def reads(what: str) -> Callable[[F], F]:
    """Let a function that reads a reply raise :class:`LedgerError`, saying ``what`` is damaged, where it is."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except AllocatorError:
                raise
            except DAMAGE as error:
                raise damaged(what, "", error) from error

        return guarded  # type: ignore[return-value]

    return decorate


def damaged(what: str, name: Any, error: object) -> LedgerError:
    """What is raised where a record does not hold what the scripts write. ``error``: what is wrong with it."""
    shown = name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)
    return LedgerError(
        f"the record of {what}{shown and ' ' + shown} in the ledger is damaged ({error}). Somebody else wrote to its "
        "keys; `celery-allocator verify` tells what is wrong"
    )


def core_map(cores: Iterable[int]) -> str:
    """Core ids as the ledger's map: ``(0, 1, 3)`` → ``"11-1"``."""
    ids = set(cores)
    return "".join("1" if i in ids else "-" for i in range(max(ids) + 1)) if ids else ""


def ranges(cores: Iterable[int]) -> str:
    """Core ids as ranges: ``(0, 1, 3)`` → ``"0-1 3-3"``."""
    out: list[list[int]] = []
    for core in sorted(set(cores)):
        if out and out[-1][1] == core - 1:
            out[-1][1] = core
        else:
            out.append([core, core])
    return " ".join(f"{low}-{high}" for low, high in out)


def core_ids(text: bytes) -> tuple[int, ...]:
    """``b"0,1,3"`` → ``(0, 1, 3)``."""
    return tuple(int(core) for core in text.split(b",")) if text else ()


def allocation(row: list[Any]) -> Allocation:
    """One allocation from the list that ``_describe.lua`` writes. Raises :class:`LedgerError` naming a damaged one."""
    try:
        return _allocation(row)
    except DAMAGE as error:
        raise damaged("allocation", row[-1], error) from error


def _allocation(row: list[Any]) -> Allocation:
    tid, name, state, shape, prio, strat, c_ms, g_ms, s_ms, exp, eta, tok, *rest = row[:32]
    dev, uuid, queue, worker, cores, loss, tenant, held_by, size, xrt, _pace, devs, uuids, before, oom, *rest = rest
    position, *dates, ttl, allocation_id = rest
    held, asked = Shape.parse(shape.decode()), Shape.parse((before or shape).decode())
    if held is None or asked is None:
        raise ValueError(f"{shape!r} is no shape")
    node, _, device = dev.decode().rpartition("/")
    return Allocation(
        allocation_id=allocation_id.decode(),
        task_id=tid.decode(),
        task_name=name.decode(),
        state=State(state.decode()),
        kind=asked.kind,
        requirements=Requirements(
            gpu_memory_mb=asked.gpu_memory_mb,
            cpu_cores=asked.cpu_cores,
            ram_mb=asked.ram_mb,
            priority=int(prio),
            tenant=tenant.decode(),
            gpu_count=asked.gpu_count,
            expected_runtime_s=int(xrt or 0) // 1000,
            size=size.decode(),
            **asked.asked,
        ),
        strategy=Strategy(strat.decode()),
        submitted_at=int(c_ms) / 1000,
        granted_at=seconds(g_ms),
        started_at=seconds(s_ms),
        expires_at=seconds(ttl or exp),
        eta_at=seconds(eta),
        token=int(tok),
        node=node or None,
        device_id=device or None,
        device_uuid=uuid.decode() or None,
        more_devices=_more(devs.decode(), uuids.decode()),
        gpu_memory_granted_mb=held.gpu_memory_mb if before else None,
        queue=queue.decode() or None,
        worker=worker.decode() or None,
        cpu_cores=core_ids(cores),
        queue_position=int(position),
        estimated_start_at=seconds(dates[0]),
        estimated_start_p90_at=seconds(dates[1]),
        losses=int(loss or 0),
        oom_retries=int(oom or 0),
        on_hold_by=held_by.decode() or None,
    )


def _more(devices: str, uuids: str) -> tuple[tuple[str, str], ...]:
    """What a claim on several GPUs holds besides the first: id and UUID of each."""
    ids = [device.rpartition("/")[2] for device in devices.split(" ")]
    return tuple(zip(ids, uuids.split(" "), strict=True))[1:]


@reads("the device that was granted")
def submitted(
    base: dict[str, Any], verdict: str, reply: list[Any], whole: Callable[..., S], free: Callable[..., Any]
) -> S:
    """The reply of ``submit`` laid over what the caller knew: a grant, a place in line, or a delay."""
    at = int(reply[-1]) / 1000
    if verdict == "granted":
        token, dev, cores, queue, uuid, gpu_free, cores_free, ram_free, delivered, *of_all = json.loads(reply[1])
        devs, uuids, gpu_mb = of_all
        node, _, device = dev.rpartition("/")
        by_hand = base["kind"] is Kind.MANUAL
        granted = Allocation(
            **base,
            state=State.RUNNING if by_hand else State.GRANTED,
            submitted_at=at,
            granted_at=at,
            started_at=at if by_hand else None,
            token=int(token),
            node=node,
            device_id=device,
            device_uuid=uuid or None,
            more_devices=_more(devs, uuids),
            gpu_memory_granted_mb=int(gpu_mb) if base["requirements"].share else None,
            queue=queue or None,
            cpu_cores=core_ids(cores.encode()),
            estimated_start_at=at,
            estimated_start_p90_at=at,
        )
        return whole(granted, free(int(gpu_free), int(cores_free), int(ram_free)), delivered=bool(delivered))
    if verdict == "waiting":
        position, p50, p90, gpu_free, cores_free, ram_free = json.loads(reply[1])
        waiting = Allocation(
            **base,
            state=State.WAITING,
            submitted_at=at,
            queue_position=int(position),
            estimated_start_at=seconds(p50),
            estimated_start_p90_at=seconds(p90),
        )
        return whole(waiting, free(int(gpu_free), int(cores_free), int(ram_free)))
    if verdict == "on_hold":
        return whole(Allocation(**base, state=State.ON_HOLD, submitted_at=at, on_hold_by="breaker"), free(0, 0, 0))
    return whole(Allocation(**base, state=State.DELAYED, submitted_at=at), free(0, 0, 0))


@reads("a node or a worker")
def cluster(pool: str, reply: list[Any]) -> ClusterState:
    """The reply of ``snapshot``."""
    now, (delayed, waiting, granted, held, on_hold), node_rows, worker_rows, paused = reply
    nodes = tuple(_node(row) for row in node_rows)
    devices = {device.key: device for node in nodes for device in node.devices}
    workers = []
    for name, dkey, pid, lease, _incarnation, use, use_at in worker_rows:
        device = devices.get(dkey.decode())
        if device is not None:
            workers.append(
                WorkerState(
                    worker=name.decode(),
                    node=device.node,
                    device_id=device.device_id,
                    queue=device.queue,
                    slots=device.slots,
                    slots_free=device.slots_free,
                    lease_left_s=int(lease) / 1000,
                    pid=int(pid),
                    use=_use(use, use_at),
                )
            )
    return ClusterState(
        pool=pool,
        at=int(now) / 1000,
        nodes=nodes,
        workers=tuple(workers),
        delayed=int(delayed),
        waiting=int(waiting),
        granted=int(granted),
        running=int(held) - int(granted),
        on_hold=int(on_hold),
        paused=paused.decode(),
    )


def _use(told: bytes, at: bytes) -> WorkerUse | None:
    """What a worker measured. It decides nothing, so what cannot be read is nothing, and no damage."""
    try:
        return WorkerUse.from_wire(json.loads(told), int(at) / 1000) if told else None
    except (*DAMAGE, RecursionError):
        return None


def _node(row: list[Any]) -> NodeState:
    try:
        return _sound_node(row)
    except DAMAGE as error:
        raise damaged("node", row[0], error) from error


def _sound_node(row: list[Any]) -> NodeState:
    name, lease, own, free_map, ram, ram_free, state, device_rows, labels, withheld, of_what = row
    node = name.decode()
    # A core that was withdrawn from the node while held stands as "0" in the map and "-" in `own`.
    return NodeState(
        node=node,
        cpu_cores=_cores(own),
        cpu_cores_free=_cores(free_map),
        ram_mb=int(ram),
        ram_free_mb=int(ram_free),
        state="offline" if int(lease) <= 0 else state.decode(),
        devices=tuple(_device(node, device) for device in device_rows),
        labels=json.loads(labels),
        ram_withheld_mb=int(withheld),
        ram_withheld=_withheld(of_what),
    )


def _device(node: str, row: list[Any]) -> DeviceState:
    device, uuid, model, mem, free, state, live, worker, queue, slots, slots_free, ids, mode, why, *more = row
    withheld, of_what, loaded = more
    return DeviceState(
        node=node,
        device_id=device.decode(),
        uuid=uuid.decode(),
        model=model.decode(),
        memory_mb=int(mem),
        memory_free_mb=int(free),
        state=state.decode() if live == b"1" else "offline",
        worker=worker.decode() or None,
        queue=queue.decode(),
        slots=int(slots),
        slots_free=int(slots_free),
        allocations=tuple(sorted(i.decode() for i in ids)),
        closing=mode == b"h" and worker != b"",
        reason=why.decode(),
        withheld_mb=int(withheld),
        withheld=_withheld(of_what),
        affinities=tuple(word.decode() for word in loaded),
    )


def _withheld(text: bytes) -> Withheld:
    """``foreign leftover overuse hidden told``, as ``withhold.lua`` writes it; of RAM ``foreign overuse told``.

    It only explains an amount, so what cannot be read is nothing, and no damage.
    """
    try:
        *amounts, hidden, _told = text.split()
        foreign, leftover, overuse = (int(amount) for amount in amounts)
    except ValueError:
        return NOTHING
    return Withheld(foreign, leftover, overuse, pids_hidden=hidden == b"1")


def _cores(text: bytes) -> tuple[int, ...]:
    return tuple(i for i, mark in enumerate(text) if mark == 0x31)


def seconds(ms: Any) -> float | None:
    """Milliseconds of a reply as seconds; ``None`` for an empty one."""
    return int(float(ms)) / 1000 if ms not in (b"", "", None) else None
