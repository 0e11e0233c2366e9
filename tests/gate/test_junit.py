"""JUnit XML as CI servers read it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from celery_allocator.gate import Gate, Rule, Severity, Sources, evaluate, junit, kinds, rule, write_junit
from celery_allocator.gate.registry import Measurement, unregister
from celery_allocator.settings import Settings
from tests.gate.book import T0

#: What the common schema (Jenkins, and those who read its form) allows where.
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out", "system-err"},
    "properties": {"property"},
    "property": set(),
    "testcase": {"skipped", "error", "failure", "system-out", "system-err"},
    **{key: set[str]() for key in ("skipped", "error", "failure", "system-out")},
}
REQUIRED = {
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "testcase": {"name", "classname", "time"},
    "property": {"name", "value"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
}


@pytest.fixture
def xml() -> ET.Element:
    """Of a gate with every kind of judgement, twice where the severity makes a difference."""

    @rule("given", unit="count", filters=())
    def given(evidence: object, *, value: float = 0, samples: int = 1) -> Measurement:
        """Says what it is told."""
        return Measurement(value, samples, ("<&>\x00 told",))

    cases = {
        "passes": ({"value": 1}, Severity.FAIL),
        "fails & tells": ({"value": 2}, Severity.FAIL),
        "warns": ({"value": 2}, Severity.WARN),
        "lacks": ({"samples": 0}, Severity.FAIL),
        "may lack": ({"samples": 0}, Severity.WARN),
    }
    rules = tuple(
        Rule(name, kinds()["given"], maximum=1.0, severity=severity, options=options)
        for name, (options, severity) in cases.items()
    )
    verdict = evaluate(Gate("production", rules), Sources(Settings(pool="p")), until=T0)
    unregister("given")
    return ET.fromstring(junit(verdict))


def test_its_structure_is_the_common_one(xml: ET.Element) -> None:
    assert xml.tag == "testsuites"
    for element in xml.iter():
        assert {child.tag for child in element} <= CHILDREN[element.tag]
        assert REQUIRED.get(element.tag, set()) <= set(element.keys())
        if element.tag == "testcase":
            assert len(element) == 1, "one judgement"
    (suite,) = xml
    assert [suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")] == ["production", *"5111"]
    assert [xml.get(key) for key in ("tests", "failures", "errors", "skipped")] == [*"5111"]
    datetime.fromisoformat(str(suite.get("timestamp")))
    assert float(str(suite.get("time"))) >= 0


def test_each_judgement_has_its_element(xml: ET.Element) -> None:
    found = {case.get("name"): case[0] for case in xml.iter("testcase")}
    assert {name: element.tag for name, element in found.items()} == {
        "passes": "system-out",
        "fails & tells": "failure",
        "warns": "system-out",
        "lacks": "error",
        "may lack": "skipped",
    }
    failure = found["fails & tells"]
    assert failure.get("message") == "2 is not ≤ 1"
    assert "value: 2 count" in str(failure.text) and "<&>� told" in str(failure.text)
    assert str(found["warns"].text).startswith("warning: 2 is not ≤ 1")
    assert found["lacks"].get("message") == "0 samples, and at least 1 are needed"


def test_the_file_has_a_declaration(tmp_path: Path) -> None:
    verdict = evaluate(Gate("empty", ()), Sources(Settings()), until=T0)
    write_junit(verdict, tmp_path / "out.xml")
    assert (tmp_path / "out.xml").read_text().startswith('<?xml version="1.0" encoding="utf-8"?>\n<testsuites')
    assert ET.parse(tmp_path / "out.xml").getroot().get("tests") == "0"
