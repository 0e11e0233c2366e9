"""Chains, groups, chords, replacements and callbacks whose tasks are placed by the ledger."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from tests.support.cluster import SOON_S, Cluster


def test_chain(cluster: Cluster) -> None:
    """Each step is placed when the one before it has ended: GPU, CPU and plain ones mixed."""
    sig = cluster.app.signature
    steps = chain(
        sig("zoo.add", (1, 2)), sig("zoo.cpu_add", (10,)), sig("zoo.plain"), sig("zoo.add", (100,)), app=cluster.app
    )
    result = steps.apply_async()
    assert result.get(timeout=SOON_S) == 113
    assert result.parent.parent.get(timeout=SOON_S) == 13


def test_chain_waits_for_room_at_each_step(cluster: Cluster) -> None:
    """The second step waits in the ledger, where it can be seen, while the GPUs are full."""
    sig = cluster.app.signature
    with cluster.full():
        result = chain(sig("zoo.cpu_add", (1, 2)), sig("zoo.add", (3,)), app=cluster.app).apply_async()
        assert result.parent.get(timeout=SOON_S) == 3
        cluster.until(lambda: cluster.ledger.find(result.id), "the second step in the ledger")
        assert cluster.only(result.id).queue_position == 1
        assert not result.ready()
    assert result.get(timeout=SOON_S) == 6


def test_group(cluster: Cluster) -> None:
    """More members than slots, all with their result in place."""
    sig = cluster.app.signature
    members = group([sig("zoo.add", (n, n)) for n in range(12)], app=cluster.app)
    assert members.apply_async().get(timeout=SOON_S) == [2 * n for n in range(12)]


def test_chord(cluster: Cluster) -> None:
    """Header and body are placed by the ledger; more header tasks than slots."""
    sig = cluster.app.signature
    result = chord([sig("zoo.add", (n, 1)) for n in range(8)], app=cluster.app)(sig("zoo.total"))
    assert result.get(timeout=SOON_S) == sum(n + 1 for n in range(8))


def test_chord_of_a_failing_member_fails(cluster: Cluster) -> None:
    """The body does not run, its result says why, and its errback is called."""
    sig, key = cluster.app.signature, cluster.key()
    body = sig("zoo.total").on_error(sig("zoo.note_error", kwargs={"key": key}))
    result = chord([sig("zoo.add", (1, 1)), sig("zoo.fail"), sig("zoo.add", (2, 2))], app=cluster.app)(body)
    with pytest.raises(ChordError, match="as asked"):
        result.get(timeout=SOON_S, follow_parents=False)
    cluster.until(lambda: cluster.notes(key) == ["ChordError"], "the errback of the body")


def test_chord_of_a_revoked_member_fails(cluster: Cluster) -> None:
    """A header task that is revoked while it waits counts as a failed one: the chord does not hang."""
    sig = cluster.app.signature
    with cluster.full():
        result = chord([sig("zoo.add", (1, 1)), sig("zoo.cpu_add", (2, 2))], app=cluster.app)(sig("zoo.total"))
        waiting = result.parent.results[0]
        cluster.until(cluster.ledger.queue, "the header task to wait")
        waiting.revoke()
        assert waiting.state == "REVOKED"
        with pytest.raises(ChordError):
            result.get(timeout=SOON_S, follow_parents=False)


def test_replace(cluster: Cluster) -> None:
    """The replacement runs under the same id, placed by its own requirements and not by those of the replaced task."""
    result = cluster.app.send_task("zoo.replace", (20, 22))
    assert result.get(timeout=SOON_S) == 42
    (start,) = (
        event
        for _, event in cluster.ledger.events(count=100_000)
        if event["event"] == "started" and event["task"] == result.id and event["name"] == "zoo.cpu_add"
    )
    assert start["device"].endswith("/cpu")


def test_replace_by_a_group(cluster: Cluster) -> None:
    """A group in place of a task is a chord with Celery's own body."""
    result = cluster.app.send_task("zoo.replace_group", ([1, 2, 3],))
    assert result.get(timeout=SOON_S) == [2, 4, 6]


def test_replace_in_a_chain(cluster: Cluster) -> None:
    """What follows the replaced task follows the replacement."""
    sig = cluster.app.signature
    assert chain(sig("zoo.replace", (1, 2)), sig("zoo.add", (3,)), app=cluster.app)().get(timeout=SOON_S) == 6


def test_link_and_link_error(cluster: Cluster) -> None:
    """Callbacks are tasks with requirements too."""
    sig, good, bad = cluster.app.signature, cluster.key(), cluster.key()
    options = {
        "link": sig("zoo.note_result", kwargs={"key": good}),
        "link_error": sig("zoo.note_error", kwargs={"key": bad}),
    }
    assert cluster.app.send_task("zoo.add", (4, 5), **options).get(timeout=SOON_S) == 9
    with pytest.raises(ValueError, match="as asked"):
        cluster.app.send_task("zoo.fail", **options).get(timeout=SOON_S)
    cluster.until(lambda: cluster.notes(good) and cluster.notes(bad), "both callbacks")
    assert (cluster.notes(good), cluster.notes(bad)) == ([9], ["ValueError"])


def test_a_step_that_can_never_run_fails_the_chain(cluster: Cluster) -> None:
    """It cannot be placed when its turn comes: the step before it fails with the reason."""
    sig = cluster.app.signature
    result = chain(
        sig("zoo.cpu_add", (1, 2)), sig("zoo.add", (3,)).set(resources={"gpu_memory_mb": 100_000}), app=cluster.app
    ).apply_async()
    with pytest.raises(Exception, match="gpu_memory_mb=100000 can never be met"):
        result.parent.get(timeout=SOON_S)
