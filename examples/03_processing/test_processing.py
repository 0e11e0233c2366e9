"""The example's own tests. They need neither a broker nor a GPU."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest
import spectrum
from PIL import Image
from processing import hear


def test_a_melody_is_heard_through_the_noise(tmp_path: Path) -> None:
    recording, picture = tmp_path / "r.wav", tmp_path / "r.png"
    played = spectrum.write_recording(recording, seed=11, notes=40)
    heard = spectrum.analyse(recording, picture)
    assert len(heard["notes"]) == 40
    assert spectrum.matching(heard["notes"], played) >= 0.95
    with Image.open(picture) as image:
        assert image.width > 40 and image.height > 100


def test_another_melody_does_not_match(tmp_path: Path) -> None:
    recording = tmp_path / "r.wav"
    other = spectrum.write_recording(recording, seed=12, notes=40)
    spectrum.write_recording(recording, seed=11, notes=40)
    assert spectrum.matching(spectrum.analyse(recording, tmp_path / "r.png")["notes"], other) < 0.5


def test_another_format_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(spectrum.RATE)
        file.writeframes(b"\0" * 400)
    with pytest.raises(ValueError, match="one channel"):
        spectrum.analyse(tmp_path / "stereo.wav", tmp_path / "r.png")


def test_the_task_writes_what_it_heard(tmp_path: Path) -> None:
    played = spectrum.write_recording(tmp_path / "r.wav", seed=3, notes=20)
    heard = hear(str(tmp_path / "r.wav"), str(tmp_path / "r.png"))
    assert json.loads((tmp_path / "r.json").read_text()) == heard
    assert spectrum.matching(heard["notes"], played) >= 0.95
