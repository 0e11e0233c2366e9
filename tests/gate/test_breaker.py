"""The circuit breaker's decisions, without a ledger: by hand, and against a simulated task."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_allocator.errors import SettingsError
from celery_allocator.gate.breaker import Breaker, BreakerSettings, Close, Counts, LetPass, Open, Phase

SETTINGS = BreakerSettings(
    failure_rate=0.5, window_s=100, min_samples=4, open_s=10, backoff=2, longest_open_s=35, probes=3
)


def test_it_opens_above_the_bound_and_not_at_it() -> None:
    closed = Breaker()
    assert closed.step(Counts(2, 2), 5, SETTINGS) == (closed, Close())
    assert closed.step(Counts(1, 2), 5, SETTINGS) == (closed, Close()), "too few"
    assert closed.step(Counts(1, 3), 5, SETTINGS) == (Breaker(Phase.OPEN, 5), Open(15))


def test_it_waits_probes_and_closes() -> None:
    opened = Breaker(Phase.OPEN, 5)
    assert opened.step(Counts(failures=9), 14.9, SETTINGS) == (opened, Open(15))
    half, action = opened.step(Counts(failures=9), 15, SETTINGS)
    assert (half, action) == (Breaker(Phase.HALF_OPEN, 15), LetPass(3))
    assert half.counts_from(50, SETTINGS) == 15
    assert half.step(Counts(in_flight=2), 16, SETTINGS) == (half, LetPass(1))
    assert half.step(Counts(1, 1, in_flight=1), 17, SETTINGS) == (half, LetPass(0))
    assert half.step(Counts(1, 1), 17, SETTINGS) == (half, LetPass(1)), "the third was cancelled: another"
    assert half.step(Counts(2, 1), 18, SETTINGS) == (Breaker(Phase.CLOSED, 18), Close())


def test_each_failed_probing_doubles_the_time_up_to_the_longest() -> None:
    state, now, times = Breaker(Phase.OPEN, 0.0), 0.0, []
    for _ in range(4):
        now += SETTINGS.open_for(state.failed_probings)
        half, _ = state.step(Counts(), now, SETTINGS)
        state, action = half.step(Counts(0, 2), now, SETTINGS)
        assert isinstance(action, Open)
        times.append(action.until - now)
    assert times == [20, 35, 35, 35]


def test_what_failed_before_it_closed_does_not_open_it_again() -> None:
    closed = Breaker(Phase.CLOSED, 90)
    assert closed.counts_from(100, SETTINGS) == 90
    assert closed.counts_from(1000, SETTINGS) == 900


@pytest.mark.parametrize(
    "wrong",
    [
        *({"failure_rate": 1.0}, {"failure_rate": -0.1}, {"window_s": 0}, {"min_samples": 0}, {"open_s": 0}),
        *({"backoff": 0.5}, {"longest_open_s": 1}, {"probes": 0}),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        BreakerSettings(**wrong)  # type: ignore[arg-type]


@given(st.builds(Breaker, st.sampled_from(Phase), st.floats(0, 2e9), st.integers(0, 99)))
def test_the_state_survives_json(state: Breaker) -> None:
    assert Breaker.from_wire(json.loads(json.dumps(state.to_wire()))) == state


@given(
    st.builds(Breaker, st.sampled_from(Phase), st.floats(0, 1000), st.integers(0, 9)),
    st.builds(Counts, st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)),
    st.floats(0, 2000),
)
def test_a_step_made_twice_is_one_step(state: Breaker, counts: Counts, now: float) -> None:
    """The reply was lost, and the keeper asks again with what it has counted by then: nothing, in a new phase."""
    once, action = state.step(counts, now, SETTINGS)
    again, then = once.step(counts if once == state else Counts(), now, SETTINGS)
    assert (again, then) == (once, action)


@dataclass
class World:
    """Tasks of one name: those that run, and those that have ended, with times of grant and end."""

    running: list[float] = field(default_factory=list)
    ended: list[tuple[float, float, bool]] = field(default_factory=list)

    def counts(self, state: Breaker, now: float) -> Counts:
        begun = state.counts_from(now, SETTINGS)
        if state.phase is Phase.HALF_OPEN:
            ended = [good for granted, _, good in self.ended if granted >= begun]
            flying = sum(granted >= begun for granted in self.running)
        else:
            ended, flying = [good for _, end, good in self.ended if end >= begun], 0
        return Counts(sum(ended), len(ended) - sum(ended), flying)


class BreakerMachine(RuleBasedStateMachine):
    """A task is granted whenever the breaker allows it, ends well or wrong (or is cancelled) at any time."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.state = Breaker()
        self.world = World()
        self.action: Close | Open | LetPass = Close()
        self.step()

    def step(self) -> None:
        """As its keeper does after everything that happens; then grants are what the action allows."""
        before, counts = self.state, self.world.counts(self.state, self.now)
        self.state, self.action = before.step(counts, self.now, SETTINGS)
        if before.phase is not self.state.phase:
            self.moved(before, counts)

    def moved(self, before: Breaker, counts: Counts) -> None:
        allowed = {
            (Phase.CLOSED, Phase.OPEN),
            (Phase.OPEN, Phase.HALF_OPEN),
            (Phase.HALF_OPEN, Phase.OPEN),
            (Phase.HALF_OPEN, Phase.CLOSED),
        }
        assert (before.phase, self.state.phase) in allowed
        if before.phase is Phase.CLOSED:
            assert counts.ended >= SETTINGS.min_samples
            assert counts.failures / counts.ended > SETTINGS.failure_rate
        if self.state.phase is Phase.HALF_OPEN:
            assert self.now - before.since >= SETTINGS.open_s
        if self.state.phase is Phase.CLOSED:
            assert counts.ended >= SETTINGS.probes
            assert counts.failures / counts.ended <= SETTINGS.failure_rate

    @rule(wanted=st.integers(1, 5))
    def grant(self, wanted: int) -> None:
        free = {Close: wanted, Open: 0}.get(type(self.action), getattr(self.action, "probes", 0))
        self.world.running += [self.now] * min(wanted, free)
        self.now += 0.001
        self.step()

    @rule(good=st.booleans(), which=st.integers(0, 99))
    def end(self, good: bool, which: int) -> None:
        if self.world.running:
            granted = self.world.running.pop(which % len(self.world.running))
            self.world.ended.append((granted, self.now, good))
        self.now += 0.001
        self.step()

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        if self.world.running:
            self.world.running.pop(which % len(self.world.running))
        self.step()

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.step()

    @invariant()
    def no_more_probes_than_there_may_be(self) -> None:
        if getattr(self, "state", None) is None or self.state.phase is not Phase.HALF_OPEN:
            return
        counts = self.world.counts(self.state, self.now)
        assert isinstance(self.action, LetPass)
        assert counts.ended + counts.in_flight + self.action.probes <= SETTINGS.probes

    def teardown(self) -> None:
        """Whatever happened, it closes by itself once all goes well."""
        if getattr(self, "state", None) is None:
            return
        for _ in range(20):
            self.now += SETTINGS.longest_open_s
            self.step()
            if self.state.phase is Phase.CLOSED:
                return
            self.world.ended += [(granted, self.now, True) for granted in self.world.running]
            self.world.running = []
            if isinstance(self.action, LetPass):
                self.world.ended += [(self.now, self.now, True)] * self.action.probes
                self.step()
        assert self.state.phase is Phase.CLOSED, self.state


TestBreakerMachine = BreakerMachine.TestCase
