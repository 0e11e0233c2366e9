"""The warden on a real ledger: what it makes of the event stream, and what the ledger then grants."""

from __future__ import annotations

import uuid

import pytest
import redis

from celery_allocator.errors import SettingsError
from celery_allocator.gate.breaker import BreakerSettings
from celery_allocator.gate.tally import Tally
from celery_allocator.gate.warden import Warden, breaker_settings
from celery_allocator.ledger import Grant
from celery_allocator.model import State
from celery_allocator.operations import Actor, CloseBreaker, OpenBreaker, Operator
from tests.support.ledger_pool import LedgerPool

SETTINGS = BreakerSettings(failure_rate=0.5, window_s=100, min_samples=4, open_s=30, probes=2)


class Plant:
    """A pool in which tasks run and end as they are told, and its warden."""

    def __init__(self, client: redis.Redis) -> None:
        self.pool = LedgerPool(client, f"test-{uuid.uuid4().hex[:12]}")
        self.pool.node(slots=8)
        self.published: list[Grant] = []
        self.warden = Warden(SETTINGS, self.published.extend)

    def run(self, *outcomes: str, name: str = "bad") -> None:
        """Tasks of a name, one after the other; each takes a second."""
        for outcome in outcomes:
            self.end(self.pool.submit(1_000, task_name=name).allocation.allocation_id, outcome)

    def end(self, allocation_id: str, outcome: str) -> None:
        claim = self.pool.start(self.pool.ledger.get(allocation_id))
        self.pool.at += 1
        self.pool.ledger.release(allocation_id, claim.token, outcome)

    def step(self, seconds: float = 0) -> str:
        """Time goes by, the warden looks; how the breaker of ``bad`` stands then."""
        self.pool.at += seconds
        self.warden.step(self.pool.ledger)
        found = [state for state in self.pool.ledger.breakers() if state.name == "bad"]
        return "closed" if not found or found[0].allows is None else "open" if found[0].allows == 0 else "half-open"

    def submit(self) -> State:
        return self.pool.submit(1_000, task_name="bad").allocation.state


@pytest.fixture
def plant(ledger_client: redis.Redis) -> Plant:
    return Plant(ledger_client)


def test_it_opens_above_its_bound_and_not_before(plant: Plant) -> None:
    plant.run("failure", "failure", "failure")
    assert plant.step() == "closed"  # too few
    plant.run("success", "success", "success")
    assert plant.step() == "closed"  # half of them
    plant.run("failure")
    assert plant.step() == "open"
    assert plant.submit() is State.ON_HOLD
    plant.run("success", name="good")


def test_it_lets_probes_pass_and_closes_by_itself(plant: Plant) -> None:
    plant.run(*["failure"] * 4)
    assert plant.step() == "open"
    for _ in range(4):
        plant.submit()
    assert plant.step(29) == "open"
    assert plant.step(2) == "open"  # half-open; both probes are taken at once
    first, second = (grant.allocation_id for grant in plant.published)
    assert plant.submit() is State.ON_HOLD
    plant.end(first, "success")
    assert plant.step() == "open"
    plant.end(second, "success")
    assert plant.step() == "closed"
    assert len(plant.published) == 5  # the other three go on
    assert plant.submit() is State.GRANTED
    assert plant.step(10) == "closed"  # what failed before it closed is not held against it


def test_failing_probes_open_it_for_longer(plant: Plant) -> None:
    plant.run(*["failure"] * 4)
    plant.step()
    for _ in range(4):
        plant.submit()
    plant.step(31)
    for grant in list(plant.published):
        plant.end(grant.allocation_id, "failure")
    assert plant.step() == "open"
    assert plant.step(31) == "open"
    assert len(plant.published) == 2  # not yet: twice as long now
    plant.step(31)
    assert len(plant.published) == 4


def test_a_probe_that_is_cancelled_makes_room_for_another(plant: Plant) -> None:
    plant.run(*["failure"] * 4)
    plant.step()
    for _ in range(4):
        plant.submit()
    plant.step(31)
    plant.pool.ledger.cancel(plant.published[0].allocation_id)
    plant.step()
    assert len(plant.published) == 3


def test_the_next_warden_goes_on_where_the_last_one_was(plant: Plant) -> None:
    plant.run(*["failure"] * 4)
    plant.step()
    plant.submit()
    plant.warden = Warden(SETTINGS, plant.published.extend)
    assert plant.step() == "open"
    plant.step(31)
    (grant,) = plant.published
    plant.warden.retire()
    assert plant.step() == "half-open"  # one of two probes is in flight: one more may pass
    plant.end(grant.allocation_id, "success")
    plant.warden = Warden(SETTINGS, plant.published.extend)
    assert plant.step() == "half-open"


def test_what_an_operator_sets_the_warden_leaves_alone(plant: Plant) -> None:
    operator = Operator(plant.pool.ledger, Actor("ada"))
    operator.run(OpenBreaker("bad"))
    assert plant.step(1000) == "open"
    operator.run(CloseBreaker("bad"))
    plant.run(*["failure"] * 3)
    assert plant.step() == "closed"
    plant.run("failure")
    assert plant.step() == "open"  # and after it was closed by hand, failures count again
    operator.run(CloseBreaker("bad"))
    assert plant.step() == "closed"  # those of before do not


def test_a_closed_breaker_is_forgotten_when_nothing_counts_any_more(plant: Plant) -> None:
    Operator(plant.pool.ledger, Actor("ada")).run(CloseBreaker("bad"))
    plant.step()
    assert [state.name for state in plant.pool.ledger.breakers()] == ["bad"]
    plant.step(101)
    assert plant.pool.ledger.breakers() == ()


def test_other_endings_count_neither_way(plant: Plant) -> None:
    plant.run("retry", "ignored", "rejected", "requeue", "success")
    tally = Tally()
    for _, fields in plant.pool.ledger.events():
        tally.feed(fields)
    counts = tally.counts("bad", 0)
    assert (counts.successes, counts.failures) == (1, 0)


def test_a_tally_keeps_nothing_of_what_is_over(plant: Plant) -> None:
    plant.run("success", "failure", name="one")
    tally = Tally()
    for _, fields in plant.pool.ledger.events():
        tally.feed(fields)
    assert tally.names == ["one"]
    tally.forget(plant.pool.at + 1)
    assert tally.names == []


@pytest.mark.parametrize("given", [{"failure": 1}, {"failure_rate": 2.0}, {"probes": 0}])
def test_settings_that_cannot_be_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        breaker_settings(given)


def test_without_the_setting_there_are_no_breakers() -> None:
    assert breaker_settings(None) is None
    assert breaker_settings({}) == BreakerSettings()
