"""The examples as their READMEs say to run them: workers by the launcher in one process, ``run.py`` in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_allocator.demo import work
from tests.support.marked import mark, marked
from tests.support.processes import ROOT, OwnedProcess, clean_environment
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run_example(redis_server: RedisServer, pool: str, tmp_path: Path) -> Iterator[Callable[..., list[dict]]]:
    """Start the workers of an example, run its ``run.py``, and return the answers it left."""
    marks = mark()
    launchers: list[OwnedProcess] = []

    def run(folder: str, module: str, *args: str, answers: str) -> list[dict]:
        env = clean_environment(
            {
                **marks,
                "PYTHONPATH": str(ROOT),
                "CELERY_BROKER_URL": redis_server.broker_socket_url + f"?virtual_host={len(folder) % 3 + 5}",
                "CELERY_RESULT_BACKEND": redis_server.broker_socket_url,
                "ALLOCATOR_BACKEND_URL": redis_server.socket_url,
                "ALLOCATOR_POOL": pool,
                "ALLOCATOR_DEVICES": "sim:2x8192",
                "ALLOCATOR_CPU_CORES": "8",
                "ALLOCATOR_WORKER_CPU_CONCURRENCY": "2",
                "ALLOCATOR_AFFINITY_WAIT_S": "120",
            }
        )
        home = EXAMPLES / folder
        argv = [sys.executable, "-m", "celery", "-A", module, "allocator", "workers", "--", "--loglevel", "INFO"]
        launcher = OwnedProcess(argv, tmp_path / "workers.log", env=env, cwd=home)
        launchers.append(launcher)
        launcher.start()
        wait_until(lambda: launcher.output().count(" ready.") == 3, 90, launcher.output)
        output = tmp_path / "output"
        done = subprocess.run(
            [sys.executable, "run.py", "--output", str(output), *args],
            cwd=home,
            env=env,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + launcher.output()[-3000:]
        assert launcher.stop() == 0
        for name in ("gpu0", "gpu1", "cpu"):
            assert f"{name.ljust(4)} │ [launcher] exit code 0" in launcher.output()
        return [json.loads(path.read_text()) for path in sorted(output.glob(answers))]

    yield run
    left = [str(process) for process in marked(marks)]
    for launcher in launchers:
        launcher.kill()
    for process in marked(marks):
        process.kill()
    assert left == []


def test_inference(run_example: Callable[..., list[dict]]) -> None:
    answers = run_example("01_inference", "inference", "--pages", "4", answers="page_*.json")
    assert len(answers) == 4
    assert all(answer["held"]["gpu_memory_mb"] == 2048 for answer in answers)
    assert all(answer["held"]["gpu_id"] in ("gpu_0", "gpu_1") for answer in answers)


def test_rendering(run_example: Callable[..., list[dict]]) -> None:
    answers = run_example("02_rendering", "rendering", "--scenes", "4", answers="picture_*.json")
    held = [answer["held"] for answer in answers]
    assert [each["gpu_memory_mb"] for each in held] == [4096, 4096, 7168, 7168], "the call's requirements win"
    assert all(len(each["cpu_cores"]) == 2 for each in held)


def test_processing_on_cores_alone(run_example: Callable[..., list[dict]]) -> None:
    answers = run_example("03_processing", "processing", "--recordings", "3", answers="recording_*.json")
    assert [answer["held"]["gpu_id"] for answer in answers] == [None] * 3


def test_processing_on_a_gpu_when_the_call_asks(run_example: Callable[..., list[dict]]) -> None:
    args = ("--recordings", "2", "--gpu-memory-mb", "1024")
    answers = run_example("03_processing", "processing", *args, answers="recording_*.json")
    assert all(answer["held"]["gpu_id"] in ("gpu_0", "gpu_1") for answer in answers)


def test_models_settle_on_a_gpu_each(run_example: Callable[..., list[dict]]) -> None:
    """Two words, two GPUs, one process each: whatever comes first is loaded once, and all that follow find it there."""
    answers = run_example("04_models", "surprise", "--texts", "3", answers="text_*.json")
    assert len(answers) == 12
    gpus = {name: {answer["gpu"] for answer in answers if answer["model"] == name} for name in ("prose", "code")}
    assert sorted(len(found) for found in gpus.values()) == [1, 1], gpus
    assert gpus["prose"] != gpus["code"]
    assert sum(not answer["was_loaded"] for answer in answers) == 2


@pytest.mark.parametrize(
    ("folder", "name"),
    [("01_inference", "digits.py"), ("02_rendering", "raytrace.py"), ("03_processing", "spectrum.py")],
)
def test_the_demo_does_the_examples_work(folder: str, name: str) -> None:
    shipped = Path(str(work.__file__)).with_name(name)
    assert shipped.resolve() == (EXAMPLES / folder / name).resolve()


def test_each_example_has_its_parts() -> None:
    folders = sorted(path for path in EXAMPLES.glob("[0-9][0-9]_*") if path.is_dir())
    assert len(folders) == 4
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert {"README.md", "run.py"} <= names and any(name.startswith("test_") for name in names)
        assert "celery_allocator.demo" not in "".join(path.read_text() for path in folder.glob("*.py"))
