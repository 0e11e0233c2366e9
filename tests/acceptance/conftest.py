"""End-to-end suites run on pytest-celery's nodes; here each node is a local process."""

from __future__ import annotations

# The order matters: the second import replaces the fixtures of the first that would ask for a container engine.
from pytest_celery import *  # noqa: F403  isort: skip
from tests.support.process_nodes import *  # noqa: F403  isort: skip
