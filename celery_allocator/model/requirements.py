"""What a task asks for, validated at construction.

:data:`FIELDS` is the one place where a requirement's name, bounds, default and meaning stand: validation, the command
line's options, the agent tool's JSON schema and the documentation are all made from it.
"""

from __future__ import annotations

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
#: The requirements that are texts.
LABELS: dict[str, str] = {
    TENANT: "Whom the task is for: a team, a user. Tenants take turns by their shares; empty: nobody in particular.",
    SIZE: "What tells long runs of a task name from short ones, such as 'large': run times are learned apart.",
}


@dataclass(frozen=True)
class Requirements:
    """What a task asks for. Sizes in MB (2**20 bytes); a larger ``priority`` starts first. ``tenant``: for whom.

    ``gpu_count`` GPUs of one node, each with ``gpu_memory_mb``. ``expected_runtime_s``: whole seconds, 0 for unknown;
    ``size``: a word for run times that are learned apart.

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

    def __post_init__(self) -> None:
        for spec in FIELDS.values():
            _check(spec, getattr(self, spec.name))
        for name in LABELS:
            _check_label(name, getattr(self, name))
        if self.gpu_count > 1 and not self.gpu_memory_mb:
            raise RequirementsError("gpu_count", self.gpu_count, "needs gpu_memory_mb above 0: how much of each GPU")
        if self.gpu_memory_mb == self.cpu_cores == self.ram_mb == 0:
            raise RequirementsError(
                "requirements", self.as_dict(), "at least one of gpu_memory_mb, cpu_cores, ram_mb must be above 0"
            )

    @classmethod
    def parse(cls, *layers: Mapping[str, Any] | None) -> Requirements:
        """Merge ``layers``, later over earlier ones, and validate. ``None`` layers and ``None`` values are skipped."""
        return cls(**merge(*layers))

    def as_dict(self) -> dict[str, Any]:
        """The requirements as a plain dict; :data:`SELDOM` ones and texts only where they say something."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        told = {k: v for k, v in numbers.items() if k not in SELDOM or v != FIELDS[k].default}
        return told | {name: getattr(self, name) for name in LABELS if getattr(self, name)}


def merge(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The layers merged, later over earlier; keys are checked, values are not yet."""
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer is None:
            continue
        if not isinstance(layer, Mapping):
            raise RequirementsError("resources", layer, "must be a mapping such as {'gpu_memory_mb': 2048}")
        for key, value in layer.items():
            if key not in FIELDS and key not in LABELS:
                known = ", ".join((*FIELDS, *LABELS))
                raise RequirementsError(str(key), value, f"unknown requirement; known are {known}")
            if value is not None:
                merged[key] = value
    return merged


def _check_label(name: str, value: object) -> None:
    try:
        label(name, value, without="/,", empty=True)
    except LabelError as error:
        raise RequirementsError(name, value, error.rule) from None


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
