"""Every metric in one table: name, type, labels, meaning. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "celery_allocator_"

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
#: Labels of a device: node, device id, and the UUID that DCGM's exporter calls ``UUID``.
DEVICE = ("hostname", "gpu", "gpu_uuid")
#: Upper bounds of buckets, in seconds.
_WAITS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
_DISPATCH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ERRORS = (-3600, -900, -300, -60, -15, -5, -1, 1, 5, 15, 60, 300, 900, 3600)
_GAPS = (2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)


@dataclass(frozen=True)
class Metric:
    """One metric. ``name`` without :data:`PREFIX`; a counter's ends in ``_total``. ``buckets``: of a histogram."""

    name: str
    type: str
    labels: tuple[str, ...]
    doc: str
    buckets: tuple[float, ...] = ()
    #: Counted elsewhere, since long before the exporter: it has no value before that is known.
    elsewhere: bool = False

    @property
    def full_name(self) -> str:
        """As Prometheus knows it."""
        return PREFIX + self.name


def _gauge(name: str, doc: str, *labels: str) -> Metric:
    return Metric(name, GAUGE, labels, doc)


def _counter(name: str, doc: str, *labels: str, elsewhere: bool = False) -> Metric:
    return Metric(name, COUNTER, labels, doc, elsewhere=elsewhere)


def _histogram(name: str, doc: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, HISTOGRAM, (), doc, buckets)


