"""The shape of a claim: what it asks for, without the task. Those of one shape are interchangeable for placement."""

from __future__ import annotations

from dataclasses import dataclass

from celery_allocator.model.allocation import Kind

#: How the ledger's keys and events write the kind.
KIND_CODES = {Kind.TASK: "t", Kind.MANUAL: "m"}
_KINDS = {code: kind for kind, code in KIND_CODES.items()}


@dataclass(frozen=True)
class Shape:
    """GPU memory in MB, cores, RAM in MB; a task's also takes a slot of a worker. Written ``2048:2:4096:t``."""

    gpu_memory_mb: int
    cpu_cores: int
    ram_mb: int
    kind: Kind

    @property
    def slot(self) -> bool:
        """Whether it takes a worker's slot."""
        return self.kind is Kind.TASK

    def __str__(self) -> str:
        return f"{self.gpu_memory_mb}:{self.cpu_cores}:{self.ram_mb}:{KIND_CODES[self.kind]}"

    @classmethod
    def parse(cls, text: str) -> Shape | None:
        """The inverse of ``str()``; ``None`` for what is no shape."""
        *amounts, code = text.split(":")
        if len(amounts) != 3 or code not in _KINDS or not all(map(_is_amount, amounts)):
            return None
        gpu, cores, ram = map(int, amounts)
        return cls(gpu, cores, ram, _KINDS[code])


def _is_amount(text: str) -> bool:
    """Longer numbers are nobody's memory, and would not fit a column of the history."""
    return text.isascii() and text.isdecimal() and len(text) < 10
