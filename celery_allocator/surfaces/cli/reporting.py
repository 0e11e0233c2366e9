"""The command that says what a stretch of the history comes to: report."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from celery_allocator import history
from celery_allocator.errors import HistoryQueryError
from celery_allocator.history.window import Window, moment
from celery_allocator.report import Report, make_report
from celery_allocator.report.build import dimensions
from celery_allocator.report.result import iso
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json
from celery_allocator.surfaces.report import csv_text, html_page
from celery_allocator.surfaces.report.columns import (
    DATE_HEADS,
    HEADS,
    USE_HEADS,
    columns,
    date_rows,
    gap_told,
    key_texts,
    use_rows,
)
from celery_allocator.surfaces.report.numbers import figure, hours

#: Rows of the tables of dates and of what was used.
_DATES = 40


def when(option: str, value: str, now: datetime) -> datetime:
    """The moment that an option means. Raises :class:`HistoryQueryError`."""
    try:
        return moment(value, now)
    except ValueError:
        rule = "is neither a length of time such as 90s, 15m, 1h, 2d or 1w nor a moment such as 2026-01-31T12:00:00Z"
        raise HistoryQueryError(option, value, rule) from None


@click.command()
@click.option("--since", default="24h", show_default=True, metavar="WHEN", help="From: 90s, 15m, 1h, 7d ago, ISO 8601.")
@click.option("--until", metavar="WHEN", help="To, likewise.  [default: now]")
@click.option(
    "--by",
    default="name,tenant",
    show_default=True,
    metavar="WHAT",
    help="Group by name, tenant, node, device, day, or several with commas between.",
)
@click.option("--csv", "csv_file", metavar="FILE", help="Write CSV there; -: to standard output, instead of the table.")
@click.option("--html", "html_file", metavar="FILE", help="Write a page with plots there; -: to standard output.")
@json_option
@pass_console
def report(
    console: Console,
    since: str,
    until: str | None,
    by: str,
    csv_file: str | None,
    html_file: str | None,
    *,
    as_json: bool,
) -> None:
    """What tasks did: how many, how they ended, waits and runs, GPU-hours promised, used and wasted.

    Counts, waits and runs are of what ended between SINCE and UNTIL; hours are those that passed between them. What
    each number means: docs/howto/reports.md.
    """
    printed = [name for name, file in (("--csv", csv_file), ("--html", html_file)) if file == "-"]
    if len(printed) + as_json > 1:
        raise click.UsageError("only one of --json, --csv - and --html - can be on standard output")
    now = datetime.now(tz=timezone.utc)
    window = Window(when("since", since, now), now if until is None else when("until", until, now))
    chosen = dimensions(by)
    with history.open_history(console.settings) as opened:
        made = make_report(opened, window, chosen)
    for file, render in ((csv_file, csv_text), (html_file, html_page)):
        if file is not None:
            _write(file, render(made))
    if as_json:
        print_json(made.as_dict())
    elif not printed:
        click.echo(_told(made))


def _write(file: str, content: str) -> None:
    if file == "-":
        click.echo(content, nl=False)
        return
    try:
        Path(file).write_text(content, encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no file can have that name
        reason = getattr(error, "strerror", None) or error
        raise click.ClickException(f"{file!r} cannot be written: {reason}") from error
    click.echo(f"wrote {file}", err=True)


def _told(made: Report) -> str:
    shown = columns(made)
    rows = [(*key_texts(g.key), *_texts(made, g.figures.as_dict())) for g in made.groups]
    total = (*(["TOTAL"] + [""] * (len(made.by) - 1)), *_texts(made, made.totals.as_dict()))
    heads = [*(HEADS[dimension] for dimension in made.by), *(column.head for column in shown)]
    lines = [
        f"pool {made.pool}, {iso(made.window.start)} to {iso(made.window.end)}",
        "",
        text.table([head.upper() for head in heads], [*rows, total]) if made.groups else "Nothing happened.",
    ]
    if made.totals.outcomes:
        lines += ["", "outcomes: " + figure("outcomes", made.totals.as_dict()["outcomes"])]
    dates = date_rows(made)
    if dates:
        lines += ["", "dates that were promised at submit:"]
        lines.append(text.table([head.upper() for head in ("By", "Which", *DATE_HEADS)], dates[:_DATES]))
        if len(dates) > _DATES:
            lines.append(f"… and {len(dates) - _DATES} more (--json has all)")
    uses = use_rows(made)
    if uses:
        lines += ["", "what was promised, and the most that runs used of it:"]
        lines.append(text.table([head.upper() for head in USE_HEADS], uses[:_DATES]))
        if len(uses) > _DATES:
            lines.append(f"… and {len(uses) - _DATES} more (--json has all)")
    if made.totals.unplaced:
        lines += ["", f"{hours(made.totals.unplaced)} GB-hours were on devices whose memory is not known."]
    for gap in made.gaps:
        lines += ["", gap_told(gap.entries, iso(gap.start), iso(gap.end)) + "."]
    return "\n".join(lines)


def _texts(made: Report, figures: dict[str, object]) -> list[object]:
    """Whole numbers stay numbers: the table aligns them to the right."""
    names = [column.figure for column in columns(made)]
    return [figures[name] if type(figures[name]) is int else figure(name, figures[name]) for name in names]


COMMANDS: tuple[click.Command, ...] = (report,)
