"""Operator actions: commands with inverses, the journal they are written in, undo and redo."""

from __future__ import annotations

from celery_allocator.operations.actor import Actor
from celery_allocator.operations.breaking import CloseBreaker, OpenBreaker
from celery_allocator.operations.commands import (
    Allocate,
    Cancel,
    Command,
    Cordon,
    Drain,
    Front,
    Hold,
    Pause,
    Priority,
    Release,
    Resume,
    Uncordon,
    Unhold,
)
from celery_allocator.operations.digest import digest
from celery_allocator.operations.effect import Effect
from celery_allocator.operations.operator import Operator
from celery_allocator.operations.outcome import Outcome
from celery_allocator.operations.plan import Plan, describe, plan_redo, plan_undo, subject
from celery_allocator.operations.registry import COMMANDS, command
from celery_allocator.operations.selecting import NOT_GRANTED, Selection, not_granted, select
from celery_allocator.operations.tenancy import ResetTenant, SetTenant

__all__ = [
    "COMMANDS",
    "NOT_GRANTED",
    "Actor",
    "Allocate",
    "Cancel",
    "CloseBreaker",
    "Command",
    "Cordon",
    "Drain",
    "Effect",
    "Front",
    "Hold",
    "OpenBreaker",
    "Operator",
    "Outcome",
    "Pause",
    "Plan",
    "Priority",
    "Release",
    "ResetTenant",
    "Resume",
    "Selection",
    "SetTenant",
    "Uncordon",
    "Unhold",
    "command",
    "describe",
    "digest",
    "not_granted",
    "plan_redo",
    "plan_undo",
    "select",
    "subject",
]
