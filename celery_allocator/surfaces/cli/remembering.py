"""The command that shows allocations that were, and what happened to them: history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from celery_allocator import history as histories
from celery_allocator.history.entry import moment as moment_of
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.reporting import when
from celery_allocator.surfaces.report.columns import gap_told
from celery_allocator.surfaces.report.numbers import duration

if TYPE_CHECKING:
    from celery_allocator.history.models import AllocationRow, Event
    from celery_allocator.history.withholding import Withholding

_COLUMNS = (
    *("allocation_id", "task_id", "task_name", "tenant", "kind", "gpu_memory_mb", "gpu_count", "cpu_cores", "ram_mb"),
    *("priority", "strategy", "submitted_at", "eta_at", "expires_at", "estimated_start_at", "estimated_start_p90_at"),
    *("queue_position", "rearranged_at", "reserved_at", "granted_at", "started_at", "ended_at", "state", "outcome"),
    *("node", "device", "devices", "worker", "cores", "token", "grants", "losses"),
    *("wait_s", "run_s", "held_s", "peak_gpu_memory_mb", "peak_ram_mb", "cpu_cores_used"),
    *("more", "affinity", "grown", "overuse_gpu_memory_mb", "overuse_ram_mb"),
)


@click.command()
@click.option("--task", metavar="ID", help="Of this task; also tells what happened to it, step by step.")
@click.option("--name", metavar="GLOB", help="Of tasks with such a name: 'proj.*'.")
@click.option("--device", metavar="NODE/DEVICE", help="That were last on this device.")
@click.option("--node", metavar="NAME", help="That were last on this node.")
@click.option("--tenant", metavar="NAME", help="Of this tenant.")
@click.option("--since", metavar="WHEN", help="Something happened to them since: 90s, 15m, 1h, 7d ago, ISO 8601.")
@click.option("--until", metavar="WHEN", help="They were submitted before, likewise.")
@click.option("--outcome", metavar="OUTCOME", help="That ended so: success, failure, …; live: not yet.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@json_option
@pass_console
def history(
    console: Console,
    task: str | None,
    name: str | None,
    device: str | None,
    node: str | None,
    tenant: str | None,
    since: str | None,
    until: str | None,
    outcome: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Allocations that were, newest first, and with --task what happened to them.

    What is told is what the recorder has written so far. With --json one list.
    """
    now = datetime.now(tz=timezone.utc)
    start = None if since is None else when("since", since, now)
    end = None if until is None else when("until", until, now)
    with histories.open_history(console.settings) as opened:
        chosen = histories.Filter(task, name, node, device, tenant, start, end, outcome)
        found = histories.allocations(opened, chosen, limit)
        happened = {row.allocation_id: opened.events_of(row.allocation_id) for row in found if chosen.task is not None}
        withheld = {
            row.allocation_id: histories.withheld_during(opened, row, happened[row.allocation_id])
            for row in (found if happened else ())
        }
        gaps = histories.gaps(opened, start, end)
    if as_json:
        print_json([_as_data(row, happened.get(row.allocation_id), withheld.get(row.allocation_id)) for row in found])
    else:
        click.echo(_table(found, now) if found else "No allocation matches.")
        for row in found if happened else ():
            click.echo("\n" + "\n".join(_timeline(row, happened[row.allocation_id], withheld[row.allocation_id])))
    for gap in gaps:  # beside the list, also where that is JSON
        first, last = gap.between
        click.echo(f"{gap_told(gap.entries, _at(first), _at(last))} ({gap.reason})", err=True)


def _as_data(row: AllocationRow, events: Any, withheld: Sequence[Withholding] | None) -> dict[str, Any]:
    data = {name: _plain(getattr(row, name)) for name in _COLUMNS}
    if events is not None:
        data["events"] = [
            {"event_id": e.event_id, "at": _plain(e.at), "event": e.event, "fields": e.fields} for e in events
        ]
    if withheld is not None:
        data["withheld"] = [{**one._asdict(), "at": _plain(one.at)} for one in withheld]
    return data


def _plain(value: Any) -> Any:
    return _at(value) if isinstance(value, datetime) else value


def _table(rows: Any, now: datetime) -> str:
    return text.table(
        ("SUBMITTED", "NAME", "TASK", "TENANT", "ASKED FOR", "DEVICE", "WAIT", "PROMISED", "RUN", "OUTCOME"),
        (
            (
                None if row.submitted_at is None else row.submitted_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                row.task_name,
                row.task_id,
                row.tenant,
                text.shape(row),
                f"{row.node}/{row.device}" if row.device else None,
                None if row.wait_s is None else duration(row.wait_s),
                _promised(row),
                _ran(row, now),
                row.outcome or row.state,
            )
            for row in rows
        ),
    )


def _promised(row: AllocationRow) -> str | None:
    """The waits that were promised at submit: in one of two cases, and in nine of ten."""
    if row.submitted_at is None or row.estimated_start_at is None:
        return None
    promised = (row.estimated_start_at, row.estimated_start_p90_at)
    return " / ".join(duration(max(0.0, (at - row.submitted_at).total_seconds())) for at in promised if at is not None)


