"""The command that serves metrics for Prometheus."""

from __future__ import annotations

import logging
import sys

import click

from celery_allocator.metrics import load
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.cli.ending import asked_to_end


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; 0.0.0.0: all of this host's.")
@click.option("--port", type=click.IntRange(0, 65535), default=9808, show_default=True, help="0: any that is free.")
@json_option
@pass_console
def exporter(console: Console, *, host: str, port: int, as_json: bool) -> None:
    """Serve metrics of the pool for Prometheus at /metrics, until interrupted.

    It reads the ledger, and needs no more rights than a dashboard. /healthz says whether the exporter itself is well.
    Nobody is asked for a password: let only Prometheus reach the port.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("celery_allocator").setLevel(logging.INFO)
    made = load("Exporter")(console.open_ledger, console.settings, host, port)
    with asked_to_end() as stop:
        try:
            try:
                made.start()
            except OSError as error:
                raise click.ClickException(
                    f"port {port} of {host} cannot be had: {error}; choose another with --port"
                ) from None
            if as_json:
                print_json({"success": True, "url": made.url, "pool": console.settings.pool})
            else:
                click.echo(f"metrics of pool {console.settings.pool} at {made.url}")
            sys.stdout.flush()
            stop.wait()
        finally:
            made.stop()


COMMANDS: tuple[click.Command, ...] = (exporter,)
