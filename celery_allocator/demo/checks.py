"""Whether what the tasks wrote is right, and whether they ever held more than there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from celery_allocator.demo.jobs import Job
from celery_allocator.demo.work import digits, raytrace, spectrum
from celery_allocator.model import ClusterState

#: Shares that must be right, from 0 to 1.
LEAST_DIGITS = 0.9
LEAST_NOTES = 0.95
#: Levels (of 255) by which a picture may differ from a quick rendering of its scene, both made small.
MOST_DIFFERENCE = 5.0


@dataclass(frozen=True)
class Record:
    """What one task held, from when to when (seconds since the epoch), as the task itself wrote it."""

    job: str
    task_id: str
    node: str
    device: str
    gpu_memory_mb: int
    cpu_cores: tuple[int, ...]
    ram_mb: int
    token: int
    submitted_at: float
    granted_at: float
    start: float
    end: float

    @property
    def wait_s(self) -> float:
        """Seconds from submit to grant."""
        return self.granted_at - self.submitted_at


@dataclass(frozen=True)
class Peak:
    """The most that was held at once, of ``capacity``."""

    resource: str  # "host1/gpu_0 memory"
    unit: str
    held: int
    capacity: int


def read_records(jobs: Iterable[Job]) -> tuple[list[Record], list[str]]:
    """The jobs' records, and what is wrong with them: each job must have run exactly once."""
    records, wrong = [], []
    for job in jobs:
        files = sorted(job.record.parent.glob(f"{job.record.name}.*.json"))
        if len(files) != 1:
            wrong.append(f"{job.name} ran {len(files)} times")
        records += [_record(job.name, json.loads(file.read_text())) for file in files]
    return records, wrong


def check_outputs(jobs: Iterable[Job]) -> list[str]:
    """What is wrong with the jobs' outputs; empty when all are right."""
    checks: dict[str, Callable[[Job], str]] = {
        "inference": _wrong_reading,
        "rendering": _wrong_picture,
        "processing": _wrong_notes,
    }
    wrong = []
    for job in jobs:
        try:
            fault = checks[job.kind](job)
        except (OSError, ValueError, KeyError) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            wrong.append(f"{job.name}: {fault}")
    return wrong


def peaks(records: Sequence[Record], cluster: ClusterState) -> list[Peak]:
    """The most memory held at once on each GPU, and the most cores and RAM on each node."""
    found = []
    for node in cluster.nodes:
        here = [record for record in records if record.node == node.node]
        for device in node.devices:
            if device.is_gpu:
                spans = [(r.start, r.end, r.gpu_memory_mb) for r in here if r.device == device.device_id]
                found.append(Peak(f"{device.key} memory", "MB", _most(spans), device.memory_mb))
        cores = [(r.start, r.end, len(r.cpu_cores)) for r in here]
        found.append(Peak(f"{node.node} cores", "cores", _most(cores), len(node.cpu_cores)))
        ram = [(r.start, r.end, r.ram_mb) for r in here]
        found.append(Peak(f"{node.node} RAM", "MB", _most(ram), node.ram_mb))
    return found


def check_capacity(records: Sequence[Record], cluster: ClusterState) -> list[str]:
    """Where more was held than there is, or one core by two tasks at once; empty when nowhere."""
    wrong = [
        f"{peak.resource}: {peak.held} {peak.unit} held at once, of {peak.capacity}"
        for peak in peaks(records, cluster)
        if peak.held > peak.capacity
    ]
    last: dict[tuple[str, int], Record] = {}
    for record in sorted(records, key=lambda r: r.start):
        for core in record.cpu_cores:
            before = last.get((record.node, core))
            if before is not None and before.end > record.start:
                wrong.append(f"{record.node} core {core}: held by {before.job} and {record.job} at once")
            if before is None or record.end > before.end:
                last[record.node, core] = record
    return wrong


def _record(job: str, facts: Mapping[str, Any]) -> Record:
    return Record(
        job=job,
        task_id=facts["task_id"],
        node=facts["node"],
        device=facts["device"],
        gpu_memory_mb=facts["gpu_memory_mb"],
        cpu_cores=tuple(facts["cpu_cores"]),
        ram_mb=facts["ram_mb"],
        token=facts["token"],
        submitted_at=facts["submitted_at"],
        granted_at=facts["granted_at"],
        start=facts["from"],
        end=facts["to"],
    )


def _most(spans: Iterable[tuple[float, float, int]]) -> int:
    """The largest sum of amounts held at one instant. What ends as another begins does not overlap it."""
    changes = sorted(change for start, end, amount in spans for change in ((start, 1, amount), (end, 0, -amount)))
    now = most = 0
    for _, _, amount in changes:
        now += amount
        most = max(most, now)
    return most


def _wrong_reading(job: Job) -> str:
    share = digits.accuracy(json.loads(job.output.read_text()), job.truth)
    return "" if share >= LEAST_DIGITS else f"only {share:.0%} of the digits are right"


def _wrong_notes(job: Job) -> str:
    heard = json.loads(job.output.read_text())
    share = spectrum.matching(heard["notes"], job.truth)
    if not job.output.with_suffix(".png").is_file():
        return "no spectrogram"
    return "" if share >= LEAST_NOTES else f"only {share:.0%} of the notes are right"


def _wrong_picture(job: Job) -> str:
    """Compare the picture with a quick rendering of its scene, both made small to still the noise."""
    quick = job.output.with_suffix(".quick.png")
    raytrace.render(job.source, quick, samples=1)
    try:
        with Image.open(job.output) as picture, Image.open(quick) as expected:
            if picture.size != expected.size:
                return f"is {picture.size} pixels, not {expected.size}"
            difference = float(np.abs(_small(picture) - _small(expected)).mean())
    finally:
        quick.unlink()
    return "" if difference <= MOST_DIFFERENCE else f"is {difference:.1f} levels off its scene"


def _small(picture: Image.Image) -> Any:
    width, height = picture.size
    return np.asarray(picture.resize((width // 8, height // 8), Image.Resampling.BOX), dtype=np.float64)
