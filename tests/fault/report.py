"""Strike every fault a number of rounds under load, and print what went wrong: ``python -m tests.fault.report``."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, wait
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fault import registry
from tests.fault.crew import Outcome, strike
from tests.fault.registry import Fault

#: Faults that one site serves at most, so that several sites have something to do; and in runs of many rounds.
_CHUNK, _LONG_CHUNK = 6, 1
HEADINGS = ("fault", "rounds", "tasks", "lost", "run twice under one grant", "overlapping", "leaked slots",
            "median recovery", "worst recovery")  # fmt: skip


def chosen(faults: dict[str, Fault], only: tuple[str, ...], groups: tuple[str, ...]) -> list[Fault]:
    """The faults whose name holds or matches one of ``only``, and whose group is one of ``groups``."""
    return [
        fault
        for fault in faults.values()
        if (not groups or fault.group in groups)
        and (not only or any(text in fault.name or fnmatch(fault.name, text) for text in only))
    ]


def crews(faults: list[Fault], rounds: int = 1) -> list[list[str]]:
    """Names of faults that share a site, some at a time."""
    by_site: dict[Any, list[str]] = {}
    for fault in faults:
        by_site.setdefault((fault.site, fault.layout), []).append(fault.name)
    size = _CHUNK if rounds < 10 else _LONG_CHUNK
    return [names[i : i + size] for names in by_site.values() for i in range(0, len(names), size)]


def row(outcome: Outcome) -> list[str]:
    """One line of the table."""
    if outcome.skipped:
        return [outcome.fault, "0", "", "", "", "", "", "skipped", outcome.skipped]
    v, times = outcome.verdict, outcome.verdict.recoveries
    median, worst = (f"{statistics.median(times):.2f} s", f"{max(times):.2f} s") if times else ("–", "–")
    counts = (outcome.rounds, v.tasks, len(v.lost), len(v.doubled), len(v.overlaps), len(v.leaked))
    return [outcome.fault, *(str(n) for n in counts), median, worst]


def total(outcomes: list[Outcome]) -> dict[str, Any]:
    """The last line."""
    done = [o for o in outcomes if not o.skipped]
    summary: dict[str, Any] = {"faults": len(done), "rounds": sum(o.rounds for o in done)}
    for name in ("lost", "doubled", "overlaps", "leaked"):
        summary[name] = sum(len(getattr(o.verdict, name)) for o in done)
    times = [t for o in done for t in o.verdict.recoveries]
    summary["worst_recovery_s"] = round(max(times), 2) if times else 0.0
    late = {o.fault: round(o.late, 2) for o in done if o.late}
    skipped = {o.fault: o.skipped for o in outcomes if o.skipped}
    summary.update({"late": late} if late else {}, **({"skipped": skipped} if skipped else {}))
    return summary


def markdown(outcomes: list[Outcome]) -> str:
    """The table for the documentation."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row(outcome) for outcome in outcomes)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds of each fault.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Faults whose name holds or matches this (repeatable).")
@click.option("--group", "groups", multiple=True, help="Faults of this group (repeatable).")
@click.option("--sites", default=2, show_default=True, type=click.IntRange(1), help="Sites at work side by side.")
@click.option("--except", "excepted", multiple=True, metavar="PATTERN", help="But not those (repeatable).")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write every detail here.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here."
)
def main(
    rounds: int,
    only: tuple[str, ...],
    groups: tuple[str, ...],
    sites: int,
    excepted: tuple[str, ...],
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Strike faults under load, with real workers and servers, and judge every run from what the tasks wrote.

    The table goes to standard output; the last line is JSON. The exit status is 1 if anything was lost, run twice under
    one grant, overlapping or leaked, or came back too late.
    """
    console, notes = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    faults = [f for f in chosen(registry.load(), only, groups) if not excepted or not chosen({f.name: f}, excepted, ())]
    order = {fault.name: i for i, fault in enumerate(faults)}
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder,
        Progress(*columns, console=notes) as progress,
        multiprocessing.Manager() as manager,
        ProcessPoolExecutor(sites, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        bar = progress.add_task("rounds", total=rounds * len(faults))
        news = manager.Queue()
        work = [
            pool.submit(strike, names, rounds, Path(folder) / str(i), news)
            for i, names in enumerate(crews(faults, rounds))
        ]
        left = set(work)
        while left:
            while not news.empty():
                name, done, problems = news.get()
                progress.update(bar, advance=done, description=escape(name))
                for problem in problems:
                    notes.print(f"[red]{escape(name)}[/]: {escape(problem)}", highlight=False)
            left -= {each for each in left if each.done()}
            wait(left, timeout=0.5)
        for each in work:
            outcomes += each.result()
    outcomes.sort(key=lambda outcome: order[outcome.fault])
    table = Table(*HEADINGS)
    for outcome in outcomes:
        style = "red" if outcome.bad else "dim" if outcome.skipped else None
        table.add_row(*(escape(cell) for cell in row(outcome)), style=style)
    console.print(table)
    if markdown_file:
        markdown_file.write_text(markdown(outcomes))
    summary = total(outcomes)
    if json_file:
        json_file.write_text(json.dumps({**summary, "detail": [o.as_dict() for o in outcomes]}, indent=1))
    click.echo(json.dumps(summary))
    sys.exit(1 if any(outcome.bad for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
