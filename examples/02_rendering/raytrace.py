"""Rendering: a small path tracer that turns a scene file (JSON) into a PNG picture.

Spheres on a checkered floor under a sky, diffuse and mirror surfaces, soft shadows by chance: every pixel is the mean
of many random paths. The random numbers are seeded, so a scene renders to the same picture every time. CuPy computes
on the GPU that the process sees, NumPy where there is none.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Larger than any distance in a scene.
FAR = 1e9
#: How far a path starts off the surface that it leaves, so that it does not hit it again.
NUDGE = 1e-3


def write_scene(path: Path, seed: int, *, width: int = 160, height: int = 120, samples: int = 16) -> None:
    """Write a scene of seven random spheres as JSON. Lengths are metres, colours red, green and blue from 0 to 1."""
    random = np.random.default_rng(seed)
    spheres = []
    for column in range(7):
        radius = float(random.uniform(0.35, 0.75))
        spheres.append(
            {
                "centre": [
                    float(column - 3 + random.uniform(-0.2, 0.2)) * 1.3,
                    radius,
                    float(random.uniform(-1.5, 1.5)),
                ],
                "radius": radius,
                "colour": random.uniform(0.25, 0.95, 3).round(3).tolist(),
                "mirror": float(random.choice([0.0, 0.0, 0.85])),
            }
        )
    scene = {
        "seed": seed,
        "width": width,
        "height": height,
        "samples": samples,
        "bounces": 4,
        "camera": {"from": [float(random.uniform(-2, 2)), 2.2, 8.0], "to": [0.0, 0.5, 0.0], "angle_deg": 40.0},
        "sun": {"direction": [0.5, 0.8, 0.4], "colour": [1.1, 1.0, 0.85]},
        "spheres": spheres,
    }
    path.write_text(json.dumps(scene, indent=1) + "\n")


def render(scene_path: Path, picture_path: Path, *, gpu: bool = False, samples: int | None = None) -> dict[str, Any]:
    """Render the scene to a PNG file; returns its size, its mean brightness (0 to 255) and what computed it.

    ``samples`` overrides the scene's paths per pixel.
    """
    scene = json.loads(scene_path.read_text())
    xp, device = array_module(gpu)
    pixels = trace(scene, xp, samples or scene["samples"])
    image = Image.fromarray(pixels)
    image.save(picture_path)
    return {
        "picture": picture_path.name,
        "size": list(image.size),
        "samples": samples or scene["samples"],
        "mean_brightness": round(float(pixels.mean()), 3),
        "computed_on": device,
    }


def array_module(gpu: bool) -> tuple[Any, str]:
    """CuPy where a GPU is asked for and usable, else NumPy; and its name."""
    if gpu:
        try:
            cupy = importlib.import_module("cupy")
            if cupy.cuda.is_available():
                return cupy, "cupy on cuda"
        except Exception:  # not installed, or installed and unable to find the driver
            pass
    return np, "numpy"


def trace(scene: dict[str, Any], xp: Any, samples: int) -> Any:
    """The picture as bytes, ``(height, width, 3)``, in main memory."""
    random = xp.random.default_rng(scene["seed"])
    width, height = scene["width"], scene["height"]
    light = xp.zeros((height * width, 3))
    for _ in range(samples):
        light += _one_path_per_pixel(scene, xp, random)
    colour = xp.clip(light / samples, 0, 1) ** (1 / 2.2)
    pixels = (colour.reshape(height, width, 3) * 255 + 0.5).astype(xp.uint8)
    return pixels if xp is np else xp.asnumpy(pixels)


def _one_path_per_pixel(scene: dict[str, Any], xp: Any, random: Any) -> Any:
    origin, direction = _camera_rays(scene, xp, random)
    light = xp.zeros(origin.shape)
    weight = xp.ones(origin.shape)
    sun = _unit(xp.asarray(scene["sun"]["direction"])[None, :], xp)
    sun_colour = xp.asarray(scene["sun"]["colour"])
    for _ in range(scene["bounces"]):
        distance, normal, colour, mirror = _hit(scene, xp, origin, direction)
        missed = (distance >= FAR)[:, None]
        light += xp.where(missed, weight * _sky(direction, xp), 0)
        weight = xp.where(missed, 0, weight * colour)
        point = origin + direction * xp.where(missed, 0, distance[:, None]) + normal * NUDGE
        # Light straight from the sun reaches dull surfaces that nothing shades.
        shade, _, _, _ = _hit(scene, xp, point, xp.broadcast_to(sun, point.shape))
        lit = (shade >= FAR)[:, None] & ~missed & (mirror == 0)[:, None]
        light += xp.where(lit, weight * sun_colour * xp.clip((normal * sun).sum(1, keepdims=True), 0, None) * 0.5, 0)
        scattered = _unit(normal + _unit(random.standard_normal(point.shape), xp), xp)
        reflected = direction - 2 * (direction * normal).sum(1, keepdims=True) * normal
        origin, direction = point, xp.where((mirror > 0)[:, None], reflected, scattered)
    return light


def _camera_rays(scene: dict[str, Any], xp: Any, random: Any) -> tuple[Any, Any]:
    """One ray per pixel, at a random place within it."""
    camera, width, height = scene["camera"], scene["width"], scene["height"]
    eye = np.asarray(camera["from"])
    ahead = _unit((np.asarray(camera["to"]) - eye)[None, :], np)[0]
    right = _unit(np.cross(ahead, [0.0, 1.0, 0.0])[None, :], np)[0]
    up = np.cross(right, ahead)
    half = float(np.tan(np.radians(camera["angle_deg"]) / 2))
    rows, columns = xp.divmod(xp.arange(width * height), width)
    across = ((columns + random.random(width * height)) / width * 2 - 1) * half * width / height
    down = (1 - (rows + random.random(width * height)) / height * 2) * half
    rays = xp.asarray(ahead) + across[:, None] * xp.asarray(right) + down[:, None] * xp.asarray(up)
    return xp.broadcast_to(xp.asarray(eye), rays.shape), _unit(rays, xp)


def _hit(scene: dict[str, Any], xp: Any, origin: Any, direction: Any) -> tuple[Any, Any, Any, Any]:
    """The nearest surface on each ray: distance, normal, colour, and how much of a mirror it is."""
    # The floor, y = 0, checkered.
    slope = xp.where(xp.abs(direction[:, 1]) < 1e-9, 1e-9, direction[:, 1])
    floor = -origin[:, 1] / slope
    distance = xp.where(floor > NUDGE, floor, FAR)
    where = origin + direction * xp.where(distance < FAR, distance, 0)[:, None]
    checker = (xp.floor(where[:, 0]) + xp.floor(where[:, 2])) % 2
    colour = xp.where(checker[:, None] == 0, 0.75, 0.25) * xp.ones(origin.shape)
    normal = xp.zeros(origin.shape)
    normal[:, 1] = 1
    mirror = xp.zeros(len(origin))
    for sphere in scene["spheres"]:
        centre, radius = xp.asarray(sphere["centre"]), sphere["radius"]
        offset = origin - centre
        half = (offset * direction).sum(1)
        root = half * half - (offset * offset).sum(1) + radius * radius
        near = -half - xp.sqrt(xp.clip(root, 0, None))
        closer = (root > 0) & (near > NUDGE) & (near < distance)
        distance = xp.where(closer, near, distance)
        outward = (offset + direction * near[:, None]) / radius
        normal = xp.where(closer[:, None], outward, normal)
        colour = xp.where(closer[:, None], xp.asarray(sphere["colour"]), colour)
        mirror = xp.where(closer, sphere["mirror"], mirror)
    return distance, normal, colour, mirror


def _sky(direction: Any, xp: Any) -> Any:
    height = xp.clip(direction[:, 1:2], 0, 1)
    return (1 - height) * xp.asarray([0.6, 0.6, 0.65]) + height * xp.asarray([0.2, 0.32, 0.6])


def _unit(vectors: Any, xp: Any) -> Any:
    return vectors / xp.sqrt((vectors * vectors).sum(1, keepdims=True))
