"""What a child raises that does not end a task: it is in line again, or goes there, and a later run has its result."""

from __future__ import annotations

from celery.exceptions import Ignore


class MovedOn(Ignore):
    """A child has not begun a task, since the grant was not the live one when it asked (see ``fence.py``).

    Its worker may have claimed the task again meanwhile; then it has to go back into line, not to be ended.
    """


class Unfit(MovedOn):
    """This child cannot run a task that another one can (see ``isolating.py``): it is ended, and replaced."""


class GrantedAgain(MovedOn):
    """The ledger has put the task into line again already, with a larger claim (see ``growing.py``)."""
