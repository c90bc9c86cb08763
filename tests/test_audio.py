"""Sound: spectrograms by hand, waveforms from them, every kind of WAV file, wrong files."""

from __future__ import annotations

import io
import math
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.testing.media import wav
from zoo_audio import audio, mel

RATE = 8000
TABLE = {"sample_rate": RATE, "length": 4000, "hop": 125, "window": 500, "mels": 32, "patch_length": 4}
FRAME = mel.MelFrame(sample_rate=RATE, window=500, hop=125, mels=32)


def settings(**changed: Any) -> Settings:
    return Settings("audio", {**TABLE, **changed})


def tone(hertz: float, rate: int = RATE, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def wav_file(samples: np.ndarray, rate: int = RATE, width: int = 0) -> bytes:
    return wav(samples.reshape(len(samples), -1), rate, width).data


def test_sine_of_amplitude_one_has_0_db_in_its_band() -> None:
    waveform = torch.from_numpy(2 * tone(1008.0))[None]  # the middle of a bin: 1008 = 63 x 16
    spectrum = mel.magnitudes(waveform, FRAME)
    assert spectrum.shape == (1, 251, 32)
    middle = spectrum[0, :, 16]
    assert int(middle.argmax()) == 63 and middle[63].item() == pytest.approx(1, abs=1e-3)
    weights = mel.filters(FRAME)
    assert weights.sum(1).tolist() == pytest.approx([1] * 32, abs=1e-5) and weights.min() >= 0
    loudest = int(mel.log_mel(waveform, FRAME)[0, :, 16].argmax())
    assert weights[loudest, 63] > 0
    assert (mel.log_mel(torch.zeros(1, 4000), FRAME) == mel.FLOOR_DB).all()


def test_waveforms_come_back_from_spectrograms() -> None:
    waveform = torch.from_numpy(np.stack([tone(440.0), 0.5 * tone(1500.0), np.zeros(4000, np.float32)]))
    target = mel.log_mel(waveform, FRAME)
    restored = mel.griffin_lim(target, FRAME, 32)
    assert restored.shape == waveform.shape and restored.abs().max() <= 1
    assert torch.equal(restored, mel.griffin_lim(target, FRAME, 32))
    assert (mel.log_mel(restored, FRAME) - target)[:2].abs().mean() < 3
    assert restored[2].abs().max() < 1e-4  # silence stays silent
    heard = torch.fft.rfft(restored[0]).abs().argmax() * RATE / 4000
    assert heard.item() == pytest.approx(440, abs=66)  # the width of a band there


def test_reconstructed_waveform_end_is_as_good_as_the_rest() -> None:
    """A tone's phase differs between frames, including the frame around the end, which a spectrogram omits."""
    for frame in (FRAME, audio.AudioSettings().frame):
        pitches = range(200, frame.sample_rate // 2 - 500, 250)
        target = mel.log_mel(torch.from_numpy(np.stack([tone(hertz, frame.sample_rate) for hertz in pitches])), frame)
        restored = mel.griffin_lim(target, frame, 32)
        error = (mel.log_mel(restored, frame) - target).abs().mean(dim=(0, 1))
        assert error[-1] < 2 * error[4:-4].mean()


@pytest.mark.parametrize(("width", "tolerance"), [(0, 0), (1, 0.02), (2, 1e-4), (3, 1e-6), (4, 1e-6)])
def test_every_kind_of_wav_is_read(width: int, tolerance: float) -> None:
    """Bytes per sample, 0 for floats; mono, and two channels, whose mean is read."""
    for channels in ([1.0], [1.5, 0.5]):
        data = wav_file(tone(300.0)[:, None] * channels, width=width)
        value = audio.plugin.read_value(data, "wav", settings())
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, tone(300.0), atol=tolerance + 1e-7)


@pytest.mark.parametrize(("kind", "form", "tolerance"), [
    ("flac", "FLAC", 1e-4), ("ogg", "OGG", 0.05), ("mp3", "MP3", 0.08), ("aiff", "AIFF", 1e-4),
])  # fmt: skip
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_compressed_sound_is_read_and_resampled(kind: str, form: str, tolerance: float, rate: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, tone(300.0, rate, 1.0)[:, None] * [1.5, 0.5], rate, format=form)
    value = audio.plugin.read_value(file.getvalue(), kind, settings())
    assert value.shape == (4000,) and value.dtype == np.float32
    np.testing.assert_allclose(value[400:-400], tone(300.0)[400:-400], atol=tolerance + (0.01 if rate != RATE else 0))


def test_sound_of_an_unknown_kind_is_refused() -> None:
    pytest.importorskip("soundfile")
    with pytest.raises(InvalidValueError, match="flac"):
        audio.plugin.read_value(b"", "m4a", settings())


def test_without_the_package_its_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InvalidValueError, match=r'pip install "zoo-audio\[soundfile\]"'):
        audio.plugin.read_value(b"...", "flac", settings())


