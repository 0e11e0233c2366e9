"""What an action did."""

from __future__ import annotations

from dataclasses import dataclass

from celery_allocator.ledger import Grant, Obituary


@dataclass(frozen=True)
class Effect:
    """What an action did. Whoever took it publishes ``grants`` and writes the results of ``obituaries``.

    ``entry``: its number in the journal. ``text``: what changed, for people. ``held``: ids of what a cordoned place
    still holds. ``revived``: ids of tasks whose end was taken back: a result that says so is to be forgotten.
    """

    entry: int | None
    text: str
    grants: tuple[Grant, ...] = ()
    obituaries: tuple[Obituary, ...] = ()
    held: tuple[str, ...] = ()
    revived: tuple[str, ...] = ()
