"""What ``nvidia-smi`` says: NVIDIA's own reader of the same driver, to compare ours with."""

from __future__ import annotations

import shutil
import subprocess

from tests.support.availability import no_device


def query(what: str, *fields: str) -> list[dict[str, str | None]]:
    """Rows of ``nvidia-smi --query-<what>``; ``None`` for what it says is not supported or not to be had."""
    binary = shutil.which("nvidia-smi") or no_device("nvidia-smi is not on PATH")
    argv = [binary, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = (line.split(", ") for line in answer.splitlines() if line.strip())
    return [dict(zip(fields, map(_value, row), strict=True)) for row in rows]


def gpu(uuid: str, *fields: str) -> dict[str, str | None]:
    """The row of one GPU."""
    (row,) = (row for row in query("gpu", "uuid", *fields) if row["uuid"] == uuid)
    return row


def _value(text: str) -> str | None:
    text = text.strip()
    return None if text.startswith("[") or text == "N/A" else text
