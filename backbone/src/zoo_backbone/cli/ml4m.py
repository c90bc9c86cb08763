"""zoo import-ml4m and zoo export-ml4m."""

from __future__ import annotations

from pathlib import Path

import click

from tokenizers_zoo.cli.options import PATH, plain_table, show_table
from tokenizers_zoo.errors import count_of
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_errors


@click.command("import-ml4m")
@click.argument("source", metavar="SRC")
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--as", "name", metavar="NAME", help="Modality of a tokenizer whose folder does not say it.")
def import_command(source: str, out: Path, name: str | None) -> None:
    """Import checkpoints that EPFL and Apple published for 4M.

    SRC is the folder, hub id or .safetensors file of a backbone or of a
    tokenizer, 4M's text tokenizer (a .json file), or a folder that holds
    several of them. OUT gets tokenizers/, backbone/ and their
    registry.toml.

    \b
    Examples:
      zoo import-ml4m EPFL-VILAB/4M-21_B 4m
      zoo import-ml4m text_tokenizer_4m_wordpiece_30k.json 4m
      zoo import-ml4m downloads/ 4m
      zoo --registry 4m/registry.toml backbone generate 4m/backbone \\
          --input rgb_patches=photo.jpg --target depth --out made
    """
    from tokenizers_zoo.contract.registry import Zoo
    from tokenizers_zoo.errors import CheckpointError
    from tokenizers_zoo.files.checkpoint import resolve_folder
    from zoo_backbone.use.ml4m.folders import import_folders

    path = Path(source)
    if not path.exists() and path.suffix in (".json", ".safetensors"):
        raise CheckpointError(f"{path}: no such file")
    with disk_errors(out):
        folder = path if path.exists() else resolve_folder(source)
        registry, rows = import_folders(folder, out, name, None if path.exists() else path.name.partition("@")[0])
    table = plain_table("published", "here", "note")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in rows:
        table.add_row(*row)
    show_table(table)
    if without_tokenizer := [handle.name for handle in Zoo.from_toml(registry).handles() if not handle.has_tokenizer]:
        echo(f"no tokenizer yet: {', '.join(without_tokenizer)}; import theirs, too, to make and show them")
    echo(f"use it by: zoo --registry {registry} ...")


@click.command("export-ml4m")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
def export_command(source: Path, out: Path) -> None:
    """Write an imported checkpoint as 4M's code reads it.

    Imported files are restored bit by bit; trained weights keep the published
    names and shapes.

    \b
    Example:
      zoo export-ml4m 4m/backbone published
    """
    from zoo_backbone.use.ml4m.folders import export_folder

    with disk_errors(out):
        published = export_folder(source, out)
    echo(f"{count_of(len(published.tensors), 'tensor')} in {out}")
