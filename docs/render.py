"""Render the reference pages from the code: ``python docs/render.py`` writes them, ``--check`` compares.

Settings come from their table, commands from click, keys from the ledger's table of keys, events from the Lua scripts
that write them, and Python from signatures and docstrings (``render_python.py``). A test compares what is committed
with what the code says.
"""

# ruff: noqa: INP001, T201

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import render_python
from celery import Celery
from celery.worker.control import Panel

from celery_allocator import install
from celery_allocator.allocating.command import allocate
from celery_allocator.ledger import keys, scripts
from celery_allocator.metrics.table import METRICS, PREFIX
from celery_allocator.model import FIELDS, LABELS, OTHERS, TASK_TYPES
from celery_allocator.settings import table
from celery_allocator.surfaces.cli import allocator

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Rendered from the code by docs/render.py: change the code, then run it. -->\n"
WIDTH = 88

#: What each entry of the event stream means. An event that is missing here cannot be rendered.
EVENTS = {
    "delayed": "Submitted with an ETA that lies ahead.",
    "waiting": "Joined the line: nothing had room, or its ETA has come. `estimate` and `estimate_p90`: by when it "
    "starts in one of two cases, and in nine of ten (ms; empty: nobody knows).",
    "granted": "Got a device, cores and RAM. `cores` are their ids; `shape` is GPU MB, cores, RAM MB, kind, and how "
    "many GPUs if several; `devices`: all of these. `warm`: whether its affinity was loaded there (`hit`) or not "
    "(`miss`).",
    "started": "Passed the gate of its worker: the task runs.",
    "released": "Ended and gave everything back. `outcome`: `success`, `failure`, `ttl`, …; `held_ms`: run time; "
    "`error`: class of the exception, where a task failed; `peak_gpu_mb`, `peak_ram_mb`: the most that the run used, "
    "and `cpu_milli`: thousandths of a core that it kept busy, each where it was measured.",
    "requeued": "Given back by its worker (a rejected delivery, say) and in line again.",
    "republished": "Granted, but not started within the deadline: its message is published again, with the same token.",
    "withdrawn": "Granted, but not started, and taken back (drain, or its worker left): in line again.",
    "grown": "Ran out of GPU memory, and is in line again with a larger claim. `from` and `to`: MB of each GPU before "
    "and now; `oom_retries`: how often that was done.",
    "cancelled": "Ended before it started, or by hand. `from`: the state it was in.",
    "held": "Put on hold: it keeps its place, and is not granted. `by`: who holds it; `from`: the state it was in.",
    "unheld": "No longer on hold. `to`: delayed again, or in line (and granted at once, perhaps).",
    "breaker": "The circuit breaker of a task name (`id`) is `open`, `half-open` or `closed`.",
    "priority": "Has another priority, and its place in line with it.",
    "moved": "Moved before the first in line, or back. `from`: its number in line before (0: not in line); "
    "`position`: after.",
    "reserved": "Is the first in line that does not fit, and has something kept for it: on the node of `device` nobody "
    "passes it any more who would delay it. `until`: when it fits by the run times of what runs there (ms; empty: "
    "nobody knows, so the device is emptied).",
    "restored": "An operator's cancel, release or allocate was undone or redone: it is back. `to`: the state it had, "
    "or `waiting` where its place is taken.",
    "expired": "Its expiry passed before it started. `from`: the state it was in.",
    "renewed": "An allocation made by hand lives `ttl_ms` longer from now on.",
    "overuse": "Runs, and uses more than it was promised: `resource` is `gpu_memory_mb` or `ram_mb`. `action`: `warn`, "
    "or `kill` where its process was killed, so that it ends with `error` `ResourceOveruse`.",
    "settled": "The result of a task that ended in the ledger was written, and its record forgotten.",
    "lost": "Its process or worker died while it ran. `again`: 1 if it is in line again, 0 if it ended with that.",
    "node": "A host told what it has, for the first time or changed. `id` is the host; `gpu_memory_mb`: of each, as "
    "`gpu_0:24576 …`; `states`: of each device, as `gpu_0:ready:1 …`, with 0 for offline.",
    "node_lost": "Nobody renewed the host's lease: its devices are offline. `id` is the host.",
    "worker": "A worker began to serve a device. `id` is the worker; `state` is the device's.",
    "closing": "A worker is shutting down: it finishes what it runs and gets nothing new.",
    "left": "A worker left in order.",
    "worker_lost": "A worker's lease ran out: what it ran is lost.",
    "parked": "Its message cannot be read: kept for an operator, and its result says so. `from`: the state it was in.",
    "audit": "A worker's look at a part of the ledger found `differences`. `id` is the node that was looked at.",
    "repaired": "An operator had everything that is counted rebuilt. `left`: contradictions that could not be mended.",
    "discarded": "An operator forgot a parked message.",
    "epoch": "The server behind the ledger is another than before (restart, failover). `away_ms`: time without one.",
    "paused": "Nothing is granted before every worker has reported what it runs, and not before `until`; with `by`, "
    "before an operator resumes it.",
    "resumed": "All have reported, or the operator (`by`) has resumed it: granting goes on.",
    "reclaimed": "A worker reported that it runs this, and the ledger did not know. `from`: what it was there.",
    "cordoned": "A node or device was closed to new work. `id` is its name; `reason`: as whoever did it said.",
    "draining": "The same, and what had not started was taken back.",
    "uncordoned": "A node or device takes work again.",
    "withheld": "What is in use of it and no claim accounts for has changed by 64 MB or more, or to or from nothing. "
    "`id`: a device (its GPU memory) or a node (its RAM); `withheld_mb`: all of that, taken off what is free; of it, "
    "`foreign_mb`: by processes that are not ours, `leftover_mb`: by workers' processes without a task, `overuse_mb`: "
    "by tasks beyond their claims; `pids_hidden`: 1 where the driver's process ids mean nothing "
    "([how](../howto/shared-gpus.md)).",
    "tenant": "Has another weight or other caps. `id` is the tenant (empty: what names none); `quota`: JSON, empty for "
    "none; its `by` says whether `settings` or an `operator` set it.",
    "operated": "An operator acted. `id`: what on (`node:n1`, `allocation:alloc_…`, `pool`); `entry`: its number in "
    "the journal; `state`: `done`, `undone` or `redone`; `before` and `after`: JSON.",
}


