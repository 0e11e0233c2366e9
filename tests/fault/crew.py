"""Several faults on one site, one after the other; a site on which something went wrong is replaced."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fault import registry
from tests.fault.batch import Batch
from tests.fault.judge import Verdict
from tests.fault.registry import Fault
from tests.fault.site import Site


@dataclass
class Outcome:
    """What all rounds of one fault came to."""

    fault: str
    rounds: int = 0
    within_s: float | None = None
    skipped: str = ""
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def late(self) -> float:
        """The worst recovery (seconds) if it took longer than it may, else 0."""
        worst = max(self.verdict.recoveries, default=0.0)
        return worst if self.within_s is not None and worst > self.within_s else 0.0

    @property
    def bad(self) -> bool:
        """Whether anything was wrong."""
        return not self.verdict.clean or self.late > 0

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "late": self.late}


def open_site(fault: Fault, directory: Path) -> Site:
    """A site as the fault wants it."""
    return (fault.site or Site)(fault.layout, directory).open()


def try_to_open(fault: Fault, directory: Path) -> tuple[Site | None, str]:
    """A site, or why it did not start: one that does not must not take the other faults' results along."""
    try:
        return open_site(fault, directory), ""
    except Exception as error:  # noqa: BLE001  # whatever it is, it stands in the report
        return None, f"{type(error).__name__}: {error}"[:3000]


def one_batch(site: Site, fault: Fault, rounds: int) -> Verdict:
    """Strike; a fault that could not be played to its end counts as a task lost, with the reason."""
    batch = Batch(site, fault, rounds)
    try:
        verdict = batch.run()
    except Exception as error:  # noqa: BLE001  # whatever it is, it stands in the report
        where = traceback.extract_tb(error.__traceback__)[-1]
        verdict = Verdict(lost=[f"the round was not finished: {type(error).__name__}: {error} ({where.name})"[:3000]])
    if not verdict.clean:
        verdict.logs = site.cluster.logs()
    return verdict


def strike(names: list[str], rounds: int, directory: Path, news: Any = None) -> list[Outcome]:
    """All rounds of some faults that share a site. ``news`` is a queue that is told (fault, rounds, problems)."""
    # Told to end, it still kills what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    faults = registry.load()
    outcomes = []
    site: Site | None = None
    opened, failed = 0, ""
    try:
        for name in names:
            fault = faults[name]
            outcome = Outcome(name, within_s=fault.within_s, skipped=fault.available())
            outcomes.append(outcome)
            while not outcome.skipped and outcome.rounds < rounds:
                some = min(fault.at_once, rounds - outcome.rounds)
                if site is None:
                    opened += 1
                    site, failed = try_to_open(fault, directory / str(opened))
                verdict = one_batch(site, fault, some) if site else Verdict(lost=[f"no site: {failed}"])
                outcome.rounds += some
                outcome.verdict.add(verdict)
                if site is not None and not verdict.clean:
                    site.close()
                    site = None
                if news is not None:
                    news.put((name, some, verdict.problems))
            if outcome.skipped and news is not None:
                news.put((name, rounds, []))
    except pytest.skip.Exception as missing:
        # A server that is not installed: whatever needs it is skipped.
        done = {outcome.fault for outcome in outcomes if outcome.rounds}
        outcomes = [o for o in outcomes if o.fault in done]
        outcomes += [Outcome(name, skipped=str(missing)) for name in names if name not in done]
    finally:
        if site is not None:
            with contextlib.suppress(Exception):
                site.close()
    return outcomes
