"""zoo vocabulary show and grow: the text vocabularies that modalities share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.options import JSON, Group, open_zoo, plain_table, show_json, show_table
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.machine.terminal import echo

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo
    from tokenizers_zoo.tokenizers.vocabulary import VocabularyUse

NAME = click.argument("name", required=False)


@click.group(cls=Group)
def vocabulary() -> None:
    """The text vocabularies that modalities share.

    \b
    Example:
      zoo vocabulary show text
    """


@vocabulary.command()
@NAME
@JSON
def show(name: str | None, as_json: bool) -> None:
    """Show the parts and users of the vocabulary NAME. Default: all vocabularies.

    \b
    Example:
      zoo vocabulary show text
    """
    from tokenizers_zoo.tokenizers.vocabulary import describe_vocabulary

    zoo = open_zoo()
    uses = [describe_vocabulary(zoo, vocabulary_name) for vocabulary_name in _vocabulary_names(zoo, name)]
    if as_json:
        show_json({use.name: _facts(use) for use in uses})
        return
    for use in uses:
        _show(use)


@vocabulary.command()
@NAME
def grow(name: str | None) -> None:
    """Append the words that new plugins need to a vocabulary. Default: to all.

    Old ids keep their meaning: token stores and backbones stay valid. Running it again changes nothing.

    \b
    Example:
      zoo vocabulary grow text
    """
    from tokenizers_zoo.tokenizers.vocabulary import grow_vocabulary

    zoo = open_zoo()
    for vocabulary_name in _vocabulary_names(zoo, name):
        old, new = grow_vocabulary(zoo, vocabulary_name)
        before, size = old.config.size, new.config.size
        if new is old:
            echo(f"{vocabulary_name}: nothing is missing; {old.used} of {before} ids are used")
            continue
        for number, token in enumerate(new.grown_tokens[len(old.grown_tokens) :], old.used):
            echo(f"{vocabulary_name}: {number} is now {token}")
        raised = f" (before: of {before})" if before != size else ""
        echo(f"{vocabulary_name}: {old.used} ids grew to {new.used}, of {size}{raised}")


def _vocabulary_names(zoo: Zoo, name: str | None) -> list[str]:
    """Return the vocabulary of this name, or all. Raises ConfigError if there is none."""
    from tokenizers_zoo.tokenizers.vocabulary import text_vocabularies

    names = [name] if name is not None else list(text_vocabularies(zoo))
    if not names:
        raise ConfigError("no enabled modality shares a text vocabulary; zoo list shows what is enabled")
    return names


def _facts(use: VocabularyUse) -> dict[str, Any]:
    vocabulary = use.vocabulary
    return {
        "folder": use.folder,
        "size": vocabulary.config.size,
        "used": vocabulary.used,
        "fingerprint": vocabulary.fingerprint,
        "parts": {part: {"first": first, "ids": count} for part, (first, count) in vocabulary.parts.items()},
        "modalities": {name: list(special_tokens) for name, special_tokens in use.needs.items()},
        "missing": list(use.missing),
        "unused": list(use.unused),
    }


def _show(use: VocabularyUse) -> None:
    vocabulary, config = use.vocabulary, use.vocabulary.config
    echo(f"{use.name}  {vocabulary.used} of {config.size} ids, in {use.folder}\n")
    parts = plain_table("part", ">first id", ">ids")
    for part, (first, count) in vocabulary.parts.items():
        parts.add_row(part, str(first) if count else "-", str(count))
    show_table(parts)
    echo(f"coordinates  {config.coordinate_axes} axes of {config.coordinate_bins} levels: v0=0 v0=1 ...")
    echo()
    users = plain_table("modality", ">special tokens", ">missing")
    for name, special_tokens in use.needs.items():
        users.add_row(name, str(len(special_tokens)), str(len(set(special_tokens) & set(use.missing))))
    show_table(users)
    echo()
    if use.missing:
        echo(f"missing  {', '.join(use.missing)}; zoo vocabulary grow adds them")
    if use.unused:
        echo(f"unused  {', '.join(use.unused)}: no enabled modality needs them; they keep their ids")
    for past, length in vocabulary.lineage:
        echo(f"grown from  {past}, {length} ids")
    echo(f"fingerprint  {vocabulary.fingerprint}")  # in one piece, to be copied
