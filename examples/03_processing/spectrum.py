"""Processing: which notes a recording holds, and a picture of its spectrum.

The input is a WAV file: a melody of known notes with overtones and noise, written by a seed. The output is the list of
notes heard (JSON) and a spectrogram (PNG). CuPy computes on the GPU that the process sees, NumPy where there is none.
"""

from __future__ import annotations

import importlib
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Samples per second, and seconds per note.
RATE = 22_050
NOTE_S = 0.25
#: Samples that one spectrum is made of, and samples between one and the next.
WINDOW = 4096
STEP = 128
#: Notes of two octaves from C4 to B5, numbered as MIDI does (69 is the A of 440 Hz).
LOWEST, HIGHEST = 60, 83
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def frequency_hz(note: int) -> float:
    """The frequency of a note by its MIDI number."""
    return float(440.0 * 2 ** ((note - 69) / 12))


def name(note: int) -> str:
    """``A4`` for 69."""
    return f"{NAMES[note % 12]}{note // 12 - 1}"


def write_recording(path: Path, seed: int, *, notes: int = 120) -> list[str]:
    """Write a melody as a WAV file (16 bits, one channel); returns the names of its notes, in order."""
    random = np.random.default_rng(seed)
    melody = random.integers(LOWEST, HIGHEST + 1, notes).tolist()
    time_s = np.arange(int(RATE * NOTE_S)) / RATE
    fade = np.minimum(1, np.minimum(time_s, NOTE_S - time_s) / 0.01)
    tones = []
    for note in melody:
        turn = 2 * np.pi * frequency_hz(note) * time_s
        tones.append(fade * (np.sin(turn) + 0.4 * np.sin(2 * turn) + 0.2 * np.sin(3 * turn)))
    sound = np.concatenate(tones) + random.normal(0, 0.3, notes * len(time_s))
    samples = np.clip(sound / 2.5 * 32767, -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return [name(note) for note in melody]


def analyse(recording_path: Path, picture_path: Path, *, gpu: bool = False) -> dict[str, Any]:
    """Hear the notes of a recording and write its spectrogram; returns the notes and what computed them."""
    with wave.open(str(recording_path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, RATE):
            raise ValueError(f"{recording_path} is not a recording of one channel, 16 bits and {RATE} Hz")
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
    xp, device = array_module(gpu)
    spectra = _spectra(sound, xp)
    Image.fromarray(_picture(spectra)).save(picture_path)
    notes = _notes(spectra, len(sound))
    return {
        "recording": recording_path.name,
        "seconds": round(len(sound) / RATE, 2),
        "notes": [name(note) for note in notes],
        "picture": picture_path.name,
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


def _spectra(sound: Any, xp: Any) -> Any:
    """Magnitudes, one row per step of time, one column per ``RATE / WINDOW`` Hz; in main memory."""
    samples = xp.asarray(np.pad(sound, WINDOW // 2))
    starts = xp.arange(0, len(samples) - WINDOW, STEP)
    shape = xp.hanning(WINDOW).astype(xp.float32)
    rows = []
    for block in range(0, len(starts), 512):  # in blocks: all at once would take gigabytes for a long recording
        index = starts[block : block + 512, None] + xp.arange(WINDOW)[None, :]
        rows.append(xp.abs(xp.fft.rfft(samples[index] * shape, axis=1)).astype(xp.float32))
    spectra = xp.concatenate(rows)
    return spectra if xp is np else xp.asnumpy(spectra)


def _notes(spectra: Any, length: int) -> list[int]:
    """The note heard in the middle of each ``NOTE_S``: the one whose tone and overtones together are loudest."""
    candidates = list(range(LOWEST, HIGHEST + 1))
    heard = []
    for number in range(round(length / RATE / NOTE_S)):
        spectrum = spectra[min(len(spectra) - 1, int((number + 0.5) * NOTE_S * RATE / STEP))]
        loudness = [
            sum(share * spectrum[round(frequency_hz(note) * k * WINDOW / RATE)] for k, share in ((1, 1.0), (2, 0.4)))
            for note in candidates
        ]
        heard.append(candidates[int(np.argmax(loudness))])
    return heard


def _picture(spectra: Any) -> Any:
    """Time to the right, pitch upwards (up to 2 kHz), 60 dB from black to white."""
    low = spectra[:, : int(2000 * WINDOW / RATE)]
    decibels = 20 * np.log10(low / max(float(low.max()), 1e-9) + 1e-6)
    shades = np.clip((decibels + 60) / 60, 0, 1) * 255
    return shades.T[::-1].astype(np.uint8)


def matching(heard: list[str], played: list[str]) -> float:
    """The share of the ``played`` notes that were ``heard`` in their place, from 0 to 1."""
    same = sum(one == other for one, other in zip(heard, played, strict=False))
    return same / max(len(heard), len(played), 1)
