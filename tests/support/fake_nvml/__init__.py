"""A scripted NVML, so that the inventory is tested through the real ``pynvml`` on hosts without a GPU.

The shared library must be found by the dynamic loader at process start: use :meth:`FakeNvml.environ` for a subprocess.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
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
    """One scripted GPU. ``cores`` are the core ids near it; what ends in ``_code`` is one of NVML's (0: success).

    ``processes``: process id and MB of each that uses it (``None``: the driver does not tell). ``used_mb``: of the
    whole device; ``None``: what its processes use.
    """

    uuid: str
    name: str = "Test GPU"
    memory_mb: int = 24576
    cores: tuple[int, ...] = ()
    handle_code: int = 0
    memory_code: int = 0
    affinity_code: int = 0
    now_code: int = 0
    used_mb: int | None = None
    utilization: int = 0
    temperature: int = 0
    milliwatts: int = 0
    processes: tuple[tuple[int, int | None], ...] = ()

    def now(self, index: int) -> list[str]:
        """What it does now, as the library's script has it."""
        used_mb = sum(mb or 0 for _, mb in self.processes) if self.used_mb is None else self.used_mb
        now = f"now|{index}|{used_mb * 2**20}|{self.utilization}|{self.temperature}|{self.milliwatts}|{self.now_code}"
        return [now, *(f"process|{index}|{pid}|{-1 if mb is None else mb * 2**20}" for pid, mb in self.processes)]

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
        environ = {**os.environ, "LD_LIBRARY_PATH": str(self.library_folder), "FAKE_NVML_SCRIPT": str(script)}
        self.change(environ, gpus, init_code)
        return environ

    def change(self, environ: Mapping[str, str], gpus: Sequence[FakeGpu], init_code: int = 0) -> None:
        """From the next time that the library is opened, processes with ``environ`` find these GPUs."""
        lines = [f"init|{init_code}", *(gpu.line() for gpu in gpus)]
        lines += [line for index, gpu in enumerate(gpus) for line in gpu.now(index)]
        script = Path(environ["FAKE_NVML_SCRIPT"])
        whole = script.with_suffix(".new")
        whole.write_text("\n".join(lines) + "\n")
        whole.replace(script)


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
