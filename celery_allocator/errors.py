"""Every error this package raises, in one tree.

::

    AllocatorError
    ├── SettingsError                a setting has a value that cannot be used
    │   └── TokensError              the file of agents' tokens cannot be used; says the line and the key
    ├── RequirementsError            a requirement is malformed (also a ValueError)
    ├── LabelError                   an id or a name cannot be recorded (also a ValueError)
    ├── MessageTooLargeError         a task's message is larger than the ledger keeps (also a ValueError)
    ├── PoolFullError                as many tasks wait in the pool as may
    ├── UnsatisfiableError           no known device could ever hold the requirements
    │   └── TenantCapError           its tenant may never hold so much
    ├── AllocationNotFound           no live allocation has that id (also a LookupError)
    ├── UnknownTargetError           no node, device or worker has that name (also a LookupError)
    ├── StaleTokenError              the token is not the live one: the claim has moved on
    ├── AllocationTimeout            not granted within the time given (also a TimeoutError)
    ├── GateConfigError              a quality gate's file cannot be used (also a ValueError)
    ├── GateRuleError                a rule of a quality gate broke down while it measured
    ├── TraceError                   a table of a simulation cannot be used; says the line (also a ValueError)
    ├── PlotExtraMissing             the library that draws plots is not installed
    ├── ResourceOveruse              a task used more than it was promised, and its process was killed
    ├── RequestError                 a request to the agent tool is malformed (also a ValueError)
    ├── DeviceBusyError              another live worker already serves that device
    ├── ActionRefused                an operator's action, an undo or a redo cannot be taken; the text says why
    │   ├── DuplicateAction          it was taken before, under the same idempotency key
    │   └── JournalMoved             another action was taken between the decision and this one
    ├── EntryNotFound                the journal has no entry of that number (also a LookupError)
    ├── UpdateError                  an update from another system cannot be read (also a ValueError)
    ├── UpdateNotFound               no update of that id is parked (also a LookupError)
    ├── ChangesMissed                the event stream no longer has all that came after a position
    ├── PermissionDenied             the caller lacks a permission (also a PermissionError)
    │   └── CapExceeded              the caller may ask, but not for so much
    ├── InventoryError               this host's devices cannot be read as asked
    │   └── GpuLostError             the driver says that a GPU has fallen off the bus
    ├── IsolationError               a task cannot be given what it was granted in this process, or any that replaces it
    ├── HistoryError                 the history cannot be used
    │   ├── HistoryUnavailable       its database cannot be reached, or holds no history yet
    │   ├── HistorySchemaError       its tables are those of another version
    │   ├── HistoryExtraMissing      its libraries are not installed
    │   └── HistoryQueryError        what is asked of it makes no sense (also a ValueError)
    ├── MetricsExtraMissing          the library of the metrics is not installed
    └── LedgerError                  the ledger cannot be used
        ├── LedgerUnavailable        it cannot be reached
        ├── LedgerSchemaError        it was written by an incompatible version
        └── EmbeddedServerError      the embedded server cannot be started

Every error carries a stable ``code`` (the same string the JSON replies use) so that no caller has to match on text.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AllocatorError(Exception):
    """Base of every error of this package."""

    code = "allocator_error"
    #: The constructor's arguments where they are more than a text: each is an attribute, and pickling gives them again.
    given: ClassVar[tuple[str, ...]] = ()
    #: Those of them that the JSON replies carry.
    told: ClassVar[tuple[str, ...]] = ()

    def __reduce__(self) -> str | tuple[Any, ...]:
        if not self.given:
            return super().__reduce__()
        return (type(self), tuple(getattr(self, name) for name in self.given))

    def as_dict(self) -> dict[str, Any]:
        """The error as the JSON replies carry it: ``{"code", "message", …details}``."""
        return {"code": self.code, "message": str(self), **{name: getattr(self, name) for name in self.told}}


class SettingsError(AllocatorError):
    """A setting has a value that cannot be used."""

    code = "bad_setting"


class TokensError(SettingsError):
    """The file of agents' tokens cannot be used; the text says the line and the key."""

    code = "bad_tokens"


