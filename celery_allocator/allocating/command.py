"""The function form as a command: options made from the requirements' table, JSON out, an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from celery_allocator.allocating.auto import AUTO, CAN_BE_AUTO
from celery_allocator.allocating.function import allocate_resources
from celery_allocator.allocating.session import Session
from celery_allocator.errors import AllocatorError, RequirementsError, SettingsError
from celery_allocator.model import FIELDS, LABELS, NAMES, OTHERS, Field, Strategy
from celery_allocator.settings import Settings

EXIT_OK, EXIT_REFUSED, EXIT_USAGE = 0, 1, 2
#: Refusals that mean the call itself was wrong.
_USAGE_CODES = (RequirementsError.code, SettingsError.code)

F = TypeVar("F", bound=Callable[..., Any])


def option_name(field: Field) -> str:
    """``gpu_memory_mb`` is ``--gpu-memory``, ``expected_runtime_s`` is ``--expected-runtime``."""
    return "--" + field.name.removesuffix("_mb").removesuffix("_s").replace("_", "-")


class Amount(click.ParamType):  # type: ignore[type-arg]  # generic in some releases of click
    """A whole number or, where a requirement can be found out, ``auto``."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's whole numbers."""
        return value if value == AUTO else click.INT.convert(value, param, ctx)


def _requirement_option(field: Field, *names: str) -> Callable[[F], F]:
    """The option of a requirement under ``names``."""
    auto = field.name in CAN_BE_AUTO
    kind, unit = (Amount(), f"{field.unit}|{AUTO}") if auto else (int, field.unit.upper() or "N")
    doc = f"{field.doc} {AUTO}: as its runs turned out to use." if auto else field.doc
    return click.option(*names, field.name, type=kind, metavar=unit, help=doc)


def requirement_options(*, by_key: bool = False) -> list[Callable[[F], F]]:
    """A click option per requirement. ``by_key``: also under the whole name of its key (``--gpu-memory-mb``)."""
    options: list[Any] = []
    for field in FIELDS.values():
        names = [option_name(field), *([option_of(field.name)] if by_key else [])]
        options.append(_requirement_option(field, *dict.fromkeys(names)))
    options += [click.option(option_of(name), name, metavar="NAME", help=doc) for name, doc in LABELS.items()]
    (share, _), (whole, _), (labels, _) = OTHERS["gpu"], OTHERS["exclusive"], OTHERS["labels"]
    return [
        *options,
        click.option("--gpu", type=float, metavar="SHARE", help=share),
        click.option("--exclusive", is_flag=True, default=None, help=whole),
        click.option("--label", "labels", multiple=True, callback=_labels, metavar="NAME=VALUE", help=labels),
    ]


def option_of(name: str) -> str:
    """The option of a requirement by its whole name."""
    return "--" + name.replace("_", "-")


def _labels(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str] | None:
    for text in given:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is no label: write NAME=VALUE")
    return dict(text.split("=", 1) for text in given) or None


def allocation_options(command: F) -> F:
    """The arguments of an ``allocate`` command, for a function that takes ``**given`` and hands it to :func:`run`."""
    strategies = ", ".join(strategy.value for strategy in Strategy) + ", or one of allocator_strategies."
    options = [
        click.argument("task_id"),
        click.option(
            "--task-type", required=True, metavar="NAME", help="ml_inference, rendering, processing or your own."
        ),
        *requirement_options(),
        click.option("--strategy", default=Strategy.BEST_FIT.value, metavar="NAME", show_default=True, help=strategies),
        click.option("--wait", "wait_s", type=float, default=0, metavar="SECONDS", help="Wait so long for room."),
        click.option(
            "--ttl", "ttl_s", type=float, metavar="SECONDS", help="Life without renewal (setting allocator_ttl_s)."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run(session: Session, given: Mapping[str, Any]) -> int:
    """Allocate as ``given`` by the options, print the reply, and return the exit code."""
    return emit(
        allocate_resources(
            given["task_id"],
            given["task_type"],
            {key: given[key] for key in NAMES if given[key] is not None},
            given["strategy"],
            wait_s=given["wait_s"],
            ttl_s=given["ttl_s"],
            session=session,
        )
    )


def json_text(data: Any, indent: int | None = None) -> str:
    """JSON that any terminal takes: halves of a character, which arguments may hold, as JSON's own escapes."""
    return json.dumps(data, indent=indent, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()


def emit(reply: Mapping[str, Any]) -> int:
    """Print a reply as JSON, its error also on standard error; returns the exit code."""
    click.echo(json_text(reply, 2))
    if reply["success"]:
        return EXIT_OK
    click.echo(f"Error: {reply['error']['message']}", err=True)
    return EXIT_USAGE if reply["error"]["code"] in _USAGE_CODES else EXIT_REFUSED


@click.command(
    name="resource_allocator",
    epilog="Prints JSON. Exit codes: 0 granted or in line, 1 refused, 2 the call itself was wrong. "
    "Other settings come from the environment: ALLOCATOR_DEVICES=sim:2x24576, for example, gives two simulated GPUs.",
)
@allocation_options
@click.option("--backend-url", metavar="URL", help="The ledger's Redis (setting allocator_backend_url).")
def allocate(backend_url: str | None, **given: Any) -> int:
    """Allocate GPU memory, CPU cores and RAM for TASK_ID, until released or until the TTL ends."""
    return run(Session(Settings.load(backend_url=backend_url)), given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        code = allocate.main(
            arguments, prog_name="python -m celery_allocator.resource_allocator", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except click.Abort:
        return 130
    except AllocatorError as error:
        click.echo(json_text({"success": False, "error": error.as_dict()}))
        click.echo(f"Error: {error}", err=True)
        return EXIT_USAGE
    return int(code or 0)
