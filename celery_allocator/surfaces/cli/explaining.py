"""The command that says why something is not running yet."""

from __future__ import annotations

import time
from collections.abc import Iterable

import click

from celery_allocator.model import iso_utc
from celery_allocator.overview import Explanation, explain
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import completes, ids
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.named import named, which_argument

#: Units of what lacks, for people.
_WORDS = {"gpu_memory_mb": "MB GPU", "cpu_cores": "cores", "ram_mb": "MB RAM", "slots": "slots"}


@click.command("why")
@which_argument(completes(ids("queue", "on_hold", "delayed", "held")))
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Show at most so many devices.")
@json_option
@pass_console
def why_command(console: Console, which: str, limit: int, *, as_json: bool) -> None:
    """Why a task or an allocation is not running yet: what lacks on which devices, who holds it, what is kept for whom.

    The ends of what runs are estimates, by the run times of each name.
    """
    console.session.upkeep()
    explained = [explain(console.ledger, allocation) for allocation in named(console.ledger, which)]
    if as_json:
        print_json([one.as_dict() for one in explained])
    else:
        click.echo("\n\n".join(_told(one, limit) for one in explained))


def _told(one: Explanation, limit: int) -> str:
    a = one.allocation
    head = [f"{a.allocation_id} ({a.task_name}, task {a.task_id}) asks for {text.shape(a.requirements)}."]
    if a.queue_position:
        head.append(
            f"It is number {a.queue_position} in line since {text.span(time.time() - a.submitted_at)}; "
            f"estimated start: {text.dates(a.estimated_start_at, a.estimated_start_p90_at)}."
        )
    head.append(one.reason.text)
    head += _kept(one)
    for name, (asked, most, suggested) in one.wasteful.items():
        head.append(
            f"It asks for {asked} {_WORDS[name]}, and runs of {a.task_name} used {most:g} at most: "
            f"{suggested} would do (recommend)."
        )
    rows = list(_rows(one, limit))
    if not rows:
        return "\n".join(head)
    more = f"\n… and {len(one.places) - limit} more devices (--limit)" if len(one.places) > limit else ""
    heads = ("DEVICE", "LACKS", "HELD BY", "NAME", "HOLDS", "FOR", "ENDS PERHAPS")
    return "\n".join(head) + f"\n\n{text.table(heads, rows)}{more}"


def _kept(one: Explanation) -> Iterable[str]:
    """What is kept for it, or for the first in line instead."""
    kept = one.reservation
    if kept is None:
        return
    first = "it" if one.is_first else kept.allocation_id
    if kept.device is None:
        since = text.span(time.time() - kept.since)
        times = "once" if kept.passed == 1 else f"{kept.passed} times"
        yield (
            f"The first in line is {first}: passed {times} in {since}. Run times are not known, so a device is emptied "
            "for it when that is too much (allocator_max_bypass)."
        )
    elif kept.starts_at is None:
        yield f"{kept.device} is emptied for {first}: nothing is granted there that would be in its way."
    else:
        fits = iso_utc(kept.starts_at)
        yield f"{kept.device} is kept for {first}: by the run times of what runs there it fits at {fits}."


def _rows(one: Explanation, limit: int) -> Iterable[tuple[str | None, ...]]:
    """One row per device, and one more for each further holder."""
    now = time.time()
    for place in one.places[:limit]:
        lacks = ", ".join(f"{free} of {needed} {_WORDS[name]}" for name, (needed, free) in place.lacks.items())
        cells: tuple[str | None, str | None] = (place.device, lacks or "nothing")
        if not place.holders:
            yield (*cells, None, None, None, None, None)
        for holder in place.holders:
            held = holder.allocation
            since = None if held.granted_at is None else text.span(now - held.granted_at)
            asked = text.shape(held.requirements)
            yield (*cells, held.task_id, held.task_name, asked, since, iso_utc(holder.ends_at))
            cells = (" ", " ")  # the same device


COMMANDS: tuple[click.Command, ...] = (why_command,)
