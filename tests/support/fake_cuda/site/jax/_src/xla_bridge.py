"""``jax._src.xla_bridge``."""

from __future__ import annotations

_backends: dict[str, float] = {}
