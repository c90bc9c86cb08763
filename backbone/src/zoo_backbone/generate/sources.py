"""Where the inputs of a generation come from.

NAME                  tokens of stored samples
NAME=FILE             the file of a value, or the tokens that `zoo encode` and `zoo backbone generate` write
NAME=FOLDER, GLOB     files of several samples, whose keys are the file names without extension: photos, 'a/*.jpg'
NAME=TEXT             a text, for modalities of texts; in quotes if a file or folder has this name
NAME={...}, [...]     JSON, for modalities whose values are JSON
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.contract.registry import ModalityHandle, Zoo
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.files.tar import file_key
from tokenizers_zoo.records.limits import read_file
from tokenizers_zoo.stores.tokens import is_token_file


@dataclass(frozen=True, slots=True)
class InputSource:
    """The source of one input."""

    kind: Literal["stored", "tokens", "file", "files", "text", "json"]
    content: str = ""
    """An absolute path, a pattern of absolute paths, a text, or JSON."""

    def __str__(self) -> str:
        """Return the source as plans name it; `source_of` reads it back in any folder."""
        return f'"{self.content}"' if self.kind == "text" else self.content


def source_of(text: str, value_kind: str, folder: Path) -> InputSource:
    """Return the source of an input whose values are arrays, texts or objects; paths are relative to `folder`.

    Text in quotes is text, an existing path is a path, then come patterns with files. Only for objects, "[" and "{"
    begin JSON; only for texts, several words, or one without an extension, are a text.
    """
    if not text:
        return InputSource("stored")
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        return InputSource("text", text[1:-1])
    path = str(folder / text)
    if os.path.isfile(path):  # Path.is_file raises for names that are too long
        is_tokens = path.endswith(".json") and is_token_file(read_file(Path(path)))
        return InputSource("tokens" if is_tokens else "file", path)
    if os.path.isdir(path):
        return InputSource("files", path)
    parent = next((str(parent) for parent in Path(path).parents if os.path.isdir(parent)), "")
    inner = path[len(parent) :].lstrip(os.sep)  # brackets in the names of existing folders are no pattern
    if is_pattern := glob.has_magic(inner):
        path = os.path.join(glob.escape(parent), inner)
        if next(glob.iglob(path, recursive=True), None):
            return InputSource("files", path)
    if value_kind == "object" and text[0] in "[{":
        return InputSource("json", text)
    if value_kind == "text" and not (os.path.isabs(text) or re.fullmatch(r"\S+\.\w+", text)):
        return InputSource("text", text)
    return InputSource("files" if is_pattern else "file", path)


def written_sources(inputs: Iterable[str]) -> dict[str, str]:
    """Return the text after NAME= of each input, by modality; "" for stored samples. Raises ConfigError."""
    sources: dict[str, str] = {}
    for item in inputs:
        name, equals, source = (part.strip() for part in item.partition("="))
        if not name or (equals and not source):
            raise ConfigError(f'input {item}: expected NAME, NAME=FILE or NAME="TEXT"')
        if name in sources:
            raise ConfigError(f"input {item}: {name} is there twice; give one value")
        sources[name] = source
    return sources


def sources_of(inputs: Iterable[str], zoo: Zoo, folder: Path) -> dict[str, InputSource]:
    """Return the source of each input, see `source_of`. Raises ConfigError."""
    return {
        name: source_of(written, zoo[name].spec.value.kind if name in zoo else "array", folder)
        for name, written in written_sources(inputs).items()
    }


def inputs_of(sources: Mapping[str, InputSource | str]) -> list[str]:
    """Return the inputs of a plan that `sources_of` and `written_sources` read."""
    return [f"{name}={source}" if str(source) else name for name, source in sources.items()]


def files_by_name(sources: Mapping[str, str], extensions: Mapping[str, Collection[str]]) -> dict[str, dict[str, Path]]:
    """Return the files of folders and patterns by modality and key. Raises ConfigError if the keys do not agree.

    If a folder has files with the modality's `extensions`, its other files are not used, such as texts next to
    pictures.
    """
    files_by_modality: dict[str, dict[str, Path]] = {}
    for name, source in sources.items():
        pattern = os.path.join(glob.escape(source), "*") if os.path.isdir(source) else source
        paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
        if os.path.isdir(source):
            paths = [path for path in paths if path.suffix[1:].lower() in extensions[name]] or paths
        files_by_modality[name] = {file_key(path): path for path in paths}
        if len(files_by_modality[name]) < len(paths) or not paths:
            same = "two files have the same name; give a pattern, such as 'FOLDER/*.png'"
            reason = same if paths else "there are no such files"
            raise ConfigError(f"input {name}={source}: {reason}")
        first, keys = next(iter(files_by_modality.items()))
        if differing := sorted(keys.keys() ^ files_by_modality[name].keys()):
            raise ConfigError(f"input {name}={source}: expected the files that {first} has; {differing[0]} differs")
    return files_by_modality


def item_of_source(handle: ModalityHandle, source: InputSource) -> Any:
    """Return the value, text or path of a source. Raises ConfigError, InvalidValueError."""
    name, content = handle.name, source.content
    if source.kind == "text" and handle.spec.value.kind == "text":
        return content
    if source.kind in ("text", "json"):
        return handle.read(content.encode(), "txt" if source.kind == "text" else "json")
    if not os.path.isfile(content):
        several = "; repeat --input for each" if re.search(r",\w+=", content) else ""
        raise ConfigError(f'input {name}={content:.200}: expected an existing file, or "TEXT" in quotes{several}')
    return Path(content)
