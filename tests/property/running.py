"""How the state machines are run: as long as it takes, one failure at a time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

#: Making a failing example small can take minutes: LEDGER_SHRINK=0 shows the first as it came.
PHASES = [p for p in Phase if p is not Phase.shrink or os.environ.get("LEDGER_SHRINK", "1") != "0"]


def run_machine(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """``examples`` runs of at most ``steps`` steps each."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            report_multiple_bugs=False,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
