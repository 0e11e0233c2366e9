"""The tab in a real browser: over a busy ledger, over one of 200 GPUs, and over real workers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from celery import Celery
from selenium.webdriver.common.keys import Keys

from celery_allocator.ledger import Ledger, connect
from celery_allocator.model import Requirements
from celery_allocator.overview import read_overview
from celery_allocator.settings import Settings
from tests.browser.conftest import Browser
from tests.flower import scene
from tests.flower.conftest import PASSWORD, USER, environment, flower, ledger, server, start
from tests.support import allocator_app
from tests.support.fake_nvml import FakeGpu, FakeNvml, fake_nvml, nvml_library
from tests.support.flower_process import FlowerProcess
from tests.support.processes import ROOT
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFleet

__all__ = ["environment", "fake_nvml", "flower", "ledger", "nvml_library", "server", "start"]  # fixtures

#: Where the pictures of the docs are. ``UPDATE_SCREENSHOTS=1`` writes them anew.
PICTURES = ROOT / "docs" / "images"
LARGEST_PICTURE = 450_000
SOON_S = 45.0


class Tab:
    """The page as it is now."""

    def __init__(self, browser: Browser, flower: FlowerProcess) -> None:
        self.browser = browser
        self.flower = flower

    def open(self, query: str = "", **options: Any) -> Tab:
        url = self.flower.url.replace("http://", f"http://{USER}:{PASSWORD}@")
        self.browser.open(f"{url}/allocator{query}", **options)
        self.until("document.getElementById('alc-fresh').textContent.startsWith('as of')")
        return self

    def ask(self, script: str) -> Any:
        return self.browser.run(f"return {script}")

    def until(self, script: str, what: str = "") -> None:
        wait_until(lambda: self.ask(script), SOON_S, lambda: f"{what or script}: {self.ask('document.body.innerText')}")

    def count(self, name: str) -> int:
        return int(self.ask(f"document.querySelector('[data-count={name}] dd').textContent.replace(/\\D/g, '')"))

    def bar(self, device: str) -> str:
        """What the memory bar of a device tells those who cannot see it."""
        return str(
            self.ask(f"document.querySelector('[data-device=\"{device}\"] .alc-bar').getAttribute('aria-label')")
        )

    def act(self, subject: str, action: str, reason: str = "", value: str = "") -> None:
        """Press the button of a subject, choose an action, and do it."""
        self.browser.run(
            f"""[...document.querySelectorAll('#allocator button[aria-haspopup]')]
            .find((b) => b.getAttribute('aria-label').includes({subject!r})).click();
            const form = document.querySelector('#alc-dialog form');
            form.querySelector('input[value={action}]').click();
            document.getElementById('alc-dialog-reason').value = {reason!r};
            if ({value!r}) document.getElementById('alc-dialog-value').value = {value!r};
            document.getElementById('alc-dialog-yes').click();"""
        )


@pytest.fixture
def tab(browser: Browser, flower: FlowerProcess) -> Tab:
    return Tab(browser, flower)


def test_pictures_of_a_busy_day(tab: Tab, tmp_path: Path) -> None:
    folder = PICTURES if os.environ.get("UPDATE_SCREENSHOTS") else tmp_path
    looks = {"light": (1280, 1440, "light"), "dark": (1280, 1440, "dark"), "phone": (390, 1100, "light")}
    for name, (width, height, scheme) in looks.items():
        tab.open(width=width, height=height, scheme=scheme)
        assert tab.ask("document.documentElement.scrollWidth") == width, "it scrolls sideways"
        path = tab.browser.picture(folder / f"flower-{name}.png")
        assert 20_000 < path.stat().st_size <= LARGEST_PICTURE
    assert tab.browser.messages == []
    asked = {urlsplit(url).netloc.rpartition("@")[2] for url in tab.browser.requests if not url.startswith("data:")}
    assert asked == {urlsplit(tab.flower.url).netloc}


def test_the_page_says_what_the_ledger_says(tab: Tab, ledger: Ledger) -> None:
    tab.open(width=1280)
    seen = read_overview(ledger)
    for name in ("running", "granted", "waiting", "on_hold"):
        assert tab.count(name) == getattr(seen.cluster, name)
    for view in seen.devices:
        if view.device.is_gpu:
            told = tab.bar(view.device.key)
            assert told.endswith(f"of {view.memory.capacity // 1024} GB"), told
            assert ("foreign" in told) == bool(view.memory.foreign)
            assert ("beyond" in told) == bool(view.memory.overused)
    free = tab.ask(
        "document.querySelectorAll('[data-node=gpu-node-1] .alc-measure .alc-cells i:not(.alc-held)').length"
    )
    assert free == len(seen.cluster.nodes[1].cpu_cores_free)
    rows = tab.ask("[...document.querySelectorAll('#alc-waiting tbody tr')].map((r) => r.dataset.allocation)")
    assert rows == [a.allocation_id for a in sorted(ledger.queue(50), key=lambda a: a.queue_position)]


def test_dates_the_reservation_and_tenants_are_seen(tab: Tab, ledger: Ledger) -> None:
    tab.open(width=1280)
    outlook = read_overview(ledger).outlook
    assert outlook.kept is not None
    device, holder = outlook.kept.device, outlook.kept.holder

    def marked(inside: str, whose: str) -> Any:
        found = f"[...document.querySelectorAll('{inside} .alc-kept')]"
        return tab.ask(f"{found}.map((e) => [e.closest('[data-{whose}]').dataset.{whose}, e.innerText])")

    (told,) = marked(".alc-device", "device")
    assert told[0] == device
    assert told[1].startswith(f"◆ kept for {holder.task_name}, until ")
    assert marked("#alc-waiting td", "allocation") == [[holder.allocation_id, f"◆ {device} is kept"]]
    (when, title) = tab.ask("((e) => [e.innerText, e.title])(document.querySelector('#alc-waiting .alc-when'))")
    assert re.fullmatch(r"\d+ (s|min|h) … \d+ (s|min|h)", when), when
    assert re.fullmatch(r"half of such tasks start before [\d:]+, nine of ten before [\d:]+", title), title
    heads = tab.ask("[...document.querySelectorAll('#alc-waiting th')].map((e) => e.innerText)")
    assert heads[:6] == ["#", "Task", "Tenant", "Asks for", "Waits for", "Starts in"]
    tenants = tab.ask("[...document.querySelectorAll('[data-tenant]')].map((e) => e.innerText.split('\\t'))")
    assert [row[0] for row in tenants] == ["llm", "speech", "train", "vision"]
    vision = outlook.tenant("vision")
    assert vision is not None
    reasons = tab.ask("[...document.querySelectorAll('#alc-waiting td.alc-why')].map((e) => e.innerText)")
    assert f"Its tenant vision has {vision.gpu_memory_mb} of at most 69632 MB of GPU memory; it needs 16384." in reasons
    assert tenants[3][4] == f"{vision.gpu_memory_mb // 1024} GB of 68 GB"
    assert tenants[3][7] == f"{vision.tasks} of 20"
    assert tenants[0][1:3] == ["2", f"{round(100 * outlook.tenants[0].share, 1):g} %"]
    assert tab.ask("document.getElementById('alc-dates').innerText").startswith(
        "Dates: 100 % of 8 starts came by their p90, half"
    )


def test_who_is_alone_sees_no_tenants(
    browser: Browser, start: Callable[..., FlowerProcess], server: RedisServer, ledger: Ledger
) -> None:
    alone = connect(Settings(backend_url=server.url, pool="alone"))
    with alone.client:
        scene.node(alone, "n1", 1)
        scene.task(alone, 1, "work", 81920)
        scene.task(alone, 2, "work", 81920)
    tab = Tab(browser, start(f"--basic_auth={USER}:{PASSWORD}", env={"ALLOCATOR_POOL": "alone"}))
    tab.open(width=1280)
    assert tab.count("waiting") == 1
    assert tab.ask("document.getElementById('alc-s-tenants').hidden")
    assert tab.ask("document.getElementById('alc-dates').hidden")
    assert "Tenant" not in tab.ask("[...document.querySelectorAll('#alc-waiting th')].map((e) => e.innerText)")
    assert tab.ask("document.querySelector('#alc-waiting tbody').innerText.includes('not known yet')")
    assert tab.ask("document.querySelectorAll('.alc-kept').length") == 0
    assert browser.messages == []


def test_what_is_seen_of_the_hardware(
    browser: Browser, start: Callable[..., FlowerProcess], server: RedisServer, ledger: Ledger, tmp_path: Path
) -> None:
    """Withheld memory, a GPU that failed, MIG slices, a task on two GPUs, a share, overuse, what was learned."""
    made = connect(Settings(backend_url=server.url, pool="hardware"))
    with made.client:
        scene.hardware(made)
    tab = Tab(browser, start(f"--basic_auth={USER}:{PASSWORD}", env={"ALLOCATOR_POOL": "hardware"}))
    tab.open(width=1280, height=1250)

    def inside(device: str, what: str) -> str:
        return str(tab.ask(f"document.querySelector('[data-device=\"h1/{device}\"] {what}')?.innerText ?? ''"))

    told = tab.bar("h1/gpu_1")
    for part in ("500 MB used beyond the promise", "1.5 GB kept without a task", "8.8 GB foreign", "of 80 GB"):
        assert part in told, told
    assert inside("gpu_1", ".alc-withheld") == (
        "10.7 GB withheld: 8.8 GB foreign, 1.5 GB kept without a task, 500 MB beyond claims"
    )
    assert inside("gpu_2", ".alc-withheld") == inside("gpu_2", ".alc-reason") == ""
    assert inside("gpu_3", ".alc-reason.alc-error") == "Xid 79: the GPU has fallen off the bus"
    assert inside("gpu_3", ".alc-several") == "⇄ train.pair on gpu_2, gpu_3"
    assert inside("gpu_1", ".alc-loaded") == "loaded: sdxl"
    slices = "[...document.querySelectorAll('[data-gpu=gpu_0] [data-device]')].map((e) => e.dataset.device)"
    assert tab.ask(slices) == ["h1/gpu_0_mig_0", "h1/gpu_0_mig_1"]
    assert tab.ask("document.querySelectorAll('.alc-board').length") == 1
    rows = tab.ask("[...document.querySelectorAll('#alc-running tbody tr')].map((e) => e.innerText)")
    assert any("2 × 60 GB GPU" in row and "h1/gpu_2, gpu_3" in row for row in rows)
    assert any("20 GB GPU: 2 cores, 4 GB RAM, 25 % of a GPU" in row for row in rows)
    assert tab.ask("document.querySelector('#alc-running .alc-beyond').title") == "500 MB beyond its promise"
    learned = tab.ask("[...document.querySelectorAll('[data-learned]')].map((e) => e.innerText.split('\\t'))")
    assert learned[0][:5] == ["train.pair", "GPU memory", "60 GB", learned[0][3], "68.4 GB"]
    assert [row[-1] for row in learned] == ["too small", "all busy", "much too large", "much too large"]
    assert tab.ask("document.getElementById('alc-affinity').innerText") == (
        "Affinity: 50 % of 2 grants went to where it was loaded."
    )
    folder = PICTURES if os.environ.get("UPDATE_SCREENSHOTS") else tmp_path
    assert browser.picture(folder / "flower-hardware.png").stat().st_size <= LARGEST_PICTURE
    wide = "document.documentElement.scrollWidth"
    assert tab.ask(wide) == 1280
    tab.open(width=390)
    assert tab.ask(wide) == 390, "it scrolls sideways"
    assert browser.messages == []


def test_a_name_that_would_be_markup_is_text(tab: Tab) -> None:
    tab.open(width=1280)
    assert tab.ask("document.title") == "Allocator · Flower"
    assert tab.ask("[...document.querySelectorAll('#allocator a')].some((a) => a.textContent.startsWith('<script>'))")
    assert tab.ask("document.querySelectorAll('#allocator script').length") == 0


def test_links_lead_to_flowers_pages_and_back(tab: Tab) -> None:
    tab.open(width=1280)
    task = tab.ask("document.querySelector('#alc-running tbody a').getAttribute('href')")
    worker = tab.ask("document.querySelector('[data-device] a').getAttribute('href')")
    assert task.startswith("/task/0000")
    assert worker.startswith("/worker/")
    assert "%40" in worker
    tab.open(f"?text={task.removeprefix('/task/')}", width=1280)
    tab.until("document.getElementById('alc-running-count').textContent.startsWith('1 of ')")


def test_by_keyboard_alone(tab: Tab, ledger: Ledger) -> None:
    tab.open(width=1280)
    body = tab.browser.driver.switch_to.active_element
    visited: list[str] = []
    for _ in range(40):
        body.send_keys(Keys.TAB)
        body = tab.browser.driver.switch_to.active_element
        visited.append(body.get_attribute("aria-label") or body.get_attribute("id") or body.text)
        if "edge-1/gpu_0" in visited[-1]:
            break
    assert visited[0] == "Skip to main content"
    assert {"alc-text", "alc-tenant", "alc-state", "Pause the pool default"} <= set(visited)
    assert visited[-1] == "Uncordon edge-1/gpu_0"
    style = "getComputedStyle(document.activeElement)"
    assert tab.ask(f"{style}.outlineStyle !== 'none' && parseFloat({style}.outlineWidth) > 0"), "the focus is not seen"
    body.send_keys(Keys.ENTER)
    assert tab.ask("document.getElementById('alc-dialog').open")
    assert tab.ask("document.getElementById('alc-dialog').contains(document.activeElement)")
    tab.browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not tab.ask("document.getElementById('alc-dialog').open")
    assert tab.ask("document.activeElement.getAttribute('aria-label')") == "Uncordon edge-1/gpu_0"
    assert ledger.journal() == ()


def test_200_gpus_and_10000_waiting(
    browser: Browser, start: Callable[..., FlowerProcess], server: RedisServer, ledger: Ledger
) -> None:
    big = connect(Settings(backend_url=server.url, pool="big", max_waiting=20_000))
    with big.client:
        for number in range(25):
            scene.node(big, f"node-{number:02}", 8)
        for number in range(1000):
            asked = Requirements(81920 if number < 200 else 1000, 1, 0, tenant="t")
            big.submit(f"a{number}", f"t{number}", f"work.{number % 7}", asked, message=b"-")
        for number in range(1000, 10_200):
            big.submit(f"a{number}", f"t{number}", f"work.{number % 7}", Requirements(81920, 1), message=b"-")
        waiting = big.snapshot().waiting
    tab = Tab(browser, start(f"--basic_auth={USER}:{PASSWORD}", env={"ALLOCATOR_POOL": "big"}))
    tab.open(width=1280)
    assert waiting >= 9_000
    assert tab.count("waiting") == waiting
    assert tab.ask("document.querySelectorAll('[data-device$=gpu_0]').length") == 24
    assert tab.ask("document.getElementById('alc-nodes-pager').innerText").startswith("Earlier\n1 to 24 of 25")
    browser.run("document.querySelector('#alc-waiting-pager button:last-child').click()")
    tab.until("document.querySelector('#alc-waiting tbody td').textContent === '51'")
    type_in = "t.value = 't10199'; t.dispatchEvent(new Event('input', {bubbles: true}))"
    browser.run(f"const t = document.getElementById('alc-text'); {type_in}")
    tab.until(f"document.getElementById('alc-waiting-count').textContent === '1 of {waiting}'")
    assert browser.messages == []


# --- real workers


@pytest.fixture
def app(server: RedisServer) -> Iterator[Celery]:
    """A producer of the pool ``real``."""
    made = allocator_app.make_app(
        broker_url=server.url, result_backend=server.url, allocator_backend_url=server.url, allocator_pool="real"
    )
    made.set_current()
    yield made
    made.close()


def test_over_real_workers(
    browser: Browser,
    app: Celery,
    server: RedisServer,
    environment: dict[str, str],
    start: Callable[..., FlowerProcess],
    fake_nvml: FakeNvml,
    tmp_path: Path,
) -> None:
    """What runs is drawn as it runs, with its real use; and what the page does, workers obey."""
    gpus = [FakeGpu("GPU-aaaa", "Test GPU", 8192), FakeGpu("GPU-bbbb", "Test GPU", 8192)]
    nvml = fake_nvml.environ(gpus)
    library = {key: nvml[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_SCRIPT")}
    host = {**environment, **library, "ALLOCATOR_POOL": "real", "ALLOCATOR_NODE": "host1", "ALLOCATOR_CPU_CORES": "8"}
    often = {"ALLOCATOR_MEASURE_S": "0.1", "ALLOCATOR_HEARTBEAT_S": "0.2", "ALLOCATOR_RAM_MB": "16384"}
    ledger = connect(Settings(backend_url=server.url, pool="real"))
    with ledger.client, closing(WorkerFleet(tmp_path)) as fleet:
        for number in range(2):
            options = ("--gpu", str(number), "-c", "2")
            fleet.start("tests.support.allocator_app", *options, name=f"gpu{number}", env={**host, **often}, wait=False)
        fleet.wait_ready()
        tab = Tab(browser, start(f"--basic_auth={USER}:{PASSWORD}", env={"ALLOCATOR_POOL": "real"}))
        tab.open(width=1280)
        assert tab.count("running") == 0
        for key in ("k1", "k2"):
            app.send_task("zoo.hold", (key,), resources={"gpu_memory_mb": 8192})
        waiting = app.send_task("zoo.hold", ("k3",), resources={"gpu_memory_mb": 4096})
        last = app.send_task("zoo.hold", ("k4",), resources={"gpu_memory_mb": 4096})
        tab.until("document.querySelector('[data-count=running] dd').textContent === '2'")
        tab.until("document.querySelectorAll('#alc-waiting tbody tr').length === 2")
        assert "GPU memory (MB) on all of 2" in tab.ask("document.getElementById('alc-waiting').innerText")
        # What the driver says: one task's process uses more than was promised, and somebody else is there, too.
        child = int(app.backend.client.blpop(["k1:in", "k2:in"], timeout=20)[1])
        at = 0 if child in _family(fleet.workers[0].pid) else 1
        gpus[at] = FakeGpu(gpus[at].uuid, "Test GPU", 10240, processes=((child, 9216), (os.getpid(), 512)))
        fake_nvml.change(nvml, gpus)
        on = f"gpu_{at}"
        label = f"document.querySelector('[data-device=\"host1/{on}\"] .alc-bar').getAttribute('aria-label')"
        tab.until(f"{label}.includes('1 GB used beyond the promise, 512 MB foreign')")
        # It is withheld, and the ledger said so.
        line = f"document.querySelector('[data-device=\"host1/{on}\"] .alc-withheld')?.innerText"
        tab.until(f"{line} === '1.5 GB withheld: 512 MB foreign, 1 GB beyond claims'", line)
        tab.until("document.getElementById('alc-events').innerText.includes('1.5 GB withheld')")
        # Actions: cancelled tasks are revoked for those who wait for them, a drained device gets nothing.
        tab.act(waiting.id, "cancel", "not needed any more")
        wait_until(lambda: app.backend.get_state(waiting.id) == "REVOKED", SOON_S, "the result to say so")
        tab.act("host1/gpu_1", "cordon", "a new driver")
        wait_until(
            lambda: {d.key: d.state for d in ledger.snapshot().devices}["host1/gpu_1"] == "cordoned",
            SOON_S,
            "the device to be cordoned",
        )
        assert [(e.action, e.actor, e.source, e.reason) for e in ledger.journal()] == [
            ("cordon", USER, "flower", "a new driver"),
            ("cancel", USER, "flower", "not needed any more"),
        ]
        tab.until("document.querySelector('[data-device=\"host1/gpu_1\"] .alc-badge').textContent === 'cordoned'")
        tab.act(last.id, "priority", value="9")
        wait_until(lambda: ledger.queue()[0].priority == 9, SOON_S, "the priority to change")
        for key in ("k1", "k2", "k4"):
            app.backend.client.rpush(key, "go")
        assert last.get(timeout=SOON_S) == "k4"
        tab.until("document.querySelector('[data-count=running] dd').textContent === '0'")
        tab.until("document.getElementById('alc-events').innerText.includes('released')")
        assert browser.messages == []
        tab.flower.kill()
        tab.until("document.getElementById('alc-fresh').textContent.startsWith('Flower cannot be reached')")
        ledger.set_state("host1", "ready")


def _family(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}
