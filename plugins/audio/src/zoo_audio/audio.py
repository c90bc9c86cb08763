"""Sound as tokens: a mel spectrogram, four residual codes per place; decoded to a waveform by Griffin-Lim."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import read_array
from tokenizers_zoo.contract.spec import Crop, Metric
from tokenizers_zoo.contract.validation import CountedReads
from tokenizers_zoo.families.base import token_grid
from tokenizers_zoo.families.temporal import TemporalModality, TemporalTokenizer, check_patch
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.limits import limits
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerKind

if TYPE_CHECKING:
    import torch

    from zoo_audio.mel import MelFrame


EXTENSIONS = ("flac", "mp3", "ogg", "oga", "opus", "aif", "aiff", "au", "caf")
"""Files that soundfile (libsndfile) decodes."""
FASTEST = 1_000_000
"""Hz: the highest sample rate of a file that is read."""
MOST_CHANNELS = 64
"""Channels of a file that is read."""
UNKNOWN_FROM = 0x7FFFF000
"""Programs that write to a pipe state a size from here on to 0xFFFFFFFF."""
TAPS = 10
"""Samples of the slower rate that the filter of `resample` reaches to each side."""
FINEST = 100_000
"""The ratio of two sample rates is taken as one of whole numbers up to this, exactly or within 5 millionths of it: so
long the filter of `resample` becomes, and usual rates need a few thousand."""
PICTURE = (192, 128)
"""Width and height of a spectrogram's picture, pixels."""


