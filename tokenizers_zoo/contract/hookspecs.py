"""The plugin contract, version 1.

A modality plugin is a module or an instance whose functions carry `@tokenizers_zoo.hookimpl`. It is registered in the
entry-point group `tokenizers_zoo` under the modality's name. Sources use the group `tokenizers_zoo.sources`. Wrappers
(timing, caching, tracing: `@hookimpl(wrapper=True)`) use `tokenizers_zoo.wrappers` and run around every call.

A plugin may say which version of the contract it was made for: by the attribute `contract = 1`. The default is 1. A
plugin made for another version is refused by name.

An implementation takes only the arguments that it uses, by these names:

- `settings`: the `tokenizers_zoo.records.config.Settings` of the instance. One plugin can serve several instances
  (`plugin = "..."` in registry.toml). A wrapper finds the instance's name in `settings.name`.
- `spec`: the `ModalitySpec` that `modality_spec` returned for these settings.

Values are numpy arrays, str, or lists and dicts of JSON types, as `ModalitySpec.value` declares. `encode` and `decode`
work on batches: a torch tensor `(batch, *value.shape)` for arrays of fixed shape, else a list. Tensors are on the
tokenizer's device, and gradients are off.

Values and tokens are checked once, where they enter: values from a file, a source or a hook, and tokens from `encode`.
If a hook's result does not match its spec, or the hook raises an error that is not a ZooError, the caller gets a
PluginError that names plugin and distribution. There are two exceptions. Any error of `read_value` becomes an
InvalidValueError, because the file is to blame. Out of memory and device failures become a MachineError, which is no
ZooError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from tokenizers_zoo.contract.source import ModalityNames, SourceSpec
from tokenizers_zoo.contract.spec import Crop, ModalitySpec
from tokenizers_zoo.records.config import Settings

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.contract.samples import TrainingSamples
    from tokenizers_zoo.files.published import PublishedCheckpoint

CONTRACT = 1
"""Version of the plugin contract. It grows with every change that breaks a plugin."""
PROJECT = "tokenizers_zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
Score = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]


class ModalityHooks(Protocol):
    """The hooks of one modality. The first five are required."""

    @hookspec(firstresult=True)
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """Return the spec of the modality under these settings.

        The spec's name is `settings.name`. `zoo list` calls this hook: it has to be cheap and must not import torch.
        """

    @hookspec(firstresult=True)
    def train_tokenizer(
        self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int, device: str
    ) -> Path:
        """Train a tokenizer and return the path of its checkpoint folder.

        - `config`: the instance's settings, with the overrides of the command line.
        - `samples`: `samples.train` and `samples.test` are lazy sequences of checked values at the settings' size.
        - `out_dir`: the folder to write. After a kill, the same call resumes there with the same result.
        - `device`: the torch device to train on, such as "cpu" or "cuda".

        The folder needs `model.safetensors` and `config.json`, which together determine the tokens: their sha256 is the
        tokenizer's fingerprint. `tokenizers_zoo.files.checkpoint.save_checkpoint` writes them, with checksums, and a
        README.md; its `config` needs the key "class". `--overwrite` refuses a folder that contains files no training
        wrote. Raises ConfigError or DataError if it cannot train on these samples.
        """

    @hookspec(firstresult=True)
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings, vocabulary: Path) -> Any:
        """Load a checkpoint and return the tokenizer object that `encode` and `decode` get. Raises CheckpointError.

        - `device`: a torch device such as "cpu" or "cuda". A `torch.nn.Module` is put in eval mode afterwards.
        - `settings`: tell modalities apart that share one checkpoint.
        - `vocabulary`: the vocabulary's folder. It differs from `checkpoint` only if the spec says `own_tokenizer`.
        """

    @hookspec(firstresult=True)
    def encode(self, tokenizer: Any, values: Any, settings: Settings) -> torch.Tensor | Sequence[Any]:
        """Return the tokens of a batch of values.

        - Grids and vectors: int64 `(batch, *tokens)` in [0, vocab_size).
        - Sequences: a list of 1-D int64 arrays without end or sentinel ids.
        - Patches: float32 `(batch, tokens, dim)`. Embeddings: a list of float32 `(tokens, dim)`.
        """

    @hookspec(firstresult=True)
    def decode(self, tokenizer: Any, tokens: Any, settings: Settings) -> Any:
        """Return the values of a batch of tokens: a tensor `(batch, *value.shape)`, or a list of values.

        Has to accept all valid ids, including sequences that `encode` never returns. Tensors are on the tokenizer's
        device; tokens of variable length come as a list of numpy arrays. Embeddings, an input only, may raise a
        ZooError instead.
        """

    @hookspec(firstresult=True)
    def read_value(self, data: bytes, extension: str, settings: Settings, spec: ModalitySpec) -> Any:
        """Return one value from a file's bytes. Raises InvalidValueError.

        `extension` is in lower case and without a dot. It is the last one of several: "gz" for `scan.nii.gz`.
        Default: `.npy` for arrays, `.txt` (UTF-8) for text, `.json` for objects.
        """

    @hookspec(firstresult=True)
    def write_value(self, value: Any, settings: Settings, spec: ModalitySpec) -> tuple[bytes, str]:
        """Return a value as a file's bytes and its extension, such that `read_value` returns the value.

        The extension consists of lower-case letters and digits: "gz", not "nii.gz". Default: as for `read_value`.
        """

    @hookspec(firstresult=True)
    def example_files(self, settings: Settings) -> Mapping[str, tuple[bytes, str]]:
        """Return files that users may have, valid and invalid ones: a short description -> (bytes, extension).

        `zoo check` reads them, and the modality's page shows the results. `zoo check` adds files of its own, made from
        the spec; for objects it varies the first example, which has to be a valid `.json`. Default: none.
        """

    @hookspec(firstresult=True)
    def transform(self, value: Any, crop: Crop, settings: Settings) -> Any:
        """Return the value inside `crop`, which all modalities of the sample share, at the size of the settings.

        Default: the value itself, for modalities that do not depend on the picture's frame, such as audio.

        A plugin with this hook may get values of any height and width. An array whose tokens are a grid of two axes, or
        whose last two axes are `image_size`, is then a view of the sample's picture: `zoo data make` refuses it if its
        proportions differ from the other views. A class whose base has the hook disables it by `transform = None`; it
        then has to resize values in `read_value` and `derive`.
        """

    @hookspec(firstresult=True)
    def derive(self, sample: Mapping[str, Any], settings: Settings, specs: Mapping[str, ModalitySpec]) -> Any:
        """Return this modality's value, computed from the values of `ModalitySpec.derived_from` in `sample`.

        `specs` are the specs of `derived_from`, for example for their class names. A ZooError drops the sample. If a
        setting turns the hook on, such as the name of a network, the spec names it in `derive_setting`.
        """

    @hookspec(firstresult=True)
    def render(self, value: Any, settings: Settings, spec: ModalitySpec) -> PIL.Image.Image | str:
        """Return a picture of the value, of any size, or a text. Default: a summary as text."""

    @hookspec(firstresult=True)
    def score(
        self, predicted: Sequence[Any], target: Sequence[Any], settings: Settings, spec: ModalitySpec
    ) -> Mapping[str, float]:
        """Return the metrics of `ModalitySpec.metrics` by name, each one number over the aligned lists of values.

        Classes in `ValueSpec.unscored` are ignored in the target. Default: `exact`, the fraction of equal values.
        """

    @hookspec(firstresult=True)
    def constant_baseline(self, values: Sequence[Any], settings: Settings, spec: ModalitySpec, score: Score) -> Any:
        """Return the one value that scores best as the prediction for all `values`: skill score 0.

        `score(predicted, target)` is the modality's score. Default: the best of up to 32 of the values.
        """

    @hookspec(firstresult=True)
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """Return the special tokens that this modality adds to its shared text vocabulary. Default: none."""

    @hookspec(firstresult=True)
    def vocabulary_texts(self, values: Sequence[Any], settings: Settings) -> Sequence[str]:
        """Return the plain text in `values` that the shared text vocabulary should cover well. Default: none."""

    @hookspec(firstresult=True)
    def single_ids(self, tokenizer: Any, settings: Settings) -> Sequence[int]:
        """Return the ids that occur at most once in a sequence, such as the names of a table's fields.

        Generation never repeats them, inpainted parts included. Default: none.
        """

    @hookspec(firstresult=True)
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write a tokenizer published by 4M as a checkpoint of this modality, with bit-identical weights.

        Returns the settings that `load_tokenizer` needs, as keys of `[modalities.NAME]`. Raises CheckpointError, and
        writes nothing, if it is not a tokenizer of such values. Default: raises CheckpointError.
        """

    @hookspec(firstresult=True)
    def export_published(self, checkpoint: Path, settings: Settings) -> PublishedCheckpoint:
        """Return the published tokenizer that `checkpoint` was imported from, bit-identical.

        Raises CheckpointError if it was not imported. Default: raises CheckpointError.
        """


class SourceHooks(Protocol):
    """The hooks of one source of samples. Both are required."""

    @hookspec(firstresult=True)
    def source_spec(self) -> SourceSpec:
        """Return the spec of the source."""

    @hookspec(firstresult=True)
    def samples(
        self, split: str, count: int | None, seed: int, settings: Settings, names: ModalityNames
    ) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Return lazy samples `(key, {modality: value})` with random access.

        Sample `i` depends on (split, seed, i) and the settings only. Keys are unique across splits. A modality that a
        sample lacks is absent from its mapping. `count` None means all samples; a source without an end raises
        ConfigError then. `tokenizers_zoo.families.sources.MadeSource` helps to write such a source.

        A source of files of any kind matches them to the enabled modalities by `names`. It may return
        `tokenizers_zoo.contract.source.FileBytes` in place of values, or a
        `tokenizers_zoo.contract.file_samples.FileSamples`. A source of pictures of any proportions derives its
        settings from `tokenizers_zoo.contract.source.OwnData`. If the samples have an attribute `contents` (str),
        shards are made again when it changes.
        """


REQUIRED = ("modality_spec", "train_tokenizer", "load_tokenizer", "encode", "decode")
SOURCE_REQUIRED = ("source_spec", "samples")
