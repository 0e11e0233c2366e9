"""Reading digits: pages of handwriting-like digits as PNG files, and a small neural network that reads them.

The pages are made with Pillow (its own font, bent, shifted and noisy by a seed), the network is trained on digits made
the same way with another seed: a few seconds on two cores, the same weights every time. Reading a page uses PyTorch or
CuPy on the GPU that the process sees, and NumPy where there is none.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

#: Pixels of a digit's side, and digits on a page's side.
CELL = 28
PAGE = 20

Floats = NDArray[np.float32]


def draw_digit(digit: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One digit, white on black, ``CELL`` pixels square: turned, sheared, scaled, shifted and noisy."""
    # A canvas of twice the size keeps the strokes smooth when they are bent.
    side = 2 * CELL
    canvas = Image.new("L", (side, side))
    font = ImageFont.load_default(size=int(random.integers(34, 46)))
    stroke = int(random.integers(0, 3))
    ImageDraw.Draw(canvas).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm", stroke_width=stroke)
    turn, shear = np.radians(random.uniform(-18, 18)), random.uniform(-0.25, 0.25)
    shift_x, shift_y = random.uniform(-5, 5, size=2)
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = (
        *(cos + shear * sin, shear * cos - sin, side / 2 * (1 - cos - shear * sin - shear * cos + sin) + shift_x),
        *(sin, cos, side / 2 * (1 - sin - cos) + shift_y),
    )
    bent = canvas.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    pixels = np.asarray(bent.resize((CELL, CELL), Image.Resampling.BOX), dtype=np.float32)
    noisy = pixels * random.uniform(0.6, 1.0) + random.normal(0, 14, pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_page(path: Path, seed: int) -> list[int]:
    """Write a page of ``PAGE * PAGE`` digits as a PNG file; returns what stands on it, row by row."""
    random = np.random.default_rng(seed)
    digits: list[int] = random.integers(0, 10, PAGE * PAGE).tolist()
    page = np.zeros((PAGE * CELL, PAGE * CELL), dtype=np.uint8)
    for cell, digit in enumerate(digits):
        row, column = divmod(cell, PAGE)
        page[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = draw_digit(digit, random)
    Image.fromarray(page).save(path)
    return digits


def read_cells(path: Path) -> Floats:
    """The digits of a page as rows of ``CELL * CELL`` floats from 0 to 1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"), dtype=np.float32) / 255
    rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    squares = pixels.reshape(rows, CELL, columns, CELL).swapaxes(1, 2)
    cells: Floats = squares.reshape(rows * columns, CELL * CELL)
    return cells


@dataclass(frozen=True)
class Network:
    """A network of one hidden layer: 784 pixels, ``hidden`` units, 10 digits."""

    hidden_weights: Floats
    hidden_bias: Floats
    output_weights: Floats
    output_bias: Floats

    def save(self, path: Path) -> None:
        """Write the weights to an NPZ file."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read the weights from an NPZ file."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in cls.__annotations__})


def train(seed: int = 7, *, samples: int = 4000, hidden: int = 128, epochs: int = 10) -> Network:
    """Train a network on ``samples`` drawn digits by stochastic gradient descent with momentum."""
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % 10
    pixels = np.stack([draw_digit(int(label), random) for label in labels]).reshape(samples, -1) / np.float32(255)
    weights: list[Floats] = [
        random.normal(0, np.sqrt(2 / pixels.shape[1]), (pixels.shape[1], hidden)).astype(np.float32),
        np.zeros(hidden, np.float32),
        random.normal(0, np.sqrt(1 / hidden), (hidden, 10)).astype(np.float32),
        np.zeros(10, np.float32),
    ]
    momentum = [np.zeros_like(weight) for weight in weights]
    truth = np.eye(10, dtype=np.float32)[labels]
    for epoch in range(epochs):
        rate = 0.1 * 0.8**epoch
        for batch in np.array_split(random.permutation(samples), samples // 50):
            for weight, speed, slope in zip(
                weights, momentum, _slopes(pixels[batch], truth[batch], weights), strict=True
            ):
                speed *= 0.9
                speed -= rate * slope
                weight += speed
    return Network(*weights)


def _slopes(pixels: Floats, truth: Floats, weights: list[Floats]) -> list[Floats]:
    """The gradient of the mean cross-entropy in each of the weights."""
    hidden = np.maximum(pixels @ weights[0] + weights[1], 0)
    scores = hidden @ weights[2] + weights[3]
    scores -= scores.max(axis=1, keepdims=True)
    guess = np.exp(scores)
    guess /= guess.sum(axis=1, keepdims=True)
    error = (guess - truth) / len(pixels)
    back = (error @ weights[2].T) * (hidden > 0)
    return [pixels.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


def read_page(page: Path, network: Network, *, gpu: bool = False, reach: int = 3) -> dict[str, Any]:
    """Read every digit of ``page``: its label and its ten probabilities, and what computed them.

    Each digit is read once per shift of up to ``reach`` pixels in every direction, and the probabilities are averaged:
    steadier than one look. ``gpu`` asks for the GPU; without one (or without a library for it) NumPy is used.
    """
    cells = read_cells(page)
    squares = cells.reshape(-1, CELL, CELL)
    shifts = [(x, y) for x in range(-reach, reach + 1) for y in range(-reach, reach + 1)]
    forward, device = _forward_on(gpu)
    looks = (np.roll(squares, shift, axis=(1, 2)).reshape(-1, CELL * CELL) for shift in shifts)
    probabilities = sum(forward(look, network) for look in looks) / len(shifts)
    return {
        "page": page.name,
        "labels": probabilities.argmax(axis=1).tolist(),
        "probabilities": probabilities.round(4).tolist(),
        "computed_on": device,
    }


def _forward_on(gpu: bool) -> tuple[Any, str]:
    if gpu:
        for name, forward in (("torch", _forward_torch), ("cupy", _forward_cupy)):
            try:
                library = importlib.import_module(name)
                if library.cuda.is_available():
                    return forward, f"{name} on cuda"
            except Exception:  # not installed, or installed and unable to find the driver: the next one may do
                continue
    return _forward_numpy, "numpy"


def _softmax(scores: Any, xp: Any) -> Any:
    powers = xp.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _forward_numpy(views: Floats, network: Network) -> Floats:
    hidden = np.maximum(views @ network.hidden_weights + network.hidden_bias, 0)
    answer: Floats = _softmax(hidden @ network.output_weights + network.output_bias, np)
    return answer


def _forward_cupy(views: Floats, network: Network) -> Floats:
    cupy = importlib.import_module("cupy")
    hidden = cupy.maximum(
        cupy.asarray(views) @ cupy.asarray(network.hidden_weights) + cupy.asarray(network.hidden_bias), 0
    )
    scores = hidden @ cupy.asarray(network.output_weights) + cupy.asarray(network.output_bias)
    answer: Floats = cupy.asnumpy(_softmax(scores, cupy))
    return answer


def _forward_torch(views: Floats, network: Network) -> Floats:
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        pixels, w1, b1, w2, b2 = (torch.as_tensor(array, device="cuda") for array in (views, *vars(network).values()))
        hidden = torch.relu(pixels @ w1 + b1)
        answer: Floats = torch.softmax(hidden @ w2 + b2, dim=1).cpu().numpy()
    return answer


def accuracy(reading: dict[str, Any], digits: list[int]) -> float:
    """The share of ``digits`` that ``reading`` has right, from 0 to 1."""
    return float(np.mean(np.asarray(reading["labels"]) == np.asarray(digits)))
