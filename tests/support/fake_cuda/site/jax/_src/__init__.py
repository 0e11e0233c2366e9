"""``jax._src``."""

from __future__ import annotations
