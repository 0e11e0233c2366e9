"""What ``top`` shows of tenants, dates and what is kept for whom."""

from __future__ import annotations

import json
import re
from typing import Any

from celery_allocator.model import Kind, Requirements
from celery_allocator.surfaces.terminal import plain
from celery_allocator.surfaces.terminal.frame import Ask, look
from celery_allocator.surfaces.terminal.keys import subject
from tests.flower import scene
from tests.terminal.conftest import LivePool
from tests.terminal.piloted import Piloted, piloted, run

TRAIN, CAPPED = f"alloc_{204:032x}", f"alloc_{206:032x}"


def columns(line: str) -> list[str]:
    return line.split()


def test_dates_reasons_and_the_reservation_at_80_by_24(cluster: LivePool, reach: dict[str, str]) -> None:
    scene.turns(cluster.ledger)

    async def read() -> None:
        async with piloted(reach) as top:
            await top.wait_for("2 running", "3 waiting", "2 tenants", "dates: 100% by their p90, half off by <")
            await top.wait_for("llm.train", "llm.eval", "tenant cap", "kept room", "gpu_0 ◆")
            assert {len(line) for line in top.lines} == {80}
            train = top.line(" llm.train")
            assert columns(train)[0].startswith("◆")
            assert columns(train)[-2:] == ["GPU", "mem"]
            assert re.fullmatch(r"9m…(18|19|20)m", columns(train)[-3])  # ten minutes at most, by what was said
            assert top.line("llm.eval").rstrip().endswith("kept room")
            capped = next(line for line in top.lines if line.rstrip().endswith("tenant cap"))
            assert "vision.capt" in capped and "◆" not in capped
            (device,) = [line for line in top.lines if "gpu_0 ◆" in line]
            assert "40.0G/80.0G GPU" in device
            # Of the selected one: what is kept for it, its dates, its tenant.
            await _select(top, TRAIN)
            await top.wait_for("n1/gpu_0 is kept for it until ", "for text")
            kept = cluster.ledger.reservation()
            assert kept is not None and kept.device == "n1/gpu_0" and kept.starts_at is not None
            await top.press("enter")
            await top.wait_for("reservation", "estimated start", " … ")
            await top.press("escape")
            await _select(top, CAPPED)
            await top.wait_for("Its tenant vision has 65536 of at most 66000 MB of GPU memory; it needs 8192.")
            # The device says so, too.
            await top.press("tab", "home", "down")
            await top.wait_for("kept for llm.train")

    run(read)


async def _select(top: Piloted, name: str) -> None:
    """Go down the table in use to that row, and wait until its details stand below."""
    panel = top.app._panel
    assert panel is not None
    await top.press("home")
    for row in range(panel.rows.row_count):
        await top.until(lambda row=row: panel.rows.cursor_row == row, lambda: top.text)  # type: ignore[misc]
        if subject(panel.selected)[0] == name:
            break
        await top.press("down")
    await top.until(lambda: name in "\n".join(top.lines[-4:]), lambda: f"{name} on\n{top.text}")


def test_tenants_by_a_key(cluster: LivePool, reach: dict[str, str]) -> None:
    scene.turns(cluster.ledger)

    async def act() -> None:
        async with piloted(reach) as top:
            await top.wait_for("2 tenants")
            assert "TENANTS" not in top.text
            await top.press("t")
            await top.wait_for("TENANTS  2 tenants", "WEIGHT")
            await top.press("down")
            await top.wait_for("GPU memory 65536 MB of at most 66000 MB")
            assert {len(line) for line in top.lines} == {80}
            vision, text = (next(row for row in top.lines if row.startswith(f"{n} ")) for n in ("vision", "text"))
            assert columns(vision)[:2] == ["vision", "2"]
            assert "64.0G/64.5G" in vision and "4" in vision and "2/8" in vision
            assert columns(text)[:4] == ["text", "1", "0.0%", "2"]
            await top.press("home", "enter")
            await top.wait_for("tenant text", "weight")
            await top.press("escape", "t")
            await top.until(lambda: "TENANTS" not in top.text, lambda: top.text)
            assert top.app._panel is not None and top.app._panel.table.name == "queue"

    run(act)


