"""One Python session for the Python blocks of a page: what one block defines, the next may use.

Run as a script, it is the session's own side: it executes what it is sent and answers with what was printed.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path


class Interpreter:
    """The session, in a process of its own."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        path = filter(None, [str(directory), env.get("PYTHONPATH")])
        self._log = (directory / "python.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=directory,
            # Not its own folder, but the page's, is where it imports from.
            env={**env, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"},
        )

    def run(self, code: str, timeout_s: float) -> str:
        """Execute a block and return what it printed; fails with its traceback, or after ``timeout_s`` seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(code).encode() + b"\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout_s), f"not done within {timeout_s:g} s:\n{code}"
        answer = json.loads(self._process.stdout.readline() or '{"error": "the session ended"}')
        assert not answer["error"], f"{answer['error']}\n{code}"
        return str(answer["printed"])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()


def _serve() -> None:
    import contextlib
    import io
    import traceback

    names: dict[str, object] = {"__name__": "__main__"}
    for line in sys.stdin:
        printed, error = io.StringIO(), ""
        with contextlib.redirect_stdout(printed):
            try:
                exec(json.loads(line), names)
            except BaseException:  # noqa: BLE001  # whatever it is, the page is told
                error = traceback.format_exc()
        sys.__stdout__.write(json.dumps({"printed": printed.getvalue(), "error": error}) + "\n")


if __name__ == "__main__":
    _serve()
