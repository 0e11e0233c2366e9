"""JAX, as far as the tests use it: it takes its share of what is free when it is first used."""

from __future__ import annotations

import os

from jax._src import xla_bridge


def devices() -> float:
    """Initialise; returns the share that was taken then."""
    if not xla_bridge._backends:
        xla_bridge._backends["cuda"] = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return xla_bridge._backends["cuda"]
