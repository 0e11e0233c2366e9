"""The demo's input, and the jobs made of it: what to run, what it asks for, and what must come out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery_allocator.demo.work import digits, raytrace, spectrum

#: Kinds of job and their shares of the whole, out of 10.
SHARES = {"inference": 4, "rendering": 4, "processing": 2}
#: GPU memory of an inference (MB) where devices are large enough; a picture takes twice that, a fine one three times.
UNIT_MB = 2048


@dataclass(frozen=True)
class Job:
    """One task to submit. ``resources`` go over the task's own; ``truth`` is what its output is checked against."""

    name: str  # "inference_03"
    kind: str
    source: Path
    output: Path
    arguments: tuple[str, ...]
    record: Path
    resources: dict[str, int] = field(default_factory=dict)
    truth: Any = None


@dataclass(frozen=True)
class Folders:
    """Where a demo's files lie."""

    root: Path

    @property
    def inputs(self) -> Path:
        """What the tasks read."""
        return self.root / "inputs"

    @property
    def outputs(self) -> Path:
        """What the tasks write."""
        return self.root / "outputs"

    @property
    def records(self) -> Path:
        """What each task held, and when."""
        return self.root / "records"

    @property
    def logs(self) -> Path:
        """What the workers wrote."""
        return self.root / "logs"


def kinds(count: int) -> list[str]:
    """The kinds of ``count`` jobs, by their shares."""
    pattern = [kind for kind, share in SHARES.items() for _ in range(share)]
    return [pattern[number * 7 % len(pattern)] for number in range(count)]  # 7 and 10 share no factor: well mixed


def prepare(folders: Folders, count: int, seed: int, memory_mb: int, progress: Callable[[str], None]) -> list[Job]:
    """Write the input of ``count`` jobs, the same for the same ``seed``, and return the jobs in a shuffled order.

    ``memory_mb`` is the memory of the smallest GPU, which every job must fit.
    """
    unit_mb = min(UNIT_MB, memory_mb // 4)
    progress("training the digit network")
    weights = folders.inputs / "weights.npz"
    digits.train(seed).save(weights)
    progress(f"writing the input of {count} tasks")
    makers = {"inference": _inference, "rendering": _rendering, "processing": _processing}
    numbers = dict.fromkeys(SHARES, 0)
    jobs = []
    for kind in kinds(count):
        number = numbers[kind]
        numbers[kind] += 1
        jobs.append(makers[kind](folders, number, seed * 10_000 + number, unit_mb))
    random.Random(seed).shuffle(jobs)
    return jobs


def _inference(folders: Folders, number: int, seed: int, unit_mb: int) -> Job:
    name = f"inference_{number:02}"
    page, answer = folders.inputs / f"{name}.png", folders.outputs / f"{name}.json"
    record = folders.records / name
    truth = digits.write_page(page, seed)
    arguments = (str(page), str(folders.inputs / "weights.npz"), str(answer), str(record))
    return Job(name, "inference", page, answer, arguments, record, {"gpu_memory_mb": unit_mb}, truth)


def _rendering(folders: Folders, number: int, seed: int, unit_mb: int) -> Job:
    name = f"rendering_{number:02}"
    scene, picture = folders.inputs / f"{name}.json", folders.outputs / f"{name}.png"
    record = folders.records / name
    fine = number % 4 == 3  # every fourth picture is finer and takes more of a GPU
    raytrace.write_scene(scene, seed, samples=16 if fine else 8)
    resources = {"gpu_memory_mb": unit_mb * (3 if fine else 2)}
    return Job(name, "rendering", scene, picture, (str(scene), str(picture), str(record)), record, resources)


def _processing(folders: Folders, number: int, seed: int, unit_mb: int) -> Job:
    name = f"processing_{number:02}"
    recording, answer = folders.inputs / f"{name}.wav", folders.outputs / f"{name}.json"
    record = folders.records / name
    truth = spectrum.write_recording(recording, seed)
    return Job(name, "processing", recording, answer, (str(recording), str(answer), str(record)), record, {}, truth)