class RequirementsError(AllocatorError, ValueError):
    """A requirement is malformed; names the key, the value and the rule it breaks."""

    code = "bad_requirements"
    given = ("key", "value", "rule")
    told = ("key", "rule")

    def __init__(self, key: str, value: object, rule: str) -> None:
        self.key = key
        self.value = value
        self.rule = rule
        super().__init__(f"{key}={_shorten(value)}: {rule}")


class LabelError(AllocatorError, ValueError):
    """An id or a name cannot be recorded: too long, or with characters that keys and listings cannot hold."""

    code = "bad_label"
    given = ("key", "value", "rule")
    told = ("key", "rule")

    def __init__(self, key: str, value: object, rule: str) -> None:
        self.key = key
        self.value = value
        self.rule = rule
        super().__init__(f"{key}={_shorten(value)}: {rule}")


class MessageTooLargeError(AllocatorError, ValueError):
    """A task's message is larger than the ledger keeps. Sizes in bytes; nothing was submitted."""

    code = "message_too_large"
    given = ("task", "size", "bound")
    told = given

    def __init__(self, task: str, size: int, bound: int) -> None:
        self.task = task
        self.size = size
        self.bound = bound
        super().__init__(
            f"the message of {task} has {size} bytes, and the ledger keeps at most {bound}. Pass a path or a key "
            "instead of the data itself, or raise allocator_max_message_bytes"
        )


class PoolFullError(AllocatorError):
    """As many tasks wait in the pool as may; nothing was submitted. Trying again later can succeed."""

    code = "pool_full"
    given = ("pool", "waiting", "bound")
    told = given

    def __init__(self, pool: str, waiting: int, bound: int) -> None:
        self.pool = pool
        self.waiting = waiting
        self.bound = bound
        super().__init__(
            f"{waiting} tasks wait in pool {pool}, and at most {bound} may. Submit again later, start more workers, "
            "or raise allocator_max_waiting"
        )


class UnsatisfiableError(AllocatorError):
    """No known device could ever hold the requirements; names the dimension and the largest that exists.

    ``words``: the dimension is no amount (a node, a model of GPU, a label): ``largest`` lists what there is.
    """

    code = "never_fits"
    given: ClassVar[tuple[str, ...]] = ("dimension", "requested", "largest", "hint")
    told: ClassVar[tuple[str, ...]] = ("dimension", "requested", "largest")

    def __init__(
        self, dimension: str, requested: int | str | None, largest: int | str, hint: str = "", *, words: bool = False
    ) -> None:
        self.dimension = dimension
        self.requested = requested
        self.largest = largest
        self.hint = hint
        there = f"there is {largest or 'none'}" if words else f"the largest that exists is {largest}"
        text = f"{dimension}={requested} can never be met: {there}"
        super().__init__(f"{text}. {hint}" if hint else text)


class TenantCapError(UnsatisfiableError):
    """One task asks for more than its tenant may hold at all; names the dimension and the cap."""

    code = "above_cap"
    given: ClassVar[tuple[str, ...]] = ("tenant", "dimension", "requested", "largest")
    told: ClassVar[tuple[str, ...]] = ("tenant", "dimension", "requested", "largest")

    def __init__(self, tenant: str, dimension: str, requested: int, largest: int) -> None:
        super().__init__(dimension, requested, largest)
        self.tenant = tenant
        self.args = (f"{dimension}={requested} can never be met: tenant {tenant!r} may hold {largest}",)


class AllocationNotFound(AllocatorError, LookupError):
    """No live allocation has that id."""

    code = "not_found"


class UnknownTargetError(AllocatorError, LookupError):
    """No node, device or worker has that name."""

    code = "unknown_target"


