"""Commands that run processes: the embedded server, the workers of this node."""

from __future__ import annotations

from dataclasses import asdict

import click

from celery_allocator.embedded import EmbeddedServer, default_directory
from celery_allocator.launcher import run_workers
from celery_allocator.launcher.launch import app_name
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import EXIT_FAILED, Console, json_option, pass_console, print_json


@click.group()
def server() -> None:
    """The embedded server: the ledger of this user on this host while nothing else is configured."""


@server.command()
@json_option
@pass_console
def start(console: Console, *, as_json: bool) -> None:
    """Start it, if it does not run, and print its URL."""
    url = EmbeddedServer(default_directory(console.settings)).ensure()
    if as_json:
        print_json({"success": True, "url": url})
    else:
        click.echo(url)


@server.command()
@json_option
@pass_console
def stop(console: Console, *, as_json: bool) -> None:
    """Stop it; its data stays."""
    stopped = EmbeddedServer(default_directory(console.settings)).stop()
    if as_json:
        print_json({"success": True, "stopped": stopped})
    else:
        click.echo("stopped" if stopped else "it was not running")


@server.command()
@json_option
@pass_console
@click.pass_context
def status(ctx: click.Context, console: Console, *, as_json: bool) -> None:
    """Whether it runs, where, and on which binary. Exit code 1 if it does not."""
    found = EmbeddedServer(default_directory(console.settings)).status()
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(text.pairs(asdict(found).items()))
    ctx.exit(0 if found.running else EXIT_FAILED)


@click.command()
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
@click.option("--no-cpu-worker", is_flag=True, help="Start workers for GPUs only.")
@pass_console
@click.pass_context
def workers(ctx: click.Context, console: Console, extra: tuple[str, ...], *, no_cpu_worker: bool) -> None:
    """Run one worker per GPU of this node and one for CPU-only work, supervised, until interrupted.

    Options after -- go to every worker: celery -A proj allocator workers -- --loglevel INFO
    """
    if console.app is None:
        raise click.UsageError("workers need an app: celery -A proj allocator workers")
    ctx.exit(run_workers(app_name(console.app), console.settings, extra=extra, cpu_worker=not no_cpu_worker))


COMMANDS: tuple[click.Command, ...] = (server, workers)
