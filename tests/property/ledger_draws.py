"""What the ledger's machine draws: what is asked for, and what nodes have."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from celery_allocator.model import Requirements

NODES = ("n1", "n2", "n3")
TARGETS = ("n1", "n2", "n3", "n1/gpu_0", "n1/gpu_1", "n2/gpu_0", "n3/cpu", "n1/cpu", "nowhere")

requirements = st.builds(
    Requirements,
    gpu_memory_mb=st.sampled_from([4, 4, 3, 8, 1, 0, 0, 5, 10, 16]),
    cpu_cores=st.sampled_from([1, 1, 2, 3, 4, 9]),
    ram_mb=st.sampled_from([0, 0, 10, 30, 60]),
    priority=st.sampled_from([0, 0, 0, 1, 5, -1, 1000, -1000]),
    expected_runtime_s=st.sampled_from([0, 0, 0, 1, 2, 5]),
    affinity=st.sampled_from(["red", "red", "", "green", "blue"]),
)
#: What few ask for besides amounts.
MORE: tuple[dict[str, Any], ...] = (
    *({},) * 8,
    {"gpu": 0.3},
    {"gpu": 0.5},
    {"exclusive": True},
    {"gpu_model": "Even"},
    {"node": "n1"},
    {"labels": {"zone": "a"}},
    {"labels": {"zone": "c"}},
    {"anti_affinity": "web"},
    {"gpu": 0.25, "gpu_model": "odd", "anti_affinity": "web"},
)
USUAL = (
    {"cores": {0, 1, 2, 3, 4, 5, 6, 7}, "ram": 100, "gpus": [(0, 8, (0, 1, 2)), (1, 8, (4, 5, 8))]},
    {"cores": {0, 1, 2, 4, 5, 7, 9}, "ram": 60, "gpus": [(1, 4, ()), (0, 16, (0, 1, 2))]},
    {"cores": {0, 1, 2, 3, 4, 5}, "ram": 100, "gpus": [(2, 10, (4, 5, 8))]},
    {"cores": {0, 1, 2, 3, 4, 5, 6, 7}, "ram": 100, "gpus": [(0, 16, ()), (1, 8, (0, 1, 2)), (2, 10, ())]},
)
unusual = st.fixed_dictionaries(
    {
        "cores": st.sets(st.integers(0, 9)),
        "ram": st.sampled_from([100, 60, 30, 0]),
        "gpus": st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([4, 8, 10, 16]), st.sampled_from([(), (0, 1, 2), (4, 5, 8)])),
            max_size=3,
            unique_by=lambda gpu: gpu[0],
        ),
    }
)
