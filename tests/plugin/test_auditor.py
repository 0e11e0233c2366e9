"""What is wrong in the ledger is told once for as long as it is, and again when it has come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_allocator.errors import LedgerError, LedgerUnavailable
from celery_allocator.plugin import auditor
from celery_allocator.plugin.auditor import Auditor


def test_each_difference_is_told_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(auditor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    looks: Any = iter([["a"], ["a"], ["b"], [], ["a"]])
    ledger: Any = SimpleNamespace(audit=lambda: next(looks))
    looker = Auditor("p")
    for after_s in (1, 1, 1, 1, 700):
        now[0] += after_s
        looker.look(ledger)
    told = [record.getMessage().split(": ")[1][0] for record in caplog.records]
    assert told == ["a", "b", "a"]


def test_damage_that_stops_the_look_is_told_and_an_outage_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(error: Exception) -> Any:
        def audit() -> list[str]:
            raise error

        return SimpleNamespace(audit=audit)

    Auditor("p").look(refuse(LedgerError("the ledger refuses: nonsense")))
    assert "nonsense" in caplog.text
    with pytest.raises(LedgerUnavailable):
        Auditor("p").look(refuse(LedgerUnavailable("away")))
