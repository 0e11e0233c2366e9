"""Commands that look: status, queue, events, settings."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import click
from kombu.utils.url import maybe_sanitize_url

from celery_allocator.model import Allocation, ClusterState, WorkerUse, iso_utc
from celery_allocator.overview import of_cluster, of_tasks
from celery_allocator.settings import PREFIX, Settings, table
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.ending import until_interrupted

#: Seconds between looks for new events.
_FOLLOW_S = 0.2


@click.command()
@json_option
@pass_console
def status(console: Console, *, as_json: bool) -> None:
    """Nodes, devices and workers: what they have, what is free, what runs."""
    console.session.upkeep()
    cluster = console.ledger.snapshot()
    if as_json:
        print_json({"url": console.ledger.url, **cluster.as_dict()})
        return
    click.echo(
        f"pool {cluster.pool} at {console.ledger.url}: {cluster.running} running, {cluster.granted} granted, "
        f"{cluster.waiting} waiting, {cluster.delayed} delayed, {cluster.on_hold} on hold"
    )
    if cluster.paused:
        click.echo(_PAUSED[cluster.paused].format(command=console.command))
    if not cluster.nodes:
        waits = " What waits is placed when one is." if cluster.waiting else ""
        click.echo(
            f"No node is registered yet.{waits} Start a worker (celery -A proj worker --gpu 0), or allocate by hand "
            f"({console.command} allocate --help)."
        )
        return
    click.echo(f"\n{_nodes(cluster)}\n\n{_devices(cluster)}")
    if apart := [f"{d.key} is {d.state}: {d.reason}" for d in cluster.devices if d.reason]:
        click.echo("\n" + "\n".join(apart))
    withheld = list(of_cluster(cluster))
    if withheld:
        click.echo("\nWithheld from tasks:\n" + "\n".join(withheld))
    if loaded := [f"{d.key}: {', '.join(d.affinities)}" for d in cluster.devices if d.affinities]:
        click.echo("\nLoaded, by what tasks asked for as affinity:\n" + "\n".join(loaded))
    if over := list(of_tasks(cluster)):
        click.echo("\nBeyond their promise:\n" + "\n".join(over))


_PAUSED = {
    "stopped": "Nothing is granted: an operator has paused the pool ({command} resume).",
    "paused": "Nothing is granted yet: the server was restarted, and workers have still to report what they run.",
}


def _nodes(cluster: ClusterState) -> str:
    return text.table(
        ("NODE", "STATE", "CORES FREE", "OF", "RAM FREE MB", "OF"),
        ((n.node, n.state, len(n.cpu_cores_free), len(n.cpu_cores), n.ram_free_mb, n.ram_mb) for n in cluster.nodes),
    )


def _devices(cluster: ClusterState) -> str:
    uses = {worker.worker: worker.use for worker in cluster.workers if worker.use is not None}
    return text.table(
        ("DEVICE", "STATE", "FREE MB", "OF", "SLOTS FREE", "OF", "HELD", "USED MB", "FOREIGN MB", "WORKER", "MODEL"),
        (
            (
                d.key,
                d.state,
                d.memory_free_mb if d.is_gpu else None,
                d.memory_mb if d.is_gpu else None,
                d.slots_free if d.worker else None,
                d.slots if d.worker else None,
                len(d.allocations),
                *_used(uses.get(d.worker or "")),
                d.worker,
                d.model,
            )
            for d in cluster.devices
        ),
    )


def _used(use: WorkerUse | None) -> tuple[int | None, int | None]:
    """GPU memory in use by all, and by others than the device's worker, as the driver says."""
    return (None, None) if use is None else (use.gpu_memory_used_mb, use.gpu_memory_foreign_mb)


