"""Results of tasks that ended in the ledger are written without opening what could run code."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states

from celery_allocator.ledger import Obituary
from celery_allocator.plugin.envelope import HEADER, Envelope
from celery_allocator.plugin.outcome import write_results


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_a_pickled_body_is_never_opened_though_the_app_accepts_pickle(
    make_app: Callable[..., Celery], tmp_path: Path
) -> None:
    """Its result says what it says of any other; its callbacks, which only the body tells, are not called."""
    task_id = str(uuid.uuid4())
    app = make_app(accept_content=["json", "pickle"], task_serializer="pickle")
    file = tmp_path / "opened"
    body = pickle.dumps(((Bomb(file),), {}, {"errbacks": []}))
    headers = {"id": task_id, "task": "work", HEADER: {"id": "alloc_1"}}
    message = Envelope(body, "application/x-python-serialize", "binary", headers, {}, None).pack()
    write_results(app, [Obituary("alloc_1", task_id, "work", "lost", message)])
    assert app.AsyncResult(task_id).state == states.FAILURE
    assert not file.exists()
    pickle.loads(body)
    assert file.exists(), "else this test shows nothing"


@pytest.mark.parametrize(
    ("losses", "says"), [(0, "acks_late is not set, or allocator_max_losses is 0"), (3, "is not repeated more than 3")]
)
def test_a_lost_task_says_why_it_is_not_repeated(make_app: Callable[..., Celery], losses: int, says: str) -> None:
    app, task_id = make_app(), str(uuid.uuid4())
    headers = {"id": task_id, "task": "work", HEADER: {"id": "alloc_1"}}
    message = Envelope(b"[[], {}, {}]", "application/json", "utf-8", headers, {}, None).pack()
    write_results(app, [Obituary("alloc_1", task_id, "work", "lost", message, losses)])
    result = app.AsyncResult(task_id)
    assert result.state == states.FAILURE
    assert says in str(result.result)
