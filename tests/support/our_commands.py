"""Whether a command line that a file shows is one of this project's, with options that exist. Nothing is run."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec

import click
from celery.bin.worker import worker

from celery_allocator.surfaces.cli import allocator


def check(argv: list[str]) -> None:
    """Fail the test unless each word of ``argv`` is known where it stands."""
    program, *words = argv
    if program == "celery-allocator":
        _parse(allocator, words)
        return
    assert program == "celery" and words[0] == "-A", argv
    name, *rest = words[2:]
    if name == "allocator":
        left = _parse(allocator, rest)
        assert rest[0] != "workers" or not worker_options(left), left
    elif name == "worker":
        assert not worker_options(rest), rest
    else:
        assert name in {point.name for point in entry_points(group="celery.commands")}, f"celery {name}"
        assert name == "allocator-flower", argv
        _flower_options(rest)


def worker_options(words: list[str]) -> list[str]:
    """Options of ``celery worker`` (and ``--gpu``); returns what is left."""
    if "--gpu" in words:
        place = words.index("--gpu")
        words = [*words[:place], *words[place + 2 :]]
    _, left, _ = worker.make_parser(click.Context(worker)).parse_args(list(words))
    return left


def _parse(command: click.Command, words: list[str]) -> list[str]:
    path = "celery-allocator"
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{path} has no command {name}"
        command, path = found, f"{path} {name}"
    if "--" in words:
        place = words.index("--")
        words, left = words[:place], words[place + 1 :]
    else:
        left = []
    _, more, _ = command.make_parser(click.Context(command)).parse_args(list(words))
    return [*more, *left] if path.endswith("workers") else left


def _flower_options(words: list[str]) -> None:
    assert find_spec("flower") is not None
    import flower.options  # noqa: F401  # defines them
    from tornado.options import options

    known = {name.replace("-", "_") for name in options}
    for word in words:
        assert word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") in known, word
