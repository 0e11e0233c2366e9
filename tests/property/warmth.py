"""Where words of affinity are loaded, and who waits for that, by the rules in words: for the reference of the ledger.

A device is warm for a word from its grant there on, for a time after its last use, unless its worker goes, what was
granted never began, or others have pushed it out. What waits in one lane waits for such a device together, for a time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

#: How many warm devices are looked at for room in time.
MOST_HOPES = 8


@dataclass
class Warmth:
    """For how long a word is loaded after its last use (ms), and how many of them a device keeps for each slot."""

    lately: int = 3_600_000
    keeps: int = 1
    #: Per device its words with the ms of their last use, the last used last.
    words: dict[str, dict[str, int]] = field(default_factory=dict)

    def use(self, device: str, word: str, slots: int, now: int) -> None:
        """It is used there: of the others those stay that were used last."""
        words = self.words.setdefault(device, {})
        if word in words and next(reversed(words)) == word:
            words[word] = now  # nobody comes in that would push others out
            return
        words.pop(word, None)
        others = list(words.items())[::-1][: self.keeps * max(1, slots) - 1]
        self.words[device] = {**dict(reversed(others)), word: now}

    def forget(self, device: str, word: str) -> None:
        """It is not loaded there."""
        self.words.get(device, {}).pop(word, None)

    def clear(self, device: str) -> None:
        """The processes there have ended."""
        self.words.pop(device, None)

    def last_use(self, device: str) -> int | None:
        """When any word was last used there; ``None``: none is loaded."""
        return next(reversed(self.words.get(device, {}).values()), None)

    def loaded(self, device: str, now: int) -> tuple[str, ...]:
        """What counts as loaded there, the last used first."""
        words = self.words.get(device, {})
        return tuple(word for word, at in reversed(words.items()) if now - at < self.lately)

    def where(self, word: str, now: int) -> list[str]:
        """The devices where it is loaded, those where it was used last first."""
        found = [(words[word], device) for device, words in self.words.items() if word in words]
        return [device for at, device in sorted(found, reverse=True) if now - at < self.lately]


@dataclass
class Patience:
    """Until when the lanes wait for a warm device though there is room elsewhere. Times in ms."""

    wait: int = 2_000
    until: dict[Hashable, int] = field(default_factory=dict)
    over: set[Hashable] = field(default_factory=set)  # a tick has seen that it is

    def goal(self, lane: Hashable, joined: list[int], now: int) -> int | None:
        """Until when the first of a lane may wait, if others have stood in it since ``joined``; ``None``: no more."""
        by = self.until.get(lane)
        if not self.wait or (by is not None and by <= now and joined and min(joined) <= by):
            return None
        return now + self.wait if by is None or by <= now else by

    def wait_until(self, lane: Hashable, by: int) -> None:
        if self.until.get(lane) != by:
            self.until[lane] = by
            self.over.discard(lane)

    def drop(self, lane: Hashable) -> None:
        """Nobody stands in it any more."""
        self.until.pop(lane, None)
        self.over.discard(lane)

    def due(self, now: int) -> set[Hashable]:
        """The lanes whose time is over since the last tick."""
        found = {lane for lane, by in self.until.items() if by <= now} - self.over
        self.over |= found
        return found
