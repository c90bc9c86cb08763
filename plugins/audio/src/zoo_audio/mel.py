"""From a waveform to a mel spectrogram in dB, and back by Griffin-Lim."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR_DB = -80.0
"""Level of silence, in decibels relative to a sine of amplitude 1."""
INVERSION_STEPS = 24
"""Multiplicative updates from mel bands to frequencies."""
MOMENTUM = 0.99
"""Momentum of the accelerated Griffin-Lim iterations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MelFrame:
    """How a waveform is cut into frames and bands. Frame i is centred at sample i x hop."""

    sample_rate: int
    """Hz."""
    window: int
    """Samples under the Hann window, and of the Fourier transform; even."""
    hop: int
    """Samples between frames."""
    mels: int
    """Bands, equally wide in mel, from 0 Hz to half the sample rate."""


def log_mel(waveform: Tensor, frame: MelFrame) -> Tensor:
    """dB (batch, mels, samples / hop) of a waveform (batch, samples): mean magnitude in each band.

    0 dB is magnitude 1 all over the band. A sine of amplitude 1, which is narrower, has about -3 dB in the lowest bands
    and -20 dB in the highest (of the default frame). Silence is FLOOR_DB.
    """
    return decibels(filters(frame).to(waveform.device) @ magnitudes(waveform, frame))


def decibels(magnitude: Tensor) -> Tensor:
    """20 log10, not below FLOOR_DB."""
    return 20 * magnitude.clamp_min(10 ** (FLOOR_DB / 20)).log10()


def magnitudes(waveform: Tensor, frame: MelFrame) -> Tensor:
    """(batch, window / 2 + 1, samples / hop): a sine of amplitude 1 that is constant in a window peaks at 1."""
    return _stft(waveform, frame).abs()[..., : waveform.shape[1] // frame.hop]


def griffin_lim(decibel: Tensor, frame: MelFrame, iterations: int) -> Tensor:
    """A waveform (batch, frames x hop) in [-1, 1] whose log-mel spectrogram is close to `decibel`.

    Phases are not in a spectrogram. They are made up by the accelerated Griffin-Lim algorithm (Perraudin, Balazs and
    Sondergaard, WASPAA 2013), from a fixed random start: the same spectrogram always gives the same waveform. A
    spectrogram leaves out the frame around the very end, so its magnitudes are extrapolated.
    """
    bands = 10 ** (decibel.clamp(FLOOR_DB, 20.0) / 20)
    bands = bands * (decibel > FLOOR_DB + 1)  # the floor means silence, not noise
    target = frequencies_of(bands, frame)
    target = torch.cat([target, target[..., -1:]], dim=-1)
    length = decibel.shape[2] * frame.hop
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(target.shape[1:], generator=generator).to(target.device) * (2 * math.pi)
    phases = torch.polar(torch.ones_like(angles), angles).expand(target.shape)
    previous = torch.zeros_like(phases)
    for _ in range(iterations):
        rebuilt = _stft(_istft(target * phases, frame, length), frame)
        target = torch.cat([target[..., :-1], rebuilt[..., -1:].abs()], dim=-1)
        phases = rebuilt - (MOMENTUM / (1 + MOMENTUM)) * previous
        phases = phases / phases.abs().clamp_min(1e-12)
        previous = rebuilt
    return _istft(target * phases, frame, length).clamp(-1, 1)


def frequencies_of(bands: Tensor, frame: MelFrame) -> Tensor:
    """Magnitudes >= 0 (batch, frequencies, frames) whose mel bands are close to `bands`, in least squares.

    Multiplicative updates (Lee and Seung, NIPS 2000, equation 4, with the filters held fixed) keep them positive.
    """
    weights = filters(frame).to(bands.device)
    numerator = weights.T @ bands
    estimate = numerator
    for _ in range(INVERSION_STEPS):
        estimate = estimate * numerator / (weights.T @ (weights @ estimate)).clamp_min(1e-9)
    return estimate


@functools.lru_cache(maxsize=8)
def filters(frame: MelFrame) -> Tensor:
    """float32 (mels, window / 2 + 1): triangles of equal width in mel (2595 log10(1 + f / 700)), each summing to 1."""
    top = 2595 * math.log10(1 + frame.sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, frame.mels + 2, dtype=torch.float64) / 2595) - 1)
    hertz = torch.linspace(0, frame.sample_rate / 2, frame.window // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bin_width = frame.sample_rate / frame.window
    rise = (hertz - low) / (centre - low).clamp_min(bin_width)
    fall = (high - hertz) / (high - centre).clamp_min(bin_width)
    triangles = torch.minimum(rise, fall).clamp_min(0)
    nearest = torch.nn.functional.one_hot((centre / bin_width).round().long().flatten(), len(hertz))
    triangles = torch.where(triangles.sum(1, keepdim=True) > 0, triangles, nearest.double())
    return (triangles / triangles.sum(1, keepdim=True)).float()


def _window(frame: MelFrame, device: torch.device) -> Tensor:
    """Hann, scaled so that a sine of amplitude 1 gives a peak of 1."""
    window = torch.hann_window(frame.window, device=device)
    return window * (2 / window.sum())


def _stft(waveform: Tensor, frame: MelFrame) -> Tensor:
    """Complex (batch, window / 2 + 1, samples / hop + 1): the last frame is centred at the end."""
    return torch.stft(waveform, frame.window, frame.hop, window=_window(frame, waveform.device), return_complex=True)


def _istft(spectrum: Tensor, frame: MelFrame, length: int) -> Tensor:
    return torch.istft(spectrum, frame.window, frame.hop, window=_window(frame, spectrum.device), length=length)