_ALL = (
    # --- the exporter itself
    _gauge("up", "1 if the ledger has just answered. While it is 0 there are no other gauges."),
    _gauge("info", "Always 1: the exporter's version, and its pool.", "version", "pool"),
    # --- capacity
    _gauge("gpu_memory_capacity_bytes", "GPU memory of the device.", *DEVICE),
    _gauge("gpu_memory_allocated_bytes", "GPU memory promised to granted and running tasks.", *DEVICE),
    _gauge(
        "gpu_memory_used_bytes",
        "GPU memory that the processes of the allocator's workers use, as the driver says; of all processes, where "
        "those cannot be told apart. Only of devices that are measured.",
        *DEVICE,
    ),
    _gauge("gpu_memory_foreign_bytes", "GPU memory that processes of others use. Only where it can be told.", *DEVICE),
    _gauge(
        "gpu_memory_withheld_bytes",
        "GPU memory that no claim holds and that is given to nobody, because it is in use: by processes that are not "
        "ours (`foreign`), by processes of the worker without a task (`leftover`), by tasks beyond their claims "
        "(`overuse`).",
        *DEVICE,
        "why",
    ),
    _gauge(
        "gpu_process_ids_hidden",
        "1 where the driver's process ids mean nothing (in some containers): `foreign` is then all that is used "
        "beyond the claims.",
        *DEVICE,
    ),
    _gauge("gpu_utilization_ratio", "Share of time in which the device computed, by the driver.", *DEVICE),
    _gauge("cpu_cores_capacity", "CPU cores that the node offers.", "hostname"),
    _gauge("cpu_cores_allocated", "CPU cores of those that are granted.", "hostname"),
    _gauge("ram_capacity_bytes", "RAM that the node offers.", "hostname"),
    _gauge("ram_allocated_bytes", "RAM promised to granted and running tasks.", "hostname"),
    _gauge("ram_used_bytes", "RAM that the processes of the allocator's workers use. Only where measured.", "hostname"),
    _gauge("ram_foreign_bytes", "RAM of the node in use by others. Only where measured.", "hostname"),
    _gauge("ram_withheld_bytes", "RAM that no claim holds and that is given to nobody: `foreign`, `overuse`.",
           "hostname", "why"),
    _gauge("worker_slots_capacity", "Slots of the device's worker.", *DEVICE, "queue_name"),
    _gauge("worker_slots_allocated", "Slots taken by granted and running tasks.", *DEVICE, "queue_name"),
    _gauge(
        "device_state",
        "1 for the state that the device is in (`ready`, `cordoned`, `draining`, `offline`), 0 for the others.",
        *DEVICE,
        "state",
    ),
    _gauge(
        "device_closed",
        "1 for why the device is cordoned or draining, 0 for the other reasons: the GPU is `lost`, `unreadable`, "
        "reported a fatal `xid`, has bad `memory`, its driver asks for a `reset`; `other`: closed by an operator. "
        "All 0 while it takes work.",
        *DEVICE,
        "fault",
    ),
    _gauge("workers", "Workers whose lease stands.", "hostname"),
    _gauge("overused_tasks", "Running tasks that use more than they were promised (`gpu_memory`, `ram`).",
           "hostname", "gpu", "resource"),
    _gauge("overuse_bytes", "How much more, all together.", "hostname", "gpu", "resource"),
    # --- the line
    _gauge(
        "allocations", "Allocations by state: `delayed`, `on_hold`, `waiting`, `granted`, `running`.", "state"
    ),
    _gauge(
        "waiting_by_shape",
        "How many wait, by what they ask for. The largest groups have their own series; the rest is told with `other` "
        "in every label. `gpu_share`: what share of a GPU it asks for (of several, of all together; `1`: a whole one), "
        "`0` where it asks for MB alone.",
        "gpu_memory_mb",
        "gpu_share",
        "cpu_cores",
        "ram_mb",
        "kind",
    ),
    _gauge(
        "oldest_waiting_age_seconds",
        "Age of the oldest of the first of each priority, tenant and shape, since submit or ETA; 0 if nothing waits.",
    ),
    # --- fairness
    _gauge(
        "tenant_gpu_memory_held_bytes",
        "GPU memory that the tenant's granted and running tasks hold. `(none)`: what names no tenant. Those that "
        "hold or wait for most have series of their own, the rest is `other` (sums; of the share, the largest).",
        "tenant",
    ),
    _gauge("tenant_cpu_cores_held", "CPU cores, likewise.", "tenant"),
    _gauge("tenant_ram_held_bytes", "RAM, likewise.", "tenant"),
    _gauge("tenant_allocations_held", "How many allocations hold that.", "tenant"),
    _gauge("tenant_waiting", "How many allocations of the tenant wait.", "tenant"),
    _gauge(
        "tenant_share_ratio",
        "The tenant's dominant share: the largest of its shares of all GPU memory, cores and RAM, divided by its "
        "weight. Whose is smallest has the next turn.",
        "tenant",
    ),
    _gauge("tenant_weight", "What the tenant's turns are worth, beside a weight of 1.", "tenant"),
    _gauge(
        "reservation",
        "1 for what is done for the first in line that does not fit, 0 for the others: it may be `passed`, and nothing "
        "is kept yet; a device is `kept` for it until a known time; a device is `emptied` for it.",
        "state",
    ),
    _gauge("reservation_age_seconds", "Since when it has been the first; 0 where there is none."),
    _gauge("reservation_passed", "How often it was passed since; 0 where there is none."),
    _gauge(
        "date_error_median_seconds",
        "By how much half of the promised starts were off, at most, over the life of the ledger, the newest most: of "
        "its `dates`, and of the `rule_of_thumb` position · mean run time ÷ what runs. Only where any was scored.",
        "rule",
    ),
    _gauge(
        "granting_paused",
        "1 while nothing is granted: `stopped` by an operator, or `paused` until all workers have reported after a "
        "change of the server.",
        "reason",
    ),
    # --- what happened, since the exporter began
    _counter("events_total", "Entries of the event stream, by event.", "event"),
    _counter("grants_total", "Grants, by device.", "hostname", "gpu"),
    _counter(
        "regrants_total",
        "Grants of what had been granted before, and was `lost`, `withdrawn`, `requeued` or `grown` since.",
        "reason",
    ),
    _counter("republished_total", "Grants that had not started within the deadline: published again."),
    _counter("releases_total", "Allocations that ended, by outcome.", "outcome"),
    _counter("leases_expired_total", "Leases that ran out, of a `worker` or a `node`.", "kind"),
    _counter("out_of_memory_total", "Tasks that failed with an error that says that memory did not suffice.",
             "hostname", "gpu"),
    _counter(
        "overuse_episodes_total",
        "How often a running task began to use more than it was promised.",
        "hostname",
        "gpu",
        "resource",
    ),
    _counter(
        "overuse_actions_total",
        "What workers did about tasks that use more than they were promised: `warn`, `kill`.",
        "resource",
        "action",
    ),
    _counter(
        "children_recycled_total",
        "Idle processes of the device's worker that were replaced because a task waited for the GPU memory that they "
        "kept, since the worker began. Only of pools of processes, on GPUs that are measured.",
        *DEVICE,
        elsewhere=True,
    ),
    _counter("claims_grown_total", "Running tasks that ran out of GPU memory and got a larger claim.",
             "hostname", "gpu"),
    _counter(
        "affinity_grants_total",
        "Grants of tasks with an affinity: to a device where that was loaded (`hit`), or elsewhere (`miss`).",
        "result",
    ),
    _counter(
        "deliveries_rejected_total",
        "Deliveries that the gate has dropped, over the whole life of the ledger: the task has `ended`, is "
        "`not_granted`, was granted again under a newer token (`superseded`), is `running` already (delivered twice), "
        "or its device has another worker now (`not_serving`).",
        "reason",
        elsewhere=True,
    ),
    _counter(
        "idle_device_seconds_total",
        "Seconds that ready devices had room for something that waited, and did not get it, all together; counted as "
        "they go by.",
    ),
    _counter("stream_gaps_total", "How often the exporter fell behind the capped event stream: what came in between is "
             "in no counter."),
    _counter("dates_scored_total", "Starts of what had been promised a date, over the whole life of the ledger.",
             elsewhere=True),
    _counter("dates_covered_total", "Of these, at or before the date for nine of ten cases (p90).", elsewhere=True),
    # --- how long it took, since the exporter began
    _histogram("queue_wait_seconds", "Time from submit (or ETA) to the first start.", _WAITS),
    _histogram(
        "placement_latency_seconds",
        "Dispatch: time from a grant to the start of its task, by way of the broker and the worker's gate.",
        _DISPATCH,
    ),
    _histogram(
        "estimate_error_seconds",
        "Real first start less the one that was promised at submit (p50), of those that waited and were not put on "
        "hold, moved or given another priority: positive is later than promised. With negative buckets it has no sum.",
        _ERRORS,
    ),
    _histogram(
        "idle_gap_seconds",
        "How long a ready device had room for something that waited, and did not get it, from the first look that saw "
        "it to the first that did not. What one look alone has seen is not counted.",
        _GAPS,
    ),
    # --- the recorder, where its history can be read
    _gauge("recorder_lag_seconds", "Time between the newest entry of the event stream and the newest in the history."),
    _counter("recorder_gaps_total", "Gaps in the history: entries that were dropped unread.", elsewhere=True),
    _counter("recorder_missed_entries_total", "Entries in those gaps, as far as known.", elsewhere=True),
)  # fmt: skip

#: Every metric by its name.
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
