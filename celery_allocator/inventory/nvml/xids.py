"""Xids: numbers under which the driver reports errors, and those after which a GPU must not be given more work.

Source: NVIDIA's Xid catalogue for Ampere and newer, https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html,
as it stood in November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Those for which the catalogue's immediate action is to reset the GPU or to restart the machine, or (48, 74) says that
#: a reset is needed to clear the error. What is not here leaves the GPU usable:
#:
#: * 13, 31, 32, 43, 45, 60, 68, 69, 94 and others: restart the application. The error is a program's, or it was
#:   contained in the one that met it.
#: * 63, 92, 121: memory and links mend themselves; a reset can wait.
#: * 109, 144 to 150, 154, 155, 156, 167, 169: what has to be done depends on more than the number. The driver tells it
#:   as its recovery action, which is read after every Xid. 109 (a context switch timed out) is mostly a program's.
FATAL: Mapping[int, str] = {
    46: "GPU stopped processing",
    48: "double bit ECC error",
    62: "internal micro-controller halt",
    64: "GPU memory remapping failure",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    110: "security fault",
    119: "GSP RPC timeout",
    120: "GSP error",
    136: "NVLink training failed",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
    151: "key rotation error",
    158: "GPU fatal timeout",
}
