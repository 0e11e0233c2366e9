"""The shape of a claim: what it asks for, without the task. Those of one shape are interchangeable for placement."""

from __future__ import annotations

from dataclasses import dataclass

from celery_allocator.model.allocation import Kind

#: How the ledger's keys and events write the kind.
KIND_CODES = {Kind.TASK: "t", Kind.MANUAL: "m"}
_KINDS = {code: kind for kind, code in KIND_CODES.items()}


@dataclass(frozen=True)
class Shape:
    """GPU memory in MB, cores, RAM in MB; a task's also takes a slot of a worker. Written ``2048:2:4096:t``.

    One on several GPUs of a node is written with their number behind: ``16000:8:4096:m:4``.
    """

    gpu_memory_mb: int
    cpu_cores: int
    ram_mb: int
    kind: Kind
    gpu_count: int = 1

    @property
    def slot(self) -> bool:
        """Whether it takes a worker's slot."""
        return self.kind is Kind.TASK

    def __str__(self) -> str:
        text = f"{self.gpu_memory_mb}:{self.cpu_cores}:{self.ram_mb}:{KIND_CODES[self.kind]}"
        return text if self.gpu_count == 1 else f"{text}:{self.gpu_count}"

    @classmethod
    def parse(cls, text: str) -> Shape | None:
        """The inverse of ``str()``; ``None`` for what is no shape."""
        parts = text.split(":")
        amounts, code, several = parts[:3], parts[3:4], parts[4:]
        if len(parts) > 5 or not code or code[0] not in _KINDS or not all(map(_is_amount, (*amounts, *several))):
            return None
        gpu, cores, ram = map(int, amounts)
        count = int(several[0]) if several else 1
        return cls(gpu, cores, ram, _KINDS[code[0]], count) if count > 1 or not several else None


def _is_amount(text: str) -> bool:
    """Longer numbers are nobody's memory, and would not fit a column of the history."""
    return text.isascii() and text.isdecimal() and len(text) < 10
