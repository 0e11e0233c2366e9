"""``celery-allocator demo``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from celery_allocator.errors import AllocatorError

#: Modules that come with the extra ``demo``.
_EXTRA = ("numpy", "PIL", "rich")


@click.command()
@click.option("--tasks", "count", type=click.IntRange(1, 10_000), default=60, show_default=True, help="How many tasks.")
@click.option(
    "--devices",
    default="auto",
    show_default=True,
    help="GPUs to use: auto (the real ones, or two simulated ones if there are none), or sim:COUNTxMEMORY_MB.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for inputs, outputs, records and logs; an earlier demo's is emptied.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Same seed, same input.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; progress goes to stderr.")
def demo(count: int, devices: str, output: Path, seed: int, as_json: bool) -> None:
    """Run real tasks on GPUs, real or simulated, and watch them being placed.

    Starts a server, workers and about 60 tasks (reading digits, rendering, hearing notes), shows them live, checks
    what they wrote, and stops everything again. Exit code 0 if all was right, 1 if not.
    """
    try:
        from celery_allocator.demo.run import run_demo
        from celery_allocator.demo.session import Interrupted
        from celery_allocator.demo.summary import text
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise click.ClickException(f"{error}. The demo needs: pip install 'celery-allocator[demo]'") from error
    try:
        stream = sys.stderr if as_json else sys.stdout
        summary = run_demo(tasks_count=count, devices=devices, output=output, seed=seed, stream=stream)
    except Interrupted as interrupted:
        click.echo(f"stopped by {interrupted}; nothing is left running", err=True)
        sys.exit(128 + interrupted.number)
    except AllocatorError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(summary.as_dict(), indent=1) if as_json else f"\n{text(summary)}")
    sys.exit(0 if summary.ok else 1)
