"""ModalityHandle: one modality of the registry, with static types, checking once what comes in and goes out."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo import defaults
from tokenizers_zoo.checkpoint import CONFIG, WEIGHTS, float32_by_default, is_complete, loading
from tokenizers_zoo.codec import CheckpointPlace, CodecFiles
from tokenizers_zoo.config import Settings, emptied, keys_of
from tokenizers_zoo.errors import (
    CheckpointError,
    DataError,
    InvalidValueError,
    OneLineError,
    PluginError,
    ZooError,
    count_of,
)
from tokenizers_zoo.plugins import Claim, Plugins, failed, reason
from tokenizers_zoo.progress import decoding
from tokenizers_zoo.spec import Crop, EmbeddingsLayout, ModalitySpec
from tokenizers_zoo.validation import (
    batch_problem,
    checked_tokens,
    describe,
    expected_tokens,
    expected_value,
    in_declared_width,
    is_batched,
    value_problem,
)

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples
    from tokenizers_zoo.ml4m import PublishedCheckpoint

THEIR_SPACE = "what 4M's own tokenizer sees"


class ModalityHandle:
    """One enabled modality. Its spec is sound, and its plugin loaded; its tokenizer is loaded at the first use.

    Values are numpy arrays, str, or lists and dicts of JSON types, one per sample, as `spec.value` declares. Methods
    raise InvalidValueError for values or tokens that are not what the spec declares, PluginError (naming plugin and
    distribution) where the plugin fails or gives what its spec does not declare, MachineError for want of memory (but
    in `read`, where any failure is the file's), and pass on the plugin's ZooErrors.
    """

    def __init__(
        self,
        *,
        plugins: Plugins,
        plugin: Any,
        claim: Claim,
        hooks: frozenset[str],
        settings: Settings,
        codec: Callable[[ModalitySpec], CodecFiles],
        trained: Callable[[Path], None] | None = None,
        specs_of: Callable[[Sequence[str]], Mapping[str, ModalitySpec]] = lambda names: {},
        again: tuple[Callable[..., ModalityHandle], *tuple[Any, ...]] | None = None,
    ) -> None:
        self.name = settings.name
        self.plugin_name = claim.name
        self.distribution = claim.distribution
        self.settings = settings
        self.hooks = hooks
        self._plugins, self._plugin, self._claim = plugins, plugin, claim
        self._trained, self._specs_of, self._again = trained, specs_of, again
        self._tokenizer: Any = None
        self._fingerprint: str | None = None
        self._device = "cpu"
        self.spec = self._checked_spec()
        self.codec = codec(self.spec)

    def __repr__(self) -> str:
        return f"ModalityHandle({self.name!r}, plugin {self.plugin_name!r} of {self.distribution})"

    # ------------------------------------------------------------------ the plugin

    def implements(self, hook: str) -> bool:
        """True where the plugin implements `hook` itself, rather than leaving it to the default."""
        return hook in self.hooks

    def known_settings(self) -> dict[str, Any]:
        """The settings that the plugin has taken as dataclasses, with the values in use: defaults, shared and own."""
        taken = self.taken_settings()
        return {field.name: getattr(config, field.name) for config in taken for field in dataclasses.fields(config)}

    def taken_settings(self) -> list[Any]:
        """The dataclasses that the plugin has taken its settings as, each with the values in use."""
        return list(self.settings.taken.values())

    def taken_vocabularies(self) -> dict[str, Any]:
        """The tables of shared vocabularies that the plugin has taken, by name, each with the values in use."""
        return {name: config for (name, _), config in self.settings.taken_vocabularies.items()}

    def __deepcopy__(self, memo: Any) -> ModalityHandle:
        """Itself, as `Zoo`."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """By what opened it: a process that is sent a handle opens its registry for itself, and its tokenizer anew."""
        if self._again is None:
            raise TypeError(f"{self!r} is of no registry, and cannot be pickled")
        return _opened, (self._device, *self._again)

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Codecs run in float32 whatever autocast and default dtype the caller has: else tokens would be others."""
        import torch

        kind = torch.device(self._device).type
        plain = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with plain, float32_by_default():
            yield

    def _call(self, hook: str, **arguments: Any) -> Any:
        try:
            result = self._plugins.call(self._plugin, hook, arguments)
        except OneLineError:
            raise
        except Exception as error:
            raise failed(f"{self.name}: {hook} of {self._claim}", error) from error
        if result is None:
            raise PluginError(f"{self.name}: {hook} of {self._claim} gave None")
        return result

    def _wrong(self, hook: str, problem: str) -> PluginError:
        return PluginError(f"{self.name}: {hook} of {self._claim} {problem}")

    def _checked_spec(self) -> ModalitySpec:
        try:
            spec = self._call("modality_spec", settings=self.settings)
        except PluginError as error:
            known = str(self._claim) in str(error)
            raise error if known else PluginError(f"{error}; declared by {self._claim}") from error
        if not isinstance(spec, ModalitySpec):
            raise self._wrong("modality_spec", f"gave {describe(spec)}, expected a ModalitySpec")
        if spec.name != self.name:
            raise self._wrong("modality_spec", f"gave the name {spec.name!r}, expected {self.name!r} (settings.name)")
        if bool(spec.derived_from or spec.derive_setting) != self.implements("derive"):
            has = "is implemented" if self.implements("derive") else "is not implemented"
            raise self._wrong("modality_spec", f"gave derived_from {spec.derived_from!r}, but the hook derive {has}")
        if self.implements("score") and not spec.metrics:
            raise self._wrong("modality_spec", "declares no metrics, but the hook score is implemented")
        if not self.implements("score") and spec.metrics:
            names = ", ".join(metric.name for metric in spec.metrics)
            raise self._wrong("modality_spec", f"declares the metrics {names}, but the hook score is not implemented")
        return spec if spec.metrics else dataclasses.replace(spec, metrics=(defaults.EXACT,))

    # ------------------------------------------------------------------ the tokenizer

    def at(self, checkpoint: Path, vocabulary: Path | None = None) -> ModalityHandle:
        """The same modality with the tokenizer in another folder, whatever fingerprint it has.

        So with the shared vocabulary of one that has a tokenizer of its own beside it, where its folder is given.
        """
        locate = self.codec.locate_vocabulary if vocabulary is None else lambda _: CheckpointPlace(vocabulary)
        files = CodecFiles(spec=self.spec, checkpoint=checkpoint, locate_vocabulary=locate, origin=self.settings.origin)
        return ModalityHandle(
            plugins=self._plugins,
            plugin=self._plugin,
            claim=self._claim,
            hooks=self.hooks,
            settings=self.settings,
            codec=lambda _: files,
            specs_of=self._specs_of,
            again=(ModalityHandle.at, self, checkpoint.absolute(), vocabulary and vocabulary.absolute()),
        )

    @property
    def checkpoint(self) -> Path:
        """The folder of the tokenizer, or of the vocabulary that the modality shares; it need not be there yet."""
        return self.codec.checkpoint

    @property
    def device(self) -> str:
        """The torch device that the tokenizer runs on."""
        return self._device

    @device.setter
    def device(self, device: str) -> None:
        if device != self._device:
            self._device = device
            self.forget_tokenizer()

    @property
    def has_tokenizer(self) -> bool:
        """True where the tokenizer, and all that it needs beside, is there or on the hub; never looks outside."""
        return self.codec.complete

    def forget_tokenizer(self) -> None:
        """Drop the loaded tokenizer, so that the next use loads what lies at `checkpoint` then."""
        self._tokenizer = self._fingerprint = None

    @property
    def token_space(self) -> str:
        """What is tokenized where it is not the value itself, in words: the spec's, unless 4M trained the tokenizer.

        Of a tokenizer that writes in a shared vocabulary the spec says how its codes are spelled, whoever trained it.
        """
        theirs = self.spec.token_space and not self.spec.own_tokenizer and self.codec.published
        return THEIR_SPACE if theirs else self.spec.token_space

    @property
    def fingerprint(self) -> str:
        """The codec's identity, see `CodecFiles.fingerprint`; read once. Raises CheckpointError."""
        if self._fingerprint is None:
            self._fingerprint = self.codec.fingerprint()
        return self._fingerprint

    def speaks(self, fingerprint: str, needed_vocab_size: int = 0) -> bool:
        """True where tokens of that codec mean the same to this tokenizer: it is that one, or grew from it.

        `needed_vocab_size`: one more than the greatest of those ids, see `CodecFiles.grew_from`. Raises
        CheckpointError where the tokenizer is not there.
        """
        return fingerprint == self.fingerprint or self.codec.grew_from(fingerprint, needed_vocab_size)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer object, loaded on `device` at the first use, in eval mode. Raises CheckpointError."""
        if self._tokenizer is None:
            folder = self.codec.folder()
            _ = self.fingerprint  # refuses another codec than the pinned one before anything of it is loaded
            import torch

            vocabulary = self.codec.vocabulary_folder() if self.spec.own_tokenizer else folder
            with loading():
                tokenizer = self._call(
                    "load_tokenizer",
                    checkpoint=folder,
                    device=self._device,
                    settings=self.settings,
                    vocabulary=vocabulary,
                )
            self._tokenizer = tokenizer.eval() if isinstance(tokenizer, torch.nn.Module) else tokenizer
        return self._tokenizer

    def train_tokenizer(self, samples: TrainingSamples, out_dir: Path, seed: int, **tokenizer_overrides: Any) -> Path:
        """Train a tokenizer into `out_dir` (resumed there after a kill); returns the checkpoint folder.

        `tokenizer_overrides` replace keys of the settings' `tokenizer` table.
        """
        config = self._overridden(tokenizer_overrides)
        with float32_by_default():
            path = self._call("train_tokenizer", config=config, samples=samples, out_dir=Path(out_dir), seed=seed)
        if not isinstance(path, Path) or not is_complete(path):
            wanted = f"the Path of a folder of {WEIGHTS} and {CONFIG}"
            raise self._wrong("train_tokenizer", f"gave {describe(path)}, expected {wanted}")
        self.forget_tokenizer()
        if self._trained is not None:
            self._trained(path)
        return path

    def import_published(self, published: PublishedCheckpoint, out_dir: Path) -> dict[str, Any]:
        """Write a tokenizer that 4M published as a checkpoint of this modality at `out_dir`.

        Gives the settings under which it is loaded: keys of `[modalities.NAME]` beside `plugin` and `checkpoint`.
        Raises CheckpointError where it is not a tokenizer of such values; nothing is written then.
        """
        self._has_published("import_published")
        arguments = {"published": published, "out_dir": Path(out_dir), "settings": self.settings}
        table = self._call("import_published", **arguments)
        if not isinstance(table, Mapping):
            raise self._wrong("import_published", f"gave {describe(table)}, expected a table of settings")
        return dict(table)

    def export_published(self, checkpoint: Path | None = None) -> PublishedCheckpoint:
        """The published tokenizer that the checkpoint (this modality's own where none is given) was imported from.

        Raises CheckpointError where it was trained here.
        """
        self._has_published("export_published")
        folder = self.codec.folder() if checkpoint is None else Path(checkpoint)
        published: PublishedCheckpoint = self._call("export_published", checkpoint=folder, settings=self.settings)
        return published

    def _has_published(self, hook: str) -> None:
        if not self.implements(hook):
            raise CheckpointError(f"{self.name}: has no published counterpart: {self._claim} does not implement {hook}")

    def check_overrides(self, tokenizer_overrides: Mapping[str, Any]) -> None:
        """Raise ConfigError where the plugin does not take these keys of the `tokenizer` table."""
        self._call("modality_spec", settings=self._overridden(tokenizer_overrides))

    def _overridden(self, tokenizer_overrides: Mapping[str, Any]) -> Settings:
        """The settings with other keys of the `tokenizer` table; mistakes in those are not in registry.toml.

        Another quantizer leaves out what the table says for the kind that it had.
        """
        if not tokenizer_overrides:
            return self.settings
        table = dict(tokenizer_overrides)
        table = dict.fromkeys(emptied(type(self.known_settings().get("tokenizer")), table)) | table
        config = self.settings.changed(tokenizer=table)
        given = keys_of({"tokenizer": table}, config.origin.table)
        config.origin = dataclasses.replace(config.origin, given=frozenset(given))
        return config

    # ------------------------------------------------------------------ values <-> tokens

    def encode(self, values: Any) -> torch.Tensor | list[np.ndarray[Any, Any]]:
        """Tokens of a list of values, or of a tensor `(batch, *value.shape)`, on the CPU whatever `device` is.

        Grids and vectors: an int64 tensor `(batch, *tokens)`. Patches: a float32 tensor `(batch, tokens, dim)`.
        Sequences: a list of 1-D int64 numpy arrays. Embeddings: a list of float32 numpy arrays `(tokens, dim)`.
        """
        import torch

        batch = self._batch(values)
        count = len(batch)
        with torch.inference_mode(), self._in_float32():
            given = self._call("encode", tokenizer=self.tokenizer, values=batch, settings=self.settings)
        tokens, problem = checked_tokens(self.spec, given)
        if not problem and len(tokens) != count:
            problem = f"expected tokens of {count_of(count, 'value')}"
        if problem:
            declared = expected_tokens(self.spec)
            raise self._wrong("encode", f"gave {describe(given)}, its spec declares {declared}: {problem}")
        # Copies: a plugin may use its buffers again, and tensors of inference mode may not be used in training.
        return tokens.cpu().clone() if isinstance(tokens, torch.Tensor) else [np.array(item) for item in tokens]

    def decode_if_able(self, tokens: Any) -> list[Any] | None:
        """As `decode`; None of embeddings, an input only, of which the plugin gives none."""
        try:
            return self.decode(tokens)
        except ZooError:
            if isinstance(self.spec.layout, EmbeddingsLayout):
                return None
            raise

    def decode(self, tokens: Any) -> list[Any]:
        """The values of a batch of tokens, one per sample, each as `spec.value` declares. Takes what `encode` gives."""
        import torch

        batch, problem = checked_tokens(self.spec, tokens)
        if problem:
            expected = expected_tokens(self.spec)
            raise InvalidValueError(f"{self.name}: expected {expected}, got {describe(tokens)}: {problem}")
        if isinstance(batch, torch.Tensor):
            batch = batch.to(self._device)
        with torch.inference_mode(), self._in_float32(), decoding(len(batch)):
            given = self._call("decode", tokenizer=self.tokenizer, tokens=batch, settings=self.settings)
            try:
                values = given.cpu().numpy() if isinstance(given, torch.Tensor) else given
                listed = [v.cpu().numpy() if isinstance(v, torch.Tensor) else v for v in values]
            except TypeError as error:  # no batch, or numbers of a type that numpy has not, such as bfloat16
                declared = f"its spec declares a batch of {expected_value(self.spec.value)}"
                raise self._wrong("decode", f"gave {describe(given)}, {declared}") from error
        if len(listed) != len(batch):
            raise self._wrong("decode", f"gave {count_of(len(listed), 'value')} for {count_of(len(batch), 'sample')}")
        for value in listed:
            self._check_given(value, "decode")
        return [copy.deepcopy(value) for value in listed]  # copies, as of tokens: a plugin may use its buffers again

    def _batch(self, values: Any) -> Any:
        """The checked batch that a plugin is given: one tensor for arrays of fixed shape, else a list."""
        import torch

        if is_batched(self.spec.value) and isinstance(values, torch.Tensor | np.ndarray):
            if problem := batch_problem(self.spec.value, values):
                expected = f"a batch of {expected_value(self.spec.value)}"
                raise InvalidValueError(f"{self.name}: expected {expected}, got {describe(values)}: {problem}")
            if isinstance(values, np.ndarray):  # a copy: torch takes no mirrored arrays, and warns of read-only ones
                values = torch.from_numpy(np.array(values, order="C"))
            return values.to(self._device)
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not len(values):
            raise InvalidValueError(f"{self.name}: expected a list of one or more values, got {describe(values)}")
        for value in values:
            self.check(value)
        if is_batched(self.spec.value):
            return torch.from_numpy(np.stack(values)).to(self._device)
        return list(values)

    # ------------------------------------------------------------------ values

    @property
    def _resizes(self) -> bool:
        """True where values may have another size before `transform`: where the plugin has such a hook."""
        return self.implements("transform")

    def check(self, value: Any, *, any_size: bool = False) -> None:
        """Raise InvalidValueError where `value` is not what `spec.value` declares.

        With `any_size` a picture-like array may have another height and width: values before `transform`.
        """
        if problem := value_problem(self.spec.value, value, any_size=any_size):
            expected = expected_value(self.spec.value)
            raise InvalidValueError(f"{self.name}: expected {expected}, got {describe(value)}; {problem}")

    def _check_given(self, value: Any, hook: str, *, any_size: bool = False) -> None:
        if problem := value_problem(self.spec.value, value, any_size=any_size):
            declared = expected_value(self.spec.value)
            raise self._wrong(hook, f"gave {describe(value)}, its spec declares {declared}: {problem}")

    def read(self, data: bytes, extension: str) -> Any:
        """One value from a file's bytes, of the size that the file has. Raises InvalidValueError.

        Floats and integers of another width become those that the spec declares.
        """
        extension = extension.lower().removeprefix(".")
        try:
            if self.implements("read_value"):
                value = self._plugins.call(
                    self._plugin, "read_value", {"data": data, "extension": extension, "settings": self.settings}
                )
            else:
                value = defaults.read_value(self.spec.value, data, extension)
        except InvalidValueError as error:
            if extension == "npy" and not data.startswith(b"\x93NUMPY"):  # numpy would advise to unpickle it
                raise InvalidValueError(f"{self.name}: damaged .npy file: it does not start like one") from None
            named = str(error).startswith(f"{self.name}:")
            raise error if named else InvalidValueError(f"{self.name}: {error}") from error
        except OneLineError:
            raise
        except Exception as error:
            raise InvalidValueError(f"{self.name}: cannot be read from .{extension}: {reason(error)}") from error
        value = in_declared_width(self.spec.value, value)
        self.check(value, any_size=self._resizes)
        return value

    def write(self, value: Any) -> tuple[bytes, str]:
        """A value of any size as a file's bytes and its extension (lower case, no dot)."""
        self.check(value, any_size=self._resizes)
        if not self.implements("write_value"):
            return defaults.write_value(self.spec.value, value)
        written = self._call("write_value", value=value, settings=self.settings)
        data, extension = written if isinstance(written, tuple) and len(written) == 2 else (None, None)
        if not isinstance(data, bytes) or not isinstance(extension, str) or not re.fullmatch(r"[a-z0-9]+", extension):
            expected = "(bytes, extension in lower case without a dot)"
            raise self._wrong("write_value", f"gave {describe(written)}, expected {expected}")
        return data, extension

    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """Files that users of the modality will meet, as its plugin gives them: what each is, bytes and extension."""
        if not self.implements("example_files"):
            return {}
        given = self._call("example_files", settings=self.settings)
        for file in given.values() if isinstance(given, Mapping) else [None]:
            if not (isinstance(file, tuple) and list(map(type, file)) == [bytes, str]):
                raise self._wrong("example_files", f"gave {describe(given)}, expected {{words: (bytes, extension)}}")
        return dict(given)

    def transform(self, value: Any, crop: Crop) -> Any:
        """The value seen through `crop`, at the size of the settings: as `spec.value` declares."""
        self.check(value, any_size=self._resizes)
        if not self._resizes:
            self.check(value)
            return value
        seen = self._call("transform", value=value, crop=crop, settings=self.settings)
        try:
            self._check_given(seen, "transform")
        except PluginError:
            if getattr(seen, "shape", None) == getattr(value, "shape", ()):  # the plugin resizes nothing
                self.check(value)
            raise
        return seen

    @property
    def derive_hint(self) -> str:
        """What would turn `derive` on, for the end of a message; empty where nothing would."""
        setting, table = self.spec.derive_setting, f"[modalities.{self.name}] of {self.settings.origin.file}"
        return f" without the setting {setting} in {table}" if setting else ""

    def derive(self, sample: Mapping[str, Any]) -> Any:
        """This modality's value, computed from those of `spec.derived_from` in `sample`; its size is theirs.

        Raises DataError where the sample lacks one of them.
        """
        if not self.spec.derived_from:
            raise DataError(f"{self.name}: is not derived from other modalities{self.derive_hint}")
        if missing := [name for name in self.spec.derived_from if name not in sample]:
            raise DataError(f"{self.name}: is derived from {', '.join(missing)}, which the sample lacks")
        specs = self._specs_of(self.spec.derived_from)
        value = self._call("derive", sample=sample, settings=self.settings, specs=specs)
        self._check_given(value, "derive", any_size=True)
        return value

    def render(self, value: Any) -> PIL.Image.Image | str:
        """The value as a person wants to see it: a PIL image, or text."""
        if not self.implements("render"):
            return defaults.render(self.spec.value, value)
        shown: PIL.Image.Image | str = self._call("render", value=value, settings=self.settings)
        if not isinstance(shown, str):
            import PIL.Image

            if not isinstance(shown, PIL.Image.Image):
                raise self._wrong("render", f"gave {describe(shown)}, expected a PIL image or a str")
        return shown

    def score(self, predicted: Sequence[Any], target: Sequence[Any]) -> dict[str, float]:
        """The metrics of `spec.metrics`, by name, over aligned lists of values."""
        if len(predicted) != len(target) or not len(target):
            got = f"{len(predicted)} and {len(target)}"
            raise InvalidValueError(f"{self.name}: expected as many predictions as targets, at least one; got {got}")
        if not self.implements("score"):
            return defaults.score(predicted, target)
        given = self._call("score", predicted=predicted, target=target, settings=self.settings)
        names = [metric.name for metric in self.spec.metrics]
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise self._wrong("score", f"gave {describe(given)}, its spec declares {', '.join(names)}")
        try:
            return {name: float(given[name]) for name in names}
        except (TypeError, ValueError):
            raise self._wrong("score", f"gave {describe(given)}, expected one number per metric") from None

    def constant_baseline(self, values: Sequence[Any]) -> Any:
        """The best single answer for all of `values`, given without looking at any input."""
        if not len(values):
            raise InvalidValueError(f"{self.name}: a constant baseline needs at least one value")
        if not self.implements("constant_baseline"):
            return defaults.constant_baseline(values, self.spec.metrics[0], self.score)
        answer = self._call("constant_baseline", values=values, settings=self.settings)
        self._check_given(answer, "constant_baseline")
        return answer

    def vocabulary_tokens(self) -> tuple[str, ...]:
        """Special tokens that this modality adds to its shared text vocabulary, in order."""
        return self._strings("vocabulary_tokens", settings=self.settings)

    def vocabulary_texts(self, values: Sequence[Any]) -> tuple[str, ...]:
        """The plain text in `values` that the shared text vocabulary has to cover well."""
        return self._strings("vocabulary_texts", values=values, settings=self.settings)

    def single_ids(self) -> frozenset[int]:
        """Ids of which a sequence has each at most once; generation writes none of them twice."""
        if not self.implements("single_ids"):
            return frozenset()
        given = list(self._call("single_ids", tokenizer=self.tokenizer, settings=self.settings))
        if not all(isinstance(index, int) and 0 <= index < self.spec.vocab_size for index in given):
            raise self._wrong("single_ids", f"gave {given}, expected ids from 0 to {self.spec.vocab_size - 1}")
        return frozenset(given)

    def _strings(self, hook: str, **arguments: Any) -> tuple[str, ...]:
        if not self.implements(hook):
            return ()
        strings = tuple(given := self._call(hook, **arguments))
        if isinstance(given, str) or not all(isinstance(item, str) for item in strings):
            raise self._wrong(hook, f"gave {describe(given)}, expected a sequence of str")
        return strings


def _opened(device: str, open_handle: Callable[..., ModalityHandle], *of: Any) -> ModalityHandle:
    """A handle as it is opened, on a device."""
    handle = open_handle(*of)
    handle.device = device
    return handle
