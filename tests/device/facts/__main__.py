"""``python -m tests.device.facts FILE [SECTION …]``; with ``--section NAME`` one section, on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.device.facts import driver, forking, frameworks, limits, living, mishaps
from tests.support.processes import ROOT

MODULES = (driver, living, mishaps, forking, limits, frameworks)
SECTIONS = {name: section for module in MODULES for name, section in module.SECTIONS.items()}
_LONGEST_S = 90
_MARK = "--- facts: "


def main(arguments: list[str]) -> None:
    """Ask for what is named, or for everything, and write after each section what is known by then."""
    if arguments[0] == "--section":
        sys.stdout.write(_MARK + json.dumps(SECTIONS[arguments[1]](), default=str) + "\n")
        return
    target, facts = Path(arguments[0]), {}
    for name in arguments[1:] or SECTIONS:
        begun = time.monotonic()
        facts[name] = _ask(name)
        sys.stdout.write(f"{name}: {time.monotonic() - begun:.1f} s\n")
        sys.stdout.flush()
        target.write_text(json.dumps(facts, indent=1) + "\n")


def _ask(name: str) -> Any:
    command = [sys.executable, "-m", "tests.device.facts", "--section", name]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_LONGEST_S} s"
    told = [line.removeprefix(_MARK) for line in run.stdout.splitlines() if line.startswith(_MARK)]
    return json.loads(told[0]) if told else {"ended with": run.returncode, "said": run.stderr[-1500:]}


if __name__ == "__main__":
    main(sys.argv[1:])
