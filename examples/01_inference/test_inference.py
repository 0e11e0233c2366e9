"""The example's own tests. They need neither a broker nor a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import digits
import pytest
from inference import read


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "weights.npz"
    digits.train().save(path)
    return path


def test_the_network_reads_pages_it_never_saw(weights: Path, tmp_path: Path) -> None:
    network = digits.Network.load(weights)
    for seed in (1, 2):
        truth = digits.write_page(tmp_path / "page.png", seed)
        reading = digits.read_page(tmp_path / "page.png", network)
        assert len(reading["labels"]) == len(truth) == digits.PAGE**2
        assert digits.accuracy(reading, truth) >= 0.9
        assert all(abs(sum(row) - 1) < 0.01 for row in reading["probabilities"])


def test_an_untrained_network_fails_the_same_check(tmp_path: Path) -> None:
    network = digits.train(samples=100, epochs=0)
    truth = digits.write_page(tmp_path / "page.png", 1)
    assert digits.accuracy(digits.read_page(tmp_path / "page.png", network), truth) < 0.5


def test_pages_and_training_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    assert digits.write_page(first, 5) == digits.write_page(second, 5)
    assert first.read_bytes() == second.read_bytes()
    one, other = (digits.train(samples=200, epochs=1) for _ in range(2))
    assert (one.hidden_weights == other.hidden_weights).all()


def test_the_task_writes_its_answer(weights: Path, tmp_path: Path) -> None:
    truth = digits.write_page(tmp_path / "page.png", 3)
    reply = read(str(tmp_path / "page.png"), str(weights), str(tmp_path / "answer.json"))
    reading = json.loads((tmp_path / "answer.json").read_text())
    assert reply["digits"] == len(truth)
    assert digits.accuracy(reading, truth) >= 0.9
