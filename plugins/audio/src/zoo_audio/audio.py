"""Sound as tokens: a mel spectrogram, four residual codes per place; decoded to a waveform by Griffin-Lim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings, check_counts
from tokenizers_zoo.families.images import read_array
from tokenizers_zoo.families.temporal import TemporalModality, TemporalTokenizer, check_patch, token_grid
from tokenizers_zoo.quantizers.config import QuantizerKind
from tokenizers_zoo.spec import Crop, Metric, ValueSpec
from zoo_audio.wav import fitted, heard, read_wav, resampled, to_float, wav_bytes

if TYPE_CHECKING:
    import torch

    from zoo_audio.mel import MelFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTokenizer(TemporalTokenizer):
    """The tokenizer of sound."""

    quantizer: QuantizerKind = "residual_fsq"
    """How latents become tokens; see `QuantizerConfig.kind`."""
    width: int = 128
    """Channels of encoder and decoder: a patch has as many numbers as bands times frames."""
    flip: bool = False
    """Always false: one channel has no left and right."""

    def __post_init__(self) -> None:
        TemporalTokenizer.__post_init__(self)
        if self.flip:
            raise ValueError("flip: expected false; a recording of one channel has no left and right")


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioSettings:
    """Settings of sound."""

    sample_rate: int = 16000
    """Hz of the values; files at other rates are resampled."""
    length: int = 16000
    """Samples of a value; longer files are cut at the end, shorter ones end in silence."""
    hop: int = 250
    """Samples between spectrogram frames; times `patch_length` it divides the length."""
    window: int = 1000
    """Samples under a frame's window; even, and at least two hops."""
    mels: int = 64
    """Bands of the spectrogram."""
    patch_length: int = 4
    """Frames per place of the token grid."""
    iterations: int = 32
    """Griffin-Lim iterations of decoding."""
    tokenizer: AudioTokenizer = AudioTokenizer()

    def __post_init__(self) -> None:
        check_counts(self, "sample_rate", "hop", "mels", "iterations")
        if self.window < 2 * self.hop:
            raise ValueError(f"window: expected at least two hops ({2 * self.hop}), got {self.window}")
        if self.window % 2:
            raise ValueError(f"window: expected an even number of samples, got {self.window}")
        if self.length <= self.window // 2:
            raise ValueError(f"length: expected more than half a window ({self.window // 2}), got {self.length}")
        check_patch((self.length,), (self.hop,), ("hop",))
        check_patch(self.sizes, self.patch, ("patch_length",))
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

    def value_spec(self, options: AudioSettings) -> ValueSpec:
        """A waveform of the settings' length."""
        return ValueSpec(
            shape=(options.length,), unit=self.unit, low=self.low, high=self.high, description=self.description
        )

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
        from zoo_audio.mel import waveform_of

        return waveform_of(outputs, options.frame, options.iterations)

    def read(self, data: bytes, extension: str, options: AudioSettings) -> NDArray[np.float32]:
        """A .wav file, mixed down to one channel and resampled; or an .npy waveform at `sample_rate`."""
        if extension == "npy":
            given = read_array(data, extension)
            if given.dtype.kind != "f" and given.dtype != np.int16:
                raise ValueError(f"expected floats in [-1, 1] or int16, got {given.dtype}, which has no full scale")
            samples = to_float(given)
            if samples.ndim != 1 or not samples.size:
                raise ValueError(f"expected one channel (time,), got {samples.shape}; mix it down, or save a .wav")
        elif extension in ("wav", "wave"):
            rate, channels = read_wav(data)
            used = to_float(channels[: heard(options.length, rate, options.sample_rate)])
            samples = resampled(used.mean(axis=1), rate, options.sample_rate)
        else:
            raise ValueError("expected .wav or .npy; convert it first (ffmpeg -i FILE FILE.wav)")
        return fitted(samples, options.length)

    def write(self, value: NDArray[np.float32], options: AudioSettings) -> tuple[bytes, str]:
        return wav_bytes(value, options.sample_rate), "wav"

    @hookimpl
    def transform(self, value: NDArray[np.float32], crop: Crop, settings: Settings) -> NDArray[np.float32]:
        """Return the value itself: crops of the picture do not change the sound."""
        return value

    def picture(self, value: NDArray[np.float32], options: AudioSettings) -> Any:
        from zoo_audio.mel import sound_picture

        return sound_picture(value, options.frame)

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
