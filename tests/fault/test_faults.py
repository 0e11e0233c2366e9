"""One round of every fault, some sites side by side. The long run is ``python -m tests.fault.report``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.fault.crew import Outcome, strike
from tests.fault.registry import Fault, load
from tests.fault.report import crews

#: Sites at work at once: nearly all of a round is waiting.
SITES = 3
#: Faults that share a site after each other, so that the first results are there soon.
FAULTS = [load()[name] for crew in crews(list(load().values())) for name in crew]


@pytest.fixture(scope="module")
def outcome_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Fault], Outcome]]:
    """Strikes the faults that were selected, from the first test on; each test waits for its own."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    wanted = [item.callspec.params["fault"] for item in items if item.path == request.path]
    work: dict[str, Future[list[Outcome]]] = {}
    with ProcessPoolExecutor(SITES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for names in crews(wanted):
            future = pool.submit(strike, names, 1, tmp_path_factory.mktemp("fault"))
            work.update(dict.fromkeys(names, future))

        def outcome(fault: Fault) -> Outcome:
            return next(found for found in work[fault.name].result() if found.fault == fault.name)

        yield outcome
        for future in work.values():
            future.cancel()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.rabbitmq] if fault.layout.broker == "rabbitmq" else [])
        for fault in FAULTS
    ],
)
def test_fault(fault: Fault, outcome_of: Callable[[Fault], Outcome]) -> None:
    """Nothing is lost, runs twice under one grant, overlaps or leaks."""
    outcome = outcome_of(fault)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.rounds == 1
    assert outcome.verdict.clean, "\n".join([*outcome.verdict.problems, outcome.verdict.logs])
