"""Commands about dates: when what is not submitted would start, and how true the dates have come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from celery_allocator.allocating.command import requirement_options
from celery_allocator.ledger import Accuracy
from celery_allocator.ledger import Plan as Planned
from celery_allocator.model import Kind, Requirements, Strategy
from celery_allocator.model.requirements import merge
from celery_allocator.plugin.router import RESOURCES, STRATEGY, parse_strategy
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.completing import completes, task_names
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json

F = TypeVar("F", bound=Callable[..., Any])


def _asking(command: F) -> F:
    """Add an option per requirement."""
    for option in reversed(requirement_options(by_key=True)):
        command = option(command)
    return command


@click.command("plan")
@click.option(
    "--name", default="", metavar="TASK", help="Its name: for its run times.", shell_complete=completes(task_names)
)
@_asking
@click.option("--strategy", metavar="NAME", help=", ".join(strategy.value for strategy in Strategy))
@click.option("--by-hand", is_flag=True, help="As `allocate` would: it needs no worker.")
@json_option
@pass_console
def plan_command(
    console: Console, /, name: str, strategy: str | None, *, by_hand: bool, as_json: bool, **given: Any
) -> None:
    """Where and when a task would start that asks for this now. Nothing is submitted.

    With an app (-A) and --name what the task itself asks for is filled in.
    """
    asked = {key: value for key, value in given.items() if value is not None}
    requirements, by = _resolved(console, name, asked, strategy)
    console.session.upkeep()
    planned = console.ledger.plan(name, requirements, strategy=by, kind=Kind.MANUAL if by_hand else Kind.TASK)
    if as_json:
        print_json({"name": name, "requirements": requirements.as_dict(), "strategy": by.value, **_as_data(planned)})
    else:
        click.echo(_told(name, requirements, planned))


def _resolved(
    console: Console, name: str, asked: dict[str, Any], strategy: str | None
) -> tuple[Requirements, Strategy]:
    if console.publishes and console.app is not None and name:
        options = {key: value for key, value in ((RESOURCES, asked or None), (STRATEGY, strategy)) if value}
        routed = console.app.amqp.router.route(options, name)
        if RESOURCES in routed:
            return routed[RESOURCES], routed[STRATEGY]
    requirements = Requirements(**console.session.resolve(name, merge(asked)))
    return requirements, parse_strategy(strategy or console.settings.strategy, console.settings.strategies)


def _as_data(planned: Planned) -> dict[str, Any]:
    return {
        "device": planned.device,
        "starts_now": planned.device is not None,
        "position": planned.position or None,
        "estimated_start_at": planned.estimated_start_at,
        "estimated_start_p90_at": planned.estimated_start_p90_at,
        "waits_for_cap": planned.cap or None,
        "waits_for_affinity_until": planned.affinity_until,
    }


def _told(name: str, requirements: Requirements, planned: Planned) -> str:
    head = f"{name or 'A task'} that asks for {text.shape(requirements)}"
    if planned.device is not None:
        return f"{head} would start at once, on {planned.device}."
    when = text.dates(planned.estimated_start_at, planned.estimated_start_p90_at)
    lines = [f"{head} would wait, as number {planned.position} in line.", f"Estimated start: {when}."]
    if planned.cap:
        lines.insert(
            1, f"Its tenant {requirements.tenant} is at its cap of {planned.cap}: that is what it would wait for."
        )
    if planned.affinity_until is not None:
        left = text.span(planned.affinity_until - planned.at)
        lines.insert(1, f"There is room; it would wait up to {left} for one where {requirements.affinity} is loaded.")
    if planned.estimated_start_at is not None:
        wait = text.span(planned.estimated_start_at - planned.at)
        most = planned.estimated_start_p90_at
        longest = "" if most is None else f", in 9 of 10 cases less than {text.span(most - planned.at)}"
        lines.append(f"That is a wait of {wait}{longest}.")
    return "\n".join(lines)


@click.command("accuracy")
@json_option
@pass_console
def accuracy_command(console: Console, *, as_json: bool) -> None:
    """How true the estimated starts have come: each that was told at submit is scored when the task starts."""
    found = console.ledger.accuracy()
    if as_json:
        print_json(_scores(found))
        return
    if not found.scored:
        click.echo("No estimate has been scored yet: none was told for what has started.")
        return
    click.echo(text.pairs(_rows(found)))


def _scores(found: Accuracy) -> dict[str, Any]:
    ours, thumb = found.median_error_s, found.thumb_error_s
    return {
        "scored": found.scored,
        "p90_coverage": found.covered,
        "median_error_s": ours,
        "p90_error_s": found.p90_error_s,
        "thumb_error_s": thumb,
        "error_over_thumb": round(ours / thumb, 3) if ours is not None and thumb else None,
    }


def _rows(found: Accuracy) -> Iterator[tuple[str, Any]]:
    yield "starts scored", found.scored
    if found.covered is not None:
        yield "at or before their p90", f"{100 * found.covered:.1f} % (aim: 90 %)"
    yield "half were off by less than", _length(found.median_error_s)
    yield "nine of ten by less than", _length(found.p90_error_s)
    if found.thumb_error_s is not None:
        thumb = f"{_length(found.thumb_error_s)} (position · mean run time ÷ what runs at a time)"
        yield "half, by the rule of thumb", thumb
        yield "ours over the rule of thumb", _scores(found)["error_over_thumb"]


def _length(seconds: float | None) -> str:
    """Below a minute with a decimal: an error of less than a second is no error of 0."""
    return f"{seconds:.1f} s" if seconds is not None and seconds < 60 else text.span(seconds)


COMMANDS: tuple[click.Command, ...] = (plan_command, accuracy_command)