def read_wav(data: bytes) -> tuple[int, NDArray[Any]]:
    """Sample rate and (samples, channels) as the file has them: 8 to 32 bits, or floats. Raises as `check_sound`."""
    from scipy.io import wavfile

    if data[:4] not in (b"RIFF", b"RIFX", b"RF64") or data[8:12] != b"WAVE":
        raise ValueError("this is not a WAV file")
    declared = int.from_bytes(data[4:8], "big" if data[:4] == b"RIFX" else "little")
    if not declared:
        raise ValueError("its header says 0 bytes, as a pipe may leave it; convert it (ffmpeg -i FILE OTHER.wav)")
    if len(data) < declared + 8 < UNKNOWN_FROM:
        raise ValueError(f"cut off: {len(data)} of {declared + 8} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that it does not know, such as tags
            rate, samples = wavfile.read(CountedReads(data))
    except Exception as error:
        raise ValueError(f"cannot be read as WAV: {error}") from None
    if not samples.size or rate < 1:
        raise ValueError("it holds no sound")
    channels = samples.reshape(len(samples), -1)
    check_sound(rate, channels.shape[1], len(channels))
    return rate, channels


def check_sound(rate: int, channels: int, samples: int) -> None:
    """Raise ValueError above FASTEST and MOST_CHANNELS, InvalidValueError above the limit `audio_seconds`."""
    if not 1 <= rate <= FASTEST:
        raise ValueError(f"sample rate {rate} Hz: expected up to {FASTEST:,}; resample it first")
    if channels > MOST_CHANNELS:
        raise ValueError(f"{channels} channels: expected up to {MOST_CHANNELS}; mix it down first")
    limits().check("audio_seconds", samples / rate, f"{samples / rate:,.1f} seconds of sound")


def read_compressed(data: bytes, extension: str, seconds: float) -> tuple[int, NDArray[np.float32]]:
    """Return the sample rate, and up to `seconds` of sound as float32 (samples, channels) in [-1, 1].

    Compressed sound may overshoot; it is clipped. Raises as `check_sound`, and ValueError for damaged files.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the wheel's library is not there
        raise ValueError('needs the package soundfile; pip install "zoo-audio[soundfile]"') from None

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            check_sound(rate, file.channels, file.frames)
            samples: NDArray[np.float32] = file.read(int(seconds * rate) + 1, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        why = getattr(error, "error_string", str(error)).rstrip(".")
        raise ValueError(f"cannot be read as .{extension}: {why}") from None
    if not samples.size:
        raise ValueError("it holds no sound")
    if not np.isfinite(samples).all():
        raise ValueError("it holds numbers that are not finite")
    return rate, np.clip(samples, -1, 1)


def to_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Integers, by the full scale of their width, as numbers in [-1, 1); floats as they are, if they are in range.

    Raises ValueError.
    """
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if samples.dtype.kind != "f":
        raise ValueError(f"expected a waveform of floats in [-1, 1] or of integers, got {samples.dtype}")
    peak = float(np.abs(samples).max(initial=0))
    if peak > 1:
        raise ValueError(f"expected floats in [-1, 1], got a peak of {peak:g}; divide by the peak, or save 16 bits")
    return samples.astype(np.float32)


def resample(samples: NDArray[np.float32], rate: int, target_rate: int) -> NDArray[np.float32]:
    """A waveform (samples,) at another sample rate, by polyphase filtering; within [-1, 1]."""
    if rate == target_rate:
        return samples
    from scipy.signal import resample_poly

    ratio = Fraction(target_rate, rate).limit_denominator(FINEST)
    return np.clip(resample_poly(samples, *ratio.as_integer_ratio()), -1, 1).astype(np.float32)


def fit_length(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """The first `length` samples, with silence after them where there are fewer."""
    cut = samples[:length]
    return np.pad(cut, (0, length - len(cut)))


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTokenizer(TemporalTokenizer):
    """The tokenizer of sound."""

    quantizer: QuantizerKind = "residual_fsq"
    width: int = 128
    """Channels of encoder and decoder: a patch has as many numbers as bands times frames."""
    flip: bool = False
    """Always false: one channel has no left and right."""

    def __post_init__(self) -> None:
        TemporalTokenizer.__post_init__(self)
        if self.flip:
            raise ValueError("flip: expected false; a recording of one channel has no left and right")


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioSettings(Checked):
    """Settings of sound."""

    sample_rate: Annotated[int, Interval(f"[100, {FASTEST}]")] = 16000
    """Hz of the values; files at other rates are resampled."""
    length: PositiveInt = 16000
    """Samples of a value; longer files are cut at the end, shorter ones end in silence."""
    hop: PositiveInt = 250
    """Samples between spectrogram frames; times `patch_length` it divides the length."""
    window: PositiveInt = 1000
    """Samples under a frame's window; even, and at least two hops."""
    mels: PositiveInt = 64
    """Bands of the spectrogram."""
    patch_length: PositiveInt = 4
    """Frames per place of the token grid."""
    iterations: PositiveInt = 32
    """Griffin-Lim iterations of decoding."""
    tokenizer: AudioTokenizer = AudioTokenizer()

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.window < 2 * self.hop:
            raise ValueError(f"window: expected at least two hops ({2 * self.hop}), got {self.window}")
        if self.window % 2:
            raise ValueError(f"window: expected an even number of samples, got {self.window}")
        if self.length <= self.window // 2:
            raise ValueError(f"length: expected more than half a window ({self.window // 2}), got {self.length}")
        check_patch(self.length, self.hop, "hop")
        check_patch(self.length // self.hop, self.patch_length, "patch_length")
        token_grid(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Spectrogram frames."""
        return (self.length // self.hop,)

    @property
    def patch(self) -> tuple[int, ...]:
        """Frames per place."""
        return (self.patch_length,)

    @property
    def frame(self) -> MelFrame:
        """The frame parameters of the spectrogram."""
        from zoo_audio.mel import MelFrame

        return MelFrame(sample_rate=self.sample_rate, window=self.window, hop=self.hop, mels=self.mels)


class Audio(TemporalModality):
    """A waveform of one channel: float32 (time,) in [-1, 1]; tokens (time, codes).

    A spectrogram has no phases, so decoded waveforms sound alike but do not lie on the original: metrics compare
    spectra, and there is no signal-to-noise ratio.
    """

    settings_class = AudioSettings
    summary = "sound as residual codes of its mel spectrogram"
    aliases = ("sound", "sounds")
    extensions = ("wav", *EXTENSIONS)
    low, high = -1.0, 1.0
    unit = "amplitude"
    description = "waveform of one channel; files are mixed down and resampled to sample_rate"
    token_space = "mel spectrogram, dB; phases by Griffin-Lim"
    loss = "l2"
    metrics = (
        Metric(
            name="mel_l1",
            unit="dB",
            higher_is_better=False,
            meaning="mean absolute difference of mel spectrograms in dB, silence at -80 dB",
        ),
        Metric(
            name="lsd",
            unit="dB",
            higher_is_better=False,
            meaning="log-spectral distance: root mean square difference in dB over frequencies, mean over frames",
        ),
    )

    def value_shape(self, options: AudioSettings) -> tuple[int, ...]:
        return (options.length,)

    def network_channels(self, options: AudioSettings) -> int:
        return options.mels

    def meaning(self, options: AudioSettings) -> dict[str, Any]:
        return {name: getattr(options, name) for name in ("sample_rate", "hop", "window", "mels")}

    def to_network(self, values: torch.Tensor, options: AudioSettings) -> torch.Tensor:
        """(batch, time) -> dB (batch, mels, frames)."""
        from zoo_audio.mel import log_mel

        return log_mel(values, options.frame)

    def from_network(self, outputs: torch.Tensor, options: AudioSettings) -> torch.Tensor:
        """dB (batch, mels, frames) -> (batch, time)."""
        from zoo_audio.mel import griffin_lim

        return griffin_lim(outputs, options.frame, options.iterations)

    def read(self, data: bytes, extension: str, options: AudioSettings) -> NDArray[np.float32]:
        """A sound file, mixed down to one channel and resampled; or an .npy waveform at `sample_rate`.

        Files other than .wav (.flac, .mp3, .ogg, ...) need the extra `soundfile`.
        """
        seconds = options.length / options.sample_rate + 1  # the filter of `resample` reaches less than a second
        if extension == "npy":
            waveform = read_array(data, extension)
            if waveform.dtype.kind != "f" and waveform.dtype != np.int16:
                raise ValueError(f"expected floats in [-1, 1] or int16, got {waveform.dtype}, which has no full scale")
            check_sound(options.sample_rate, 1, len(waveform) if waveform.ndim else 0)
            samples = to_float(waveform)
            if samples.ndim != 1 or not samples.size:
                raise ValueError(f"expected one channel (time,), got {samples.shape}; mix it down, or save a .wav")
        elif extension in ("wav", "wave"):
            rate, channels = read_wav(data)
            used = to_float(channels[: math.ceil(seconds * rate) + 2 * TAPS])
            samples = resample(used.mean(axis=1), rate, options.sample_rate)
        elif extension in EXTENSIONS:
            rate, channels = read_compressed(data, extension, seconds)
            samples = resample(channels.mean(axis=1), rate, options.sample_rate)
        else:
            raise ValueError(
                f"expected .wav, .{', .'.join(EXTENSIONS)} or .npy; convert it first (ffmpeg -i FILE FILE.wav)"
            )
        return fit_length(samples, options.length)

    def write(self, value: NDArray[np.float32], options: AudioSettings) -> tuple[bytes, str]:
        """A .wav file of 16 bits."""
        from scipy.io import wavfile

        buffer = io.BytesIO()
        levels = np.clip(np.round(value * 32768.0), -32768, 32767).astype(np.int16)
        wavfile.write(buffer, options.sample_rate, levels)
        return buffer.getvalue(), "wav"

    @hookimpl
    def transform(self, value: NDArray[np.float32], crop: Crop, settings: Settings) -> NDArray[np.float32]:
        """Return the value itself: crops of the picture do not change the sound."""
        return value

    def picture(self, value: NDArray[np.float32], options: AudioSettings) -> Any:
        """The spectrogram: low frequencies are at the bottom; black is silence, white is 0 dB."""
        import matplotlib
        import torch
        from PIL import Image

        from zoo_audio.mel import FLOOR_DB, log_mel

        bands = log_mel(torch.from_numpy(value)[None], options.frame)[0].numpy()[::-1]
        colours = matplotlib.colormaps["magma"]((bands - FLOOR_DB) / -FLOOR_DB, bytes=True)[..., :3]
        return Image.fromarray(colours).resize(PICTURE, Image.Resampling.NEAREST)

    def measure(self, predicted: list[Any], target: list[Any], options: AudioSettings) -> Mapping[str, float]:
        import torch

        from zoo_audio.mel import decibels, filters, magnitudes

        mel, distance = 0.0, 0.0
        weights = filters(options.frame)
        for guess, truth in zip(predicted, target, strict=True):
            pair = magnitudes(torch.from_numpy(np.stack([guess, truth])), options.frame)
            bands = decibels(weights @ pair)
            mel += float((bands[0] - bands[1]).abs().mean())
            spectra = decibels(pair)
            distance += float((spectra[0] - spectra[1]).square().mean(dim=0).sqrt().mean())
        return {"mel_l1": mel / len(target), "lsd": distance / len(target)}

    def constant_maps(self, stack: NDArray[Any], options: Any) -> list[NDArray[Any]]:
        """Candidates are silence and some of the recordings. A mean of waveforms would sound like no recording."""
        return [np.zeros_like(stack[0]), *stack[:: max(1, len(stack) // CANDIDATES)]]


CANDIDATES = 4
"""At least so many recordings, evenly spread, are tried as the constant baseline, and fewer than twice as many."""

plugin = Audio()
