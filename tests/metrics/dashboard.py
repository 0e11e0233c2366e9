"""The shipped dashboard, and its queries with Grafana's variables filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.processes import ROOT

FILE = ROOT / "configs" / "grafana-dashboard.json"


@dataclass(frozen=True)
class Query:
    """One query of one panel."""

    panel: str
    expression: str
    legend: str

    def filled(self, interval: str, hostname: str = ".*", gpu: str = ".*") -> str:
        """As Grafana would send it."""
        told = self.expression.replace("$__rate_interval", interval)
        return told.replace("$hostname", hostname).replace("$gpu", gpu)

    def name(self, labels: dict[str, str]) -> str:
        """The legend of a series."""
        told = self.legend
        for label, value in labels.items():
            told = told.replace("{{" + label + "}}", value)
        return told


def load() -> dict[str, Any]:
    """The file."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Every panel but the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(panel: dict[str, Any]) -> Iterator[Query]:
    """The queries of a panel."""
    for target in panel["targets"]:
        yield Query(panel["title"], target["expr"], target["legendFormat"])
