"""A process that uses the GPU as it is told: ``python -m tests.device.holder MB [busy]``.

It says ``held PID`` once it has the memory, and keeps it until its standard input ends. ``busy``: kernels run all the
while.
"""

from __future__ import annotations

import os
import select
import sys

from tests.device.cuda import Cuda

_KERNEL_NS = 50_000_000


def main(mb: int, *, busy: bool) -> None:
    """Take the memory, say so, and hold it."""
    cuda = Cuda()
    cuda.initialise()
    cuda.open()
    if mb:
        cuda.allocate(mb)
    sys.stdout.write(f"held {os.getpid()}\n")
    sys.stdout.flush()
    while busy and not select.select([sys.stdin], [], [], 0)[0]:
        cuda.launch("spin", _KERNEL_NS)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), busy="busy" in sys.argv[2:])
