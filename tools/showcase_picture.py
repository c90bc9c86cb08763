"""Draw the picture of README: values that the showcase model generates from a held-out picture and from a caption.

python tools/showcase_picture.py [--sample KEY] [--out docs/showcase.png]
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.stores.shards import ValueStore
from zoo_backbone import AnyToAny
from zoo_backbone.generate.request import Sample

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).parent.parent
PICTURED = ("depth", "normal", "semseg", "canny", "boxes", "palette")
FROM_TEXT = ("semseg", "depth", "normal")
SAMPLE = "test-0-000002"
CAPTION = "A room with white walls and a wooden floor. A red sofa from left to right centre, upper middle to low."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="showcase", help="a bundle or run with held-out values")
    parser.add_argument("--sample", default=SAMPLE, help="key of the held-out sample")
    parser.add_argument("--caption", default=CAPTION)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "showcase.png")
    arguments = parser.parse_args()
    model = AnyToAny.from_pretrained(arguments.model, device="cpu")
    store = ValueStore(model.run.values())
    truth = {name: store.read_key(model.handle(name), TEST, arguments.sample) for name in ("rgb_patches", *PICTURED)}
    photo = truth.pop("rgb_patches")
    from_photo = {
        name: model.generate(rgb_patches=photo, targets=[name], num_samples=2, seed=arguments.seed)[name]
        for name in PICTURED
    }
    from_text = model.generate(caption=arguments.caption, targets=FROM_TEXT, num_samples=2, seed=arguments.seed)
    rows = [truth, *({name: from_photo[name][draw].value for name in PICTURED} for draw in range(2))]
    from_caption = [{name: from_text[name][draw].value for name in FROM_TEXT} for draw in range(2)]
    draw(model, photo, rows, arguments.caption, from_caption, arguments.out)


def draw(
    model: AnyToAny, photo: Any, rows: list[dict[str, Any]], caption: str, from_caption: list[dict[str, Any]], out: Path
) -> None:
    """Write the picture: six modalities of a photo, true and generated twice; below, two samples from a caption."""
    ratios = (1, 1, 1, 0.14, 1)  # a space between the two inputs
    grid = {"hspace": 0.04, "wspace": 0.04, "height_ratios": ratios}
    figure, axes = plt.subplots(5, 7, figsize=(16.6, 10.6), dpi=100, gridspec_kw=grid)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.965, bottom=0.09)
    for axis in axes.flat:
        axis.set_axis_off()
    limits = LogNorm(rows[0]["depth"].min(), rows[0]["depth"].max())
    classes: dict[str, Any] = {}
    for values, row_axes in [
        *zip(rows, axes[:3, 1:], strict=True),
        (from_caption[0], axes[4, 1:4]),
        (from_caption[1], axes[4, 4:]),
    ]:
        for axis, (name, value) in zip(row_axes, values.items(), strict=True):
            if name == "depth":
                depth_image = axis.imshow(value[0], cmap="turbo_r", norm=limits)
                continue
            picture = np.asarray(Sample(model.handle(name), None, value).image.convert("RGB"))
            axis.imshow(picture, interpolation="nearest", aspect="auto" if name == "palette" else "equal")
            if name == "semseg":
                classes |= colours(model, value, picture)
    for axis, name in zip(axes[0, 1:], rows[0], strict=True):
        axis.set_title(f"{name}, true", fontsize=13)
    for axis, name in zip(axes[4, 1:], FROM_TEXT * 2, strict=True):
        axis.set_title(name, fontsize=13)
    axes[0, 0].imshow(Sample(model.handle("rgb_patches"), None, photo).image, interpolation="nearest")
    axes[0, 0].set_title("input: one picture", fontsize=13)
    for axis, text in zip(axes[:3, 0], ("", "generated,\nfirst sample", "generated,\nsecond sample"), strict=True):
        axis.text(0.95, 0.5, text, ha="right", va="center", fontsize=14)
    axes[4, 0].text(0.03, 1, "input: a caption", va="top", fontsize=13)
    axes[4, 0].text(0.03, 0.83, textwrap.fill(caption, 24), va="top", fontsize=12)
    bar = figure.colorbar(depth_image, cax=figure.add_axes((0.02, 0.045, 0.25, 0.018)), orientation="horizontal")
    bar.set_label("depth in metres", fontsize=11)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda metres, _: f"{metres:g}"))
    bar.ax.xaxis.set_minor_formatter(FuncFormatter(lambda metres, _: f"{metres:g}"))
    patches = [Patch(color=colour, label=label) for label, colour in sorted(classes.items())]
    figure.legend(handles=patches, loc="lower right", ncols=8, fontsize=11, frameon=False)
    figure.savefig(out)


def colours(model: AnyToAny, value: Any, picture: Array) -> dict[str, Any]:
    """Return the colour of each class in a segmentation."""
    names = model.handle("semseg").spec.value.classes
    pixels = picture[:: len(picture) // len(value), :: len(picture) // len(value)] / 255
    return {names[number]: tuple(pixels[value == number][0]) for number in np.unique(value)}


if __name__ == "__main__":
    main()