class StaleTokenError(AllocatorError):
    """The token is not the live one: the claim was released or granted again elsewhere."""

    code = "stale_token"


class AllocationTimeout(AllocatorError, TimeoutError):
    """What was asked for was not granted within the time given; it has been taken out of line again."""

    code = "timeout"


class ResourceOveruse(AllocatorError):
    """A task used more of a resource than it was promised, so its process was killed. It is not repeated.

    ``resource``: ``gpu_memory_mb`` or ``ram_mb``; ``promised_mb`` and ``used_mb`` are MB (2**20 bytes).
    """

    code = "overuse"
    given = ("resource", "promised_mb", "used_mb")
    told = given

    def __init__(self, resource: str, promised_mb: int, used_mb: int) -> None:
        # Result backends that write JSON make an exception again from its ``args``.
        super().__init__(resource, promised_mb, used_mb)
        self.resource = resource
        self.promised_mb = promised_mb
        self.used_mb = used_mb

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.used_mb} MB used, {self.promised_mb} MB promised. The process of the task was "
            f"killed (allocator_on_overuse is kill). Submit it with {self.resource}={self.used_mb} or more"
        )


class RequestError(AllocatorError, ValueError):
    """A request to the agent tool is malformed: unknown tool, unknown or missing parameter."""

    code = "bad_request"


class GateConfigError(AllocatorError, ValueError):
    """A quality gate's file cannot be used; names the file, and the rule and key where one is to blame."""

    code = "bad_gate"
    given = ("file", "rule", "key", "what")
    told = ("file", "rule", "key")

    def __init__(self, file: str, rule: str, key: str, what: str) -> None:
        self.file = file
        self.rule = rule
        self.key = key
        self.what = what
        where = ": ".join(part for part in (file, f"rule {rule!r}" if rule else "", key) if part)
        super().__init__(f"{where}: {what}")


class GateRuleError(AllocatorError):
    """A rule of a quality gate broke down while it measured: an error in the rule, not a verdict."""

    code = "gate_rule"
    given = ("rule", "kind", "what")
    told = ("rule", "kind")

    def __init__(self, rule: str, kind: str, what: str) -> None:
        self.rule = rule
        self.kind = kind
        self.what = what
        super().__init__(f"rule {rule!r} ({kind}) broke down: {what}")


class TraceError(AllocatorError, ValueError):
    """A table of a simulation cannot be used; says file, line (0: none), column, value and rule."""

    code = "bad_trace"
    given = ("file", "line", "column", "value", "rule")
    told = ("file", "line", "column", "rule")

    def __init__(self, file: str, line: int, column: str, value: object, rule: str) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.value = value
        self.rule = rule
        where = f"{file}, line {line}" if line else file
        what = f"{column}={_shorten(value)}: " if column else ""
        super().__init__(f"{where}: {what}{rule}")


class PlotExtraMissing(AllocatorError):
    """The library that draws plots is not installed."""

    code = "no_plot_extra"


class DeviceBusyError(AllocatorError):
    """Another live worker already serves that device."""

    code = "device_busy"
    given = ("device", "holder", "incarnation", "lease_left_s")

    def __init__(self, device: str, holder: str, incarnation: str, lease_left_s: float) -> None:
        self.device = device
        self.holder = holder
        self.incarnation = incarnation
        self.lease_left_s = lease_left_s
        #: Process of the holder, where known: pid, its start time (seconds since the epoch), its node.
        self.pid, self.born, self.node = 0, "", ""
        super().__init__(
            f"device {device} is already served by worker {holder} (lease {lease_left_s:.1f} s). "
            "Run one worker per device: raise its --concurrency instead, or stop the other worker first"
        )


class UpdateError(AllocatorError, ValueError):
    """An update from another system cannot be read: not JSON, or not of the form."""

    code = "malformed_update"


class UpdateNotFound(AllocatorError, LookupError):
    """No update of that id is parked."""

    code = "no_such_update"


