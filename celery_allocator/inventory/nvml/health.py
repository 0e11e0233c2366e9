"""The health of a GPU, as the driver tells it when asked, and as it reports errors (Xids) meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_allocator.inventory.nvml.session import StaysOpen, board_of, handle_of, is_slice, memory, nvml, reading

_log = logging.getLogger(__name__)

#: NVML's field "GPU recovery action" and its values (nvml.h, ``nvmlDeviceGpuRecoveryAction_t``); older bindings have no
#: names for them.
_RECOVERY_FIELD = 230
_RECOVERY = (
    "",
    "GPU reset",
    "node reboot",
    "drain P2P",
    "drain and reset",
    "recover IMEX domain",
    "bus reset",
    "system reboot",
)
#: Xids taken at once, at most: a driver that reports without end must not keep its reader.
_MOST = 64
#: How long the driver is listened to, in milliseconds: what it has to say lies ready.
_LISTEN_MS = 1
#: What an event's GPU instance is where it concerns the whole GPU.
_WHOLE = 0xFFFFFFFF


@dataclass(frozen=True)
class GpuHealth:
    """What the driver says of a GPU's health now; of a MIG slice, its GPU's. ``None``: it does not support that.

    ``ecc_uncorrected``: uncorrectable memory errors since the driver was loaded. ``rows_failed``: bad memory could not
    be remapped; ``rows_pending``: it will be, with the next reset. ``recovery``: what the driver asks for (``GPU
    reset``, ``node reboot``, …); empty: nothing. ``xids``: numbers of the errors reported since the last look;
    ``None``: it reports none.
    """

    ecc_uncorrected: int | None
    rows_failed: bool | None
    rows_pending: bool | None
    recovery: str | None
    xids: tuple[int, ...] | None = None


def read_health(uuid: str) -> GpuHealth:
    """The health of the GPU or MIG slice with that UUID now, without Xids: these are told to who listens.

    Raises :class:`InventoryError` if the driver cannot reach it, :class:`GpuLostError` if it fell off the bus.
    """
    with reading(uuid), nvml() as api:
        return _read(api, uuid)


class GpuWatch(StaysOpen):
    """Looks at the health of one GPU or MIG slice again and again. Thread-safe.

    NVML stays open in between, so that Xids are heard: each open event set gets what comes after it was made. After a
    fork or an error it is opened again with the next look.
    """

    def __init__(self, uuid: str) -> None:
        super().__init__()
        self._uuid = uuid
        #: NVML's event set; ``None`` where the driver reports no Xids.
        self._events: Any = None
        self._instance = _WHOLE

    def look(self) -> GpuHealth:
        """What is so now, and the Xids since the last look. Raises as :func:`read_health`."""
        with reading(self._uuid), self._kept_open() as api:
            try:
                return self._look(api)
            except BaseException:
                self.let_go()
                raise

    def _look(self, api: Any) -> GpuHealth:
        if self._api is None:
            self._begin(api)
        xids = self._listened(api)
        now = _read(api, self._uuid)
        return GpuHealth(now.ecc_uncorrected, now.rows_failed, now.rows_pending, now.recovery, xids)

    def _begin(self, api: Any) -> None:
        super()._begin(api)
        handle = handle_of(api, self._uuid)
        board = board_of(api, handle, self._uuid)
        if is_slice(self._uuid):
            told = _or_none(api, api.nvmlDeviceGetGpuInstanceId, handle)
            self._instance = _WHOLE if told is None else int(told)
        offered = _or_none(api, api.nvmlDeviceGetSupportedEventTypes, board)
        if not offered or not offered & api.nvmlEventTypeXidCriticalError:
            return
        self._events = _or_none(api, api.nvmlEventSetCreate)
        if self._events is None:
            return
        try:
            api.nvmlDeviceRegisterEvents(board, api.nvmlEventTypeXidCriticalError, self._events)
        except api.NVMLError as error:
            self._deaf(api, error)

    def _free(self, api: Any) -> None:
        if self._events is not None:
            _free_events(api, self._events)
        self._events = None

    def _listened(self, api: Any) -> tuple[int, ...] | None:
        if self._events is None:
            return None
        try:
            return tuple(self._heard(api))
        except api.NVMLError_GpuIsLost:
            raise
        except api.NVMLError as error:
            _log.debug("listening to NVML: %s", error)
        # The driver was restarted, and what was opened before is of no use; or it cannot be listened to at all.
        self.let_go()
        self._begin(api)
        try:
            return None if self._events is None else tuple(self._heard(api))
        except api.NVMLError as error:
            self._deaf(api, error)
            return None

    def _deaf(self, api: Any, error: Exception) -> None:
        _log.warning("the driver tells of no Xids of GPU %s: %s", self._uuid, error)
        self._free(api)

    def _heard(self, api: Any) -> list[int]:
        found: list[int] = []
        while len(found) < _MOST:
            try:
                event = api.nvmlEventSetWait(self._events, _LISTEN_MS)
            except api.NVMLError_Timeout:
                break
            if event.eventType & api.nvmlEventTypeXidCriticalError and self._concerns(int(event.gpuInstanceId)):
                found.append(int(event.eventData))
        return found

    def _concerns(self, instance: int) -> bool:
        return _WHOLE in (instance, self._instance) or instance == self._instance


def _free_events(api: Any, events: Any) -> None:
    try:
        api.nvmlEventSetFree(events)
    except api.NVMLError as error:
        _log.debug("closing NVML's events: %s", error)


def _read(api: Any, uuid: str) -> GpuHealth:
    # The handles are asked for anew: after a reset they are others. Errors are counted on the GPU itself.
    handle = handle_of(api, uuid)
    board = board_of(api, handle, uuid)
    memory(api, handle)  # whether it can be reached at all
    uncorrected, volatile = api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, api.NVML_VOLATILE_ECC
    errors = _or_none(api, api.nvmlDeviceGetTotalEccErrors, board, uncorrected, volatile)
    rows = _or_none(api, api.nvmlDeviceGetRemappedRows, board)
    return GpuHealth(
        ecc_uncorrected=None if errors is None else int(errors),
        rows_failed=None if rows is None else bool(rows[3]),
        rows_pending=None if rows is None else bool(rows[2]),
        recovery=_recovery(api, board),
    )


def _recovery(api: Any, board: Any) -> str | None:
    fields = _or_none(api, api.nvmlDeviceGetFieldValues, board, [_RECOVERY_FIELD])
    if fields is None or fields[0].nvmlReturn != 0:
        return None
    asked = int(fields[0].value.uiVal)
    return _RECOVERY[asked] if asked < len(_RECOVERY) else f"recovery action {asked}"


def _or_none(api: Any, ask: Callable[..., Any], *args: Any) -> Any:
    """What a query answers; ``None`` where it fails, unless the GPU is lost: cards and drivers differ in what they can
    tell and in how they say that they cannot, and a GPU must not be taken out for that.
    """
    try:
        return ask(*args)
    except api.NVMLError_GpuIsLost:
        raise
    except api.NVMLError as error:
        _log.debug("%s: %s", getattr(ask, "__name__", ask), error)
        return None