SETTINGS_INTRO = """# Settings

Each setting has two names: one in `app.conf` and one in the environment. The environment wins, so that one host of
many can differ. Under Django's namespace `CELERY` the first name is `CELERY_ALLOCATOR_…`.

Times are in seconds, sizes in MB (2^20 bytes). A mapping in the environment is JSON. `celery-allocator settings` shows
what is in force and where it comes from.

| in `app.conf` | in the environment | type | default | meaning |
|---|---|---|---|---|"""

COMMANDS_INTRO = """# Commands

`celery -A proj allocator …` and `celery-allocator …` are one group of commands: the first takes its settings from the
app, the second from the environment and its options.

## celery worker --gpu

`install(app)` adds one option to `celery worker`:
"""

REMOTE_INTRO = """## celery inspect, celery control

`install(app)` also teaches workers commands of [remote control](../howto/remote-control.md):

| command | meaning |
|---|---|"""

KEYS_INTRO = """# Keys of the ledger

Every key begins with `{prefix}`. The part in braces is a hash tag: a Redis Cluster keeps the whole ledger of a pool on
one shard. A name that ends in `:` is a family with one key per member. Nothing in the code spells a key anywhere else.

| key | type | holds |
|---|---|---|"""

EVENTS_INTRO = """# The event stream

The key `{key}` is a Redis stream. The script that changes the ledger writes one entry in the same step, so the stream
says what happened and in which order. It keeps at least `allocator_events_maxlen` entries. Read it with
`celery-allocator events` or `Ledger.events()`; with `celery worker -E` most of it is also told as
[Celery events](../howto/remote-control.md#celery-events).

Every entry has `event`, `at` (milliseconds since the epoch, by the ledger's clock), `id` (of the allocation, unless the
table says otherwise) and `task` (the task's id, or empty). The others depend on the event. A heartbeat only extends
leases and writes no entry.

The first entry of an allocation is `delayed`, `waiting` or `granted`, and then has also `new` (1), `shape`, `priority`,
`strategy`, `tenant` and `expires` (ms, or empty). `restored`, and `requeued` of what was parked, have these again (but
for `new`).

| event | fields | meaning |
|---|---|---|"""


METRICS_INTRO = """# Metrics

What `celery-allocator exporter` and `allocator_metrics_port` serve ([how](../howto/metrics.md)). Every name begins with
`{prefix}`. Units are seconds and bytes. `hostname` is the node, `gpu` the device (`cpu`: the node's pseudo-device),
`gpu_uuid` what DCGM's exporter calls `UUID`, `queue_name` what celery-exporter calls so. No label holds a task's id.

Gauges are of one snapshot per scrape. Counters and histograms begin with the exporter, unless said otherwise; those of
known labels begin with 0.

| name | type | labels | meaning |
|---|---|---|---|"""


def pages() -> dict[str, str]:
    """Every rendered page, by its file's name."""
    rendered = {
        "settings.md": settings(),
        "cli.md": commands(),
        "keys.md": ledger_keys(),
        "events.md": events(),
        "metrics.md": metrics(),
    }
    return rendered | {name: f"{NOTE}\n{text}" for name, text in render_python.pages().items()}


_TAKES = (
    "What `resources={…}` takes. `gpu_memory_mb` and `ram_mb` may also be `auto`: "
    "[as runs of the task turned out to use](../howto/how-much.md#let-it-be-found-out).\n"
)


