"""The command that tells what tasks turned out to use, and what to ask for: recommend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import click

from celery_allocator.ledger import Recommendation, Usage
from celery_allocator.ledger.recommending import FEWEST_RUNS
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import completes, task_names
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json

#: Requirement and what it is called for people.
_RESOURCES = {"gpu_memory_mb": "GPU memory, MB", "ram_mb": "RAM, MB", "cpu_cores": "cores"}


@click.command("recommend")
@click.argument("names", nargs=-1, metavar="[NAME]…", shell_complete=completes(task_names))
@click.option("--wrong", is_flag=True, help="Only where what is declared is too small, much too large, or missing.")
@click.option("--as-code", is_flag=True, help="Print the resources to paste into the task's decorator.")
@json_option
@pass_console
def recommend(console: Console, names: tuple[str, ...], *, wrong: bool, as_code: bool, as_json: bool) -> None:
    """What runs of tasks turned out to use, against what they declare, and what to ask for.

    NAME is a task's name, or a pattern such as 'proj.*'; without one, all. What is suggested is the most that was seen
    and a margin (setting allocator_recommend_margin), of cores what 99 of a hundred runs kept busy.
    """
    found = [r for r in console.ledger.recommend() if not names or any(fnmatchcase(r.task_name, n) for n in names)]
    if wrong:
        found = [r for r in found if any(usage.verdict for _, usage in _usages(r))]
    if as_json:
        print_json([r.as_dict() for r in found])
    elif as_code:
        click.echo("\n".join(_code(found)) or _nothing(names, wrong=wrong))
    else:
        click.echo(_table(found) if found else _nothing(names, wrong=wrong))


def _usages(one: Recommendation) -> Iterator[tuple[str, Usage]]:
    for name in _RESOURCES:
        usage: Usage | None = getattr(one, name)
        if usage is not None:
            yield name, usage


def _table(found: Iterable[Recommendation]) -> str:
    heads = ("TASK", "RESOURCE", "RUNS", "DECLARED", "P50", "P99", "MOST", "SUGGESTED", "NOTE")
    rows = [
        (
            f"{one.task_name} ({one.size})" if one.size else one.task_name,
            _RESOURCES[name],
            usage.runs,
            *(_amount(value) for value in (usage.declared, usage.p50, usage.p99, usage.most)),
            usage.suggested,
            usage.verdict if usage.suggested is not None else f"fewer than {FEWEST_RUNS} runs",
        )
        for one in found
        for name, usage in _usages(one)
    ]
    return text.table(heads, rows)


def _amount(value: float) -> float:
    """Cores with a decimal where they have one, MB without."""
    return int(value) if value == int(value) else round(value, 1)


def _code(found: Iterable[Recommendation]) -> Iterator[str]:
    for one in found:
        if one.suggested:
            asked = ", ".join(f'"{name}": {amount}' for name, amount in one.suggested.items())
            about = f"{one.task_name}, size {one.size}" if one.size else one.task_name
            yield f"@app.task(resources={{{asked}}})  # {about}: {one.runs} runs"


def _nothing(names: tuple[str, ...], *, wrong: bool) -> str:
    if wrong:
        return "Nothing that was measured is declared wrongly."
    whom = f"of {', '.join(names)} " if names else ""
    return f"No run {whom}has been measured yet: workers measure what tasks with resources use, and tell of successes."


COMMANDS: tuple[click.Command, ...] = (recommend,)
