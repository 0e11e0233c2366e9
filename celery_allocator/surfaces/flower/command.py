"""``celery -A proj allocator-flower``: Flower with the tab; and the tab for ``celery -A proj flower``.

Celery's command line imports this module before it imports the app. So when the app calls ``install(app)``, it is known
here whether Flower is there, and its pages can be added to before it makes them.
"""

from __future__ import annotations

import importlib
import logging
import sys

import click
from celery import Celery
from celery.bin.base import CeleryCommand

from celery_allocator.plugin.install import on_install

logger = logging.getLogger(__name__)


@click.command(
    "allocator-flower",
    cls=CeleryCommand,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def allocator_flower(ctx: click.Context, flower_options: tuple[str, ...]) -> None:
    """Flower with the tab Allocator. Takes every option of `celery flower` (--port, --basic_auth, …)."""
    try:
        flower = importlib.import_module("flower.command").flower
        importlib.import_module("celery_allocator.surfaces.flower.offer").offer()
    except ImportError as error:
        raise click.ClickException(
            f"Flower cannot be loaded ({error}). Install it: pip install 'celery-allocator[flower]'"
        ) from error
    ctx.invoke(flower, tornado_argv=flower_options)


def _offer_to_stock_flower(_: Celery) -> None:
    """An app that allocates was made in a process that has loaded Flower's command: give Flower the tab."""
    if "flower.urls" not in sys.modules:
        return
    try:
        importlib.import_module("celery_allocator.surfaces.flower.offer").offer()
    except Exception:  # another version of Flower, say: a tab is no reason to stop a worker
        logger.debug("Flower gets no tab", exc_info=True)


on_install(_offer_to_stock_flower)
