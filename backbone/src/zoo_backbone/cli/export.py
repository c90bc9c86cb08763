"""zoo export-onnx: networks for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import PATH, names_option, open_zoo, plain_table, show_table
from tokenizers_zoo.errors import CheckpointError, ConfigError, close_names
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_errors

if TYPE_CHECKING:
    from tokenizers_zoo.tokenizers.export import Format


@click.command("export-onnx")
@click.argument("source", metavar="MODALITY|RUN")
@click.option("--out", type=PATH, required=True, help="Folder of the files.")
@names_option("--inputs", help="Modalities that the encoder of a RUN reads.")
@click.option(
    "--format",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    show_default=True,
    help="onnx, or torch: .pt2 files of torch.export.",
)
@click.option("--overwrite", is_flag=True, help="Replace the export that is in the folder.")
def export_onnx(source: str, out: Path, inputs: list[str] | None, format: Format, overwrite: bool) -> None:
    """Export a tokenizer or an encoder to ONNX.

    MODALITY gives encoder.onnx (values to token ids, quantizer included) and
    decoder.onnx. RUN gives encoder.onnx, from tokens of --inputs to features.
    Batches may have any size. Outputs are compared with PyTorch; the largest
    differences are printed. export.json has shapes, units and fingerprints.

    \b
    Examples:
      zoo export-onnx depth --out depth_onnx
      zoo export-onnx runs/backbone --inputs rgb_patches --out encoder_onnx
      zoo export-onnx depth --out depth_pt2 --format torch
    """
    from tokenizers_zoo.tokenizers.export import check_library, export_tokenizer

    check_library(format)
    zoo = open_zoo()
    if source in zoo and not inputs:
        with disk_errors(out):
            record = export_tokenizer(zoo[source], out, format, overwrite=overwrite)
    else:
        from zoo_backbone.learn.checkpoint import load_model
        from zoo_backbone.learn.encoder import FourMEncoder
        from zoo_backbone.model.run import Run
        from zoo_backbone.use.export import export_encoder

        try:
            run = Run.open(source)
        except CheckpointError as error:
            if source in zoo:
                raise ConfigError(f"--inputs: is for a RUN, and {source} is a modality; leave it out") from None
            close = [] if Path(source).exists() else close_names(source, zoo.names())
            offer = f"; did you mean the modality {' or '.join(close)}?" if close else ""
            raise CheckpointError(f"{error}{offer}") from None
        encoder = FourMEncoder(load_model(run.folder)).eval()
        if not inputs:
            raise ConfigError(f"zoo export-onnx {source}: needs --inputs, some of {', '.join(encoder.layout.readable)}")
        with disk_errors(out):
            record = export_encoder(encoder, run.folder, inputs, out, format, overwrite=overwrite)
    table = plain_table("file", "output", "shape", ">largest difference from PyTorch")
    for name, file in record["files"].items():
        for port in file["outputs"]:
            shape = ", ".join(map(str, ("batch", *port["shape"])))
            share = " of ids" if port["dtype"].startswith(("int", "bool")) else ""
            difference = file["largest_difference"][port["name"]]
            table.add_row(
                name,
                port["name"],
                f"{port['dtype']} ({shape})",
                f"{difference:.2%}{share}" if share else f"{difference:.2g}",
            )
    show_table(table)
    for name, reason in record["skipped"].items():
        echo(f"left out: {name}: {reason}", err=True)
    echo(f"export in {out}; export.json describes inputs and outputs")
