"""zoo retrieve: build an index, query it, measure recall."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from tokenizers_zoo.cli.options import (
    DEVICE,
    JSON,
    PATH,
    Group,
    names_option,
    plain_table,
    show_json,
    show_table,
)
from tokenizers_zoo.errors import count_of
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_errors
from tokenizers_zoo.records.typed import as_dicts
from zoo_backbone.cli import collected, input_items, numbers_of, run_argument, zoo_of
from zoo_backbone.use.retrieval import EmbeddingConfig, QueryConfig, SpaceKind

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo
    from zoo_backbone.model.run import Run


def embedding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of vectors; the command gets them as the record `config`."""
    for option in (
        collected(EmbeddingConfig, "config"),
        click.option(
            "--space",
            type=click.Choice(get_args(SpaceKind)),
            default="shared",
            show_default=True,
            help="How modalities are aligned, fitted to training samples.",
        ),
        click.option(
            "--via",
            default="",
            metavar="NAME",
            help="A vector modality that is predicted and compared. Default: encoder features are compared.",
        ),
        names_option("--modalities", help="Default: all of the run that its tokens have."),
        click.option("--split", default="test", show_default=True, help="Split of the run's tokens."),
    ):
        command = option(command)
    return command


@click.group(cls=Group)
def retrieve() -> None:
    """Find samples of any modality by any other.

    \b
    Examples:
      zoo retrieve build RUN --out INDEX
      zoo retrieve query INDEX --input caption=red.txt --find rgb --out found
    """


@retrieve.command("build")
@run_argument
@click.option("--out", type=PATH, required=True, help="Folder of the index.")
@embedding_options
@DEVICE
@click.option("--overwrite", is_flag=True, help="Replace another index. Not needed to resume.")
def build_command(run: Run, zoo: Zoo, out: Path, config: EmbeddingConfig, device: str, overwrite: bool) -> None:
    """Embed the stored samples of a run and write an index.

    If killed, run the same command again to resume.

    \b
    Examples:
      zoo retrieve build runs/backbone --out runs/index
      zoo retrieve build RUN --out INDEX --via dinov2_global
    """
    from zoo_backbone.use.retrieval.index import build

    with disk_errors(out):
        index = build(run, zoo, out, config, overwrite=overwrite, device=device)
    count = f"{count_of(index.size(), 'sample')} with {count_of(len(index.names), 'modality', 'modalities')}"
    echo(f"index: {count}, in {out}")


