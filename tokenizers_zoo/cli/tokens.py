"""zoo tokenize, zoo encode, zoo decode: values to tokens and back."""

from __future__ import annotations

from pathlib import Path

import click

from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.cli.options import (
    DATA,
    DEVICE,
    DRY_RUN,
    PATH,
    WORKERS,
    names_option,
    next_command,
    open_zoo,
    show_result,
)
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_errors, replacing_file


@click.command("tokenize")
@DATA
@click.option("--out", type=PATH, required=True, help="Folder of the token store.")
@names_option("--modalities", help="Modalities. Default: all enabled ones that DATA holds.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--crops",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Views per training sample: the whole, then random crops that all modalities share.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the crops.")
@click.option("--workers", type=click.IntRange(min=0), default=1, show_default=True, help=WORKERS)
@DEVICE
@DRY_RUN
@click.option(
    "--overwrite",
    is_flag=True,
    help="Encode every shard again, also in place of tokens of other samples. Without it, a killed run resumes.",
)
def tokenize_command(
    data_dir: Path,
    out: Path,
    modalities: list[str] | None,
    batch_size: int,
    crops: int,
    seed: int,
    workers: int,
    device: str,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Encode DATA into a token store with the trained tokenizers.

    \b
    Example:
      zoo tokenize data/scenes --out runs/tokens
    """
    from tokenizers_zoo.build.tokenize import tokenize

    result = tokenize(
        open_zoo(),
        data_dir,
        out,
        modalities=modalities,
        batch_size=batch_size,
        crops=crops,
        seed=seed,
        workers=workers,
        overwrite=overwrite,
        device=device,
        dry_run=dry_run,
    )
    show_result(result)
    if not dry_run:
        echo(f"tokens in {out}")
        next_command("backbone", "train", "--tokens", out, "--out", "run")


@click.command("encode")
@click.argument("name", type=MODALITY)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=PATH, help="Where to write the tokens (JSON). Default: the terminal.")
@DEVICE
def encode_command(name: str, file: Path, out: Path | None, device: str) -> None:
    """Encode one FILE with the tokenizer of modality NAME. Prints JSON.

    \b
    Example:
      zoo encode depth depth.npy --out depth.json
    """
    from tokenizers_zoo.stores.tokens import token_text

    check_not_input(file, out)
    handle = open_zoo()[name]
    handle.device = device
    value = handle.transform(handle.open(file), Crop())
    handle.check(value)
    text = token_text(handle, handle.encode([value], trusted=True)[0])
    if out is None:
        echo(text.rstrip())
    else:
        with disk_errors(out), replacing_file(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        echo(f"{name}: tokens in {out}")


@click.command("decode")
@click.argument("name", type=MODALITY)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=PATH, help="File for the value; its extension may be left out. Default: FILE_decoded.")
@click.option("--picture", type=PATH, help="Also draw the value as PNG here; what is shown as text is printed.")
@DEVICE
def decode_command(name: str, file: Path, out: Path | None, picture: Path | None, device: str) -> None:
    """Decode the tokens that `zoo encode` wrote.

    \b
    Example:
      zoo decode depth depth.json --out depth_back --picture depth.png
    """
    from tokenizers_zoo.stores.tokens import read_tokens

    handle = open_zoo()[name]
    handle.device = device
    value = handle.decode([read_tokens(handle, file)])[0]
    data, extension = handle.write(value)
    path = str(out or file.with_name(f"{file.stem}_decoded"))
    target = Path(f"{path.removesuffix(f'.{extension}')}.{extension}")
    check_not_input(file, target, picture)
    if out is None and target.exists():
        raise ConfigError(f"{target}: is there already; give --out to say where the value goes, or move it away")
    with disk_errors(target), replacing_file(target) as temporary:
        temporary.write_bytes(data)
    echo(f"{name}: value in {target}")
    if picture is not None:
        rendering = handle.render(value)
        if isinstance(rendering, str):
            echo(rendering)
        else:
            with disk_errors(picture), replacing_file(picture) as temporary:
                rendering.save(temporary, format="PNG")
            echo(f"{name}: picture in {picture}")


def check_not_input(file: Path, *outputs: Path | None) -> None:
    """Raise ConfigError if an output is the input file."""
    for out in outputs:
        if out is not None and out.exists() and out.samefile(file):
            raise ConfigError(f"{out}: is the file that is read, and is not replaced; give another name")
