"""What an exporter answers, read by Prometheus' own parser."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from celery_allocator.metrics.table import PREFIX

#: A series: its name without prefix, and its labels as sorted pairs.
Series = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples: dict[Series, float] = {
            (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __getitem__(self, name: str) -> float:
        """The value of a series without labels."""
        return self.samples[name, frozenset()]

    def get(self, name: str, **labels: str) -> float | None:
        """The value of the one series of that name with exactly these labels."""
        return self.samples.get((name, frozenset(labels.items())))

    def series(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """Every series of that name that is not 0, by these labels."""
        found: dict[tuple[str, ...], float] = {}
        for (known, labels), value in self.samples.items():
            if known == name and value:
                told: Mapping[str, str] = dict(labels)
                key = tuple(told[label] for label in by)
                found[key] = found.get(key, 0) + value
        return found

    @property
    def names(self) -> set[str]:
        """Names of all that has a sample, without prefix."""
        return {name for name, _ in self.samples}


def scrape(url: str, timeout: float = 10) -> Scrape:
    """Scrape once, as Prometheus would: it gives up after ten seconds."""
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return Scrape(answer.read().decode())
