"""A verdict as JUnit XML, the form that CI servers show: one test case per rule."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from celery_allocator.gate.config import Severity
from celery_allocator.gate.evaluate import Judgement, RuleResult, Verdict


def junit(verdict: Verdict) -> str:
    """The XML as text.

    A rule that failed is a failure. One without enough data is an error if its severity is "fail", else it is
    skipped: it was not found to be wrong, and the gate is not passed. A broken rule of severity "warn" passes and
    tells in its output.
    """
    cases = [_case(verdict, result) for result in verdict.results]
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
        "time": f"{sum(result.took_s for result in verdict.results):.3f}",
    }
    attributes = {key: str(count) for key, count in counts.items()}
    top = ET.Element("testsuites", {"name": "celery-allocator gate", **attributes})
    stamp = verdict.at.replace(microsecond=0, tzinfo=None).isoformat()
    suite = ET.SubElement(top, "testsuite", {"name": _clean(verdict.gate.name), "timestamp": stamp, **attributes})
    properties = ET.SubElement(suite, "properties")
    for name, value in (("pool", verdict.pool), ("verdict", verdict.judgement.value)):
        ET.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    suite.extend(cases)
    ET.indent(top)
    return ET.tostring(top, encoding="unicode", xml_declaration=False)


def write_junit(verdict: Verdict, file: str | Path) -> None:
    """Write it to a file. Raises :class:`OSError`."""
    Path(file).write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{junit(verdict)}\n', encoding="utf-8")


def _case(verdict: Verdict, result: RuleResult) -> ET.Element:
    rule = result.rule
    case = ET.Element(
        "testcase",
        {
            "classname": _clean(f"{verdict.gate.name}.{rule.kind.name}"),
            "name": _clean(rule.name),
            "time": f"{result.took_s:.3f}",
        },
    )
    lines = [
        f"value: {'-' if result.value is None else f'{result.value:g}'} {rule.kind.unit}",
        f"bound: {rule.bound}",
        f"samples: {result.measurement.samples} (at least {rule.min_samples})",
        f"window: {result.window}",
        *result.measurement.details,
    ]
    told = _clean("\n".join(lines))
    if result.judgement is Judgement.FAILED:
        ET.SubElement(case, "failure", {"message": _clean(result.reason), "type": "bound"}).text = told
    elif result.judgement is Judgement.NO_DATA:
        grave = rule.severity is Severity.FAIL
        found = ET.SubElement(case, "error" if grave else "skipped", {"message": _clean(result.reason)})
        if grave:
            found.set("type", "not enough data")
        found.text = told
    elif result.judgement is Judgement.WARNED:
        ET.SubElement(case, "system-out").text = f"warning: {_clean(result.reason)}\n{told}"
    else:
        ET.SubElement(case, "system-out").text = told
    return case


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(char if char in "\n\t" or char.isprintable() else "�" for char in text)
