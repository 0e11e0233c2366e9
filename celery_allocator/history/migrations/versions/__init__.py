"""The versions, oldest first by number. One that was released is not edited: what it makes is in databases."""

from __future__ import annotations
