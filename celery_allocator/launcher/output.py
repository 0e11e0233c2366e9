"""Lines of many workers on one stream, each under its worker's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

#: A line longer than this is cut, so that a worker that never ends one cannot fill the launcher's memory (bytes).
LONGEST_LINE = 65_536
#: ANSI colours of the names, in turn: cyan, green, magenta, yellow, blue.
COLOURS = (36, 32, 35, 33, 34)


class Console:
    """Where the lines of all workers go: ``gpu0 │ text``, names padded to one width, coloured if ``colour``."""

    def __init__(self, stream: BinaryIO, names: Sequence[str], *, colour: bool = False) -> None:
        self._stream = stream
        width = max((len(name) for name in names), default=0)
        self._labels: dict[str, bytes] = {}
        for position, name in enumerate(names):
            label = f"{name.ljust(width)} │ "
            if colour:
                label = f"\x1b[{COLOURS[position % len(COLOURS)]}m{label}\x1b[0m"
            self._labels[name] = label.encode()

    def line(self, name: str, text: bytes) -> None:
        """Write one line of that worker. Raises ``BrokenPipeError`` when nobody reads any more."""
        self._stream.write(self._labels[name] + text + b"\n")
        self._stream.flush()


class LineSplitter:
    """Cuts what a worker writes into lines, whatever the size of the pieces it arrives in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        return [line.removesuffix(b"\r") for line in lines]

    def flush(self) -> list[bytes]:
        """What was written after the last line's end, if anything."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []
