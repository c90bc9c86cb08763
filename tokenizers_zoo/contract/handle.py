"""ModalityHandle: typed calls to one modality's plugin, with one check of each value and token batch."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.layouts import TokenLayout
from tokenizers_zoo.contract.plugins import Plugin, error_text
from tokenizers_zoo.contract.spec import EXACT, WHOLE, Crop, ModalitySpec
from tokenizers_zoo.contract.tokenizer_files import CheckpointLocation, TokenizerFiles
from tokenizers_zoo.contract.validation import (
    as_array,
    batch_problem,
    checked_tokens,
    describe,
    expected_tokens,
    expected_value,
    in_declared_width,
    is_batched,
    value_problem,
)
from tokenizers_zoo.errors import (
    OTHER_REGISTRY,
    DataError,
    InvalidValueError,
    OneLineError,
    OtherLayoutError,
    OtherTokenizerError,
    PluginError,
    ZooError,
    count_of,
)
from tokenizers_zoo.files.checkpoint import CONFIG, WEIGHTS, float32_by_default, is_complete, loading
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.records.config import Settings, irrelevant_fields
from tokenizers_zoo.records.limits import DEFAULT, Limits, limited, read_file

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.contract.samples import TrainingSamples
    from tokenizers_zoo.files.published import PublishedCheckpoint


class ModalityHandle:
    """One enabled modality. Its plugin is loaded and its spec is valid; the tokenizer is loaded at the first use.

    Values are numpy arrays or tensors, str, or lists and dicts of JSON types, as `spec.value` declares. Methods raise
    InvalidValueError for values or tokens that do not fit the spec, PluginError if the plugin fails or breaks its spec,
    and MachineError if memory runs out. In `read`, every failure is an InvalidValueError.

    Values and tokens are checked once, on entry. `trusted=True` says that a value was checked before: a handle returned
    it, or it was read from our own store.
    """

    def __init__(
        self,
        *,
        plugin: Plugin,
        settings: Settings,
        files: Callable[[ModalitySpec], TokenizerFiles],
        on_trained: Callable[[Path], None] | None = None,
        specs_of: Callable[[Sequence[str]], Mapping[str, ModalitySpec]] = lambda names: {},
        reopen: tuple[Callable[..., ModalityHandle], *tuple[Any, ...]] | None = None,
        limits: Limits = DEFAULT,
    ) -> None:
        """`on_trained` gets the folder of a new tokenizer; `reopen` opens the same handle in another process."""
        self.name = settings.name
        self.plugin_name = plugin.claim.name
        self.distribution = plugin.claim.distribution
        self.settings = settings
        self._plugin, self._on_trained, self._specs_of, self._reopen = plugin, on_trained, specs_of, reopen
        self._tokenizer: Any = None
        self._fingerprint: str | None = None
        self._device = "cpu"
        self.limits = limits
        self.spec = self._checked_spec()
        self.files = files(self.spec)

    def __repr__(self) -> str:
        return f"ModalityHandle({self.name!r}, plugin {self.plugin_name!r} of {self.distribution})"

    def __deepcopy__(self, memo: Any) -> ModalityHandle:
        return self  # shared, like the Zoo it belongs to

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the way to open the handle; the other process opens its own registry and loads the tokenizer again."""
        if self._reopen is None:
            raise TypeError(f"{self!r} is of no registry, and cannot be pickled")
        return _reopened, (self._device, *self._reopen)

    # ------------------------------------------------------------------ the plugin

    def implements(self, hook: str) -> bool:
        """Return whether the plugin implements `hook` itself instead of using the default."""
        return hook in self._plugin.hooks

    def plugin_settings(self) -> list[Any]:
        """Return the settings dataclasses that the plugin reads, with the values in use."""
        return list(self.settings.parsed.values())

    def known_settings(self) -> dict[str, Any]:
        """Return all settings that the plugin reads, by key, with the values in use."""
        configs = self.plugin_settings()
        return {field.name: getattr(config, field.name) for config in configs for field in dataclasses.fields(config)}

    def plugin_vocabularies(self) -> dict[str, Any]:
        """Return the `[vocabularies.*]` tables that the plugin reads, by name, with the values in use."""
        return {name: config for (name, _), config in self.settings.parsed_vocabularies.items()}

    @property
    def writes_text(self) -> bool:
        """True if the modality's vocabulary is a text vocabulary, which several modalities may share."""
        return not self.spec.continuous and self.spec.vocabulary in self.plugin_vocabularies()

    def name_at_source(self, offered: Container[str]) -> str:
        """Return the modality's name in a source that offers these names: its own name, or else its plugin's.

        The name is the same for all samples; a sample that lacks it has no value.
        """
        return self.name if self.name in offered else self.plugin_name

    def _call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook with the settings in use, unless `arguments` have others."""
        with limited(self.limits):
            return self._plugin.call(self.name, hook, **{"settings": self.settings, **arguments})

    def _contract_error(self, hook: str, result: Any, expected: str, detail: str | None = None) -> PluginError:
        return PluginError.expected(f"{self.name}: {hook} of {self._plugin.claim}", expected, describe(result), detail)

    def _checked_spec(self) -> ModalitySpec:
        try:
            spec = self._call("modality_spec")
        except PluginError as error:
            claim = str(self._plugin.claim)
            raise error if claim in str(error) else PluginError(f"{error}; declared by {claim}") from error
        if not isinstance(spec, ModalitySpec) or spec.name != self.name:
            raise self._contract_error("modality_spec", spec, f"a ModalitySpec named {self.name!r} (settings.name)")
        metrics = "" if spec.metrics == (EXACT,) else ", ".join(metric.name for metric in spec.metrics)
        for hook, declared, declaration in (
            ("derive", spec.derived_from or spec.derive_setting, f"derived_from {spec.derived_from!r}"),
            ("score", metrics, f"metrics {metrics or 'none'}"),
        ):
            if bool(declared) != self.implements(hook):
                verb = "is" if self.implements(hook) else "is not"
                conflict = f"declares {declaration}, but the hook {hook} {verb} implemented"
                raise PluginError(f"{self.name}: {self._plugin.claim} {conflict}")
        return spec

    # ------------------------------------------------------------------ the tokenizer

    def at(self, checkpoint: Path, vocabulary: Path | None = None, settings: Settings | None = None) -> ModalityHandle:
        """Return the same modality with the tokenizer in another folder, whatever its fingerprint.

        `vocabulary` is the folder of its shared vocabulary, if it has both. `settings` replace the settings in use.
        """
        locate = self.files.locate_vocabulary if vocabulary is None else lambda _: CheckpointLocation(vocabulary)
        origin = self.settings.origin
        files = TokenizerFiles(spec=self.spec, checkpoint=checkpoint, locate_vocabulary=locate, origin=origin)
        return ModalityHandle(
            plugin=self._plugin,
            settings=settings or self.settings,
            files=lambda _: files,
            specs_of=self._specs_of,
            reopen=(ModalityHandle.at, self, checkpoint.absolute(), vocabulary and vocabulary.absolute(), settings),
            limits=self.limits,
        )

    @property
    def checkpoint(self) -> Path:
        """Folder of the tokenizer, or of the vocabulary that the modality shares. It may not exist yet."""
        return self.files.checkpoint

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
        """True if the tokenizer and its vocabulary are here or on the hub. Does not access the network."""
        return self.files.complete

    def forget_tokenizer(self) -> None:
        """Drop the loaded tokenizer; the next use loads it again."""
        self._tokenizer = self._fingerprint = None

    @property
    def fingerprint(self) -> str:
        """The tokenizer's fingerprint, see `TokenizerFiles.fingerprint`; cached. Raises CheckpointError."""
        if self._fingerprint is None:
            self._fingerprint = self.files.fingerprint()
        return self._fingerprint

    def can_read(self, fingerprint: str, needed_vocab_size: int = 0) -> bool:
        """Return whether this tokenizer can read tokens of tokenizer `fingerprint`: it is the same or grew from it.

        `needed_vocab_size` is one more than the greatest id in use. Raises CheckpointError without a tokenizer.
        """
        return fingerprint == self.fingerprint or self.files.grew_from(fingerprint, needed_vocab_size)

    def check_tokens_of(
        self,
        owner: object,
        fingerprint: str | None,
        layout: TokenLayout | None = None,
        *,
        needed_vocab_size: int = 0,
        remedy: str = OTHER_REGISTRY,
    ) -> None:
        """Raise DataError unless tokens, or a model trained on them, fit this tokenizer.

        Args: owner: The file, folder or model that the tokens belong to, for the message. fingerprint: The tokenizer
        that wrote the tokens; None if unknown. layout: The tokens' layout. The lengths of sequences and embeddings may
        differ. needed_vocab_size: One more than the greatest id in use. remedy: Advice for the user.
        """
        if fingerprint is not None and not self.can_read(fingerprint, needed_vocab_size):
            in_use = self.fingerprint
            raise OtherTokenizerError.of(owner, self.name, fingerprint, in_use, self.checkpoint, remedy)
        if layout is not None and not layout.same_tokens(self.spec.layout):
            raise OtherLayoutError.of(owner, self.name, layout, self.spec.layout, remedy)
        if needed_vocab_size > self.spec.vocab_size:
            expected, actual = f"ids of {self.name} below {self.spec.vocab_size}", f"up to {needed_vocab_size - 1}"
            advice = "raise the vocabulary's size, or tokenize again with --overwrite"
            raise DataError.expected(owner, expected, actual, advice)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer object, loaded on `device` at the first use, in eval mode. Raises CheckpointError."""
        if self._tokenizer is None:
            folder = self.files.folder()
            _ = self.fingerprint  # refuses another tokenizer than the pinned one before loading
            import torch

            vocabulary = self.files.vocabulary_folder() if self.spec.own_tokenizer else folder
            with loading():
                tokenizer = self._call("load_tokenizer", checkpoint=folder, device=self._device, vocabulary=vocabulary)
            self._tokenizer = tokenizer.eval() if isinstance(tokenizer, torch.nn.Module) else tokenizer
        return self._tokenizer

    def train_tokenizer(
        self, samples: TrainingSamples, out_dir: Path, seed: int, *, device: str = AUTO, **tokenizer_overrides: Any
    ) -> Path:
        """Train a tokenizer on `device` into `out_dir`, or resume there; return the checkpoint folder.

        `tokenizer_overrides` replace keys of the settings' `tokenizer` table.
        """
        config = self._overridden(tokenizer_overrides)
        with float32_by_default():
            path = self._call(
                "train_tokenizer",
                config=config,
                samples=samples,
                out_dir=Path(out_dir),
                seed=seed,
                device=resolve_device(device),
            )
        if not isinstance(path, Path) or not is_complete(path):
            raise self._contract_error("train_tokenizer", path, f"the Path of a folder of {WEIGHTS} and {CONFIG}")
        self.forget_tokenizer()
        if self._on_trained is not None:
            self._on_trained(path)
        return path

    def import_published(self, published: PublishedCheckpoint, out_dir: Path) -> dict[str, Any]:
        """Write a tokenizer that 4M published as a checkpoint of this modality at `out_dir`.

        Returns the keys that `[modalities.NAME]` needs to load it. Raises CheckpointError, and writes nothing, if it is
        no tokenizer of such values.
        """
        table = self._call("import_published", published=published, out_dir=Path(out_dir))
        if not isinstance(table, Mapping):
            raise self._contract_error("import_published", table, "a table of settings")
        return dict(table)

    def export_published(self, checkpoint: Path | None = None) -> PublishedCheckpoint:
        """Return the published tokenizer that `checkpoint` (default: the modality's own) was imported from.

        Raises CheckpointError if it was not imported.
        """
        folder = self.files.folder() if checkpoint is None else Path(checkpoint)
        published: PublishedCheckpoint = self._call("export_published", checkpoint=folder)
        return published

    def check_overrides(self, tokenizer_overrides: Mapping[str, Any]) -> Settings:
        """Return the settings with keys of the `tokenizer` table replaced. Raises ConfigError if the plugin does not
        take them."""
        settings = self._overridden(tokenizer_overrides)
        self._call("modality_spec", settings=settings)
        return settings

    def _overridden(self, tokenizer_overrides: Mapping[str, Any]) -> Settings:
        """Return the settings with keys of the `tokenizer` table replaced.

        Another quantizer drops the keys of the quantizer in the table.
        """
        if not tokenizer_overrides:
            return self.settings
        table = dict(tokenizer_overrides)
        table = dict.fromkeys(irrelevant_fields(type(self.known_settings().get("tokenizer")), table)) | table
        config = self.settings.changed(tokenizer=table)
        config.origin = dataclasses.replace(config.origin, path=None)  # an error is of the command line
        return config

    # ------------------------------------------------------------------ values <-> tokens

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Run in float32 without gradients: tokens must not depend on the caller's autocast or default dtype."""
        import torch

        kind = torch.device(self._device).type
        no_autocast = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with torch.inference_mode(), no_autocast, float32_by_default():
            yield

    def encode(self, values: Any, *, trusted: bool = False) -> torch.Tensor | list[np.ndarray[Any, Any]]:
        """Return the tokens of a list of values, or of a tensor `(batch, *value.shape)`, on the CPU.

        A value may also be a path or a PIL image, see `fitted`; of texts a path is a Path, as a str is the text.

        Grids and vectors: an int64 tensor `(batch, *tokens)`. Patches: a float32 tensor `(batch, tokens, dim)`.
        Sequences: a list of 1-D int64 numpy arrays. Embeddings: a list of float32 numpy arrays `(tokens, dim)`.
        """
        import torch

        batch = self._value_batch(values, trusted)
        count = len(batch)
        with self._inference():
            result = self._call("encode", tokenizer=self.tokenizer, values=batch)
        tokens, error = checked_tokens(self.spec, result)
        if error or len(tokens) != count:
            error = error or f"expected tokens of {count_of(count, 'value')}"
            raise self._contract_error("encode", result, expected_tokens(self.spec), error)
        # Copies: a plugin may use its buffers again, and tensors of inference mode may not be used in training.
        return tokens.cpu().clone() if isinstance(tokens, torch.Tensor) else [np.array(item) for item in tokens]

    def encode_each(self, values: Sequence[Any]) -> list[Any]:
        """Return the tokens of each checked value. If the tokenizer rejects the batch: of each alone, or its error."""
        try:
            return list(self.encode(values, trusted=True)) if values else []
        except ZooError as error:
            return [error] if len(values) == 1 else [self.encode_each([value])[0] for value in values]

    def decode(self, tokens: Any, *, trusted: bool = False) -> list[Any]:
        """Return the values of a batch of tokens, one per sample. Takes what `encode` returns."""
        import torch

        batch, invalid = checked_tokens(self.spec, tokens, trusted=trusted)
        if invalid:
            raise InvalidValueError.expected(self.name, expected_tokens(self.spec), describe(tokens), invalid)
        if isinstance(batch, torch.Tensor):
            batch = batch.to(self._device)
        with self._inference():
            result = self._call("decode", tokenizer=self.tokenizer, tokens=batch)
            try:
                values = result.cpu().numpy() if isinstance(result, torch.Tensor) else result
                arrays = [v.cpu().numpy() if isinstance(v, torch.Tensor) else v for v in values]
            except TypeError as error:  # no batch, or a type that numpy lacks, such as bfloat16
                raise self._contract_error("decode", result, f"a batch of {expected_value(self.spec.value)}") from error
        if len(arrays) != len(batch):
            raise self._contract_error("decode", result, count_of(len(batch), "value"), f"it gave {len(arrays)}")
        for value in arrays:
            self._check_result(value, "decode")
        return [copy.deepcopy(value) for value in arrays]  # copies, as in `encode`

    def decode_if_able(self, tokens: Any, *, trusted: bool = False) -> list[Any] | None:
        """Like `decode`, but return None for embeddings that the plugin cannot decode: they are an input only."""
        try:
            return self.decode(tokens, trusted=trusted)
        except ZooError:
            if self.spec.layout.continuous and self.spec.layout.variable:
                return None
            raise

    def _value_batch(self, values: Any, trusted: bool) -> Any:
        """Return the batch for the plugin: one tensor for arrays of fixed shape, else a list."""
        import torch

        batched = is_batched(self.spec.value)
        if batched and isinstance(values, torch.Tensor | np.ndarray):
            values = as_array(values) if values.dtype is torch.bfloat16 else values
            if error := None if trusted else batch_problem(self.spec.value, values):
                expected = f"a batch of {expected_value(self.spec.value)}"
                raise InvalidValueError.expected(self.name, expected, describe(values), error)
            if isinstance(values, np.ndarray):  # a copy: torch takes no mirrored arrays, and warns of read-only ones
                values = torch.from_numpy(np.array(values, order="C"))
            return values.to(self._device)
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not len(values):
            raise InvalidValueError.expected(self.name, "a list of one or more values", describe(values))
        if not trusted:
            values = [self.fitted(value) if self._needs_opening(value) else self._checked(value) for value in values]
        return torch.from_numpy(np.stack(values)).to(self._device) if batched else list(values)

    def _is_path(self, value: Any) -> bool:
        return isinstance(value, os.PathLike) or (isinstance(value, str) and self.spec.value.kind != "text")

    def _needs_opening(self, value: Any) -> bool:
        """Return True for paths and PIL images."""
        return self._is_path(value) or hasattr(value, "getbands")

    # ------------------------------------------------------------------ values

    def check(self, value: Any, *, any_size: bool = False) -> None:
        """Raise InvalidValueError if `value` is not what `spec.value` declares.

        With `any_size` a picture-like array may have another height and width, as values before `transform` may.
        """
        self._checked(value, any_size=any_size)

    def _checked(self, value: Any, *, any_size: bool = False, trusted: bool = False) -> Any:
        """Return a value as plugins get it: checked unless `trusted`, and an array if it is a tensor."""
        array = as_array(value)
        if trusted:
            return array
        with limited(self.limits):
            error = value_problem(self.spec.value, array, any_size=any_size)
        if error:
            raise InvalidValueError.expected(self.name, expected_value(self.spec.value), describe(value), error)
        return array

    def _check_result(self, value: Any, hook: str, *, any_size: bool = False) -> None:
        with limited(self.limits):
            error = value_problem(self.spec.value, value, any_size=any_size)
        if error:
            raise self._contract_error(hook, value, expected_value(self.spec.value), error)

    def read(self, data: bytes, extension: str) -> Any:
        """Return one value from a file's bytes, at the file's size. Raises InvalidValueError.

        Floats and integers of another width are converted to the declared dtype.
        """
        extension = extension.lower().removeprefix(".")
        arguments = {"data": data, "extension": extension, "settings": self.settings, "spec": self.spec}
        try:
            with limited(self.limits):
                self.limits.check("file_bytes", len(data), f"{self.name}: {len(data):,} bytes")
                value = self._plugin.call_raw(self.name, "read_value", **arguments)
        except InvalidValueError as error:
            raise error if data else InvalidValueError(f"{error}; the file is empty (0 bytes)") from None
        except OneLineError:
            raise
        except Exception as error:
            raise InvalidValueError(f"{self.name}: cannot be read from .{extension}: {error_text(error)}") from error
        value = in_declared_width(self.spec.value, value)
        self.check(value, any_size=self.implements("transform"))
        return value

    def open(self, item: Any) -> Any:
        """Return one value, at its own size, from a file, PIL image, array, text or JSON value.

        A str is the text itself if the modality's values are texts, else the path of a file; a Path is always a file. A
        uint8 array `(height, width)` or `(height, width, 3)` is a picture, as in PIL. Raises InvalidValueError.
        """
        import PIL.Image

        if self._is_path(item):
            path = Path(item)
            if not os.path.isfile(path):  # Path.is_file raises for names that are too long
                raise InvalidValueError.expected(self.name, "an existing file", f"{str(item)!r}")
            with limited(self.limits):
                data = read_file(path)
            return self.read(data, path.suffix)
        if self.spec.value.kind == "array" and hasattr(item, "__array__") and not isinstance(item, PIL.Image.Image):
            item = np.asarray(as_array(item))
            is_picture = item.dtype == np.uint8 and (item.ndim == 2 or item.shape[2:] == (3,))
            if is_picture and value_problem(self.spec.value, item, any_size=True):
                item = PIL.Image.fromarray(item)
            else:
                item = in_declared_width(self.spec.value, item)
        if isinstance(item, PIL.Image.Image):
            from tokenizers_zoo.contract.pictures import image_file

            return self.read(*image_file(item))
        self.check(item, any_size=self.implements("transform"))
        return item

    def write(self, value: Any, *, trusted: bool = False) -> tuple[bytes, str]:
        """Return a value of any size as a file's bytes and its extension (lower case, no dot)."""
        value = self._checked(value, any_size=self.implements("transform"), trusted=trusted)
        written = self._call("write_value", value=value, spec=self.spec)
        data, extension = written if isinstance(written, tuple) and len(written) == 2 else (None, None)
        if not isinstance(data, bytes) or not isinstance(extension, str) or not re.fullmatch(r"[a-z0-9]+", extension):
            raise self._contract_error("write_value", written, "(bytes, extension in lower case without a dot)")
        return data, extension

    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """Return files that users may have: a short description -> (bytes, extension)."""
        examples = self._call("example_files")
        for file in examples.values() if isinstance(examples, Mapping) else [None]:
            if not (isinstance(file, tuple) and list(map(type, file)) == [bytes, str]):
                raise self._contract_error("example_files", examples, "{words: (bytes, extension)}")
        return dict(examples)

    def transform(self, value: Any, crop: Crop, *, trusted: bool = False) -> Any:
        """Return the part of the value inside `crop`, at the size of the settings."""
        resizes = self.implements("transform")
        value = self._checked(value, any_size=resizes, trusted=trusted)
        cropped = self._call("transform", value=value, crop=crop)
        if resizes and value_problem(self.spec.value, cropped):
            if getattr(cropped, "shape", None) == getattr(value, "shape", ()):  # it may resize nothing
                self.check(value)
            self._check_result(cropped, "transform")
        return cropped

    def fitted(self, item: Any) -> Any:
        """Return the value of a file or picture (see `open`), cropped to its middle, at the size of the settings."""
        value = self.open(item)
        return self.transform(value, self.middle(value), trusted=True)

    def middle(self, value: Any, default: Crop = WHOLE) -> Crop:
        """Return the largest crop in the middle of a value that has the proportions of the modality's pictures.

        `default` is returned for modalities whose values have no proportions, such as boxes.
        """
        shape = self.spec.value.shape
        if not self.implements("transform") or len(shape) < 2 or not isinstance(shape[-1], int):
            return default
        height, width = value.shape[-2:]
        relative_height = int(shape[-2]) * width / (shape[-1] * height)  # of the crop, at the value's width
        crop_width, crop_height = min(1.0, 1 / relative_height), min(1.0, relative_height)
        return Crop(top=(1 - crop_height) / 2, left=(1 - crop_width) / 2, height=crop_height, width=crop_width)

    @property
    def is_picture(self) -> bool:
        """True for arrays that are cropped by the shared fractions of height and width.

        Their tokens are a two-dimensional grid, or they have the configured `image_size`, such as masks and frames.
        """
        value, size = self.spec.value, self.known_settings().get("image_size")
        sized = value.shape[-2:] == ((size, size) if isinstance(size, int) else tuple(size or ()))
        flat = value.kind == "array" and len(value.shape) >= 2 and self.implements("transform")
        return flat and (sized or len(self.spec.grid_shape) == 2)

    @property
    def derive_hint(self) -> str:
        """The setting that would turn `derive` on, for the end of a message; empty if there is none."""
        setting, table = self.spec.derive_setting, f"[modalities.{self.name}] of {self.settings.origin.file}"
        return f" without the setting {setting} in {table}" if setting else ""

    def derive(self, sample: Mapping[str, Any]) -> Any:
        """Return this modality's value, computed from the values of `spec.derived_from`; its size is theirs.

        Raises DataError if the sample lacks an input.
        """
        if not self.spec.derived_from:
            raise DataError(f"{self.name}: is not derived from other modalities{self.derive_hint}")
        if missing := [name for name in self.spec.derived_from if name not in sample]:
            raise DataError(f"{self.name}: is derived from {', '.join(missing)}, which the sample lacks")
        specs = self._specs_of(self.spec.derived_from)
        if any(hasattr(value, "detach") for value in sample.values()):
            sample = {name: as_array(value) for name, value in sample.items()}
        value = self._call("derive", sample=sample, specs=specs)
        self._check_result(value, "derive", any_size=True)
        return value

    def render(self, value: Any) -> PIL.Image.Image | str:
        """Return a PIL image of the value, or a text."""
        picture: PIL.Image.Image | str = self._call("render", value=as_array(value), spec=self.spec)
        if not isinstance(picture, str):
            import PIL.Image

            if not isinstance(picture, PIL.Image.Image):
                raise self._contract_error("render", picture, "a PIL image or a str")
        return picture

    def score(self, predicted: Sequence[Any], target: Sequence[Any]) -> dict[str, float]:
        """Return the metrics of `spec.metrics`, by name, over aligned lists of values."""
        if len(predicted) != len(target) or not len(target):
            expected, actual = "as many predictions as targets, at least one", f"{len(predicted)} and {len(target)}"
            raise InvalidValueError.expected(self.name, expected, actual)
        pairs = {"predicted": list(map(as_array, predicted)), "target": list(map(as_array, target))}
        scores = self._call("score", **pairs, spec=self.spec)
        names = [metric.name for metric in self.spec.metrics]
        try:
            if set(scores) == set(names):
                return {name: float(scores[name]) for name in names}
        except (TypeError, ValueError):
            pass
        raise self._contract_error("score", scores, f"one number for each of {', '.join(names)}")

    def constant_baseline(self, values: Sequence[Any]) -> Any:
        """Return the one value that scores best as the prediction for all `values`."""
        if not len(values):
            raise InvalidValueError(f"{self.name}: a constant baseline needs at least one value")
        values = list(map(as_array, values))
        baseline = self._call("constant_baseline", values=values, spec=self.spec, score=self.score)
        self._check_result(baseline, "constant_baseline")
        return baseline

    def vocabulary_tokens(self) -> tuple[str, ...]:
        """Return the special tokens that this modality adds to its shared text vocabulary, in order."""
        return self._strings("vocabulary_tokens")

    def vocabulary_texts(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Return the plain text in `values` that the shared text vocabulary should cover well."""
        return self._strings("vocabulary_texts", values=values)

    def _strings(self, hook: str, **arguments: Any) -> tuple[str, ...]:
        strings = tuple(result := self._call(hook, **arguments))
        if isinstance(result, str) or not all(isinstance(item, str) for item in strings):
            raise self._contract_error(hook, result, "a sequence of str")
        return strings

    def single_ids(self) -> frozenset[int]:
        """Return the ids that occur at most once in a sequence."""
        tokenizer = self.tokenizer if self.implements("single_ids") else None
        ids = list(self._call("single_ids", tokenizer=tokenizer))
        if not all(isinstance(index, int) and 0 <= index < self.spec.vocab_size for index in ids):
            raise self._contract_error("single_ids", ids, f"ids from 0 to {self.spec.vocab_size - 1}")
        return frozenset(ids)


def _reopened(device: str, open_handle: Callable[..., ModalityHandle], *arguments: Any) -> ModalityHandle:
    handle = open_handle(*arguments)
    handle.device = device
    return handle
