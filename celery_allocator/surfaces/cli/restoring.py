"""The command that gives a lost ledger back what the history knows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from celery_allocator import history
from celery_allocator.model import iso_utc
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json

if TYPE_CHECKING:
    from celery_allocator.history import Restoration

#: Tasks in flight that the text names; --json names all.
_NAMED = 20


@click.command()
@click.option("--dry-run", is_flag=True, help="Change nothing; tell what would be given back.")
@click.option("--force", is_flag=True, help="Also overwrite what the ledger knows itself.")
@json_option
@pass_console
def restore(console: Console, *, dry_run: bool, force: bool, as_json: bool) -> None:
    """After a lost ledger: give back what it had learned and what operators had closed, from the history.

    Also tells which tasks had not ended and are unknown to the ledger now: they were in flight when it was lost, and
    are not run again by this. Run 'recorder --once' first where no recorder runs, and again what is told as not known
    yet, once its workers have registered.
    """
    with history.open_history(console.settings) as opened:
        restorer = history.Restorer(opened, console.ledger, force=force, publishes=console.publishes)
        found = restorer.plan() if dry_run else restorer.apply()
    console.publish(found.grants)
    if as_json:
        print_json({"success": True, "dry_run": dry_run, **_plain(found)})
    else:
        _tell(found, dry_run=dry_run)


def _plain(found: Restoration) -> dict[str, Any]:
    return {
        "runtimes_s": found.runtimes,
        "runtimes_kept_s": found.runtimes_kept,
        "peaks": found.peaks,
        "peaks_kept": found.peaks_kept,
        "stopped": found.stopped,
        "quotas": {name: json.loads(packed) for name, packed in found.quotas.items()},
        "quotas_kept": found.quotas_kept,
        "closed": found.closed,
        "reasons": found.reasons,
        "not_known_yet": found.unknown,
        "differing": found.differing,
        "in_flight": [
            {
                "allocation_id": row.allocation_id,
                "task_id": row.task_id,
                "task_name": row.task_name,
                "tenant": row.tenant,
                "state": row.state,
                "submitted_at": None if row.submitted_at is None else row.submitted_at.isoformat(),
                "node": row.node,
                "device": row.device,
            }
            for row in found.in_flight
        ],
    }


def _tell(found: Restoration, *, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    click.echo(
        f"run times of {len(found.runtimes)} names {would}given back; those of {len(found.runtimes_kept)} "
        "the ledger has itself"
    )
    if found.peaks or found.peaks_kept:
        click.echo(
            f"what runs of {len(found.peaks)} names used {would}given back; that of {len(found.peaks_kept)} "
            "the ledger has itself"
        )
    for name in found.quotas:
        click.echo(f"{_called(name)}: {would}given its quota again")
    for name in found.quotas_kept:
        click.echo(f"{_called(name)}: left as an operator has set it since (--force changes that)")
    if found.stopped is not None:
        click.echo(f"the pool: {would}{'paused' if found.stopped else 'resumed'}")
    for target, state in found.closed.items():
        why = f" ({found.reasons[target]})" if target in found.reasons else ""
        click.echo(f"{target}: {would}{state} again{why}")
    for target, state in found.unknown.items():
        click.echo(f"{target}: was {state}, and is not known to the ledger yet; restore again when it is")
    for target, state in found.differing.items():
        click.echo(f"{target}: is {state} by the history; left as the ledger has it (--force changes that)")
    click.echo(f"{len(found.in_flight)} allocations had not ended, and are unknown to the ledger")
    for row in found.in_flight[:_NAMED]:
        submitted = None if row.submitted_at is None else iso_utc(row.submitted_at.timestamp())
        place = f" on {row.node}/{row.device}" if row.state in ("granted", "running") else ""
        click.echo(f"  {row.task_id} {row.task_name} {row.state}{place}, submitted {submitted or 'at an unknown time'}")
    if len(found.in_flight) > _NAMED:
        click.echo(f"  … and {len(found.in_flight) - _NAMED} more (--json names all)")


def _called(tenant: str) -> str:
    return f"tenant {tenant}" if tenant else "what names no tenant"


COMMANDS: tuple[click.Command, ...] = (restore,)
