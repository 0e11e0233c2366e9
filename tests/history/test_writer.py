"""Batches into a database: whatever is delivered twice, and wherever the stream is cut, the rows are the same."""

from __future__ import annotations

import itertools
import uuid
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from celery_allocator.history import History, open_history
from celery_allocator.history.entry import Entry
from celery_allocator.history.fold import Changes
from celery_allocator.history.query import devices
from celery_allocator.history.turns import turns_to_write
from celery_allocator.settings import Settings
from tests.history.made import entry, folded, grant, others, recorded, release, start, stored, submitted
from tests.history.test_fold import streams

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def write(history: History, *batches: list[Entry]) -> list[int]:
    """Write batches one after another; returns how many entries of each were new."""
    with turns_to_write(history._url, history.pool, history.schema) as take:
        writer = take()
        assert writer is not None
        return [writer.write(batch, NOW)[0] for batch in batches]


def check_cut_anywhere(history: History, entries: list[Entry], cuts: list[int], repeats: list[int]) -> None:
    places = [0, *sorted(min(cut, len(entries)) for cut in cuts), len(entries)]
    batches = [entries[begin:end] for begin, end in itertools.pairwise(places)]
    # What was not acknowledged comes again, with or without more; also entries of long ago.
    for repeat in sorted(repeats, reverse=True):
        at = min(repeat, len(batches) - 1)
        again = [e for batch in batches[: at + 1] for e in batch][-7:]
        batches.insert(at + 1, again + again[-2:])
    written = write(history, *batches)
    assert sum(written) == len(entries)
    assert recorded(history) == sorted(entries, key=lambda e: [int(part) for part in e.event_id.split("-")])
    assert stored(history) == folded(entries)
    rows = others(history)
    changes = Changes().fold(entries)
    assert len(rows["node_states"]) + len(rows["device_states"]) == len(changes.states)
    assert len(rows["operator_actions"]) == len(changes.actions)


CUTS = st.lists(st.integers(0, 40), max_size=8)


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('history') / 'history.sqlite3'}"
    with open_history(Settings(history_backend_url=url)) as history:
        history.schema.upgrade()
    return url


@hypothesis_settings(deadline=None, max_examples=60)
@given(streams(), CUTS, CUTS)
def test_batches_may_be_cut_anywhere_and_come_again(
    sqlite_url: str, entries: list[Entry], cuts: list[int], repeats: list[int]
) -> None:
    with open_history(Settings(history_backend_url=sqlite_url, pool=uuid.uuid4().hex)) as history:
        check_cut_anywhere(history, entries, cuts, repeats)


@hypothesis_settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # each example has a pool of its own in the one database
@given(streams(), CUTS, CUTS)
def test_the_same_on_postgresql(postgres_url: str, entries: list[Entry], cuts: list[int], repeats: list[int]) -> None:
    with open_history(Settings(history_backend_url=postgres_url, pool=uuid.uuid4().hex)) as history:
        history.schema.upgrade()
        check_cut_anywhere(history, entries, cuts, repeats)


def test_both_databases_hold_the_same(postgres_url: str, tmp_path: Path) -> None:
    entries = [
        submitted(0),
        grant(1),
        start(2, at=2001),
        submitted(3, object_id="a2", tenant="Ümlaut 😀", name="proj.' \\ \t \" x"),
        release(4, at=4777),
        entry(
            5, "operated", "pool", entry=9, action="pause", actor="me", reason="", state="done", before="{}", after=""
        ),
        entry(6, "node", "n1", cores=4, ram_mb=2**31),
        entry(7, "worker", "w", device="n1/gpu_0", slots=2),
    ]
    found = []
    for url in (postgres_url, f"sqlite:///{tmp_path / 'history.sqlite3'}"):
        with open_history(Settings(history_backend_url=url)) as history:
            history.schema.upgrade()
            write(history, entries[:4], entries[2:])
            found.append((stored(history), recorded(history), others(history)))
            history.engine.dispose()
    assert found[0] == found[1]
    assert found[0][0]["a2"]["tenant"] == "Ümlaut 😀"
    assert found[0][1] == entries


def test_what_told_the_memory_of_a_device_last_is_kept(settings: Settings) -> None:
    """A node says it once, when it is first met: reports would forget it otherwise."""
    with open_history(settings) as history:
        history.schema.upgrade()
        told = [entry(n, "node", "n1", devices=1, gpu_memory_mb=f"gpu_0:{1000 + n}") for n in (0, 10)]
        write(history, [told[0], entry(5, "worker", "w", device="n1/gpu_0", slots=1), told[1]])
        assert {key: device.memory_mb for key, device in devices(history).items()} == {("n1", "gpu_0"): 1010}
        with turns_to_write(history._url, history.pool, history.schema) as take:
            writer = take()
            assert writer is not None
            deleted = writer.delete_before(NOW, 100)
            assert writer.delete_before(NOW, 100) == 0
        assert deleted == 3 + 2 + 2, "three events, two states of the node, two of the device"
        assert {key: device.memory_mb for key, device in devices(history).items()} == {("n1", "gpu_0"): 1010}
