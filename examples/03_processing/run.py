"""Write some recordings, have the workers listen to them, and count the notes they heard right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from celery import group
from processing import hear
from spectrum import matching, write_recording


def main() -> int:
    """Returns the exit code: 0 when at least 95 of 100 notes were heard right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--gpu-memory-mb", type=int, default=0, help="run on a GPU, with this much of its memory")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for all of them")
    options = parser.parse_args()
    folder = options.output.resolve()  # the workers may run in another folder
    folder.mkdir(parents=True, exist_ok=True)
    recordings = [folder / f"recording_{number:02}.wav" for number in range(options.recordings)]
    played = [write_recording(recording, seed=number) for number, recording in enumerate(recordings)]
    steps = [hear.s(str(recording), str(recording.with_suffix(".png"))) for recording in recordings]
    if options.gpu_memory_mb:
        steps = [step.set(resources={"gpu_memory_mb": options.gpu_memory_mb}) for step in steps]
    answers = group(steps).apply_async().get(timeout=options.timeout)
    shares = []
    for recording, notes, heard in zip(recordings, played, answers, strict=True):
        shares.append(matching(heard["notes"], notes))
        held = heard.get("held", {})
        where = held.get("gpu_id") or "no GPU"
        print(f"{recording.name}: {shares[-1]:.1%} of {len(notes)} notes, {where}, cores {held.get('cpu_cores')}")
    mean = sum(shares) / len(shares)
    print(f"{len(recordings)} recordings, {mean:.1%} of the notes right; see {folder}")
    return 0 if mean >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
