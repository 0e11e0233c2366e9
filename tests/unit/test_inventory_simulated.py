"""Simulated GPUs."""

from __future__ import annotations

import pytest

from celery_allocator.errors import SettingsError
from celery_allocator.inventory import discover, simulated
from celery_allocator.model import Link
from celery_allocator.settings import Settings


def test_devices_of_a_group_may_be_joined_by_nvlink() -> None:
    found = discover(Settings(devices="sim:2x100,3x200:nvlink,2x300:NVLink", node="n1"))
    assert [device.memory_mb for device in found.devices] == [100, 100, 200, 200, 200, 300, 300]
    assert set(found.links) == {("gpu_2", "gpu_3"), ("gpu_2", "gpu_4"), ("gpu_3", "gpu_4"), ("gpu_5", "gpu_6")}
    assert found.link("gpu_4", "gpu_2") is Link.NVLINK
    assert found.link("gpu_0", "gpu_1") is found.link("gpu_4", "gpu_5") is Link.OTHER


def test_groups_make_devices_numbered_through() -> None:
    found = simulated.devices("sim:2x24576,1x81920", "host1")

    assert [(d.device_id, d.index, d.uuid, d.memory_mb) for d in found] == [
        ("gpu_0", 0, "GPU-sim-host1-0", 24576),
        ("gpu_1", 1, "GPU-sim-host1-1", 24576),
        ("gpu_2", 2, "GPU-sim-host1-2", 81920),
    ]
    assert {d.model for d in found} == {"Simulated GPU"}
    assert all(d.simulated for d in found)


def test_the_same_spec_gives_the_same_devices_at_every_start() -> None:
    assert simulated.devices("sim:3x100", "a") == simulated.devices("sim:3x100", "a")
    assert not {d.uuid for d in simulated.devices("sim:3x100", "a")} & {
        d.uuid for d in simulated.devices("sim:3x100", "b")
    }


def test_blanks_and_capitals_do_not_matter() -> None:
    assert simulated.devices(" sim:1X100, 1x200 ", "a") == simulated.devices("sim:1x100,1x200", "a")
    assert len(discover(Settings(devices=" SIM:1x100")).devices) == 1


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("sim:", "COUNTxMEMORY"),
        ("sim:2", "COUNTxMEMORY"),
        ("sim:2x", "COUNTxMEMORY"),
        ("sim:x24576", "COUNTxMEMORY"),
        ("sim:-1x24576", "COUNTxMEMORY"),
        ("sim:2x24.5", "COUNTxMEMORY"),
        ("sim:2x24576,", "COUNTxMEMORY"),
        ("sim:2x24576;1x1", "COUNTxMEMORY"),
        ("sim:²x24576", "COUNTxMEMORY"),
        ("sim:0x24576", "1 to 1024 devices"),
        ("sim:1000x1,25x1", "1 to 1024 devices"),
        ("sim:999999999x24576", "1 to 1024 devices"),
        ("sim:1x0", "at least 1 MB"),
        ("sim:1x25769803776", "MB, not bytes"),
    ],
)
def test_a_bad_spec_is_named_with_its_rule_and_the_form(spec: str, rule: str) -> None:
    with pytest.raises(SettingsError) as caught:
        discover(Settings(devices=spec))

    text = str(caught.value)
    assert repr(spec) in text and rule in text and "sim:COUNTxMEMORY" in text and "ALLOCATOR_DEVICES" in text


def test_discover_puts_them_on_the_named_node() -> None:
    inventory = discover(Settings(devices="sim:1x100", node="lab/gpu 7"))

    assert inventory.node == "lab-gpu-7"
    assert inventory.devices[0].uuid == "GPU-sim-lab-gpu-7-0"
    assert inventory.device("0") == inventory.device("gpu_0") == inventory.devices[0]


def test_none_is_no_devices() -> None:
    assert discover(Settings(devices="none")).devices == ()


def test_a_list_without_a_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="name indexes or UUIDs"):
        discover(Settings(devices=" , "))
