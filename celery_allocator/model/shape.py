"""The shape of a claim: what it asks for, without the task. Those of one shape are interchangeable for placement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from celery_allocator.errors import RequirementsError
from celery_allocator.model.allocation import Kind
from celery_allocator.model.requirements import NODE_LABELS, WHOLE, Requirements

#: How the ledger's keys and events write the kind.
KIND_CODES = {Kind.TASK: "t", Kind.MANUAL: "m"}
_KINDS = {code: kind for kind, code in KIND_CODES.items()}
#: How they write what few ask for: letter → requirement.
_TEXTS = {"m": "gpu_model", "n": "node", "x": "anti_affinity", "w": "affinity"}
_SHARE, _LABEL = "s", "l."


@dataclass(frozen=True)
class Shape:
    """GPU memory in MB, cores, RAM in MB; a task's also takes a slot of a worker. Written ``2048:2:4096:t``.

    One on several GPUs of a node is written with their number behind: ``16000:8:4096:m:4``; one that asks for more
    than amounts with that behind the number (:func:`more_of`): ``0:1:0:t:1:s=250;m=A100``. Of what is held, the GPU
    memory is what was granted on each GPU, also where a share was asked for.
    """

    gpu_memory_mb: int
    cpu_cores: int
    ram_mb: int
    kind: Kind
    gpu_count: int = 1
    more: str = ""

    @classmethod
    def of(cls, requirements: Requirements, kind: Kind) -> Shape:
        """The shape of what asks for ``requirements``."""
        asked = requirements
        return cls(asked.gpu_memory_mb, asked.cpu_cores, asked.ram_mb, kind, asked.gpu_count, more_of(asked))

    @property
    def slot(self) -> bool:
        """Whether it takes a worker's slot."""
        return self.kind is Kind.TASK

    @property
    def on_gpu(self) -> bool:
        """Whether it takes a part of a GPU."""
        return self.gpu_memory_mb > 0 or self.share > 0

    @property
    def bound(self) -> bool:
        """Whether it says where it may go: a model, a node, a label, or apart from others."""
        return any(name in self.asked for name in ("gpu_model", "node", "anti_affinity", NODE_LABELS))

    def gpu_memory_on(self, capacity_mb: int) -> int:
        """MB that it takes of a GPU with so many."""
        return max(self.gpu_memory_mb, -(-capacity_mb * self.share // WHOLE))

    @property
    def share(self) -> int:
        """Thousandths of each GPU's memory that it asks for; 0: it asks for MB alone."""
        asked = self.asked
        return WHOLE if asked.get("exclusive") else round(asked.get("gpu", 0) * WHOLE)

    @property
    def asked(self) -> dict[str, Any]:
        """What it asks for besides amounts, by the names of :class:`Requirements`. ``ValueError`` for what is none."""
        return read_more(self.more) if self.more else {}

    def __str__(self) -> str:
        text = f"{self.gpu_memory_mb}:{self.cpu_cores}:{self.ram_mb}:{KIND_CODES[self.kind]}"
        if self.more:
            return f"{text}:{self.gpu_count}:{self.more}"
        return text if self.gpu_count == 1 else f"{text}:{self.gpu_count}"

    @classmethod
    def parse(cls, text: str) -> Shape | None:
        """The inverse of ``str()``; ``None`` for what is no shape."""
        parts = text.split(":")
        if not 4 <= len(parts) <= 6 or parts[3] not in _KINDS or not all(map(_is_amount, parts[:3] + parts[4:5])):
            return None
        gpu, cores, ram = map(int, parts[:3])
        count = int(parts[4]) if len(parts) > 4 else 1
        more = parts[5] if len(parts) == 6 else ""
        if count < 1 or (len(parts) == 5 and count < 2) or (len(parts) == 6 and not more):
            return None
        return cls(gpu, cores, ram, _KINDS[parts[3]], count, more)


def more_of(requirements: Requirements) -> str:
    """What it asks for besides amounts, as the shape writes it: ``s=250;m=A100;l.zone=a``; empty for most.

    ``s``: thousandths of a GPU, ``m``: its model, ``n``: the node, ``x``: anti-affinity, ``w``: affinity, ``l.NAME``: a
    label of the node. Values are percent-encoded.
    """
    told = [f"{_SHARE}={requirements.share}"] if requirements.share else []
    told += [f"{code}={_quoted(value)}" for code, name in _TEXTS.items() if (value := getattr(requirements, name))]
    told += [f"{_LABEL}{_quoted(name)}={_quoted(value)}" for name, value in requirements.labels]
    return ";".join(told)


def read_more(text: str) -> dict[str, Any]:
    """The inverse of :func:`more_of`. Raises ``ValueError`` for what is none."""
    found: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for pair in text.split(";"):
        code, equals, value = pair.partition("=")
        if code == _SHARE and _is_amount(value) and 0 < int(value) <= WHOLE:
            found |= {"exclusive": True} if int(value) == WHOLE else {"gpu": int(value) / WHOLE}
        elif code in _TEXTS:
            found[_TEXTS[code]] = unquote(value)
        elif code.startswith(_LABEL) and equals:
            labels[unquote(code[len(_LABEL) :])] = unquote(value)
        else:
            raise ValueError(f"{pair!r} is nothing that can be asked for")
    return found | {NODE_LABELS: labels} if labels else found


def besides(more: str) -> tuple[str, ...]:
    """The same for people (see :attr:`Requirements.besides`); empty for what cannot be read."""
    try:
        # Any amount: what is said besides does not depend on it.
        return Requirements.parse({"gpu_memory_mb": 1}, read_more(more)).besides if more else ()
    except (ValueError, RequirementsError):
        return ()


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _is_amount(text: str) -> bool:
    """Longer numbers are nobody's memory, and would not fit a column of the history."""
    return text.isascii() and text.isdecimal() and len(text) < 10
