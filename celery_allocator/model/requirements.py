"""What a task asks for, validated at construction.

:data:`FIELDS` is the one place where a requirement's name, bounds, default and meaning stand: validation, the command
line's options, the agent tool's JSON schema and the documentation are all made from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_allocator.errors import LabelError, RequirementsError
from celery_allocator.model.label import label


@dataclass(frozen=True)
class Field:
    """One requirement: its unit, bounds (inclusive), default and meaning."""

    name: str
    unit: str
    minimum: int
    maximum: int
    default: int
    doc: str


#: 1 TB of GPU memory, 64 TB of RAM, 4096 cores: beyond any machine of today, small enough to catch bytes given as MB.
FIELDS: dict[str, Field] = {
    f.name: f
    for f in (
        Field("gpu_memory_mb", "MB", 0, 1_048_576, 0, "GPU memory on one device. 0: CPU-only work."),
        Field("cpu_cores", "cores", 0, 4096, 1, "CPU cores of the same node; the task is pinned to them."),
        Field("ram_mb", "MB", 0, 67_108_864, 0, "RAM of the same node. 0: not accounted."),
        Field("priority", "", -1000, 1000, 0, "Larger starts first among waiting tasks."),
        Field("gpu_count", "GPUs", 1, 64, 1, "GPUs of one node, each with gpu_memory_mb free: all at once or none."),
        Field(
            "expected_runtime_s",
            "seconds",
            0,
            315_360_000,
            0,
            "How long it will run, at most. 0: as the ledger has learned for its name.",
        ),
    )
}
#: Requirements that most tasks do not state: where they have their default they are left out of what is told.
SELDOM = ("gpu_count", "expected_runtime_s")
TENANT = "tenant"
SIZE = "size"
GPU = "gpu"
EXCLUSIVE = "exclusive"
NODE_LABELS = "labels"
#: The requirements that are texts.
LABELS: dict[str, str] = {
    TENANT: "Whom the task is for: a team, a user. Tenants take turns by their shares; empty: nobody in particular.",
    SIZE: "What tells long runs of a task name from short ones, such as 'large': run times are learned apart.",
    "gpu_model": "Model of the GPU, or a part of its name in any case: 'A100'. Empty: any.",
    "node": "The node it has to run on. Empty: any.",
    "anti_affinity": "A word: no two allocations of one word share a node. Empty: they may.",
    "affinity": "A word for what stays loaded, such as a model's name: a GPU where it ran lately is preferred.",
}
#: The other requirements, by name: what they mean, and how JSON writes them.
OTHERS: dict[str, tuple[str, str]] = {
    GPU: (
        "Share of the memory of the GPU it lands on, up to 1, in thousandths: 0.25; at least gpu_memory_mb.",
        "number",
    ),
    EXCLUSIVE: ("Takes a whole GPU, of at least gpu_memory_mb: nobody else is on it. As a gpu of 1.", "boolean"),
    NODE_LABELS: ("Labels that its node must have: {'zone': 'a'} (allocator_labels of its workers).", "object"),
}
#: Names of all requirements.
NAMES = (*FIELDS, *LABELS, *OTHERS)
#: Labels a task may ask for.
MOST_LABELS = 8
#: A whole GPU, in thousandths.
WHOLE = 1000


@dataclass(frozen=True)
class Requirements:
    """What a task asks for. Sizes in MB (2**20 bytes); a larger ``priority`` starts first. ``tenant``: for whom.

    ``gpu_count`` GPUs of one node, each with ``gpu_memory_mb``. ``expected_runtime_s``: whole seconds, 0 for unknown;
    ``size``: a word for run times that are learned apart. ``gpu``: a share of the memory of whatever GPU it lands on,
    at least ``gpu_memory_mb``; a share of 1 is ``exclusive``. ``gpu_model``, ``node``, ``labels`` and
    ``anti_affinity`` say where it may go; ``labels`` is given as a mapping and kept as sorted pairs.

    Raises :class:`~celery_allocator.errors.RequirementsError` at construction, naming key, value and rule.
    """

    gpu_memory_mb: int = FIELDS["gpu_memory_mb"].default
    cpu_cores: int = FIELDS["cpu_cores"].default
    ram_mb: int = FIELDS["ram_mb"].default
    priority: int = FIELDS["priority"].default
    tenant: str = ""
    gpu_count: int = FIELDS["gpu_count"].default
    expected_runtime_s: int = FIELDS["expected_runtime_s"].default
    size: str = ""
    gpu: float = 0.0
    exclusive: bool = False
    gpu_model: str = ""
    node: str = ""
    anti_affinity: str = ""
    affinity: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for spec in FIELDS.values():
            _check(spec, getattr(self, spec.name))
        for name in LABELS:
            _check_label(name, getattr(self, name))
        if self.labels != ():
            object.__setattr__(self, NODE_LABELS, _pairs(self.labels))
        _check_share(self.gpu, self.exclusive)
        if self.gpu == 1:
            object.__setattr__(self, GPU, 0.0)
            object.__setattr__(self, EXCLUSIVE, True)
        if not self.on_gpu:
            self._check_without_gpu()
        if self.gpu_memory_mb == self.cpu_cores == self.ram_mb == self.share == 0:
            raise RequirementsError(
                "requirements", self.as_dict(), "at least one of gpu_memory_mb, cpu_cores, ram_mb must be above 0"
            )

    def _check_without_gpu(self) -> None:
        if self.gpu_count > 1:
            raise RequirementsError(
                "gpu_count", self.gpu_count, "needs gpu_memory_mb above 0, gpu or exclusive: how much of each GPU"
            )
        if self.gpu_model:
            raise RequirementsError(
                "gpu_model", self.gpu_model, "needs gpu_memory_mb above 0, gpu or exclusive: how much of that GPU"
            )

    @property
    def share(self) -> int:
        """Thousandths of each GPU's memory that it asks for; 0: it asks for MB alone."""
        return WHOLE if self.exclusive else round(self.gpu * WHOLE)

    @property
    def on_gpu(self) -> bool:
        """Whether it asks for a GPU at all."""
        return self.gpu_memory_mb > 0 or self.share > 0

    def gpu_memory_on(self, capacity_mb: int) -> int:
        """MB that it takes of a GPU with so many."""
        return max(self.gpu_memory_mb, -(-capacity_mb * self.share // WHOLE))

    @property
    def besides(self) -> tuple[str, ...]:
        """What it asks for besides amounts, for people: ``25 % of a GPU``, ``model A100``, ``zone=a``."""
        words = ["a whole GPU"] if self.exclusive else [f"{self.gpu * 100:g} % of a GPU"] if self.gpu else []
        words += [f"model {self.gpu_model}"] if self.gpu_model else []
        words += [f"on {self.node}"] if self.node else []
        words += [f"{name}={value}" for name, value in self.labels]
        words += [f"apart from other {self.anti_affinity}"] if self.anti_affinity else []
        return (*words, *([f"near {self.affinity}"] if self.affinity else []))

    @classmethod
    def parse(cls, *layers: Mapping[str, Any] | None) -> Requirements:
        """Merge ``layers``, later over earlier ones, and validate. ``None`` layers and ``None`` values are skipped."""
        return cls(**merge(*layers))

    def as_dict(self) -> dict[str, Any]:
        """The requirements as a plain dict; :data:`SELDOM` ones and texts only where they say something."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        told = {k: v for k, v in numbers.items() if k not in SELDOM or v != FIELDS[k].default}
        told |= {name: value for name in (*LABELS, GPU, EXCLUSIVE) if (value := getattr(self, name))}
        return told | {NODE_LABELS: dict(self.labels)} if self.labels else told


def merge(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The layers merged, later over earlier; keys are checked, values are not yet."""
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer is None:
            continue
        if not isinstance(layer, Mapping):
            raise RequirementsError("resources", layer, "must be a mapping such as {'gpu_memory_mb': 2048}")
        for key, value in layer.items():
            if key not in NAMES:
                raise RequirementsError(str(key), value, f"unknown requirement; known are {', '.join(NAMES)}")
            if value is not None:
                merged[key] = value
    return merged


def _check_label(name: str, value: object) -> None:
    try:
        label(name, value, without="/,", empty=True)
    except LabelError as error:
        raise RequirementsError(name, value, error.rule) from None


def _check_share(gpu: object, exclusive: object) -> None:
    if not isinstance(exclusive, bool):
        raise RequirementsError(EXCLUSIVE, exclusive, "must be true or false")
    if isinstance(gpu, bool) or not isinstance(gpu, (int, float)) or not math.isfinite(gpu):
        raise RequirementsError(GPU, gpu, f"must be a number, not {type(gpu).__name__}")
    if not 0 <= gpu <= 1:
        raise RequirementsError(GPU, gpu, "must be a share from 0 to 1; whole GPUs are gpu_count")
    if abs(gpu * WHOLE - round(gpu * WHOLE)) > 1e-6:
        raise RequirementsError(GPU, gpu, "must have at most three decimals")
    if exclusive and 0 < gpu < 1:
        raise RequirementsError(GPU, gpu, "is a part of a GPU, and exclusive asks for a whole one: leave one out")


def _pairs(labels: object) -> tuple[tuple[str, str], ...]:
    """Labels as sorted pairs of texts."""
    if isinstance(labels, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in labels):
        labels = dict(labels)
    if not isinstance(labels, Mapping):
        raise RequirementsError(NODE_LABELS, labels, "must be a mapping such as {'zone': 'a'}")
    if len(labels) > MOST_LABELS:
        raise RequirementsError(NODE_LABELS, labels, f"must be {MOST_LABELS} labels at most")
    for part in (*labels, *labels.values()):
        try:
            label(NODE_LABELS, part)
        except LabelError as error:
            raise RequirementsError(NODE_LABELS, labels, f"{part!r} {error.rule}") from None
    return tuple(sorted(labels.items()))


def _check(spec: Field, value: object) -> None:
    # bool is an int in Python, and True MB is always a mistake.
    if isinstance(value, bool) or not isinstance(value, int):
        unit = f" of {spec.unit}" if spec.unit else ""
        raise RequirementsError(spec.name, value, f"must be a whole number{unit}, not {type(value).__name__}")
    if value < spec.minimum:
        raise RequirementsError(spec.name, value, f"must be at least {spec.minimum}")
    if value > spec.maximum:
        hint = "; the unit is MB, not bytes" if spec.unit == "MB" else ""
        raise RequirementsError(spec.name, value, f"must be at most {spec.maximum}{hint}")
