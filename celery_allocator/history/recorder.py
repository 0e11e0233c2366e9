"""The recorder: reads the ledger's event stream through a consumer group and writes the history.

::

    take the turn ─► what was read and not acknowledged ─► what is new ─► write ─► acknowledge ─► …
                                                     └ some were trimmed unread: a gap

Nothing is acknowledged before it is committed, and what is read again changes nothing: so every entry has its effect
once, wherever a recorder, the database or the ledger dies. All recorders of a pool read as one consumer: whoever takes
over finds what its predecessor left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from celery_allocator.errors import AllocatorError, HistoryError, HistoryUnavailable, LedgerUnavailable
from celery_allocator.history.database import history_backend_url
from celery_allocator.history.entry import parse
from celery_allocator.history.retention import Retention
from celery_allocator.history.schema import Schema
from celery_allocator.history.turns import turns_to_write
from celery_allocator.history.writer import Hole, Writer
from celery_allocator.ledger import Ledger
from celery_allocator.ledger.following import Delivery, Missed, Unacknowledged
from celery_allocator.settings import Settings

logger = logging.getLogger(__name__)

GROUP = "history"
CONSUMER = "recorder"
#: Entries per read and transaction: the ledger's server does nothing else while it hands them out (some ms).
BATCH = 1000
#: Seconds between looks for new entries, and of those that stand by for their turn.
_LOOK_S = 0.2
_STAND_BY_S = 1.0
#: Seconds until the next try where the ledger or the database cannot be reached, at first and at most.
_RETRY_S = (0.2, 5.0)
#: What was deleted must not come again from a stream that still has it: it is written off before it is deleted.
_MARGIN = timedelta(hours=1)


@dataclass
class Progress:
    """What a recorder has done since it began. ``missed``: entries known to be lost; ``gaps``: how often some were."""

    state: str = "starting"  #: starting, standing by, recording, waiting (for a server to come back)
    position: str = ""  #: the last entry written
    lag: int = 0  #: entries that follow it
    recorded: int = 0
    repeated: int = 0  #: read again, and written already
    gaps: int = 0
    missed: int = 0
    deleted: int = 0  #: rows whose time was over
    rate: float = 0.0  #: entries per second, lately


class Recorder:
    """Records one pool. :meth:`run` in one thread; ``progress`` may be read from others."""

    def __init__(
        self,
        connect: Callable[[], Ledger],
        settings: Settings,
        *,
        batch: int = BATCH,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """``connect`` gives a ledger client for this recorder alone. Raises :class:`SettingsError`."""
        self._connect = connect
        self._settings = settings
        self._url = history_backend_url(settings)
        self._schema = Schema(self._url)
        self._batch = batch
        self._told = on_progress or (lambda _: None)
        self.progress = Progress()

    def run(self, stop: threading.Event, *, once: bool = False, patient: bool = True) -> Progress:
        """Record until ``stop`` is set; ``once``: until it has caught up. Survives outages of either side.

        Not ``patient``: an outage raises :class:`HistoryUnavailable` or :class:`LedgerUnavailable`.

        Raises :class:`HistoryError` for what no later try will mend (a newer schema, a refusal), and with ``once`` also
        when another recorder is at work.
        """
        retry_s, complaint = _RETRY_S[0], ""
        while not stop.is_set():
            recorded = self.progress.recorded
            try:
                if self._schema.current() != self._schema.head:
                    self._schema.upgrade()
                with turns_to_write(self._url, self._settings.pool, self._schema) as take:
                    writer = self._stand_by(take, stop, once=once)
                    if writer is not None:
                        self._record(writer, stop, once=once)
                if once:
                    break
            except (HistoryUnavailable, LedgerUnavailable) as error:
                if not patient:
                    raise
                if self.progress.recorded > recorded:
                    retry_s, complaint = _RETRY_S[0], ""
                if str(error) != complaint:
                    complaint = str(error)
                    logger.warning("recorder: %s; trying again", error)
                self._say("waiting")
                stop.wait(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S[1])
        return self.progress

    def _stand_by(self, take: Callable[[], Writer | None], stop: threading.Event, *, once: bool) -> Writer | None:
        """The turn, once it is there; ``None`` if it was told to stop before."""
        while (writer := take()) is None:
            if once:
                raise HistoryError("another recorder is at work for this pool: it will catch up by itself")
            self._say("standing by")
            if stop.wait(_STAND_BY_S):
                return None
        return writer

    # --- while it has the turn

    def _record(self, writer: Writer, stop: threading.Event, *, once: bool) -> None:
        ledger = self._connect()
        try:
            retention = Retention(writer, self._settings.history_days)
            meter = _Meter()
            again, accepted = True, 0
            self.progress.position = writer.last_event_id() or ""
            while not stop.is_set():
                found = ledger.read_events(GROUP, CONSUMER, self._batch, unacknowledged=again, accepted=accepted)
                if found is None:
                    self._open(ledger, writer)
                elif isinstance(found, Unacknowledged):
                    again = True
                elif isinstance(found, Missed):
                    hole = Hole(found.after, found.before, found.entries, "trimmed before they were read")
                    writer.note(hole, _now())
                    self._alarm(hole)
                    accepted = found.trimmed
                else:
                    self._take(ledger, writer, found)
                    self.progress.rate = meter.rate(self.progress.recorded)
                    accepted = 0
                    if again:
                        again = bool(found.entries)
                    elif len(found.entries) < self._batch:
                        if once:
                            return
                        self.progress.deleted += retention.some(_now())
                        # Few at a time cost as much as many.
                        stop.wait(_LOOK_S)
        finally:
            ledger.client.close()

    def _take(self, ledger: Ledger, writer: Writer, found: Delivery) -> None:
        if found.entries:
            entries = [parse(event_id, fields) for event_id, fields in found.entries if fields is not None]
            lost = [event_id for event_id, fields in found.entries if fields is None]
            now, days = _now(), self._settings.history_days
            oldest = now - timedelta(days=days) + _MARGIN if days else None
            new, hole = writer.write(entries, now, lost=lost, oldest=oldest)
            if hole is not None:
                self._alarm(hole)
            ledger.acknowledge(GROUP, [event_id for event_id, _ in found.entries])
            self.progress.recorded += new
            self.progress.repeated += len(entries) - new
            self.progress.position = found.entries[-1][0]
        self.progress.lag = found.lag
        self._say("recording")

    def _open(self, ledger: Ledger, writer: Writer) -> None:
        """Make the group, which is not there. Where it was there before, entries may have come and gone unread."""
        last = writer.last_event_id()
        if last is not None and not ledger.has_event(last):
            upto = f"{round(ledger.server_time() * 1000)}-0"
            hole = Hole(last, upto, None, "the consumer group was gone, and with it what had not been read")
            writer.note(hole, _now())
            self._alarm(hole)
        ledger.open_group(GROUP)

    def _alarm(self, hole: Hole) -> None:
        self.progress.gaps += 1
        self.progress.missed += hole.entries or 0
        count = "an unknown number of" if hole.entries is None else hole.entries
        logger.error(
            "recorder: %s entries of pool %s are missing between %s and %s (%s). If the stream overran it: raise "
            "allocator_events_maxlen, or see why the recorder was away",
            count,
            self._settings.pool,
            hole.first_event_id,
            hole.last_event_id,
            hole.reason,
        )

    def _say(self, state: str) -> None:
        self.progress.state = state
        self._told(self.progress)


class RecorderThread:
    """A recorder in a thread of its own; whatever happens to it, the process goes on."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="allocator-recorder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs: it ends by itself where no later try would do better."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End after the batch at hand; returns whether it has ended within ``timeout_s``."""
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.recorder.run(self._stop)
            except AllocatorError as error:
                logger.error("recorder: %s; the history is not recorded from here", error)  # noqa: TRY400
                return
            except Exception:
                logger.exception("recorder: unexpected error; going on")
                self._stop.wait(_RETRY_S[1])


class _Meter:
    """Entries per second over the last few seconds."""

    _WINDOW_S = 2.0

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._count: int | None = None
        self._rate = 0.0

    def rate(self, recorded: int) -> float:
        """``recorded`` so far."""
        now = time.monotonic()
        if self._count is None:
            self._count = recorded
        if now - self._began >= self._WINDOW_S:
            self._rate = (recorded - self._count) / (now - self._began)
            self._began, self._count = now, recorded
        return self._rate


def _now() -> datetime:
    return datetime.now(tz=timezone.utc)
