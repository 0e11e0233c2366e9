"""The command that shows what this host's workers would find: devices, where they sit, and whether they are well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from celery_allocator.errors import InventoryError
from celery_allocator.inventory import GpuHealth, discover, read_health
from celery_allocator.model import DeviceInventory, Link, NodeInventory
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json

_LINKS = {
    Link.NVLINK: "NVLink",
    Link.SWITCH: "PCIe switch",
    Link.BRIDGE: "host bridge",
    Link.NUMA: "NUMA node",
    Link.OTHER: "none of these",
}


@click.command()
@json_option
@pass_console
def devices(console: Console, *, as_json: bool) -> None:
    """What this host offers under its settings: GPUs and MIG slices, where they sit, how near they are, their health.

    Asks the driver, and no ledger. MB are what a process can get: without what the driver keeps for itself.
    """
    here = discover(console.settings)
    health = {device.device_id: _health(device) for device in here.devices}
    if as_json:
        print_json(_plain(here, health))
        return
    click.echo(f"{here.node}: {len(here.cpu_cores)} cores ({_ranges(here.cpu_cores)}), {here.ram_mb} MB RAM")
    if not here.devices:
        click.echo("No GPUs. ALLOCATOR_DEVICES=sim:2x24576 simulates two.")
        return
    click.echo(f"\n{_table(here, health)}")
    if here.links:
        pairs = ((*pair, _LINKS[link]) for pair, link in sorted(here.links.items()))
        click.echo("\n" + text.table(("DEVICE", "AND", "JOINED BY"), pairs))


def _table(here: NodeInventory, health: dict[str, GpuHealth | str | None]) -> str:
    return text.table(
        ("--gpu", "DEVICE", "MB", "KEPT MB", "COMPUTE", "NUMA", "CORES NEAR", "HEALTH", "MODEL", "UUID"),
        (
            (
                d.number,
                d.device_id,
                d.memory_mb,
                d.reserved_mb,
                d.compute_capability,
                d.numa_node,
                _ranges(d.cpu_affinity) or None,
                _words(health[d.device_id]),
                d.model,
                d.uuid,
            )
            for d in here.devices
        ),
    )


def _health(device: DeviceInventory) -> GpuHealth | str | None:
    """What the driver says, or why it says nothing; ``None``: it is simulated."""
    if device.simulated:
        return None
    try:
        return read_health(device.uuid)
    except InventoryError as error:
        return str(error)


def _words(health: GpuHealth | str | None) -> str | None:
    if health is None or isinstance(health, str):
        return health
    told = [
        f"asks for: {health.recovery}" if health.recovery else "",
        "bad memory not remapped" if health.rows_failed else "",
        "memory remapped after the next reset" if health.rows_pending else "",
        f"{health.ecc_uncorrected} uncorrectable memory errors" if health.ecc_uncorrected else "",
    ]
    return ", ".join(filter(None, told)) or "well"


def _plain(here: NodeInventory, health: dict[str, GpuHealth | str | None]) -> dict[str, Any]:
    return {
        "node": here.node,
        "cpu_cores": here.cpu_cores,
        "ram_mb": here.ram_mb,
        "devices": [
            {**asdict(device), "number": device.number, "health": _health_dict(health[device.device_id])}
            for device in here.devices
        ],
        "links": [{"devices": pair, "link": link.name.lower()} for pair, link in sorted(here.links.items())],
    }


def _health_dict(health: GpuHealth | str | None) -> dict[str, Any] | None:
    if health is None:
        return None
    if isinstance(health, str):
        return {"error": health}
    told = asdict(health)
    told.pop("xids")  # these are told to who listens
    return told


def _ranges(cores: Iterable[int]) -> str:
    """``0-3,8``."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and parts[-1][1] == core - 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


COMMANDS: tuple[click.Command, ...] = (devices,)
