"""The quality gate's command.

Its exit codes carry the verdict, and 2 is "not enough data" there: so wrong calls leave with 64, unlike those of other
commands.
"""

from __future__ import annotations

from typing import Any

import click

from celery_allocator.errors import AllocatorError, GateConfigError, GateRuleError, SettingsError
from celery_allocator.gate import Judgement, RuleKind, RuleResult, Sources, Verdict, evaluate, kinds, load, write_junit
from celery_allocator.surfaces.cli import text
from celery_allocator.surfaces.cli.console import Console, json_option, pass_console, print_json

#: As in sysexits.h.
EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_BROKEN = 64, 69, 70


class GateCommand(click.Command):
    """Leaves with codes that no verdict has when there is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; what is wrong with them leaves with 64."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _leaving(error, EXIT_USAGE) from error
        except ValueError as error:  # a path that no file can have
            raise _leaving(click.UsageError(str(error)), EXIT_USAGE) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; the same for what is found wrong later."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _leaving(error, EXIT_USAGE) from error
        except AllocatorError as error:
            code = EXIT_UNAVAILABLE
            if isinstance(error, (GateConfigError, SettingsError)):
                code = EXIT_USAGE
            elif isinstance(error, GateRuleError):
                code = EXIT_BROKEN
            raise _leaving(click.ClickException(str(error)), code) from error


def _leaving(error: click.ClickException, code: int) -> click.ClickException:
    """The same error with another exit code."""
    vars(error)["exit_code"] = code
    return error


@click.command(cls=GateCommand)
@click.argument("config", type=click.Path(exists=True, dir_okay=False), required=False)
@click.option("--since", metavar="WHEN", help="Begin of all windows: 90s, 15m, 1h, 2d ago, or an ISO 8601 time.")
@click.option("--until", metavar="WHEN", help="End of all windows, likewise (now).")
@click.option("--junit", metavar="FILE", type=click.Path(dir_okay=False), help="Write JUnit XML there, too.")
@click.option("--list", "listed", is_flag=True, help="Print every kind of rule (of CONFIG's imports, too) and end.")
@json_option
@pass_console
@click.pass_context
def gate(
    ctx: click.Context,
    console: Console,
    config: str | None,
    since: str | None,
    until: str | None,
    junit: str | None,
    *,
    listed: bool,
    as_json: bool,
) -> None:
    """Measure the rules that CONFIG (TOML) names, and judge: may it go on?

    Exit codes: 0 passed, 1 failed, 2 not enough data; 64 the call or CONFIG is wrong, 69 the ledger or the history
    cannot be used, 70 a rule broke down.
    """
    if config is None and not listed:
        raise click.UsageError("CONFIG is missing: celery-allocator gate configs/gate.toml")
    loaded = None if config is None else load(config)
    if listed or loaded is None:
        _list(as_json=as_json)
        return
    sources = Sources(console.settings, lambda: console.ledger)
    try:
        verdict = evaluate(loaded, sources, since=since, until=until)
        if junit is not None:
            write_junit(verdict, junit)
    except ValueError as error:
        if isinstance(error, AllocatorError):
            raise
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.UsageError(f"--junit {junit}: {error.strerror or error}") from error
    finally:
        sources.close()
    if as_json:
        print_json(verdict.as_dict())
    else:
        click.echo(_told(verdict))
    ctx.exit(verdict.exit_code)


def _told(verdict: Verdict) -> str:
    rows = [
        (
            result.name,
            _number(result.value),
            result.rule.kind.unit,
            result.rule.bound,
            result.measurement.samples,
            text.span(result.window.seconds) if not result.rule.kind.live else "now",
            result.judgement.value,
        )
        for result in verdict.results
    ]
    table = text.table(("RULE", "VALUE", "UNIT", "BOUND", "SAMPLES", "WINDOW", "VERDICT"), rows)
    remarks = [line for result in verdict.results for line in _remarks(result)]
    verdict_line = f"{verdict.gate.name}: {verdict.judgement.value}"
    return "\n".join([table, "", *([*remarks, ""] if remarks else []), verdict_line])


def _remarks(result: RuleResult) -> list[str]:
    if result.passed:
        return []
    reason = f"{result.name}: {result.reason}"
    if result.judgement is Judgement.NO_DATA and not result.measurement.details:
        return [reason]
    return [reason, *(f"    {line}" for line in result.measurement.details)]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _list(*, as_json: bool) -> None:
    found = [kinds()[name] for name in sorted(kinds())]
    if as_json:
        print_json([_as_data(kind) for kind in found])
    else:
        click.echo("\n\n".join(_described(kind) for kind in found))


def _as_data(kind: RuleKind) -> dict[str, Any]:
    return {
        "kind": kind.name,
        "unit": kind.unit,
        "live": kind.live,
        "filters": list(kind.filters),
        "options": {option.name: {"type": option.type, "default": option.default} for option in kind.options.values()},
        "doc": kind.doc,
    }


def _described(kind: RuleKind) -> str:
    about = [kind.unit, "of the ledger, now" if kind.live else "of the history"]
    if kind.filters:
        about.append(f"filters: {', '.join(kind.filters)}")
    about += [f"{option.name} ({option.type}) = {option.default!r}" for option in kind.options.values()]
    doc = click.wrap_text(
        kind.doc, width=100, initial_indent="    ", subsequent_indent="    ", preserve_paragraphs=True
    )
    return f"{kind.name}  [{'; '.join(about)}]\n{doc}"


COMMANDS: tuple[click.Command, ...] = (gate,)
