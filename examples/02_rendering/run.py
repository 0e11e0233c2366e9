"""Write some scenes, have the workers render them, and look whether the pictures are pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageStat
from raytrace import write_scene
from rendering import render_scene

#: The last scenes are rendered finer, in the memory and at the priority that a user would ask for at the call.
FINE = {"gpu_memory_mb": 7168, "cpu_cores": 2, "priority": 5}


def main() -> int:
    """Returns the exit code: 0 when every picture has its size and is neither black, white nor flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for each picture")
    options = parser.parse_args()
    folder = options.output.resolve()  # the workers may run in another folder
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for number in range(options.scenes):
        scene, picture = folder / f"scene_{number:02}.scene.json", folder / f"picture_{number:02}.png"
        fine = number >= options.scenes - 2
        write_scene(scene, seed=number, samples=32 if fine else 12)
        overrides = {"resources": FINE} if fine else {}
        results[picture] = render_scene.apply_async((str(scene), str(picture)), **overrides)
    wrong = 0
    for picture, result in results.items():
        facts = result.get(timeout=options.timeout)
        with Image.open(picture) as image:
            statistics = ImageStat.Stat(image.convert("L"))
            right = image.size == (160, 120) and 40 < statistics.mean[0] < 240 and statistics.stddev[0] > 10
        wrong += not right
        held = facts.get("held", {})
        print(
            f"{picture.name}: {facts['samples']} samples, {held.get('gpu_memory_mb')} MB of {held.get('gpu_id')}, "
            f"cores {held.get('cpu_cores')}{'' if right else '  WRONG'}",
            flush=True,
        )
    print(f"{len(results)} pictures, {wrong} wrong; see {folder}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
