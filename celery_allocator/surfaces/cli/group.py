"""The group of commands and the console script."""

from __future__ import annotations

import sys

import click

from celery_allocator import __version__
from celery_allocator.demo.command import demo
from celery_allocator.surfaces.cli import (
    agents,
    allocations,
    breakers,
    completion,
    explaining,
    exporting,
    finding,
    gating,
    journalling,
    operators,
    parked,
    planning,
    processes,
    reading,
    recommending,
    recording,
    remembering,
    reporting,
    restoring,
    simulating,
    tenants,
    updating,
    verifying,
    viewing,
    waiting,
)
from celery_allocator.surfaces.cli.console import Group, open_console


@click.group(name="allocator", cls=Group)
@click.option("-A", "--app", metavar="APP", help="The Celery app, as `celery -A` takes it.")
@click.option("--backend-url", metavar="URL", help="The ledger's Redis (setting allocator_backend_url).")
@click.option("--pool", metavar="NAME", help="The pool (setting allocator_pool).")
@click.version_option(__version__, prog_name="celery-allocator")
@click.pass_context
def allocator(ctx: click.Context, app: str | None, backend_url: str | None, pool: str | None) -> None:
    """See and steer where Celery tasks get GPU memory, CPU cores and RAM.

    Exit codes: 0 done, 1 refused or failed, 2 the call itself was wrong. Errors are on standard error.
    """
    open_console(ctx, app, backend_url, pool)


for _command in (
    *reading.COMMANDS,
    *finding.COMMANDS,
    *viewing.COMMANDS,
    *allocations.COMMANDS,
    *waiting.COMMANDS,
    *explaining.COMMANDS,
    *planning.COMMANDS,
    *recommending.COMMANDS,
    *tenants.COMMANDS,
    *operators.COMMANDS,
    *journalling.COMMANDS,
    *breakers.COMMANDS,
    *parked.COMMANDS,
    *updating.COMMANDS,
    *verifying.COMMANDS,
    *gating.COMMANDS,
    *processes.COMMANDS,
    *completion.COMMANDS,
    *agents.COMMANDS,
    *exporting.COMMANDS,
    *recording.COMMANDS,
    *remembering.COMMANDS,
    *reporting.COMMANDS,
    *restoring.COMMANDS,
    *simulating.COMMANDS,
    demo,
):
    allocator.add_command(_command)


def main() -> None:
    """The console script ``celery-allocator``."""
    sys.exit(allocator(prog_name="celery-allocator"))
