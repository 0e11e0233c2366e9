"""What is set in a process for a task: threads, devices, caps; in processes of their own, which are left to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_allocator.isolation import Claimed
from tests.support.fake_cuda import SITE, cuda_library
from tests.support.processes import ROOT

__all__ = ["cuda_library"]  # a fixture

START = """
import ctypes, json, os, sys
from contextlib import ExitStack
from celery_allocator.isolation import *
def say(*what): print(json.dumps(what))
def cuda(): return ctypes.CDLL("libcuda.so.1")
"""
Python = Callable[..., list[Any]]


@pytest.fixture
def python(cuda_library: Path) -> Python:
    """Run lines in a Python of its own, with the drivers and frameworks of ``fake_cuda``; returns what it says."""

    def run(code: str, **env: str) -> list[Any]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith(("_THREADS", "_FRACTION", "_CONF", "_LIMIT"))}
        path = os.pathsep.join((str(ROOT), str(SITE)))
        environ = {**kept, "LD_LIBRARY_PATH": str(cuda_library), "PYTHONPATH": path, **env}
        argv = [sys.executable, "-c", START + textwrap.dedent(code)]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_cuda_is_initialised_after_cuinit_and_in_forks(python: Python) -> None:
    assert python("""
        say(cuda_is_initialised(), "libcuda" in open("/proc/self/maps").read())
        cuda()
        say(cuda_is_initialised())
        cuda().cuInit(0)
        say(cuda_is_initialised())
        sys.stdout.flush()
        if os.fork() == 0:
            say(cuda_is_initialised())
        else:
            os.wait()
    """) == [[False, False], [False], [True], [True]]  # fmt: skip


def test_threads_are_limited_for_the_body_where_nobody_has_said_otherwise(python: Python) -> None:
    """numpy's own BLAS by threadpoolctl, PyTorch by its own call, all others by their variables."""
    code = """
        import numpy, threadpoolctl, torch
        def told(): return [
            os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS"), torch.get_num_threads(),
            max(each["num_threads"] for each in threadpoolctl.threadpool_info())]
        threadpoolctl.threadpool_limits(3)
        torch.set_num_threads(3)
        before = told()
        with ExitStack() as undo:
            limit_threads(undo, 2)
            say(told())
        say(told() == before)
    """
    assert python(code) == [[["2", "2", 2, 2]], [True]]
    # The user's own word counts, also for what is loaded already.
    assert python(code, OMP_NUM_THREADS="3") == [[["3", "2", 3, 3]], [True]]


def test_no_framework_is_imported_for_it(python: Python) -> None:
    assert python("""
        with ExitStack() as undo:
            limit_threads(undo, 2)
            cap_gpu_memory(undo, Claimed(2048, [8192]), lambda: [8192])
            free_gpu_memory(RuntimeError("CUDA error: out of memory"))
            say([name for name in ("torch", "cupy", "jax", "tensorflow", "numpy") if name in sys.modules])
            say({k: v for k, v in os.environ.items() if k.endswith(("_FRACTION", "_CONF", "_LIMIT"))})
        say([k for k in os.environ if k.endswith(("_FRACTION", "_CONF", "_LIMIT"))])
    """) == [
        [[]],
        [{
            "PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.187500",
            "CUPY_GPU_MEMORY_LIMIT": str(1536 * 2**20),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.187500",
        }],
        [[]],
    ]  # fmt: skip


