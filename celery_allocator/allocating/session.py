"""Which ledger the function form speaks to, and how this host is offered to it while no worker runs here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoPermissionError

from celery_allocator.allocating import auto
from celery_allocator.errors import LedgerError, TenantCapError, UnsatisfiableError
from celery_allocator.inventory import discover
from celery_allocator.ledger import Capacity, Ledger, Note, connect
from celery_allocator.model import NodeInventory, NodeState
from celery_allocator.operations import Actor, Command
from celery_allocator.settings import Settings

#: What a host without a GPU is told to try.
TRY_SIMULATED = "To try it without a GPU, set ALLOCATOR_DEVICES=sim:2x24576 (two simulated GPUs of 24576 MB)"


class CallerLeft(BaseException):
    """Whoever waits for an allocation has gone: it leaves the line, as after an interrupt."""


@dataclass(frozen=True)
class Owner:
    """Who owns what is allocated. ``most``: how many may live at once, those in line included; ``None``: any number."""

    name: str
    most: int | None = None


class Session:
    """A ledger and the settings it is used with. It connects, and looks at this host, when first needed."""

    def __init__(
        self,
        settings: Settings | None = None,
        ledger: Ledger | None = None,
        *,
        connect_to: Callable[[], Ledger] | None = None,
        actor: Actor | None = None,
        owner: Owner | None = None,
        inventory: NodeInventory | None = None,
    ) -> None:
        self.settings = settings if settings is not None else Settings.load()
        #: In whose name allocations are made and released; they are journalled if there is one.
        self.actor = actor
        #: Whose they are, where it is kept.
        self.owner = owner
        #: Set when nobody waits for the answer any more.
        self.left = threading.Event()
        self._connect = connect_to
        self._ledger = ledger
        self._inventory = inventory

    @property
    def ledger(self) -> Ledger:
        """The ledger; with nothing else configured, its embedded server is started."""
        if self._ledger is None:
            self._ledger = self._connect() if self._connect is not None else connect(self.settings)
        return self._ledger

    @property
    def inventory(self) -> NodeInventory:
        """What this host has, looked at once."""
        if self._inventory is None:
            self._inventory = discover(self.settings)
        return self._inventory

    def for_caller(self, actor: Actor, owner: Owner) -> Session:
        """A session on the same ledger and host that acts in somebody's name."""
        return Session(self.settings, self.ledger, actor=actor, owner=owner, inventory=self.inventory)

    def for_reader(self, owner: Owner) -> Session:
        """A session on the same ledger that looks for somebody."""
        return Session(self.settings, self.ledger, owner=owner)

    def resolve(self, task_name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked for, with numbers where it says ``auto``. Raises :class:`RequirementsError`."""
        if not auto.says_auto(asked):
            return dict(asked)
        host, cores = self.inventory, len(self.inventory.cpu_cores)
        mine = [Capacity(memory_mb, cores, host.ram_mb) for memory_mb in (0, *(d.memory_mb for d in host.devices))]
        return auto.resolve(asked, self.ledger, self.settings, task_name, mine)

    def own(self, allocation_id: str) -> None:
        """Note whose allocation this will be. Raises :class:`CapExceeded`."""
        if self.owner is not None:
            self.ledger.own(self.owner.name, allocation_id, self.owner.most)

    def disown(self, allocation_id: str) -> None:
        """It will not be."""
        if self.owner is not None:
            self.ledger.disown(self.owner.name, allocation_id)

    def pause(self, seconds: float) -> None:
        """Sleep so long. Raises :class:`CallerLeft` as soon as nobody waits any more."""
        if self.owner is None:
            time.sleep(seconds)
        elif self.left.wait(seconds):
            raise CallerLeft

    def note(self, command: Command) -> Note | None:
        """What the journal is told of ``command``; ``None`` if nobody in particular acts."""
        return None if self.actor is None else self.actor.note(command.action, command.as_args())

    def upkeep(self) -> None:
        """Let what is over end (TTLs, leases), as workers do about once a second where any run.

        Never takes the maintenance lock: who takes it is expected to publish Celery messages, which nobody here can.
        """
        try:
            self.ledger.tick(publishes=False, away_s=None)
        except LedgerError as error:
            if not isinstance(error.__cause__, NoPermissionError):
                raise
            # A user of the server who may only read: others do the upkeep.

    def offer_host(self, lease_s: float) -> bool:
        """Register this host for ``lease_s`` seconds, unless workers serve it: then it is theirs to describe.

        Returns whether it was registered.
        """
        known = self.ledger.node(self.inventory.node)
        if known is not None and any(device.worker for device in known.devices):
            return False
        self.ledger.register_node(self.inventory, lease_s)
        return True

    def explain(self, error: UnsatisfiableError) -> UnsatisfiableError:
        """The same error, saying what to try where no GPU is known at all."""
        if isinstance(error, TenantCapError) or error.dimension != "gpu_memory_mb" or error.largest != 0:
            return error
        hint = f"No GPU is known, and this host ({self.inventory.node}) has none. {TRY_SIMULATED}"
        return UnsatisfiableError(error.dimension, error.requested, error.largest, hint)

    def node(self, name: str) -> NodeState | None:
        """One node as the ledger knows it."""
        return self.ledger.node(name)


class _Default:
    """This process's session, and who makes it."""

    factory: Callable[[], Session] | None = None
    made: tuple[int, Session] | None = None  # by which process


def use_default(factory: Callable[[], Session] | None) -> None:
    """From now on, take the default session from ``factory`` (an app's, say); ``None``: from the environment."""
    _Default.factory, _Default.made = factory, None


def default_session() -> Session:
    """This process's session, made anew after a fork and when the environment's settings have changed."""
    pid = os.getpid()
    made = _Default.made if _Default.made is not None and _Default.made[0] == pid else None
    if _Default.factory is not None:
        session = made[1] if made is not None else _Default.factory()
    else:
        settings = Settings.load()
        session = made[1] if made is not None and made[1].settings == settings else Session(settings)
    _Default.made = (pid, session)
    return session


def forget_default(session: Session) -> None:
    """``session`` cannot reach its ledger: let the next call connect anew, for an embedded server may be elsewhere."""
    if _Default.made is not None and _Default.made[1] is session:
        _Default.made = None