def test_one_who_is_alone_sees_no_tenants(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("n1", gpus=(10_000,), lease_s=600)
    cluster.running(4_000, 1)

    async def read() -> None:
        async with piloted(reach) as top:
            await top.wait_for("1 running")
            assert "tenant" not in top.text and "dates" not in top.text
            await top.press("t")
            await top.wait_for("TENANTS  0 tenants")

    run(read)


def test_as_text_and_as_data(cluster: LivePool) -> None:
    scene.turns(cluster.ledger)
    frame = look(cluster.ledger, Ask())
    text = plain.drawn(frame, 120)
    assert "TENANTS  2 tenants" in text
    assert "dates: 100% by their p90" in text
    told: dict[str, Any] = json.loads(json.dumps(frame.as_dict()))
    assert [tenant["name"] for tenant in told["tenants"]] == ["text", "vision"]
    assert told["reservation"]["allocation_id"] == TRAIN
    assert told["accuracy"]["scored"] == 1
    rows = {row["id"]: row for row in told["queue"]["rows"]}
    assert [name for name, row in rows.items() if row["holds_reservation"]] == [TRAIN]
    assert rows[TRAIN]["estimated_start_at"] < rows[TRAIN]["estimated_start_p90_at"]
    assert rows[CAPPED]["reason"]["code"] == "cap"


def test_what_is_withheld_closed_and_shared(cluster: LivePool, reach: dict[str, str]) -> None:
    scene.hardware(cluster.ledger)

    async def read() -> None:
        async with piloted(reach, size=(120, 30)) as top:
            await top.wait_for("3 running", "gpu_0_mig_0", "gpu_0_mig_1")
            assert "_2, gpu_3" in top.line("train.pair")
            assert "2×60G" in top.line("train.pair")
            assert top.line(" draining").split()[0] == "gpu_3"
            # Claimed, and what is in use beyond that: 40 GB of two shares, 11 GB withheld.
            assert "50.7G/80.0G GPU" in top.line("  gpu_1  "), top.text
            assert "!" in next(line for line in top.lines if "llm.shared" in line and "20.5G" in line)
            await top.press("tab", "home", "down", "down", "down")
            await top.wait_for("1.5G kept without a task", "8.8G by others", "500M beyond the promise")
            await top.press("enter")
            await top.wait_for("withheld", "9,000 MB of h1/gpu_1 are used by processes that")
            await top.press("escape", "down", "down")
            await top.wait_for("Xid 79: the GPU has fallen off the bus")
            await top.press("enter")
            await top.wait_for("draining: Xid 79", "train.pair on h1/gpu_2, gpu_3")

    run(read)


def test_several_gpus_are_told_as_several(cluster: LivePool, reach: dict[str, str]) -> None:
    cluster.node("n1", gpus=(40_960, 40_960), lease_s=600)
    asked = Requirements(40_960, 2, 2048, gpu_count=2)
    for name in ("pair", "next"):
        cluster.ledger.submit(name, f"t-{name}", "lease", asked, kind=Kind.MANUAL, ttl_s=600)

    async def read() -> None:
        async with piloted(reach) as top:
            await top.wait_for("1 running", "1 waiting")
            assert "2×40G   2c  2.0G" in top.text
            assert "_0, gpu_1" in top.line("t-pair")
            await top.press("enter")
            await top.wait_for("2 × 40960 MB GPU, 2 cores, 2048 MB RAM")
            # It is found by each of its devices.
            await top.press("escape", "slash")
            await top.type("n1/gpu_1")
            await top.press("enter")
            await top.wait_for("/n1/gpu_1", "RUNNING, GRANTED  1 task", "t-pair")

    run(read)
