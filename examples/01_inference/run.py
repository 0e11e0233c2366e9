"""Train the network, draw some pages, have the workers read them, and count what they got right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from digits import accuracy, train, write_page
from inference import read


def main() -> int:
    """Returns the exit code: 0 when at least nine digits of ten were read right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for each page")
    options = parser.parse_args()
    folder = options.output.resolve()  # the workers may run in another folder
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.npz"
    if not weights.exists():
        print("training the network …", flush=True)
        train().save(weights)
    pages = [folder / f"page_{number:02}.png" for number in range(options.pages)]
    truth = [write_page(page, seed=1000 + number) for number, page in enumerate(pages)]
    results = [read.delay(str(page), str(weights), str(page.with_suffix(".json"))) for page in pages]
    shares = []
    for page, digits, result in zip(pages, truth, results, strict=True):
        result.get(timeout=options.timeout)
        reading = json.loads(page.with_suffix(".json").read_text())
        shares.append(accuracy(reading, digits))
        held = reading.get("held", {})
        print(f"{page.name}: {shares[-1]:.1%} right, on {held.get('gpu_id')} cores {held.get('cpu_cores')}", flush=True)
    mean = sum(shares) / len(shares)
    print(f"{len(pages)} pages, {mean:.1%} of the digits right; see {folder}")
    return 0 if mean >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
