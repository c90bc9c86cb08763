"""zoo backbone generate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.cli.options import DEVICE, PATH, assigned, names_option, parse_assignments, settings_option
from tokenizers_zoo.errors import count_of
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.config import Origin, from_mapping
from tokenizers_zoo.records.io import disk_errors
from zoo_backbone.cli import input_items, numbers_of, pairs_of, run_argument

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import Zoo
    from zoo_backbone.model.run import Run


@click.command("generate")
@run_argument
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAMES",
    type=MODALITY,
    help="Modalities of stored samples, comma-separated; or NAME=FILE, NAME=FOLDER or 'NAME=a text'. Repeatable.",
)
@names_option("--target", "targets", help="Modalities to generate, in this order.")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file of inputs, targets and their settings.",
)
@click.option(
    "--inpaint",
    multiple=True,
    metavar="NAME=REGION",
    help="Region of an input to generate anew: box:T,L,B,R, cells:..., mask:FILE, after, tokens:0-3, gaps:N, "
    "not:REGION. Repeatable.",
)
@click.option("--guide", multiple=True, metavar="WEIGHTS", help="Guidance scale: 3, or NAME=WEIGHT,... Repeatable.")
@click.option("--out", type=PATH, metavar="FOLDER", required=True, help="For values, pictures, tokens and the plan.")
@click.option(
    "--crop",
    type=click.Choice(["middle", "whole"]),
    help="Part of input pictures from files that is used; whole pictures are squeezed.  [default: middle]",
)
@click.option("--samples", metavar="NUMBERS", help="How many samples, or which: 4, 0-7.  [default: 4]")
@names_option("--keys", metavar="KEYS", help="Keys of stored samples, instead of --samples.")
@click.option("--split", metavar="NAME", help="Split of the stored samples.  [default: test]")
@click.option("--draws", type=click.IntRange(min=1), metavar="N", help="Draws per sample.  [default: 1]")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Decoding steps of grids and vectors.")
@click.option("--rank", metavar="NAME", help="Sort draws by agreement with the inputs in NAME.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of the draws.  [default: 0]")
@click.option("--overwrite", is_flag=True, help="Replace the generation that is in the folder --out.")
@DEVICE
@settings_option("For all targets: top_p=0.9; for one: NAME.top_p=0.9. Keys: docs/generation.md.")
def generate_command(
    run: Run,
    zoo: Zoo,
    inputs: tuple[str, ...],
    targets: list[str] | None,
    plan_file: Path | None,
    inpaint: tuple[str, ...],
    guide: tuple[str, ...],
    out: Path,
    keys: list[str] | None,
    steps: int | None,
    overwrite: bool,
    device: str,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Generate modalities from others.

    Each finished target is an input of the next. Options override the plan, and
    OUT/plan.toml reproduces the result. The same command resumes after a kill.
    An input such as rgb uses its input form, rgb_patches, if the model was trained
    on it.

    \b
    Examples:
      zoo backbone generate RUN --input rgb,caption --target depth --out made
      zoo backbone generate RUN --input rgb=a.png --target depth,semseg --out made
      zoo backbone generate RUN --input 'caption=a red ball' --target rgb \\
          --guide 2 --draws 4 --out made
      zoo backbone generate RUN --input depth --target depth \\
          --inpaint depth=box:0,0,1,0.5 --out made
      zoo backbone generate RUN --plan plan.toml --input caption=a.txt --out made
    """
    from zoo_backbone.generate.plans import GenerationPlan, read_plan
    from zoo_backbone.generate.sources import inputs_of, written_sources
    from zoo_backbone.use.any_to_any import AnyToAny
    from zoo_backbone.use.generate_to_folder import SHEET, generate_to_folder

    if (targets is None) == (plan_file is None):
        raise click.UsageError("expected either --target NAMES or --plan FILE")
    table = read_plan(plan_file, zoo) if plan_file else {}
    if guide:
        has_weights = len(guide) > 1 or "=" in guide[0]
        table["guidance"] = (
            {"weights": numbers_of("--guide", guide)} if has_weights else parse_assignments([f"scale={guide[0]}"])
        )
        for target in table.get("targets", []):
            target.pop("guidance", None)
    settings = parse_assignments(assignments) | ({"steps": steps} if steps else {})
    table["targets"] = _targets(targets, table, settings)
    table["inputs"] = inputs_of(written_sources(table.get("inputs", [])) | written_sources(input_items(inputs)))
    table["inpaint"] = {**table.get("inpaint", {}), **pairs_of("--inpaint", inpaint, "REGION")}
    selection = {"keys": keys, **options}
    for option, excluded in (("keys", "samples"), ("samples", "keys")):
        if selection[option] is not None:
            table.pop(excluded, None)
    table |= {key: value for key, value in selection.items() if value is not None}
    plan = from_mapping(GenerationPlan, table, Origin())
    model = AnyToAny.load(run, zoo, device=device)
    with disk_errors(out):
        folders = generate_to_folder(model, plan, out, run.tokens, overwrite=overwrite)
    samples = len({draw_folder.parent for draw_folder in folders})
    of_each = f", {plan.draws} draws of each," if plan.draws > 1 else ""
    sheet = f", side by side in {out / SHEET}" if (out / SHEET).is_file() else ""
    echo(f"{count_of(samples, 'sample')}{of_each} in {out}{sheet}")


def _targets(names: list[str] | None, plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of the targets, from `names` or the plan, with the settings of `--set`."""
    tables = plan.get("targets", []) if names is None else [{"name": name} for name in names]
    target_names = [str(table["name"]) for table in tables]

    def is_of_one(key: str) -> bool:
        return "." in key and key.partition(".")[0] in target_names

    for key in sorted(settings, key=is_of_one):  # settings for all targets first
        name, _, inner = key.partition(".") if is_of_one(key) else ("", "", key)
        shared = {"guidance": plan["guidance"]} if "guidance" in plan and inner.startswith("guidance.") else {}
        tables = [
            table if name and table["name"] != name else assigned({**shared, **table}, {inner: settings[key]})
            for table in tables
        ]
    return [dict(table) for table in tables]
