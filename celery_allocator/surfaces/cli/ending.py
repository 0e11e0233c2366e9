"""How commands end that somebody asks to end: by Ctrl-C, or by SIGTERM."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import click

#: What a signal's handler raises, and the signal.
_RAISED_BY = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
#: Seconds until a signal that went lost is sent once more: the finalizer is over by then, on a busy machine too.
_AGAIN_S = 0.2


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Around what goes on until Ctrl-C: that is how it ends, and no error."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(err=True)  # the shell's prompt would follow its ^C


@contextmanager
def asked_to_end() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the former handlers are put back after it.

    A handler runs between two steps of whatever the main thread does. That may be to wait for the event, with the
    event's lock held, and the handler would wait for the lock for ever. A simple queue can be put into even then.
    """
    stop = threading.Event()
    asked: SimpleQueue[bool] = SimpleQueue()

    def pass_on() -> None:
        if asked.get():
            stop.set()

    waiting = threading.Thread(target=pass_on, name="asked-to-end", daemon=True)
    waiting.start()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: asked.put(True)) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(False)
        waiting.join()


@contextmanager
def no_signal_lost() -> Iterator[None]:
    """Send a signal once more whose exception was dropped within.

    Python reports and drops what is raised while a finalizer happens to run (redis-py's connections have one). A
    Ctrl-C would end nothing, and show a traceback.
    """
    report = sys.unraisablehook
    caller = threading.get_ident()
    over = threading.Event()

    def later(number: int) -> None:
        if not over.wait(_AGAIN_S):
            signal.pthread_kill(caller, number)  # this thread, for it may wait in a system call

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        number = _RAISED_BY.get(dropped.exc_type)
        if number is not None and callable(signal.getsignal(number)):
            # Not from here, where it would be dropped again; and a Thread's start() would wait for the thread.
            _thread.start_new_thread(later, (number,))
        else:
            report(dropped)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        over.set()
