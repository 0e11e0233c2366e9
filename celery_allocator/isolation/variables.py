"""Variables of the environment that are set while a task runs, for it and for the programs that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack


def set_variables(undo: ExitStack, values: Mapping[str, str]) -> None:
    """Set ``values`` in the environment; closing ``undo`` puts back what was there before."""
    for name, value in values.items():
        undo.callback(_restore, name, os.environ.get(name))
        os.environ[name] = value


def _restore(name: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before
