"""Have texts measured by two models, in turns, and say which GPU had which model loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ngrams import NAMES, samples
from surprise import send


def main() -> int:
    """Returns the exit code: 0 when each model finds texts of its own kind less surprising than the other one does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=6, help="texts of each kind")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for each text")
    options = parser.parse_args()
    folder = options.output.resolve()  # the workers may run in another folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = [(kind, text) for row in zip(*(samples(kind, options.texts) for kind in NAMES), strict=True)
             for kind, text in zip(NAMES, row, strict=True)]  # fmt: skip
    sent = {
        (number, model): send(model, text, folder / f"text_{number:02}_{model}.json")
        for number, (_, text) in enumerate(texts)
        for model in NAMES
    }
    told = {key: result.get(timeout=options.timeout) for key, result in sent.items()}
    right = 0
    for number, (kind, _) in enumerate(texts):
        bits = {model: told[number, model]["bits"] for model in NAMES}
        right += min(bits, key=lambda model: bits[model]) == kind
        where = ", ".join(f"{model} {bits[model]:.2f} bits on {told[number, model]['gpu']}" for model in NAMES)
        print(f"text {number:2} ({kind}): {where}", flush=True)
    hits = sum(answer["was_loaded"] for answer in told.values())
    print(f"{right} of {len(texts)} texts told apart; {hits} of {len(told)} tasks found their model loaded")
    return 0 if right >= 0.9 * len(texts) else 1


if __name__ == "__main__":
    sys.exit(main())
