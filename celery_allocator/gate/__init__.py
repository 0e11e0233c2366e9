"""The quality gate: rules over the history and the ledger, each with a bound, and one verdict.

::

    gate.toml ─ config ─► rules ─┐
    history ─ recorded ─► evidence ─ rules/… ─► measurements ─ evaluate ─► verdict ─► table, JSON, JUnit XML
    ledger  ─────────────┘

``check("configs/gate.toml")`` is the whole of it; :func:`rule` registers kinds of rules of your own. Beside it stands
the decision logic of a circuit breaker (``breaker.py``).
"""

from __future__ import annotations

from celery_allocator.gate.config import Gate, Rule, Severity, load
from celery_allocator.gate.evaluate import Judgement, RuleResult, Sources, Verdict, check, evaluate
from celery_allocator.gate.evidence import Event, Evidence
from celery_allocator.gate.junit import junit, write_junit
from celery_allocator.gate.registry import Measurement, RuleKind, kinds, rule

__all__ = [
    "Event",
    "Evidence",
    "Gate",
    "Judgement",
    "Measurement",
    "Rule",
    "RuleKind",
    "RuleResult",
    "Severity",
    "Sources",
    "Verdict",
    "check",
    "evaluate",
    "junit",
    "kinds",
    "load",
    "rule",
    "write_junit",
]
