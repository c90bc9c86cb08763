"""The public names: what users import, the methods that they call, and their reference."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = {
    "tokenizers_zoo": {"ModalityHandle", "Zoo", "__version__", "hookimpl"},
    "zoo_backbone": {"AnyToAny", "FourM", "FourMEncoder", "FourMFeatures"},
}
METHODS = {
    "AnyToAny": {
        "device", "embed", "encoder", "forward_features", "from_pretrained", "generate", "handle", "load", "modalities",
        "push_to_hub", "request", "run", "save_pretrained", "score", "tokenize", "verify",
    },
    "Zoo": {
        "at", "check_file", "checkpoints", "disabled", "folder", "forget_tokenizers", "from_tables", "from_toml",
        "handles", "installed", "location", "names", "problems", "source", "source_names", "vocabularies",
    },
}  # fmt: skip
"""Methods and properties; another one here is a promise to users."""


@pytest.mark.parametrize("package", NAMES)
def test_public_names_are_documented(package: str) -> None:
    module, reference = importlib.import_module(package), (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(module.__all__) == NAMES[package]
    for name in NAMES[package] - {"__version__", "hookimpl"}:
        public = getattr(module, name)
        assert inspect.getdoc(public) and f".{name}\n" in reference, name


@pytest.mark.parametrize("name", METHODS)
def test_public_methods_have_types_and_a_docstring(name: str) -> None:
    package = next(package for package, names in NAMES.items() if name in names)
    public = getattr(importlib.import_module(package), name)
    members = {key: member for key, member in inspect.getmembers_static(public) if not key.startswith("_")}
    assert set(members) == METHODS[name]
    for key, member in members.items():
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
        assert inspect.getdoc(function), f"{name}.{key} has no docstring"
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, f"{name}.{key}"