def settings() -> str:
    """Every setting."""
    lines = [NOTE, SETTINGS_INTRO]
    for row in table():
        default = "unset" if row.default is None else f"`{row.default}`"
        kind = row.type.replace(" | None", "").split("[")[0].lower()
        lines.append(f"| `{row.name}` | `{row.env}` | {kind} | {default} | {row.doc} |")
    lines += ["\n## Requirements\n", _TAKES, "| key | unit | from | to | default | meaning |"]
    lines.append("|---|---|---|---|---|---|")
    for field in FIELDS.values():
        bounds = f"{field.minimum} | {field.maximum} | {field.default}"
        lines.append(f"| `{field.name}` | {field.unit or '–'} | {bounds} | {field.doc} |")
    lines += [f"| `{name}` | text | – | – | empty | {doc} |" for name, doc in LABELS.items()]
    lines += [f"| `{name}` | {kind} | – | – | unset | {doc} |" for name, (doc, kind) in OTHERS.items()]
    lines += [
        "\n## Task types\n",
        "What a task type of the function form stands for; `allocator_task_types` adds more.\n",
    ]
    lines += ["| task type | " + " | ".join(f"`{name}`" for name in FIELDS) + " |", "|---" * (len(FIELDS) + 1) + "|"]
    for name, values in TASK_TYPES.items():
        cells = " | ".join(str(values.get(key, field.default)) for key, field in FIELDS.items())
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command's help."""
    lines = [NOTE, COMMANDS_INTRO, f"{_worker_option()}\n", REMOTE_INTRO, *_remote_commands(), ""]
    for path, command in _walk(allocator, ("celery-allocator",)):
        lines += [f"## {' '.join(path)}\n", _help(command, " ".join(path))]
    name = "python -m celery_allocator.resource_allocator"
    lines += [f"## {name}\n", _help(allocate, name)]
    return "\n".join(lines)


def ledger_keys() -> str:
    """Every key of the ledger."""
    lines = [NOTE, KEYS_INTRO.format(prefix=keys.prefix("<pool>"))]
    lines += [f"| `{suffix}` | {kind} | {meaning} |" for suffix, kind, meaning in keys.KEYS.values()]
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every metric."""
    lines = [NOTE, METRICS_INTRO.format(prefix=PREFIX)]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.doc} |")
    lines += [
        "\n## Buckets\n",
        "Upper bounds in seconds; each has one more, `+Inf`.\n",
        "| name | buckets |",
        "|---|---|",
    ]
    for metric in METRICS.values():
        if metric.buckets:
            lines.append(f"| `{metric.name}` | {', '.join(f'{bound:g}' for bound in metric.buckets)} |")
    return "\n".join(lines) + "\n"


def events() -> str:
    """Every entry of the event stream, with the fields that the scripts give it."""
    written: dict[str, set[str]] = {}
    order: dict[str, list[str]] = {}
    for name in [*(f"_{library}" for library in _libraries()), *scripts.operations()]:
        for names, fields in _written_in(scripts.read(name)):
            for event in names:
                written.setdefault(event, set()).update(fields)
                known = order.setdefault(event, [])
                known += [field for field in fields if field not in known]
    if stray := set(EVENTS) ^ set(written):
        raise ValueError(f"EVENTS and the scripts differ in: {', '.join(sorted(stray))}")
    lines = [NOTE, EVENTS_INTRO.format(key=keys.key("<pool>", "events"))]
    for event, meaning in EVENTS.items():
        lines.append(f"| `{event}` | {', '.join(f'`{field}`' for field in order[event]) or '–'} | {meaning} |")
    return "\n".join(lines) + "\n"


def _libraries() -> list[str]:
    folder = Path(scripts.__file__).parent / "lua"
    return sorted(path.stem[1:] for path in folder.glob("_*.lua"))


def _written_in(source: str) -> Iterator[tuple[list[str], list[str]]]:
    """The names and the fields of each call of ``event`` in a script."""
    for call in re.finditer(r"(?<!function )\bevent\((.*?)\)\n", source, re.DOTALL):
        first, _, rest = call[1].partition(",")
        names = re.findall(r'"(\w+)"', first)
        if "state" in first:  # cordon.lua: the name is the new state
            names = ["uncordoned", "cordoned", "draining"]
        # What follows the name: id, task, then pairs of a quoted field and its value.
        yield names, re.findall(r',\s*"(\w+)",', f",{rest}")


def _walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _walk(child, (*path, name))


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    return f"```text\n{command.get_help(context)}\n```\n"


def _remote_commands() -> Iterator[str]:
    for name, info in sorted(Panel.meta.items(), key=lambda row: (row[1].type != "inspect", row[0])):
        if name.startswith("allocator"):
            yield f"| `{' '.join(filter(None, ('celery', info.type, name, info.signature)))}` | {info.help} |"


def _worker_option() -> str:
    app = install(Celery("reference", set_as_current=False))
    options: set[Any] = app.user_options["worker"]
    (option,) = options
    return f"`{'/'.join(option.opts)} {option.metavar}`: {option.help}"


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` name those that differ. Returns the exit code."""
    stale = 0
    for name, text in pages().items():
        path = REFERENCE / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in arguments:
            print(f"{path} is not what the code says: run python docs/render.py")
            stale += 1
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