@click.command()
@click.option("--on-hold", is_flag=True, help="What is on hold instead, by an operator or a circuit breaker.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@json_option
@pass_console
def queue(console: Console, limit: int, *, on_hold: bool, as_json: bool) -> None:
    """What waits, in its order: since when, for whom, and when it will start.

    Of the two dates of a start, half of what waits starts before the first, nine of ten before the second.
    """
    console.session.upkeep()
    now = console.ledger.server_time()
    if on_hold:
        _on_hold(console.ledger.on_hold(limit=limit), now, as_json=as_json)
        return
    waiting = console.ledger.queue(limit=limit)
    if as_json:
        print_json(
            [
                {
                    "position": a.queue_position,
                    **_asked(a, now),
                    "estimated_start_at": a.estimated_start_at,
                    "estimated_start_p90_at": a.estimated_start_p90_at,
                }
                for a in waiting
            ]
        )
        return
    if not waiting:
        held = " (What is on hold: --on-hold.)" if console.ledger.on_hold(limit=1) else ""
        click.echo(f"Nothing waits.{held}")
        return
    click.echo(
        text.table(
            (
                "POSITION",
                "TASK",
                "NAME",
                "ASKS FOR",
                "TENANT",
                "PRIORITY",
                "WAITS FOR",
                "ESTIMATED START",
                "ALLOCATION",
            ),
            (
                (
                    a.queue_position,
                    a.task_id,
                    a.task_name,
                    text.shape(a.requirements),
                    a.requirements.tenant,
                    a.priority,
                    text.span(now - a.submitted_at),
                    text.dates(a.estimated_start_at, a.estimated_start_p90_at),
                    a.allocation_id,
                )
                for a in waiting
            ),
        )
    )


def _on_hold(held: tuple[Allocation, ...], now: float, *, as_json: bool) -> None:
    if as_json:
        print_json([{**_asked(a, now), "on_hold_by": a.on_hold_by} for a in held])
    elif not held:
        click.echo("Nothing is on hold.")
    else:
        heads = ("TASK", "NAME", "ASKS FOR", "TENANT", "PRIORITY", "ON HOLD BY", "WAITS FOR", "ALLOCATION")
        rows = (
            (
                a.task_id,
                a.task_name,
                text.shape(a.requirements),
                a.requirements.tenant,
                a.priority,
                a.on_hold_by,
                text.span(now - a.submitted_at),
                a.allocation_id,
            )
            for a in held
        )
        click.echo(text.table(heads, rows))


def _asked(a: Allocation, now: float) -> dict[str, Any]:
    return {**a.asked(), "submitted_at": a.submitted_at, "waits_s": round(max(0.0, now - a.submitted_at), 3)}


@click.command()
@click.option("--follow", is_flag=True, help="Go on printing new ones until interrupted.")
@click.option("--since", default="-", metavar="ID", help="Only what came after this entry.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Entries per read.")
@json_option
@pass_console
def events(console: Console, since: str, limit: int, *, follow: bool, as_json: bool) -> None:
    """The ledger's event stream, oldest first; with --json one object per line."""
    last = since
    with until_interrupted():
        while True:
            entries = console.ledger.events(last, limit)
            for last, fields in entries:  # the last id read is where the next read begins
                click.echo(_event(last, fields, as_json=as_json))
            if not follow and len(entries) < limit:
                return
            if not entries:
                time.sleep(_FOLLOW_S)


def _event(entry_id: str, fields: dict[str, str], *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"entry": entry_id, **fields}, ensure_ascii=False)
    shown = {key: value for key, value in fields.items() if value and key not in ("event", "at", "id", "task")}
    words = [
        iso_utc(int(fields["at"]) / 1000) or "",
        fields["event"],
        fields.get("id", ""),
        *([f"task={fields['task']}"] if fields.get("task") else []),
        *(f"{key}={value}" for key, value in shown.items()),
    ]
    return " ".join(words)


@click.command("settings")
@json_option
@pass_console
def settings_command(console: Console, *, as_json: bool) -> None:
    """Every setting: its value now, where that comes from, and what it means. Passwords are masked."""
    rows = _settings(console.settings, None if console.app is None else console.app.conf)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        value = "-" if row["value"] in (None, "") else row["value"]
        click.echo(f"{row['name']} = {value}  (from {row['from']})")
        click.echo(click.wrap_text(row["doc"], width=100, initial_indent="    ", subsequent_indent="    "))


def _settings(settings: Settings, conf: Any) -> list[dict[str, Any]]:
    given_by_app = Settings.load(conf=conf, environ={})
    rows = []
    for entry in table():
        name = entry.name.removeprefix(PREFIX)
        value = getattr(settings, name)
        if os.environ.get(entry.env):
            source = entry.env
        elif conf is not None and value == getattr(given_by_app, name) != getattr(Settings(), name):
            source = "app"
        else:
            source = "default" if value == getattr(Settings(), name) else "command line"
        shown = maybe_sanitize_url(value) if isinstance(value, str) else value
        rows.append({"name": entry.name, "value": _plain(shown), "from": source, "doc": entry.doc})
    return rows


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


COMMANDS: tuple[click.Command, ...] = (status, queue, events, settings_command)
