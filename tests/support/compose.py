"""The shipped docker-compose.yml, read as docker compose reads it, as far as this project uses that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.support.processes import ROOT

CONFIGS = ROOT / "configs"
FILE = CONFIGS / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::([-?])([^}]*))?\}")


def load(name: str = FILE.name) -> dict[str, Any]:
    """The file as plain data, nothing interpolated."""
    loaded = yaml.safe_load((CONFIGS / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced; the last one raises :class:`LookupError`."""
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = variables.get(match[1], "")
        if found:
            return found
        if match[2] == "?":
            raise LookupError(f"{match[1]}: {match[3]}")
        return match[3] if match[2] == "-" else ""

    return _VARIABLE.sub(replaced, value)


def example_variables() -> dict[str, str]:
    """What the example of ``.env`` sets, and what it shows as a comment."""
    lines = (CONFIGS / "compose.env.example").read_text().splitlines()
    found = [re.fullmatch(r"#?([A-Z_]+)=(.*)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}
