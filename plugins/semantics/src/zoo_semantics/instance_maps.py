"""Maps of instances: from masks and files of them, cut into boxes, put together, compared and coloured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tokenizers_zoo.contract.pictures import Array, crop_and_resize
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import json_of
from tokenizers_zoo.records.limits import limits

MOST_IDS = 65535  # the range of a 16-bit PNG
SAME = 0.8
"""Overlap (IoU) above which two masks are one instance that was told twice; 4M's drawing of samples has it, too."""


class Instance(NamedTuple):
    """One instance: its bounding box in pixels (top, left, bottom, right), and its mask there, bool (height, width)."""

    top: int
    left: int
    bottom: int
    right: int
    mask: Array

    @property
    def pixels(self) -> int:
        """Its size."""
        return int(self.mask.sum())


def instances_of(value: Array) -> list[Instance]:
    """The instances of a map (height, width) of ids, largest first; equal ones by their place."""
    instances = []
    for index in np.unique(value[value > 0]):
        mine = value == index
        rows, columns = np.nonzero(mine.any(axis=1))[0], np.nonzero(mine.any(axis=0))[0]
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        mask = mine[top:bottom, left:right].copy()  # a view would keep a whole map for each instance
        instances.append(Instance(top, left, bottom, right, mask))
    return sorted(instances, key=lambda instance: (-instance.pixels, *instance[:4]))


def point_within(instance: Instance) -> tuple[int, int]:
    """The pixel (row, column) of an instance that is nearest to its middle; of equal ones the first by rows."""
    rows, columns = np.nonzero(instance.mask)
    nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    return instance.top + int(rows[nearest]), instance.left + int(columns[nearest])


def map_of_masks(masks: Iterable[Array], size: tuple[int, int]) -> Array:
    """Masks, bool (height, width), that may overlap, as one map int32 of ids 1, 2, ... from the largest.

    The smaller one is on top, as a part lies upon its whole; masks without a pixel are left out.
    """
    result = np.zeros(size, np.int32)
    ordered = sorted((mask for mask in masks if mask.any()), key=lambda mask: -int(mask.sum()))
    for number, mask in enumerate(ordered, 1):
        result[mask] = number
    return result


def distinct_masks(masks: Sequence[Array]) -> list[Array]:
    """Drop masks, bool (height, width), that overlap an earlier mask by an IoU above SAME."""
    if not masks:
        return []
    flat = np.stack(masks).reshape(len(masks), -1).astype(np.float32)
    shared = flat @ flat.T
    areas = shared.diagonal()
    same = shared > SAME * (areas[:, None] + areas - shared)
    distinct: list[int] = []
    for number in range(len(masks)):
        if not same[number, distinct].any():
            distinct.append(number)
    return [masks[number] for number in distinct]


def runs_of(counts: str | Sequence[int], size: tuple[int, int]) -> list[int]:
    """COCO's run lengths: zeros first, column by column, as numbers or as their text.

    Raises ValueError where they do not fill the size, or are below 0.
    """
    runs = _numbers_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("run lengths: expected whole numbers of 0 and more")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths: expected {size[0] * size[1]} pixels ({size[0]} x {size[1]}), got {sum(runs)}")
    return runs


def _numbers_of_text(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits per character, and from the third on differences to the last but one."""
    counts, number, shift = list[int](), 0, 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("run lengths: a number of more than 12 characters")
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    return counts


def map_of_annotations(data: bytes) -> Array:
    """A map of a JSON file as SAM writes it: `{"annotations": [...]}`, or the list, each with a `segmentation`.

    A segmentation is a table of `size` [height, width] and `counts`; where there is none, the table `image` says the
    size by its `height` and `width`. Raises ValueError, and InvalidValueError above the limits.
    """
    content = json_of(data)
    try:
        table = content if isinstance(content, dict) else {"annotations": content}
        runs = [entry["segmentation"] for entry in table["annotations"]]
        tables = [run["size"] for run in runs] or [[table["image"]["height"], table["image"]["width"]]]
        ((height, width),) = {(int(high), int(wide)) for high, wide in tables}
        counts = [run["counts"] for run in runs]
    except (KeyError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(
            'expected masks of one size, {"annotations": [{"segmentation": {"size": [height, width], "counts": ...}},'
            ' ...]}, or for no mask {"annotations": [], "image": {"height": ..., "width": ...}}; a polygon is no mask:'
            f" save run lengths (pycocotools.mask.encode); got {type(error).__name__}: {error}"
        ) from None
    if min(height, width) < 1:
        raise ValueError(f"expected masks of at least one pixel, got {height} x {width}")
    limits().check("image_pixels", height * width, f"{height} x {width} pixels")
    limits().check("masks", len(counts), f"{len(counts):,} masks")
    letters = sum(len(count) for count in counts if isinstance(count, str))
    limits().check("json_elements", letters, f"run lengths of {letters:,} characters")
    masks = [runs_of(count, (height, width)) for count in counts]
    areas = [sum(runs[1::2]) for runs in masks]
    limits().check("array_elements", sum(areas), f"masks of {sum(areas):,} pixels together")
    columns = np.zeros(height * width, np.int32)  # painted by runs, because full masks take long
    for number, index in enumerate(sorted(filter(areas.__getitem__, range(len(areas))), key=lambda n: -areas[n]), 1):
        end = 0
        for zero_run, one_run in itertools.zip_longest(masks[index][::2], masks[index][1::2], fillvalue=0):
            columns[end + zero_run : end + zero_run + one_run] = number
            end += zero_run + one_run
    return np.ascontiguousarray(columns.reshape(width, height).T)


def shape_of(mask: Array, size: tuple[int, int]) -> Array:
    """A mask, bool (height, width) with a pixel at least, at another size: the pixels that it covers by half.

    A mask too thin to cover any pixel by half takes the pixels with at least half of the largest coverage.
    """
    covered = crop_and_resize(mask.astype(np.float32), Crop(), size)
    peak = float(covered.max())
    return covered >= (0.5 if peak >= 0.5 else peak / 2)


def best_overlaps(predicted: Array, target: Array) -> tuple[Array, int]:
    """For each instance of `target` its largest overlap (IoU) with one of `predicted`, and how many that has."""
    guesses, guess = np.unique(predicted, return_inverse=True)
    truths, truth = np.unique(target, return_inverse=True)
    shared = np.bincount(truth.ravel() * len(guesses) + guess.ravel(), minlength=len(truths) * len(guesses)).reshape(
        len(truths), len(guesses)
    )
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    overlap = (shared / union)[truths > 0][:, guesses > 0]
    return overlap.max(axis=1, initial=0.0), int((guesses > 0).sum())


def colour_instances(value: Array) -> Array:
    """A map as colours, uint8 (height, width, 3), black where there is nothing.

    The hue follows from where an instance's box is, so that it hardly changes from a map to its reconstruction.
    """
    import colorsys

    height, width = value.shape
    result = np.zeros((height, width, 3), np.uint8)
    for top, left, bottom, right, mask in instances_of(value):
        hue = 1.5 * (left + right) / width + (top + bottom) / height
        colour = colorsys.hsv_to_rgb(hue % 1, 0.7, 0.95)
        result[top:bottom, left:right][mask] = [round(255 * part) for part in colour]
    return result
