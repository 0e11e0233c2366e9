"""One round of every fault. The long run is ``python -m tests.fault.report``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.crew import one_batch, open_site
from tests.fault.registry import Fault, load
from tests.fault.site import Site

#: Faults of equal sites after each other, so that a site is started once.
FAULTS = sorted(load().values(), key=lambda fault: (str(fault.site), repr(fault.layout)))


class Sites:
    """The one site that is up, and where the next one goes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key: object = None
        self.site: Site | None = None
        self.opened = 0

    def of(self, fault: Fault) -> Site:
        """The site of this fault; another kind of site makes way for it."""
        key = (fault.site, fault.layout)
        if self.site is None or key != self.key:
            self.close()
            self.opened += 1
            self.site = open_site(fault, self.directory / str(self.opened))
            self.key = key
        return self.site

    def close(self) -> None:
        """End the site that is up; what follows gets a fresh one."""
        if self.site is not None:
            self.site.close()
        self.site = None


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """The site of the fault at hand."""
    made = Sites(tmp_path_factory.mktemp("fault"))
    yield made
    made.close()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.rabbitmq] if fault.layout.broker == "rabbitmq" else [])
        for fault in FAULTS
    ],
)
def test_fault(fault: Fault, sites: Sites) -> None:
    """Nothing is lost, runs twice under one grant, overlaps or leaks."""
    why_not = fault.available()
    if why_not:
        pytest.skip(why_not)
    verdict = one_batch(sites.of(fault), fault, 1)
    if not verdict.clean:
        logs = sites.of(fault).cluster.logs()
        sites.close()
        pytest.fail("\n".join([*verdict.problems, logs]))