@retrieve.command("query")
@click.argument("folder", metavar="INDEX", type=PATH)
@click.option("--run", type=PATH, help="The backbone, if it was moved.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE",
    help="A file to query with, 'NAME=a text' or "
    "JSON. With --keys: NAMES of modalities (default: from --weights, else all). Repeatable.",
)
@names_option("--keys", metavar="KEYS", help="Stored samples to query with.")
@click.option("--split", default="", metavar="NAME", help="Split of --keys. Default: the index's.")
@click.option(
    "--weights",
    multiple=True,
    callback=lambda _context, _option, texts: numbers_of("--weights", texts),
    metavar="NAME=NUMBER,...",
    help="Weights of the inputs; a negative weight searches for the opposite. Default: 1. Repeatable.",
)
@click.option("--find", metavar="NAME", default="", help="The modality to search. Default: all together.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Hits per query.")
@click.option("--exclude-self", is_flag=True, help="Exclude the query's own sample.")
@collected(QueryConfig, "query")
@DEVICE
@click.option("--out", type=PATH, help="Folder for hits.json and a picture.")
@JSON
def query_command(
    folder: Path,
    run: Path | None,
    inputs: tuple[str, ...],
    keys: list[str] | None,
    query: QueryConfig,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Find the stored samples that are most similar to the inputs.

    \b
    Examples:
      zoo retrieve query INDEX --input 'caption=a red ball' -k 5
      zoo retrieve query INDEX --input rgb=a.png --input semseg=b.png \\
          --weights semseg=-1
      zoo retrieve query INDEX --keys test-0-000001 --input depth --find rgb \\
          --out found
    """
    from zoo_backbone.generate.sources import sources_of
    from zoo_backbone.model.run import Run
    from zoo_backbone.use.any_to_any import AnyToAny
    from zoo_backbone.use.retrieval.index import Index
    from zoo_backbone.use.retrieval.query import query_keys, query_values, write_results

    items, by_key = input_items(inputs), keys is not None
    if not (items or by_key):
        raise click.UsageError("expected --input NAME=FILE, or --keys of stored samples")
    if wrong := [item for item in items if ("=" in item) == by_key]:
        expected = "NAMES with --keys, or NAME=FILE or NAME=TEXT without --keys"
        raise click.UsageError(f"--input {wrong[0]}: expected {expected}")
    if keys is None and (query.exclude_self or query.split):
        raise click.UsageError("--exclude-self and --split: apply to stored samples; give --keys")
    index = Index(folder, run)
    opened = Run.open(index.run)
    zoo = zoo_of(opened)
    model = AnyToAny.load(opened, zoo, device=device)
    indexed_as = partial(model.model.layout.readable_as, available=index.names)
    sources = {indexed_as(name): source for name, source in sources_of(items, zoo, Path.cwd()).items()}
    weights = {indexed_as(name): weight for name, weight in query.weights.items()}
    query = dataclasses.replace(query, weights=weights)
    if keys is None:
        results = query_values(index, model, sources, query)
    else:
        names, sources = list(sources or weights or index.names), {}
        results = query_keys(index, model, keys, names, query)
    if as_json:
        show_json([dataclasses.asdict(result) for result in results])
    for result in results if not as_json else ():
        table = plain_table(">rank", "sample", ">cosine")
        for rank, hit in enumerate(result.hits, 1):
            table.add_row(str(rank), hit.key, f"{hit.cosine:.3f}")
        echo(f"query: {' + '.join(result.inputs)} of {result.key or 'files'}")
        show_table(table)
    if out is not None:
        with disk_errors(out), locked(out):
            reason = write_results(index, zoo, out, results, sources, query)
        if reason:
            echo(f"no picture: {reason}", err=True)
        if not as_json:
            echo(f"hits in {out}")


@retrieve.command("eval")
@run_argument
@click.option(
    "--out",
    type=PATH,
    help="Default: RUN/retrieval, which zoo report shows; RUN/retrieval-SPLIT for other splits than test.",
)
@embedding_options
@click.option(
    "--samples", type=click.IntRange(min=2), default=1000, show_default=True, help="Maximum number of samples."
)
@click.option("--galleries", type=click.IntRange(min=0), default=8, show_default=True, help="Pairs with a picture.")
@DEVICE
@JSON
def eval_command(
    run: Run,
    zoo: Zoo,
    out: Path | None,
    config: EmbeddingConfig,
    samples: int,
    galleries: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure recall from every modality to every other.

    Each sample is searched by one modality among another modality of all samples.
    R@k is the percentage found among the first k hits, followed by chance.

    \b
    Examples:
      zoo retrieve eval runs/backbone
      zoo retrieve eval RUN --modalities rgb,depth,caption --space centred \\
          --out here
    """
    from tokenizers_zoo.contract.samples import TEST, TRAIN
    from zoo_backbone.measure.retrieval import FILE, FOLDER, RECALL_AT
    from zoo_backbone.use.retrieval.query import evaluate_retrieval

    out = out or run.folder / (FOLDER if config.split == TEST else f"{FOLDER}-{config.split}")
    with disk_errors(out):
        result = evaluate_retrieval(run, zoo, out, config, samples=samples, galleries=galleries, device=device)
    if as_json:
        show_json(as_dicts(result))
        return
    echo("R@k: % found among the first k hits / by chance")
    table = plain_table("query", "target", *(f">R@{k}" for k in RECALL_AT), ">median", ">of")
    rows = [(entry.query, entry.target, entry, str(entry.samples)) for entry in result.pairs]
    for query, target, entry, count in [*rows, ("[mean]", "", result.mean, "")]:
        shares = [f"{100 * entry.recall[k]:.1f}/{100 * entry.chance.recall[k]:.1f}" for k in RECALL_AT]
        table.add_row(query, target, *shares, f"{entry.median_rank:.0f}/{entry.chance.median_rank:.0f}", count)
    show_table(table)
    if config.split == TRAIN:
        echo("these are training samples of the backbone: not held-out figures")
    echo(f"written to {out / FILE}")
