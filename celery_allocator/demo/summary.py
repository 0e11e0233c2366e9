"""What a demo comes to: tasks per device, waits, estimates against starts, peaks, and what is wrong."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from celery_allocator.demo.checks import Peak, Record, peaks
from celery_allocator.demo.view import Watcher
from celery_allocator.model import ClusterState


@dataclass(frozen=True)
class Summary:
    """The demo's result. Times are in seconds; an estimate's error is actual minus estimated start."""

    tasks: int
    seconds: float
    per_device: Mapping[str, int]
    waited: int
    most_waiting: int
    median_wait_s: float
    longest_wait_s: float
    estimated: int
    median_estimate_error_s: float | None
    median_absolute_error_s: float | None
    peaks: tuple[Peak, ...]
    outputs: str
    wrong: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return not self.wrong

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON-ready data."""
        return {"ok": self.ok, **asdict(self)}


def summarise(
    records: Sequence[Record],
    watcher: Watcher,
    cluster: ClusterState,
    seconds: float,
    outputs: str,
    wrong: Sequence[str],
) -> Summary:
    """Put together what was recorded by the tasks and what was seen in the ledger."""
    # A grant takes under a millisecond where there is room; what took longer than a tenth of a second had to wait.
    waits = [record.wait_s for record in records]
    waited = [wait for wait in waits if wait > 0.1]
    errors = [
        record.granted_at - watcher.estimates[record.task_id]
        for record in records
        if record.task_id in watcher.estimates
    ]
    counts = Counter(f"{record.node}/{record.device}" for record in records)
    for device in cluster.devices:
        counts.setdefault(device.key, 0)
    return Summary(
        tasks=len(records),
        seconds=round(seconds, 1),
        per_device=dict(sorted(counts.items())),
        waited=len(waited),
        most_waiting=watcher.most_waiting,
        median_wait_s=round(statistics.median(waits), 2) if waits else 0.0,
        longest_wait_s=round(max(waits, default=0.0), 2),
        estimated=len(errors),
        median_estimate_error_s=round(statistics.median(errors), 2) if errors else None,
        median_absolute_error_s=round(statistics.median(map(abs, errors)), 2) if errors else None,
        peaks=tuple(peaks(records, cluster)),
        outputs=outputs,
        wrong=tuple(wrong),
    )


def text(summary: Summary) -> str:
    """The summary for people."""
    width = max([len(key) for key in summary.per_device] + [len(peak.resource) for peak in summary.peaks])
    lines = [f"{summary.tasks} tasks in {summary.seconds:.1f} s", "", "Tasks per device"]
    lines += [f"  {key.ljust(width)}  {count}" for key, count in summary.per_device.items()]
    lines += [
        "",
        "Waits",
        (
            f"  {summary.waited} of {summary.tasks} tasks had to wait, up to {summary.most_waiting} at once; "
            f"median {summary.median_wait_s:.1f} s, longest {summary.longest_wait_s:.1f} s"
        ),
    ]
    if summary.median_absolute_error_s is not None:
        lines.append(
            f"  first estimate of the start against the actual start, {summary.estimated} tasks: off by "
            f"{summary.median_absolute_error_s:.1f} s (median), {summary.median_estimate_error_s:+.1f} s late"
        )
    lines += ["", "Most held at once, as the tasks recorded it"]
    lines += [
        f"  {peak.resource.ljust(width)}  {peak.held} of {peak.capacity} {peak.unit} "
        f"({peak.held / max(1, peak.capacity):.0%})"
        for peak in summary.peaks
    ]
    lines += ["", f"Outputs: {summary.outputs}", ""]
    if summary.ok:
        lines.append("All right: every task ran once, every output is correct, nothing was held twice.")
    else:
        lines += [f"WRONG ({len(summary.wrong)}):", *[f"  {fault}" for fault in summary.wrong]]
    return "\n".join(lines)