def test_other_rates_are_resampled_and_other_lengths_fitted() -> None:
    value = audio.plugin.read_value(wav_file(tone(300.0, 44100), 44100), "wav", settings())
    np.testing.assert_allclose(value[100:-100], tone(300.0)[100:-100], atol=0.01)
    for seconds in (0.25, 1):
        fitted = audio.plugin.read_value(wav_file(tone(300.0, seconds=seconds)), "wav", settings())
        expected = np.where(np.arange(4000) < seconds * RATE, tone(300.0), 0)
        np.testing.assert_allclose(fitted, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [7, 11025, 44100, 96000, 999983])
def test_only_the_used_part_of_a_long_file_is_resampled(rate: int) -> None:
    long = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * rate + 50).astype(np.float32)
    expected = audio.fit_length(audio.resample(long, rate, RATE), 4000)
    np.testing.assert_array_equal(audio.plugin.read_value(wav_file(long, rate), "wav", settings()), expected)


@pytest.mark.parametrize(("rate", "seconds", "max_bytes"), [(999983, 1, 200e6), (44100, 30, 2.5 * 30 * 44100 * 2)])
def test_memory_is_bounded_for_odd_rates_and_long_files(rate: int, seconds: int, max_bytes: float) -> None:
    """A rate without a common divisor would need a long filter."""
    data = wav_file(np.tile(tone(300.0, rate), 2 * seconds), rate, 2)
    audio.plugin.read_value(data, "wav", settings())  # imports
    tracemalloc.start()
    audio.plugin.read_value(data, "wav", settings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < max_bytes


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF024, 0x80000024])
def test_wav_from_a_pipe_has_no_known_size(size: int) -> None:
    data = bytearray(wav_file(tone(300.0), width=2))
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    assert data[36:40] == b"data"
    data[36:36] = b"LIST\x03\x00\x00\x00abc\x00"  # chunks of odd size are followed by a padding byte
    np.testing.assert_allclose(audio.plugin.read_value(bytes(data), "wav", settings()), tone(300.0), atol=1e-4)
    data[4:8] = data[52:56] = bytes(4)
    with pytest.raises(InvalidValueError, match="0 bytes"):
        audio.plugin.read_value(bytes(data), "wav", settings())


def test_metrics_by_hand() -> None:
    loud = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)
    marks = audio.plugin.score([loud / 2, loud], [loud, loud], settings())
    assert marks == pytest.approx({"mel_l1": 20 * math.log10(2) / 2, "lsd": 20 * math.log10(2) / 2}, abs=0.01)


def test_the_picture_shows_the_spectrum() -> None:
    picture = audio.plugin.render(tone(300.0), settings())
    assert picture.size == (192, 128)
    pixels = np.asarray(picture)
    spectrum = pixels.astype(int).sum(axis=(1, 2))
    assert spectrum[64:].sum() > 5 * spectrum[:64].sum()  # 300 Hz is low, and low is at the bottom


@pytest.mark.parametrize(
    ("table", "shape", "size"),
    [
        ({}, (8, 4), 729),
        ({"levels": [4, 3], "num_codebooks": 2}, (8, 2), 12),
        ({"quantizer": "residual_vq", "codebook_size": 64}, (8, 4), 64),
        ({"quantizer": "fsq"}, (8,), 240),
    ],
)
def test_tokens_are_time_by_codes(table: dict[str, Any], shape: tuple[int, ...], size: int) -> None:
    spec = audio.plugin.modality_spec(settings(tokenizer=table))
    assert spec.layout.shape == shape and spec.vocab_size == size and spec.value.shape == (4000,)
