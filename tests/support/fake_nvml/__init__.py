"""A scripted NVML, so that the inventory is tested through the real ``pynvml`` on hosts without a GPU.

The shared library must be found by the dynamic loader at process start: use :meth:`FakeNvml.environ` for a subprocess.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("libnvidia-ml.c")

# NVML's codes that the scenarios use.
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
UNHEARD_OF = 777


@dataclass(frozen=True)
class FakeGpu:
    """One scripted GPU. ``cores`` are the core ids near it; the three last are NVML codes (0: success)."""

    uuid: str
    name: str = "Test GPU"
    memory_mb: int = 24576
    cores: tuple[int, ...] = ()
    handle_code: int = 0
    memory_code: int = 0
    affinity_code: int = 0

    def line(self) -> str:
        """The GPU as the library's script has it."""
        mask = sum(1 << core for core in self.cores)
        words = [mask >> shift & (2**64 - 1) for shift in range(0, max(mask.bit_length(), 1), 64)]
        return "|".join(
            str(part)
            for part in (
                "gpu",
                self.uuid,
                self.name,
                self.memory_mb * 2**20,
                ",".join(f"{word:x}" for word in words),
                self.handle_code,
                self.memory_code,
                self.affinity_code,
            )
        )


@dataclass(frozen=True)
class FakeNvml:
    """A built library and the folder for its scripts."""

    library_folder: Path
    script_folder: Path
    _scripts: list[Path] = field(default_factory=list)

    def environ(self, gpus: Sequence[FakeGpu] = (), init_code: int = 0) -> dict[str, str]:
        """This process's environment, changed so that a subprocess finds ``gpus`` by NVML."""
        script = self.script_folder / f"nvml-{len(self._scripts)}.txt"
        self._scripts.append(script)
        script.write_text("\n".join([f"init|{init_code}", *(gpu.line() for gpu in gpus)]) + "\n")
        return {**os.environ, "LD_LIBRARY_PATH": str(self.library_folder), "FAKE_NVML_SCRIPT": str(script)}


def build(folder: Path) -> Path:
    """Compile the library into ``folder`` and return that. Without a C compiler: skip here, fail in CI."""
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("the fake NVML needs a C compiler (cc), and CI must have one")
        pytest.skip("no C compiler (cc) for the fake NVML")
    target = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    subprocess.run([*command, "-o", str(target), str(_SOURCE)], check=True)
    return folder


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the compiled library."""
    return build(tmp_path_factory.mktemp("fake-nvml"))


@pytest.fixture
def fake_nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """A scripted NVML for subprocesses of this test."""
    return FakeNvml(nvml_library, tmp_path)
