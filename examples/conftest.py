"""Lets the examples' tests import the modules beside them when they run together from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in sorted(Path(__file__).parent.glob("[0-9][0-9]_*"))]
