"""The real work: what a text tells a model of letters, in bits; the models are counted from Python's own library.

A model knows how often each character follows each four others in what it has read: ``prose`` has read the help texts
of Python, ``code`` the sources of some of its modules. Counting takes a second or so; asking takes milliseconds.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

#: Characters that tell the next one, and how many different ones there may be.
ORDER, ALPHABET = 4, 128
#: Sources that ``code`` reads.
SOURCES = ("argparse", "ast", "inspect", "optparse", "pickle", "subprocess", "tarfile", "typing")
#: The help text that ``prose`` has not read.
NOT_READ = "execmodel"
NAMES = ("prose", "code")


class Model:
    """Counts of contexts, and of contexts with the character that followed."""

    def __init__(self, text: str) -> None:
        starts = range(len(text) - ORDER)
        self.contexts = Counter(text[at : at + ORDER] for at in starts)
        self.followed = Counter(text[at : at + ORDER + 1] for at in starts)

    def bits(self, text: str) -> float:
        """How much each character of ``text`` tells, on average, by this model; less: more like what it has read."""
        found = 0.0
        for at in range(len(text) - ORDER):
            seen, all_seen = self.followed[text[at : at + ORDER + 1]], self.contexts[text[at : at + ORDER]]
            found -= math.log2((seen + 0.1) / (all_seen + 0.1 * ALPHABET))
        return found / max(1, len(text) - ORDER)


def load(name: str) -> Model:
    """Count the model of that name."""
    if name == "prose":
        return Model("\n".join(text for topic, text in topics.items() if topic != NOT_READ))
    return Model("\n".join(_source(module) for module in SOURCES))


def samples(name: str, count: int) -> list[str]:
    """Texts of the kind that the model of that name has read, and which it has not."""
    words = topics[NOT_READ] if name == "prose" else _source("textwrap")
    size = len(words) // count
    return [words[at * size : (at + 1) * size] for at in range(count)]


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
