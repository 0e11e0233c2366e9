"""The faults by name. Importing ``tests.fault.faults`` fills it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fault.batch import Batch
    from tests.fault.site import Site

SUCCEEDS = frozenset({"SUCCESS"})
FAILS = frozenset({"FAILURE"})
REVOKED = frozenset({"REVOKED"})
#: Any end that its caller can see.
VISIBLE = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
#: No result is promised (``Ignore``): it must have run.
SILENT: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layout:
    """What a site is made of; faults with equal layouts (and site classes) share one. Times in seconds.

    ``broker``: ``same`` (the ledger's own Redis), ``redis`` (another one) or ``rabbitmq``. ``workers``: name, ``--gpu``
    and slots of each. ``options`` are further options of each worker, ``env`` and ``config`` further settings (a tuple
    of pairs stands for a mapping).
    """

    broker: str = "same"
    workers: tuple[tuple[str, str, int], ...] = (("gpu0", "0", 4), ("gpu1", "1", 4), ("cpu", "none", 2))
    options: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    config: tuple[tuple[str, object], ...] = ()
    lease_s: float = 3.0
    start_deadline_s: float = 3.0
    tick_s: float = 0.5


@dataclass(frozen=True)
class Fault:
    """One way in which things go wrong. ``at_once``: rounds that one batch may hold."""

    name: str
    group: str
    strike: Callable[[Batch], None]
    layout: Layout = field(default_factory=Layout)
    site: type[Site] | None = None
    at_once: int = 1
    load_ends: frozenset[str] = SUCCEEDS
    within_s: float | None = None
    available: Callable[[], str] = lambda: ""
    unheard: bool = False


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    group: str,
    *,
    brokers: tuple[str, ...] = (),
    layout: Layout | None = None,
    site: type[Site] | None = None,
    at_once: int = 1,
    load_ends: frozenset[str] = SUCCEEDS,
    within_s: float | None = None,
    available: Callable[[], str] = lambda: "",
    unheard: bool = False,
) -> Callable[[Callable[[Batch], None]], Callable[[Batch], None]]:
    """Register a fault; see README.md.

    ``brokers``: one fault for each of these. ``load_ends``: how the tasks of the load may end. ``within_s``: seconds
    within which slots have to be back. ``available`` returns why the fault cannot be tried here, or nothing.
    ``unheard``: the ledger's answer to a worker's claim may be lost (see ``judge.lost``).
    """

    def register(strike: Callable[[Batch], None]) -> Callable[[Batch], None]:
        base = layout or Layout()
        for broker in brokers or (base.broker,):
            full = f"{name} [{broker}]" if len(brokers) > 1 else name
            assert full not in FAULTS, f"two faults are called {full}"
            where = Layout(**{**base.__dict__, "broker": broker})
            FAULTS[full] = Fault(full, group, strike, where, site, at_once, load_ends, within_s, available, unheard)
        return strike

    return register


def load() -> dict[str, Fault]:
    """Import every module of faults and return all faults."""
    folder = Path(__file__).with_name("faults")
    for module in pkgutil.iter_modules([str(folder)]):
        importlib.import_module(f"tests.fault.faults.{module.name}")
    return FAULTS
