"""zoo retrieve: build an index, query it, measure recall."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from tokenizers_zoo.cli.options import DEVICE, PATH, plain_table, show_table, split_names
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import ConfigError, count_of
from tokenizers_zoo.io import disk_errors
from zoo_backbone.cli.config import pairs_of
from zoo_backbone.cli.run import open_run
from zoo_backbone.retrieval.config import Embedding, EmbeddingConfig, RecallConfig, Search, SpaceKind


def embedding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What says how vectors are made."""
    for option in (
        click.option("--space", type=click.Choice(get_args(SpaceKind)), default="shared", show_default=True,
                     help="What brings the modalities together, fitted to training samples."),
        click.option("--via", default="", metavar="NAME", help="The vector modality that is predicted."),
        click.option("--embedding", type=click.Choice(get_args(Embedding)), default="encoder", show_default=True,
                     help="The encoder's features, or the vector of a predicted modality (--via)."),
        click.option("--modalities", metavar="NAMES",
                     help="Comma-separated. Default: all of the run that its tokens have."),
        click.option("--split", default="test", show_default=True, help="Of the run's tokens."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def retrieve() -> None:
    """Find samples: any modality by any other.

    \b
    Examples:
      zoo retrieve build RUN --out INDEX
      zoo retrieve query INDEX --given caption=red.txt --find rgb --out found
    """


@retrieve.command("build")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder of the index.")
@embedding_options
@click.option("--exact/--approximate", "exact", default=None, help="Compare with all vectors, or walk a graph (HNSW). "
              "Default: exact up to 100,000 samples.")  # fmt: skip
@DEVICE
@click.option("--overwrite", is_flag=True, help="Replace another index.")
def build_command(folder: Path, out: Path, split: str, modalities: str | None, embedding: str, via: str, space: str,
                  exact: bool | None, device: str, overwrite: bool) -> None:  # fmt: skip
    """Embed the stored samples of a run and write an index of them.

    Killed, the same command goes on: modalities that were finished are kept.

    \b
    Examples:
      zoo retrieve build runs/backbone --out runs/index
      zoo retrieve build RUN --out INDEX --embedding predicted --via dinov2_global
    """
    from zoo_backbone.retrieval.building import build

    config = embedding_config(embedding, via, space)
    _, zoo = open_run(folder)
    search: Search | None = None if exact is None else "exact" if exact else "approximate"
    with disk_errors(out):
        index = build(
            folder, zoo, out, config=config, split=split, modalities=split_names(modalities), search=search,
            overwrite=overwrite, device=device,
        )  # fmt: skip
    samples, modalities = count_of(index.size(), "sample"), count_of(len(index.names), "modality", "modalities")
    click.echo(f"index: {samples} by {modalities}, {index.search_kind}, in {out}")


@retrieve.command("query")
@click.argument("folder", metavar="INDEX", type=PATH)
@click.option("--run", type=PATH, help="Where the backbone is now. Default: where it was.")
@click.option("--given", multiple=True, metavar="NAME=FILE", help="A file to ask with, 'NAME=\"TEXT\"' or JSON; or "
              "with --keys a NAME, then by default those of --weights, else all of the index. Repeatable.")  # fmt: skip
@click.option("--keys", metavar="KEYS", help="Comma-separated stored samples to ask with.")
@click.option("--split", help="Of the stored samples. Default: the index's.")
@click.option("--weights", metavar="NAME=NUMBER,...", help="Of what is given; below 0 asks for what is unlike it. "
              "Default: 1 each.")  # fmt: skip
@click.option("--find", metavar="NAME", default="", help="The modality to search. Default: all of the index together.")
@click.option("-k", "count", type=click.IntRange(min=1), default=10, show_default=True, help="Samples to find.")
@click.option("--exclude-self", is_flag=True, help="Leave out the sample that was asked with.")
@DEVICE
@click.option("--out", type=PATH, help="Folder for hits.json and a picture of what was found.")
def query_command(folder: Path, run: Path | None, given: tuple[str, ...], keys: str | None, split: str | None,
                  weights: str | None, find: str, count: int, exclude_self: bool, device: str,
                  out: Path | None) -> None:  # fmt: skip
    """Find the stored samples that are closest to what is given.

    \b
    Examples:
      zoo retrieve query INDEX --given 'caption="a red ball"' -k 5
      zoo retrieve query INDEX --given rgb=a.png --given semseg=b.png \\
          --weights semseg=-1
      zoo retrieve query INDEX --keys test-0-000001 --given depth --find rgb \\
          --out found
    """
    from zoo_backbone.retrieval.answers import write_answers
    from zoo_backbone.retrieval.index import Index
    from zoo_backbone.retrieval.query import in_words, query_keys, query_values

    scale = parse_weights(weights)
    asked = split_names(keys)
    names, sources = _given(given, stored=asked is not None)
    if asked is None and (exclude_self or split):
        raise ConfigError("--exclude-self and --split: are for stored samples; give --keys")
    index = Index(folder, run)
    if run is None:
        index.check_run()
    _, zoo = open_run(index.run)
    if asked is None:
        answers = query_values(index, zoo, sources, scale, count, find, device)
    else:
        names = names or list(scale) or index.names
        answers = query_keys(
            index, zoo, asked, names, scale, count, find=find, split=split, exclude_self=exclude_self, device=device
        )  # fmt: skip
    if count > index.size(find):
        click.echo(f"-k {count}: the index has {count_of(index.size(find), 'sample')}; these are all", err=True)
    for answer in answers:
        table = plain_table(">rank", "sample", ">cosine")
        for rank, hit in enumerate(answer.hits, 1):
            table.add_row(str(rank), hit.key, f"{hit.cosine:.3f}")
        click.echo(f"asked with {in_words(answer.given, scale)} of {answer.key or 'files'}:")
        show_table(table)
    if out is not None:
        with disk_errors(out):
            lacking = write_answers(
                index, zoo, out, answers, sources=sources, find=find, split=split or index.split, weights=scale
            )  # fmt: skip
        if lacking:
            click.echo(f"no picture: {lacking}", err=True)
        click.echo(f"hits in {out}")


@retrieve.command("eval")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--out", type=PATH, help="Default: RUN/retrieval, where zoo report looks; of another "
              "split than test RUN/retrieval-SPLIT.")  # fmt: skip
@embedding_options
@click.option("--samples", type=click.IntRange(min=2), default=1000, show_default=True, help="Held-out, at most.")
@click.option("--galleries", type=click.IntRange(min=0), default=8, show_default=True, help="Pairs that are shown.")
@DEVICE
def eval_command(folder: Path, out: Path | None, split: str, modalities: str | None, embedding: str, via: str,
                 space: str, samples: int, galleries: int, device: str) -> None:  # fmt: skip
    """Measure recall from every modality to every other.

    A sample is looked for by one modality among all by another. R@k is how many
    percent are among the first k; after the slash stands what guessing gives.

    \b
    Examples:
      zoo retrieve eval runs/backbone
      zoo retrieve eval RUN --modalities rgb,depth,caption --space centred \\
          --out here
    """
    from tokenizers_zoo.data.samples import TRAIN
    from zoo_backbone.retrieval.evaluate import FILE, evaluate_retrieval, place_of, recall_table

    place = out or place_of(folder, split)
    config = embedding_config(embedding, via, space)
    _, zoo = open_run(folder)
    with disk_errors(place):
        result = evaluate_retrieval(
            folder, zoo, place, embedding=config, config=RecallConfig(samples=samples, gallery_pairs=galleries),
            split=split, modalities=split_names(modalities), device=device,
        )  # fmt: skip
    click.echo("R@k: how many % are among the first k; after the slash: by guessing")
    show_table(recall_table(result))
    if split == TRAIN:
        click.echo("these samples are what the backbone was trained on, and a space is fitted to: not held-out figures")
    click.echo(f"all of it: {place / FILE}")


def embedding_config(embedding: str, via: str, space: str) -> EmbeddingConfig:
    """The settings of the options. Raises ConfigError where they contradict each other."""
    if (embedding == "predicted") != bool(via):
        raise ConfigError("--via NAME: goes with --embedding predicted, and that needs it")
    return from_mapping(EmbeddingConfig, {"embedding": embedding, "via": via, "space": space})


def parse_weights(weights: str | None) -> dict[str, float]:
    """`a=1,b=-0.5` to numbers. Raises ConfigError."""
    found: dict[str, float] = {}
    for name, text in pairs_of("--weights", split_names(weights) or (), "NUMBER").items():
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"--weights {name}={text}: expected NAME=NUMBER")
        found[name.strip()] = number
    return found


def _given(given: Sequence[str], stored: bool) -> tuple[list[str], dict[str, str]]:
    """Names of modalities of stored samples, or files and values by modality. Raises ConfigError."""
    from zoo_backbone.generate.plans import sources_of

    if stored:
        if wrong := [item for item in given if "=" in item]:
            raise ConfigError(f"--given {wrong[0]}: expected a NAME beside --keys, or files without --keys")
        return list(dict.fromkeys(name for item in given for name in split_names(item) or ())), {}
    if not given:
        raise ConfigError("zoo retrieve query: expected --given NAME=FILE, or --keys of stored samples")
    sources = sources_of(given)
    if bare := [name for name, source in sources.items() if not source]:
        raise ConfigError(f'--given {bare[0]}: expected NAME=FILE or NAME="TEXT", or --keys of stored samples')
    return [], sources