def test_what_the_environment_says_already_stays(python: Python) -> None:
    """A cap of the user's own is kept; other options of PyTorch's allocator are, beside ours."""
    code = """
        with ExitStack() as undo:
            cap_gpu_memory(undo, Claimed(2048, [8192]), lambda: [8192])
            say(*(os.environ.get(name) for name in json.loads(os.environ["ASK"])))
    """
    ours = "per_process_memory_fraction:0.187500"
    for own, told in (
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, [f"expandable_segments:True,{ours}", None]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, [None, f"max_split_size_mb:64,{ours}"]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.9"}, [None, "per_process_memory_fraction:0.9"]),
    ):
        ask = json.dumps(["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
        assert python(code, ASK=ask, **own) == [told]
    own = {"CUPY_GPU_MEMORY_LIMIT": "50%", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".3"}
    assert python(code, ASK=json.dumps(list(own)), **own) == [list(own.values())]


def test_a_pytorch_that_does_not_know_the_word_is_not_told_it(python: Python, tmp_path: Path) -> None:
    """Older ones, and those built without CUDA, would not start. Once loaded, an older one is capped by its call."""
    code = """
        with ExitStack() as undo:
            cap_gpu_memory(undo, Claimed(2048, [8192]), lambda: [])
            say(os.environ.get("PYTORCH_ALLOC_CONF"))
        import torch
        with ExitStack() as undo:
            cap_gpu_memory(undo, Claimed(2048, [8192]), lambda: [])
            say(os.environ.get("PYTORCH_ALLOC_CONF"), torch.cuda.get_per_process_memory_fraction())
        say(torch.cuda.get_per_process_memory_fraction())
    """
    for version in ("2.10.1+cu126", "2.11.0+cpu", "nightly"):
        about = tmp_path / version / f"torch-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        told = python(
            code, PYTHONPATH=os.pathsep.join((str(about.parent), str(ROOT), str(SITE))), CUDA_VISIBLE_DEVICES="a"
        )
        assert told == [[None], [None, 0.1875], [1.0]], version


def test_jax_is_given_a_share_of_what_is_free_then(python: Python) -> None:
    assert python("""
        for free in ([4096], [8192, 4096], [1536], [100], []):
            with ExitStack() as undo:
                cap_gpu_memory(undo, Claimed(2048, [8192, 8192]), lambda: free)
                say(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"))
    """) == [["0.375000"], ["0.375000"], ["0.950000"], ["0.950000"], [None]]  # fmt: skip


def test_a_cap_of_the_tasks_own_making_is_left_alone(python: Python) -> None:
    assert python("""
        import cupy, torch
        torch.cuda.set_per_process_memory_fraction(.5)
        cupy.get_default_memory_pool().set_limit(size=7)
        for _ in range(2):
            with ExitStack() as undo:
                cap_gpu_memory(undo, Claimed(2048, [8192]), lambda: [])
                say(torch.cuda.get_per_process_memory_fraction(), cupy.get_default_memory_pool().get_limit())
    """, CUDA_VISIBLE_DEVICES="GPU-a") == [[0.5, 7], [0.5, 7]]  # fmt: skip


def test_who_has_claimed_all_of_it_is_not_capped(python: Python) -> None:
    assert python("""
        with ExitStack() as undo:
            cap_gpu_memory(undo, Claimed(8192, [8192]), lambda: [8192])
            say([k for k in os.environ if k.endswith(("_FRACTION", "_CONF", "_LIMIT"))])
    """) == [[[]]]  # fmt: skip


def test_tensorflow_is_capped_before_it_is_initialised(python: Python) -> None:
    """A module that stands for it; whether the real one obeys was not tried on a GPU."""
    assert python("""
        from types import ModuleType, SimpleNamespace
        tf, context, set_to = ModuleType("tensorflow"), ModuleType("context"), {}
        tf.config = SimpleNamespace(
            LogicalDeviceConfiguration=lambda memory_limit: memory_limit, list_physical_devices=lambda kind: [kind],
            get_logical_device_configuration=set_to.get, set_logical_device_configuration=set_to.__setitem__)
        sys.modules.update({"tensorflow": tf, "tensorflow.python.eager.context": context})
        for claim in (2048, 1024, 4096):
            with ExitStack() as undo:
                cap_gpu_memory(undo, Claimed(claim, [8192]), lambda: [])
            say(set_to["GPU"], kept_cap_mb())
            if claim == 1024:
                context._context = SimpleNamespace(_initialized=True)
                say(kept_cap_mb())
    """) == [[[1536], None], [[512], None], [512], [[512], 512]]  # fmt: skip


def test_a_task_on_several_gpus_sees_exactly_those(python: Python) -> None:
    code = """
        def seen(*uuids, use=False):
            with ExitStack() as undo:
                shown = show_gpus(undo, uuids)
                if use: cuda().cuInit(0)
                return shown, os.environ["CUDA_VISIBLE_DEVICES"]
        say(*(seen("GPU-a"), seen("GPU-a", "GPU-b"), seen("GPU-a")))
        say(seen("GPU-a", *json.loads(os.environ["MORE"]), use=True))
        say(*(seen("GPU-a"), seen("GPU-a", "GPU-b"), seen("GPU-a", "GPU-c")))
    """
    both, one, changes = "GPU-a,GPU-b", "GPU-a", [[[True, "GPU-a"], [True, "GPU-a,GPU-b"], [True, "GPU-a"]]]
    assert python(code, CUDA_VISIBLE_DEVICES=one, MORE='["GPU-b"]') == [
        *changes, [[True, both]], [[False, one], [True, both], [False, one]],
    ]  # fmt: skip
    assert python(code, CUDA_VISIBLE_DEVICES=one, MORE="[]") == [
        *changes, [[True, one]], [[True, one], [False, one], [False, one]],
    ]  # fmt: skip
    # A worker without a GPU, or with simulated ones.
    nothing = [True, ""]
    assert python(code, CUDA_VISIBLE_DEVICES="", MORE="[]") == [[nothing] * 3, [nothing], [nothing] * 3]


@pytest.mark.parametrize(("claim", "cap"), [(8192, 7680), (1025, 513), (1024, 512), (600, 300), (1, 1)])
def test_a_cap_leaves_room_for_the_context_and_half_of_the_claim(claim: int, cap: int) -> None:
    assert Claimed(claim, (8192,)).cap_mb == cap
