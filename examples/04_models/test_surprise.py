"""The example's own tests. They need neither a broker nor a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import ngrams
import pytest
import surprise


@pytest.fixture(scope="module")
def models() -> dict[str, ngrams.Model]:
    return {name: ngrams.load(name) for name in ngrams.NAMES}


def test_each_model_knows_its_own_kind(models: dict[str, ngrams.Model]) -> None:
    for kind in ngrams.NAMES:
        for text in ngrams.samples(kind, 4):
            bits = {name: model.bits(text) for name, model in models.items()}
            assert min(bits, key=lambda name: bits[name]) == kind, bits


def test_what_was_read_is_less_surprising_than_noise(models: dict[str, ngrams.Model]) -> None:
    assert models["prose"].bits("the following statement is executed") < 4 < models["prose"].bits("zqxj" * 10)


def test_a_process_keeps_one_model(tmp_path: Path) -> None:
    surprise.loaded.clear()
    answers = [surprise.measure(name, "import os\n" * 3, str(tmp_path / "answer.json")) for name in
               ("code", "code", "prose", "code")]  # fmt: skip
    assert [answer["was_loaded"] for answer in answers] == [False, True, False, False]
    assert list(surprise.loaded) == ["code"]
    assert json.loads((tmp_path / "answer.json").read_text(encoding="utf-8")) == answers[-1]
