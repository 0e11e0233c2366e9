"""The demo's parts: its checks catch what is wrong, its display shows what is there, its signals are not lost."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from celery_allocator.demo import jobs as demo_jobs
from celery_allocator.demo.checks import Record, check_capacity, check_outputs, peaks, read_records
from celery_allocator.demo.command import demo
from celery_allocator.demo.jobs import Folders, Job, kinds, prepare
from celery_allocator.demo.live import PlainDisplay, display, line, table
from celery_allocator.demo.session import Interrupted, Interrupts, environment
from celery_allocator.demo.summary import summarise, text
from celery_allocator.demo.view import View, Watcher
from celery_allocator.demo.work import digits, raytrace, spectrum
from celery_allocator.model import (
    Allocation,
    ClusterState,
    DeviceState,
    Kind,
    NodeState,
    Requirements,
    State,
    Strategy,
)

GPU = DeviceState("n", "gpu_0", "GPU-x", "model", 8192, 2048, "ready", "w@n", "q", 4, 2, ("a", "b"))
CPU = DeviceState("n", "cpu", "", "", 0, 0, "ready", None, "q", 0, 0, ())
NODE = NodeState("n", tuple(range(8)), (5, 6, 7), 16384, 16000, "ready", (GPU, CPU))
CLUSTER = ClusterState("demo", 1000.0, (NODE,), (), 0, 1, 0, 1)


def record(job: str, start: float, end: float, *, memory: int = 4096, cores: tuple[int, ...] = (0, 1)) -> Record:
    return Record(job, f"id-{job}", "n", "gpu_0", memory, cores, 256, 1, start - 2, start - 0.1, start, end)


def allocation(task_id: str, state: State, **changes: object) -> Allocation:
    need = Requirements(gpu_memory_mb=4096, cpu_cores=2)
    base = Allocation(f"alloc_{task_id}", task_id, "demo.rendering", state, Kind.TASK, need, Strategy.BEST_FIT, 990.0)
    return replace(base, **changes)


# --- input


def test_kinds_are_mixed_by_their_shares() -> None:
    assert {kind: kinds(60).count(kind) for kind in set(kinds(60))} == {
        "inference": 24,
        "rendering": 24,
        "processing": 12,
    }
    assert len(set(kinds(10)[:4])) > 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, list[Job]]:
    folders = Folders(tmp_path_factory.mktemp("demo"))
    for folder in (folders.inputs, folders.outputs, folders.records):
        folder.mkdir()
    return folders, prepare(folders, 10, 3, 8192, lambda _: None)


def test_input_is_real_files_that_every_gpu_can_hold(prepared: tuple[Folders, list[Job]]) -> None:
    _, jobs = prepared
    assert len({job.name for job in jobs}) == 10
    assert all(job.source.stat().st_size > 500 for job in jobs)
    assert all(job.resources.get("gpu_memory_mb", 0) <= 8192 for job in jobs)
    assert {job.kind for job in jobs} == {"inference", "rendering", "processing"}


def test_small_gpus_get_small_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    untrained = digits.train(samples=100, epochs=0)
    monkeypatch.setattr(demo_jobs.digits, "train", lambda seed: untrained)
    folders = Folders(tmp_path)
    folders.inputs.mkdir()
    jobs = prepare(folders, 20, 1, 1000, lambda _: None)
    assert max(job.resources.get("gpu_memory_mb", 0) for job in jobs) == 750


# --- checks


def work(job: Job) -> None:
    """What a worker would do for this job."""
    if job.kind == "inference":
        network = digits.Network.load(Path(job.arguments[1]))
        job.output.write_text(json.dumps(digits.read_page(job.source, network)))
    elif job.kind == "rendering":
        raytrace.render(job.source, job.output)
    else:
        job.output.write_text(json.dumps(spectrum.analyse(job.source, job.output.with_suffix(".png"))))


def test_right_outputs_pass_and_wrong_ones_are_named(prepared: tuple[Folders, list[Job]]) -> None:
    _, jobs = prepared
    one = {kind: next(job for job in jobs if job.kind == kind) for kind in ("inference", "rendering", "processing")}
    for job in one.values():
        work(job)
    assert check_outputs(one.values()) == []

    reading = json.loads(one["inference"].output.read_text())
    reading["labels"] = [(label + 1) % 10 for label in reading["labels"]]
    one["inference"].output.write_text(json.dumps(reading))
    other = next(job for job in jobs if job.kind == "rendering" and job is not one["rendering"])
    raytrace.render(other.source, one["rendering"].output, samples=4)
    one["processing"].output.write_text(json.dumps({"notes": ["A4"] * 120}))
    wrong = check_outputs(one.values())
    assert [fault.split(":")[0] for fault in wrong] == [job.name for job in one.values()]
    assert "off its scene" in wrong[1]


def test_missing_and_broken_outputs_are_wrong(prepared: tuple[Folders, list[Job]]) -> None:
    _, jobs = prepared
    job = next(job for job in jobs if job.kind == "rendering")
    job.output.unlink(missing_ok=True)
    assert "FileNotFoundError" in check_outputs([job])[0]
    Image.new("RGB", (10, 10)).save(job.output)
    assert "pixels" in check_outputs([job])[0]


def test_a_job_that_ran_twice_or_never_is_wrong(prepared: tuple[Folders, list[Job]]) -> None:
    folders, jobs = prepared
    facts = {
        "task_id": "t",
        "node": "n",
        "device": "gpu_0",
        "gpu_memory_mb": 1,
        "cpu_cores": [0],
        "ram_mb": 1,
        "submitted_at": 1.0,
        "granted_at": 3.0,
        "from": 3.0,
        "to": 4.0,
    }
    for token in (1, 2):
        (folders.records / f"{jobs[0].name}.{token}.json").write_text(json.dumps({**facts, "token": token}))
    (folders.records / f"{jobs[1].name}.3.json").write_text(json.dumps({**facts, "token": 3}))
    records, wrong = read_records(jobs[:3])
    assert wrong == [f"{jobs[0].name} ran 2 times", f"{jobs[2].name} ran 0 times"]
    assert [each.token for each in records] == [1, 2, 3]
    assert records[0].wait_s == 2.0


def test_more_memory_than_there_is_is_found() -> None:
    fits = [record("a", 10, 20, cores=(0,)), record("b", 10, 20, cores=(1,)), record("c", 20, 30, cores=(2,))]
    assert check_capacity(fits, CLUSTER) == [], "what ends as another begins does not overlap it"
    over = [*fits, record("d", 15, 16, cores=(3,))]
    assert check_capacity(over, CLUSTER) == ["n/gpu_0 memory: 12288 MB held at once, of 8192"]


def test_a_core_held_twice_is_found() -> None:
    long = record("a", 10, 30, memory=1, cores=(4,))
    short = record("b", 11, 12, memory=1, cores=(5,))
    late = record("c", 29, 31, memory=1, cores=(4, 5))
    assert check_capacity([late, short, long], CLUSTER) == ["n core 4: held by a and c at once"]


def test_peaks() -> None:
    found = peaks([record("a", 1, 3), record("b", 2, 4)], CLUSTER)
    held = {peak.resource: (peak.held, peak.capacity) for peak in found}
    assert held == {"n/gpu_0 memory": (8192, 8192), "n cores": (4, 8), "n RAM": (512, 16384)}


# --- summary and display


class Snapshots:
    """In the place of a ledger: always the same state."""

    def __init__(self, *waiting: Allocation) -> None:
        self.waiting = waiting

    def snapshot(self) -> ClusterState:
        return CLUSTER

    def queue(self, limit: int = 100) -> tuple[Allocation, ...]:
        return self.waiting

    def held(self) -> tuple[Allocation, ...]:
        return (allocation("r", State.RUNNING, node="n", device_id="gpu_0", cpu_cores=(0, 1), started_at=995.0),)


def look() -> tuple[Watcher, View]:
    waiting = [
        allocation("w1", State.WAITING, queue_position=1, estimated_start_at=1004.5),
        allocation("w2", State.WAITING, queue_position=2),
    ]
    watcher = Watcher(Snapshots(*waiting), {"r": "rendering_00", "w1": "rendering_01"}, 4)  # type: ignore[arg-type]
    return watcher, watcher.look(1, 0)


def test_watcher_keeps_the_first_estimate_and_the_longest_line() -> None:
    watcher, _ = look()
    watcher.ledger = Snapshots(allocation("w1", State.WAITING, estimated_start_at=2000.0))  # type: ignore[assignment]
    watcher.look(2, 0)
    assert watcher.estimates == {"w1": 1004.5}
    assert watcher.most_waiting == 2


def test_the_table_shows_devices_running_and_waiting() -> None:
    _, view = look()
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(table(view))
    shown = console.export_text()
    for part in ("1 of 4 done", "n/gpu_0", "6144/8192 MB", "2/8", "2/4", "rendering_00", "0,1", "5.0 s"):
        assert part in shown, part
    assert "rendering_01" in shown and "4.5 s" in shown
    assert "not known yet" in shown
    assert "no worker" in shown, "the CPU device has none here"


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    _, view = look()
    stream = io.StringIO()
    plain = PlainDisplay(stream)
    for _ in range(50):
        plain.show(view)
    assert stream.getvalue().count("\n") == 1
    plain.show(replace(view, done=4))
    assert stream.getvalue().count("\n") == 2
    assert "gpu_0 6144/8192 MB" in line(view)
    assert "2 FAILED" in line(replace(view, failed=2))


def test_without_a_terminal_the_display_is_plain() -> None:
    with display(io.StringIO()) as shown:
        assert isinstance(shown, PlainDisplay)


def test_summary() -> None:
    watcher, _ = look()
    watcher.estimates["id-b"] = 11.0
    found = summarise([record("a", 2, 3), record("b", 12, 14)], watcher, CLUSTER, 30.0, "/out", [])
    assert found.ok
    assert found.per_device == {"n/cpu": 0, "n/gpu_0": 2}
    assert (found.waited, found.longest_wait_s) == (2, 1.9)
    assert found.median_estimate_error_s == pytest.approx(0.9)
    assert "All right" in text(found)
    wrong = replace(found, wrong=("core 4 held twice",))
    assert not wrong.ok and "WRONG (1)" in text(wrong) and "core 4 held twice" in text(wrong)
    assert json.loads(json.dumps(wrong.as_dict()))["ok"] is False


def test_summary_of_nothing() -> None:
    watcher, _ = look()
    assert "0 tasks" in text(summarise([], watcher, CLUSTER, 1.0, "/out", ["nothing ran"]))


# --- signals and environment


def test_a_signal_is_raised_once() -> None:
    interrupts = Interrupts()
    with pytest.raises(Interrupted) as caught, interrupts.handled():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


def test_a_signal_is_deferred_and_a_second_one_changes_nothing() -> None:
    interrupts = Interrupts()
    finished = False
    with interrupts.handled():
        with pytest.raises(Interrupted), interrupts.deferred():  # noqa: PT012 (what is within has to finish)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            finished = True
        interrupts.finish()
        os.kill(os.getpid(), signal.SIGTERM)
    assert finished


class Finalized:
    """Does something when it is dropped."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def test_a_signal_lost_in_a_finalizer_is_raised_by_the_next_check_and_not_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))
    usual = sys.unraisablehook
    interrupts = Interrupts()
    with interrupts.handled():
        Finalized(lambda: os.kill(os.getpid(), signal.SIGTERM))
        Finalized(lambda: {}["not ours"])
        with pytest.raises(Interrupted):
            interrupts.check()
    assert reported == [KeyError]
    assert sys.unraisablehook is usual


def test_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().handled():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_environment_hides_the_users_settings_and_puts_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOCATOR_DEVICES", "0")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://")
    with environment({"ALLOCATOR_POOL": "demo"}):
        assert "ALLOCATOR_DEVICES" not in os.environ
        assert "CELERY_BROKER_URL" not in os.environ
        assert os.environ["ALLOCATOR_POOL"] == "demo"
    assert os.environ["ALLOCATOR_DEVICES"] == "0"
    assert "ALLOCATOR_POOL" not in os.environ


# --- the command


def test_help_needs_no_extra() -> None:
    done = CliRunner().invoke(demo, ["--help"])
    assert done.exit_code == 0 and "--devices" in done.output


def test_no_gpu_is_an_error_that_names_a_way(tmp_path: Path) -> None:
    done = CliRunner().invoke(demo, ["--devices", "none", "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "sim:2x8192" in done.output
