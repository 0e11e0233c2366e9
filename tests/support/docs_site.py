"""The documentation's site, built as ``make docs`` builds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT


def build(target: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout at ``root`` into ``target``. A warning is an error: ``returncode`` says so."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def built(target: Path) -> Path:
    """The site of this checkout; fails with what MkDocs complains of."""
    done = build(target)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return target