class ChangesMissed(AllocatorError):
    """The event stream no longer has all that came after ``position``: read the whole state anew, then go on.

    ``oldest``: the first entry after it that is there.
    """

    code = "changes_missed"
    given = ("position", "oldest")
    told = given

    def __init__(self, position: str, oldest: str) -> None:
        self.position = position
        self.oldest = oldest
        super().__init__(
            f"what came after {position} is not all there any more: the next entry that is kept is {oldest}. Read the "
            "whole state anew, and go on from there; allocator_events_maxlen says how much is kept"
        )


class PermissionDenied(AllocatorError, PermissionError):
    """The caller lacks a permission."""

    code = "permission_denied"


class CapExceeded(PermissionDenied):
    """The caller may ask, but not for so much; names the cap, what was asked for and the most there may be."""

    code = "cap_exceeded"
    given = ("cap", "asked", "most")
    told = given

    def __init__(self, cap: str, asked: float, most: float) -> None:
        self.cap = cap
        self.asked = asked
        self.most = most
        told = (
            f"{most:g} live allocations are all that this caller may have: release one first"
            if cap == "allocations"
            else f"{cap}={asked:g} is more than this caller may ask for: at most {most:g}"
        )
        super().__init__(told)


class ActionRefused(AllocatorError):
    """An operator's action, an undo or a redo cannot be taken; nothing was changed. The text says why."""

    code = "action_refused"


class DuplicateAction(ActionRefused):
    """The action was taken before under the same idempotency key: as journal entry ``entry``."""

    code = "duplicate_action"
    given = ("key", "entry")
    told = given

    def __init__(self, key: str, entry: int) -> None:
        self.key = key
        self.entry = entry
        super().__init__(f"{_shorten(key)} was applied before, as journal entry {entry}")


class JournalMoved(ActionRefused):
    """Another action was taken between the decision and this one: look again."""

    code = "journal_moved"


class EntryNotFound(AllocatorError, LookupError):
    """The journal has no entry of that number."""

    code = "no_such_entry"


class InventoryError(AllocatorError):
    """This host's devices cannot be read as asked."""

    code = "bad_inventory"


class GpuLostError(InventoryError):
    """The driver says that a GPU has fallen off the bus or has otherwise become inaccessible."""

    code = "gpu_lost"


class IsolationError(AllocatorError):
    """A task cannot be given what it was granted in this process, nor in one that would replace it."""

    code = "isolation_error"


class HistoryError(AllocatorError):
    """The history cannot be used."""

    code = "history_error"


class HistoryUnavailable(HistoryError):
    """The history's database cannot be reached, or holds no history yet."""

    code = "history_unavailable"


class HistorySchemaError(HistoryError):
    """The history's tables are those of another version."""

    code = "history_schema"


class HistoryExtraMissing(HistoryError):
    """The libraries of the history are not installed; the message has the command that does it."""

    code = "history_extra"


class MetricsExtraMissing(AllocatorError):
    """The library of the metrics is not installed; the message has the command that does it."""

    code = "metrics_extra"


class HistoryQueryError(HistoryError, ValueError):
    """What is asked of the history makes no sense: a filter, a grouping."""

    code = "history_query"
    given = ("key", "value", "rule")
    told = ("key", "rule")

    def __init__(self, key: str, value: object, rule: str) -> None:
        self.key = key
        self.value = value
        self.rule = rule
        super().__init__(f"{key}={_shorten(value)}: {rule}")


class LedgerError(AllocatorError):
    """The ledger cannot be used."""

    code = "ledger_error"


class LedgerUnavailable(LedgerError):
    """The ledger cannot be reached."""

    code = "ledger_unavailable"


class LedgerSchemaError(LedgerError):
    """The ledger was written by an incompatible version."""

    code = "ledger_schema"


class EmbeddedServerError(LedgerError):
    """The embedded server cannot be started, reached or stopped."""

    code = "embedded_server"


def _shorten(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"<{type(value).__name__} too long to show>"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
