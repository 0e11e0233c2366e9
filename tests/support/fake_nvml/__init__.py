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
UNKNOWN = 999

#: What an Xid's instance is where it concerns the whole GPU.
WHOLE = 0xFFFFFFFF


@dataclass(frozen=True)
class FakeSlice:
    """One scripted MIG slice: ``number`` is its place on the GPU, ``instance`` the GPU instance that it is part of."""

    uuid: str
    name: str = "Test GPU MIG 1g.10gb"
    memory_mb: int = 9728
    number: int = 0
    instance: int = 1
    reserved_mb: int = 0
    used_mb: int | None = None
    processes: tuple[tuple[int, int | None], ...] = ()

    def lines(self, parent: str) -> list[str]:
        """The slice as the library's script has it."""
        sizes = f"{self.memory_mb * 2**20}|{self.reserved_mb * 2**20}"
        line = f"slice|{self.uuid}|{self.name}|{sizes}|{parent}|{self.number}|{self.instance}"
        return [line, *_now(self.uuid, self.used_mb, self.processes)]


@dataclass(frozen=True)
class FakeGpu:
    """One scripted GPU. ``cores`` are the core ids near it; what ends in ``_code`` is one of NVML's (0: success).

    ``processes``: process id and MB of each that uses it (``None``: the driver does not tell). ``used_mb``: of the
    whole device; ``None``: what its processes use. ``ecc``, ``rows`` (pending, failed) and ``recovery``: what it tells
    of its health; ``None``: not supported. With ``slices`` MIG is on.
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
    reserved_mb: int = 0
    capability: tuple[int, int] | None = None
    numa: int | None = None
    bus: str = ""
    ecc: int | None = None
    rows: tuple[bool, bool] | None = None
    recovery: int | None = None
    slices: tuple[FakeSlice, ...] = ()

    def lines(self) -> list[str]:
        """The GPU and what it does now, as the library's script has it."""
        major, minor = self.capability or (0, 0)
        pending, failed = (-1, -1) if self.rows is None else (int(self.rows[0]), int(self.rows[1]))
        now = (self.utilization, self.temperature, self.milliwatts, self.now_code)
        return [
            self._line(),
            f"more|{self.uuid}|{self.reserved_mb * 2**20}|{major}|{minor}|{_told(self.numa)}|{self.bus}",
            f"health|{self.uuid}|{_told(self.ecc)}|{pending}|{failed}|{_told(self.recovery)}",
            *_now(self.uuid, self.used_mb, self.processes, *now),
            *(line for one in self.slices for line in one.lines(self.uuid)),
        ]

    def _line(self) -> str:
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


def _told(value: int | None) -> int:
    return -1 if value is None else value


def _now(uuid: str, used_mb: int | None, processes: tuple[tuple[int, int | None], ...], *now: int) -> list[str]:
    used = sum(mb or 0 for _, mb in processes) if used_mb is None else used_mb
    figures = "|".join(str(figure) for figure in now or (0, 0, 0, 0))
    held = (f"process|{uuid}|{pid}|{-1 if mb is None else mb * 2**20}" for pid, mb in processes)
    return [f"now|{uuid}|{used * 2**20}|{figures}", *held]


@dataclass(frozen=True)
class FakeDriver:
    """What is not of one GPU. ``init_code``: what opening the library returns. Another ``generation``: the driver was
    restarted. ``xids``: UUID, Xid and GPU instance of each error that it has reported so far. ``links``: two UUIDs,
    NVML's level of the topology, and whether NVLink joins them. ``pairs_code``: of the query for a pair's NVLink.
    ``listen_code``: of listening to an event set.
    """

    init_code: int = 0
    generation: int = 0
    xids: tuple[tuple[str, int, int], ...] = ()
    links: tuple[tuple[str, str, int, bool], ...] = ()
    pairs_code: int = 0
    listen_code: int = 0

    def lines(self) -> list[str]:
        """As the library's script has it; behind the GPUs."""
        return [
            f"init|{self.init_code}",
            f"driver|{self.generation}",
            f"pairs|{self.pairs_code}",
            f"listen|{self.listen_code}",
            *(f"link|{one}|{other}|{level}|{int(nvlink)}" for one, other, level, nvlink in self.links),
            *(f"xid|{number}|{uuid}|{xid}|{instance}" for number, (uuid, xid, instance) in enumerate(self.xids, 1)),
        ]


@dataclass(frozen=True)
class FakeNvml:
    """A built library and the folder for its scripts."""

    library_folder: Path
    script_folder: Path
    _scripts: list[Path] = field(default_factory=list)

    def environ(
        self, gpus: Sequence[FakeGpu] = (), init_code: int = 0, driver: FakeDriver | None = None
    ) -> dict[str, str]:
        """This process's environment, changed so that a subprocess finds ``gpus`` by NVML."""
        script = self.script_folder / f"nvml-{len(self._scripts)}.txt"
        self._scripts.append(script)
        environ = {**os.environ, "LD_LIBRARY_PATH": str(self.library_folder), "FAKE_NVML_SCRIPT": str(script)}
        self.change(environ, gpus, init_code, driver)
        return environ

    def change(
        self,
        environ: Mapping[str, str],
        gpus: Sequence[FakeGpu],
        init_code: int = 0,
        driver: FakeDriver | None = None,
    ) -> None:
        """From the next time that the library is opened, processes with ``environ`` find these GPUs."""
        become(environ, scripted(gpus, driver or FakeDriver(init_code)))


def scripted(gpus: Sequence[FakeGpu], driver: FakeDriver | None = None) -> str:
    """The library's script for these GPUs."""
    lines = [line for gpu in gpus for line in gpu.lines()] + (driver or FakeDriver()).lines()
    return "\n".join(lines) + "\n"


def become(environ: Mapping[str, str], text: str) -> None:
    """From the next time that the library is opened, processes with ``environ`` have this script."""
    script = Path(environ["FAKE_NVML_SCRIPT"])
    whole = script.with_suffix(f".{os.getpid()}")
    whole.write_text(text)
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
