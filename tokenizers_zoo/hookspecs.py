"""The whole plugin contract.

A modality plugin is a module or an instance whose functions carry `@tokenizers_zoo.hookimpl`, registered under the
entry point group `tokenizers_zoo` by its modality's name. A source plugin does the same under `tokenizers_zoo.sources`,
and a wrapper (timing, checking, tracing: `@hookimpl(wrapper=True)`) under `tokenizers_zoo.wrappers`.

An implementation asks only for the arguments that it uses, by these names. `settings` is the instance's
`tokenizers_zoo.config.Settings`, so that one plugin can serve several instances (`plugin = "..."` in registry.toml).
A wrapper, which is around all of them, finds the called one's name in `settings.name` (`config.name` of
train_tokenizer).

Sample values are numpy arrays, str, or lists and dicts of JSON types, as `ModalitySpec.value` declares. `encode` and
`decode` work on batches: a torch tensor `(batch, *value.shape)` where the value is an array of fixed shape, else a
list. Tensors are on the tokenizer's device, and no gradients are recorded.

Values and tokens are checked against the spec before `encode` and `decode` get them, and what a hook gives is checked
after it: what the spec does not declare becomes a PluginError that names plugin and distribution. So does any exception
that is no ZooError; but one of `read_value` becomes an InvalidValueError, since it is the file that is bad, and
elsewhere want of memory or a device that fails becomes a MachineError, which is no ZooError: no value is to blame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from tokenizers_zoo.config import Settings
from tokenizers_zoo.source import SourceSpec
from tokenizers_zoo.spec import Crop, ModalitySpec

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples
    from tokenizers_zoo.ml4m import PublishedCheckpoint

PROJECT = "tokenizers_zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class ModalityHooks:
    """One modality. The first five are required."""

    @hookspec(firstresult=True)
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """Describe the modality under these settings.

        The spec's name is `settings.name`. Called often and by `zoo list`: cheap, and without importing torch.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int) -> Path:
        """Train on `samples`, write a checkpoint folder at `out_dir`, return its path.

        `config` is the instance's settings with the command line's overrides. `samples.train` and `samples.test` are
        lazy sequences of values, checked and at the size of the settings. Started again on the same `out_dir` after a
        kill it goes on where it was, and the result is the same. The folder needs `model.safetensors` and
        `config.json`: all that decides tokens belongs into these two, whose sha256 is the tokenizer's identity, and
        files beside them that no run has make --overwrite refuse the folder.
        `tokenizers_zoo.checkpoint.save_checkpoint` writes them and a README.md; its `config` needs a key "class".
        Raises ConfigError or DataError where it cannot train on these.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings, vocabulary: Path) -> Any:
        """Load what `train_tokenizer` wrote: the object that encode and decode are given. Raises CheckpointError.

        `device` is a torch device, such as "cpu" or "cuda"; a `torch.nn.Module` is put in eval mode afterwards.
        Several modalities may share the checkpoint of one vocabulary; `settings` say which of them this is.
        `vocabulary` is the vocabulary's folder: `checkpoint` itself, but where the spec says `own_tokenizer`.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def encode(self, tokenizer: Any, values: Any, settings: Settings) -> torch.Tensor | Sequence[Any]:
        """Tokens of a batch of values.

        Grids and vectors: int64 `(batch, *tokens)` in [0, vocab_size). Sequences: a list of 1-D int64 arrays without
        end or sentinel ids. Patches and embeddings: float32 `(batch, tokens, dim)`, or a list of `(tokens, dim)`.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def decode(self, tokenizer: Any, tokens: Any, settings: Settings) -> Any:
        """Values of a batch of tokens: the inverse of encode up to the tokenizer's loss, for any valid ids.

        Tokens are as `encode` gives them, though not only what a value encodes to. Tensors are on the tokenizer's
        device; tokens of variable length are a list of numpy arrays. Gives a tensor `(batch, *value.shape)`, or a list
        of values, one for each. Embeddings, which are an input only, may raise a ZooError instead.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def read_value(self, data: bytes, extension: str, settings: Settings) -> Any:
        """One value from a file's bytes (`extension` without a dot, lower case). Raises InvalidValueError.

        Of several extensions it is the last: "gz" of `scan.nii.gz`.
        Default: `.npy` for arrays, `.txt` (UTF-8) for text, `.json` for objects.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def write_value(self, value: Any, settings: Settings) -> tuple[bytes, str]:
        """A value as a file's bytes and its extension; `read_value` reads it back. Default: as for read_value.

        The extension is of lower-case letters and digits, without any dot: "gz", not "nii.gz".
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def example_files(self, settings: Settings) -> Mapping[str, tuple[bytes, str]]:
        """Files that users of the modality will meet, sound and wrong ones: what each is, in a few plain words, with
        its bytes and its extension.

        `zoo check` reads them, and the modality's page says what happens. Beside them it makes others from what the
        spec declares; those of objects (lists, tables) from the first example, which is a sound `.json`. Default: none.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def transform(self, value: Any, crop: Crop, settings: Settings) -> Any:
        """The value seen through the crop that all modalities of the sample share, at the size of the settings.

        Default: the value itself, which is right for what does not depend on the picture's frame, such as a spectrogram
        beside a picture. With this hook, an array is a view of the sample's picture where its tokens are a grid of two
        axes, or its last two axes are the settings' `image_size`: one of other proportions than the others is refused.
        A class whose base has the hook leaves it out by `transform = None`, and brings values to the size of the
        settings in `read_value` and `derive`.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def derive(self, sample: Mapping[str, Any], settings: Settings, specs: Mapping[str, ModalitySpec]) -> Any:
        """This modality's value, computed from those of `derived_from`. Raises ZooError to drop the sample.

        `specs` are those of `derived_from`, for whoever has to know, say, the names of their classes.
        Where a setting turns it on, such as one that names a network, the spec says so in `derive_setting`.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def render(self, value: Any, settings: Settings) -> PIL.Image.Image | str:
        """The value as a person wants to see it: a PIL image of any size, or text. Default: a summary in text."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def score(self, predicted: Sequence[Any], target: Sequence[Any], settings: Settings) -> Mapping[str, float]:
        """The metrics of `ModalitySpec.metrics` over aligned lists of values: one number each for the whole list.

        Where the truth is a class of `ValueSpec.unscored` nothing is counted, neither right nor wrong.
        Default: `exact`, the fraction of values that are equal.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def constant_baseline(self, values: Sequence[Any], settings: Settings) -> Any:
        """The best single answer for all of `values`, given without looking at any input: the floor of 'gap closed'.

        Default: of up to 32 of the values, the one that scores best against them all.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """Special tokens that this modality adds to its shared text vocabulary. Default: none."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def vocabulary_texts(self, values: Sequence[Any], settings: Settings) -> Sequence[str]:
        """The plain text in `values` that a shared text vocabulary has to cover well. Default: none."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def single_ids(self, tokenizer: Any, settings: Settings) -> Sequence[int]:
        """Ids of which a sequence has each at most once, such as those that name a field of a table.

        Generation writes none of them twice, and none that a kept part has. Default: none.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write a tokenizer that 4M published as a checkpoint of this modality at `out_dir`, bits and all.

        Gives the settings, as keys of the instance's table in registry.toml, under which `load_tokenizer` takes it.
        Raises CheckpointError where it is not a tokenizer of such values; nothing is written then. Default: none is.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def export_published(self, checkpoint: Path, settings: Settings) -> PublishedCheckpoint:
        """The published tokenizer that `import_published` made `checkpoint` of, the same to the bit.

        Raises CheckpointError where it was not made so. Default: it was not.
        """
        raise NotImplementedError


class SourceHooks:
    """One source of samples. Both are required."""

    @hookspec(firstresult=True)
    def source_spec(self) -> SourceSpec:
        """Describe the source."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def samples(
        self, split: str, count: int | None, seed: int, settings: Settings
    ) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Lazy samples `(key, {modality: value})`, random access: `[i]` depends on (split, seed, i) and settings only.

        Keys are unique across splits. `count` None means all that the source has; a source without an end raises
        ConfigError for it: `tokenizers_zoo.source.MadeSamples` is such samples. A modality that a sample lacks is
        absent from its mapping.
        """
        raise NotImplementedError


REQUIRED = ("modality_spec", "train_tokenizer", "load_tokenizer", "encode", "decode")
SOURCE_REQUIRED = ("source_spec", "samples")
