"""Sounds -> log-mel spectrograms, which take longer to compute than to read.

    mmds convert sounds mel.mmds --map examples.mel:log_mel --output-fields examples.mel:fields

Labels and paths stay as they are.
"""

from __future__ import annotations

import io
from functools import cache
from math import gcd
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

import mmds

RATE = 16_000  # Hz, to which sounds are resampled
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms, filled up with zeros
BANDS = 80
FLOOR = 1e-10  # of the power, so that silence has a logarithm: -23

Sample = dict[str, Any]
NdArray = np.ndarray[Any, Any]


def mel(hertz: Any) -> Any:
    """Return pitch on the mel scale of HTK (O'Shaughnessy, Speech Communication, 1987, p. 150).

    >>> round(float(mel(1000)))
    1000
    """
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


@cache
def filters() -> NdArray:
    """Return the weight of each frequency in each band, (FFT / 2 + 1, BANDS).

    As in HTK: triangles over mel, not over Hz, of height 1, each from the peak of the band below to that of the band above.
    """
    pitch = mel(np.fft.rfftfreq(FFT, 1 / RATE))
    width = mel(RATE / 2) / (BANDS + 1)
    peaks = width * np.arange(1, BANDS + 1)
    return np.asarray(np.maximum(0, 1 - np.abs(pitch[:, None] - peaks) / width), np.float32)


def log_mel(sample: Sample) -> Sample:
    """Return the sample with ``mel`` in place of its sound: the logarithm of the power in each band, (frames, BANDS)."""
    sound, rate = soundfile.read(io.BytesIO(sample["audio"]), dtype="float32", always_2d=True)
    mono = sound.mean(axis=1)
    if rate != RATE:
        common = gcd(rate, RATE)
        mono = resample_poly(mono, RATE // common, rate // common)
    mono = np.pad(mono, (0, max(0, WINDOW - len(mono))))  # at least one frame
    frames = np.lib.stride_tricks.sliding_window_view(mono, WINDOW)[::HOP]
    hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * hann, FFT)).astype(np.float32) ** 2
    rest = {name: value for name, value in sample.items() if name != "audio"}
    return {"mel": np.log(np.maximum(power @ filters(), FLOOR)).astype(np.float32), **rest}


def fields(source: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of what `log_mel` returns, from those of the folder: labels keep the names of their classes."""
    rest = {name: kind for name, kind in source.items() if name != "audio"}
    return {"mel": mmds.Array("float32", (None, BANDS)), **rest}
