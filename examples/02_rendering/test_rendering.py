"""The example's own tests. They need neither a broker nor a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raytrace import render, write_scene
from rendering import render_scene


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.json"
    write_scene(path, seed=4, width=48, height=36, samples=8)
    return path


def test_a_picture_shows_floor_below_and_sky_above(scene: Path, tmp_path: Path) -> None:
    facts = render(scene, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image).astype(float)
    assert facts["size"] == [48, 36]
    assert pixels.shape == (36, 48, 3)
    assert pixels[0, :, 2].mean() > pixels[0, :, 0].mean(), "the sky is bluish"
    assert pixels[-8:].std() > 20, "the floor is checkered"
    assert facts["mean_brightness"] == pytest.approx(pixels.mean(), abs=0.01)


def test_the_same_scene_is_the_same_picture_and_another_is_not(scene: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    render(scene, pictures[0])
    render(scene, pictures[1])
    write_scene(scene, seed=5, width=48, height=36, samples=8)
    render(scene, pictures[2])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_bytes() != pictures[2].read_bytes()


def test_more_samples_are_less_noisy_and_equally_bright(scene: Path, tmp_path: Path) -> None:
    def noise(samples: int) -> tuple[float, float]:
        facts = render(scene, tmp_path / "picture.png", samples=samples)
        with Image.open(tmp_path / "picture.png") as image:
            pixels = np.asarray(image.convert("L")).astype(float)
        return float(np.abs(np.diff(pixels, axis=1)).mean()), facts["mean_brightness"]

    (rough, rough_light), (fine, fine_light) = noise(1), noise(24)
    assert fine < rough * 0.9
    assert abs(rough_light - fine_light) < 8


def test_the_task_writes_picture_and_facts(scene: Path, tmp_path: Path) -> None:
    facts = render_scene(str(scene), str(tmp_path / "picture.png"))
    assert json.loads((tmp_path / "picture.json").read_text()) == facts
    assert (tmp_path / "picture.png").stat().st_size > 1000
