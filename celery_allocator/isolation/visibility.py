"""Which GPUs a process sees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from celery_allocator.isolation.cuda import cuda_is_initialised
from celery_allocator.isolation.variables import set_variables
from celery_allocator.model import DeviceInventory

_VARIABLE = "CUDA_VISIBLE_DEVICES"


def device_environment(device: DeviceInventory | None) -> dict[str, str]:
    """Variables that show a process ``device`` alone; no GPU at all for ``None`` and for a simulated one.

    They count only if set before the process first uses CUDA. The device is named by its UUID, because CUDA numbers
    devices in another order than the driver does.
    """
    visible = device.uuid if device is not None and not device.simulated else ""
    return {_VARIABLE: visible}


class _Sight:
    """What CUDA shows in this process for its life, where that is not what it was started with."""

    shown = ""


def show_gpus(undo: ExitStack, uuids: Sequence[str]) -> bool:
    """Have a task on the GPUs ``uuids`` see exactly those; closing ``undo`` puts back what was shown before.

    False: CUDA was initialised in this process with others, so that the task needs another one. A process that shows no
    GPU (a worker without one, or with a simulated one) is left so.
    """
    usual = os.environ.get(_VARIABLE, "")
    if not usual or (len(uuids) < 2 and not _Sight.shown):
        return True
    wanted = ",".join(uuids) if len(uuids) > 1 else usual
    if cuda_is_initialised() and (_Sight.shown or usual) != wanted:
        return False
    set_variables(undo, {_VARIABLE: wanted})
    undo.callback(_remember, wanted)
    return True


def _remember(shown: str) -> None:
    if cuda_is_initialised():
        _Sight.shown = shown