def _ran(row: AllocationRow, now: datetime) -> str | None:
    """Its run time over all tries, with the one at hand so far."""
    if row.state == "running" and row.started_at is not None:
        return duration(row.run_s + max(0.0, (now - row.started_at).total_seconds()))
    return duration(row.run_s) if row.run_s or row.started_at else None


def _timeline(row: AllocationRow, events: Any, withheld: Sequence[Withholding]) -> Iterator[str]:
    yield f"{row.allocation_id} ({row.task_name or 'no name'})"
    before: datetime | None = None
    steps = []
    for moment, said in _merged(events, withheld):
        since = "" if before is None else f"+{duration(max(0.0, (moment - before).total_seconds()))}"
        steps.append((_at(moment), since, said))
        before = moment
    width = max((len(since) for _, since, _ in steps), default=0)
    for at, since, said in steps:
        yield f"  {at}  {since.rjust(width)}  {said}"


def _merged(events: Any, withheld: Sequence[Withholding]) -> Iterator[tuple[datetime, str]]:
    """What happened to it, and on its device meanwhile; at one moment, what happened to it first."""
    meanwhile = list(withheld)
    for event in events:
        while meanwhile and meanwhile[0].at < event.at:
            yield meanwhile[0].at, _said_of_device(meanwhile.pop(0))
        yield event.at, _said(event)
    yield from ((one.at, _said_of_device(one)) for one in meanwhile)


def _said(event: Event) -> str:
    """What happened, in words."""
    told = event.fields
    words = ["submitted: " if "new" in told else "", event.event.replace("_", " ")]
    if told.get("outcome"):
        words.append(f": {told['outcome']}")
    if told.get("position"):
        words.append(f" at position {told['position']}")
    if event.event == "reserved":
        words.append(f": {told.get('device', '?')} is kept for it")
    for name, before in _MOMENTS:
        at = moment_of(told.get(name))
        if at is not None:
            words.append(f", {before} {_at(at)}")
    if event.event in ("granted", "reclaimed"):
        words.append(f" on {told.get('devices') or told.get('device', '?')}, token {told.get('token', '?')}")
        words.append(f", cores {told['cores']}" if told.get("cores") else "")
    elif event.event in ("requeued", "withdrawn", "lost", "grown"):
        words.append(f" on {told.get('device', '?')}")
    if told.get("worker"):
        words.append(f" by {told['worker']}")
    words.append(_consequence(event))
    if "new" not in told:
        words += [f", {name} {told[name]}" for name in ("reason", "from", "by", "priority") if told.get(name)]
    if event.event == "released" and told.get("held_ms", "").isdecimal():
        words.append(f", ran {duration(int(told['held_ms'][:15]) / 1000)}")
        words.append(_peaks(told))
    return "".join(words)


def _said_of_device(one: Withholding) -> str:
    parts = (("foreign", one.foreign_mb), ("leftover", one.leftover_mb), ("overuse", one.overuse_mb))
    told = ", ".join(f"{amount:,} MB {name}" for name, amount in parts if amount)
    return f"meanwhile {one.withheld_mb:,} MB of {one.device} are withheld" + (f" ({told})" if told else "")


def _peaks(told: Mapping[str, str]) -> str:
    """What its run used at most."""
    milli = told.get("cpu_milli", "")
    words = [
        f"{int(told[name][:15]):,} MB of {what}"
        for name, what in (("peak_gpu_mb", "GPU memory"), ("peak_ram_mb", "RAM"))
        if told.get(name, "").isdecimal()
    ]
    words += [f"{int(milli[:15]) / 1000:g} cores"] if milli.isdecimal() else []
    return f", used at most {' and '.join(words)}" if words else ""


def _consequence(event: Event) -> str:
    told = event.fields
    if event.event == "lost":
        return ", in line again" if told.get("again") == "1" else ", not again"
    if event.event == "overuse":
        done = "its process is killed" if told.get("action") == "kill" else "it is warned of"
        resource = {"gpu_memory_mb": "GPU memory", "ram_mb": "RAM"}.get(told.get("resource", ""), "?")
        return f" of {resource}: {told.get('used_mb', '?')} MB, {told.get('promised_mb', '?')} MB promised; {done}"
    if event.event == "granted" and told.get("warm"):
        return f", its affinity {'is' if told['warm'] == 'hit' else 'is not'} loaded there"
    if event.event == "grown":
        return f", in line again with {told.get('to', '?')} MB of GPU memory"
    return ""


#: Moments that an event tells, and how they are told.
_MOMENTS = (
    *(("eta", "until"), ("estimate", "start estimated for"), ("estimate_p90", "in nine of ten cases by")),
    *(("expires", "expires"), ("until", "until")),
)


def _at(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


COMMANDS: tuple[click.Command, ...] = (history,)
