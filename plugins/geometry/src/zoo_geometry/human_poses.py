"""Human poses in 3D: the body's pose as product codes; box, camera, orientation, size and shape as coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.spec import Crop, Metric, ValueSpec
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.object_tokens import BINS, Axis, Spelling, box_seen_through, by_area
from tokenizers_zoo.families.objects import ObjectModality, ObjectTokenizerConfig, SpelledSettings
from tokenizers_zoo.families.text import read_json
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.autoencoder.config import PUBLISHED_TRAINING
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerKind
from zoo_geometry import body, published_people
from zoo_geometry.body import Array
from zoo_geometry.people import MISSED, draw_people, example_person, joint_errors
from zoo_geometry.pose_labeller import PoseLabeller

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture

Person = dict[str, Any]

JOINTS = len(body.JOINTS)
ROWS = {"joint_rotations": (JOINTS, 3), "joints_camera": (JOINTS, 3), "joints_image": (JOINTS, 2)}
REQUIRED = ("box", *ROWS)
LONGEST_SHAPE = 300
MOST_PICTURES = 10.0
"""Largest joint position in widths and heights of the picture. Larger numbers are taken for pixels."""
ROUNDED = 0.1
"""Largest error of a rotation matrix's entries in a file, as after rounding to tenths."""

BOX = tuple(Axis(name=name) for name in ("xmin", "ymin", "xmax", "ymax"))
CAMERA = (
    Axis(name="pelvis right / depth", low=-2, high=2),
    Axis(name="pelvis up / depth", low=-2, high=2),
    Axis(name="log pelvis depth", low=math.log(0.2), high=math.log(body.FARTHEST)),
    Axis(name="pelvis x in the picture", low=-1, high=2),
    Axis(name="pelvis y in the picture", low=-1, high=2),
    Axis(name="log focal length / width", low=math.log(0.25), high=math.log(8)),
    Axis(name="log focal length / height", low=math.log(0.25), high=math.log(8)),
)
ORIENTATION = tuple(Axis(name=f"orientation {number}", low=-1, high=1) for number in range(6))
SIZE = (Axis(name="log size", low=math.log(0.25), high=math.log(4)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseTokenizer(ObjectTokenizerConfig):
    """Defaults of the pose tokenizer."""

    kind_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "product_vq": {  # a batch has few people: nothing to start from, and slow averages
            "codebook_size": 256,
            "num_codebooks": 4,
            "kmeans_iterations": 0,
            "decay": 0.98,
            "revive_below": 0.4,
        },
        "memcodes": {"codebook_size": 256, "num_codebooks": 4},
    }

    quantizer: QuantizerKind = "product_vq"
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseSettings(SpelledSettings):
    """Settings of human_poses."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {
            "layout": "4m",
            "bins": 1000,
            "sentinels": 200,
            "max_people": published_people.MOST,
            "min_visible": 1e-6,
            "tokenizer": {
                **PUBLISHED_TRAINING,
                "batch_size": 256,
                "quantizer": "memcodes",
                "codebook_size": 1024,
                "num_codebooks": 8,
                "codebook_dim": 128,
                "latent_dim": 1024,
                "width": 1024,
                "depth": 6,
                "expansion": 4,
            },
        }
    }

    preset: Literal["4m"] | None = None
    """4m: the sizes and sequences of 4M-21 (arXiv 2406.09406): 8 product codes of 1024 for the pose, 1000 levels,
    10 betas, spelled in the vocabulary `text`; a person stays whatever a crop leaves of the box."""
    max_people: PositiveInt = 4
    """Most people of one picture; those with the smallest boxes are dropped."""
    min_visible: Annotated[float, Interval("(0, 1]")] = 0.25
    """Share of a person's box that a crop must leave for the person to stay, in (0, 1]."""
    labeller: PoseLabeller | None = None
    """Networks that derive poses from rgb where no source gives them; absent, they are not derived."""
    tokenizer: PoseTokenizer = PoseTokenizer()


class HumanPoses(ObjectModality):
    """A list of people, possibly empty, each a table:

    - `joint_rotations`: 24 axis-angle vectors, radians. The first turns the rest pose's axes (x to the person's left,
      y up, z forward) to the camera's; the others are relative to the parent joint. SMPL's `global_orient` and
      `body_pose`; files may hold 3 x 3 matrices instead.
    - `joints_camera`: 24 positions in metres, in the order of `zoo_geometry.body.JOINTS`. Axes: x right, y up, z
      towards the viewer.
    - `joints_image`: the same joints in fractions of the picture's width and height, inside or outside of it.
    - `box`: [xmin, ymin, xmax, ymax] of the visible part, fractions in [0, 1].
    - `shape`: SMPL's betas, optional.

    The codes hold the 23 rotations below the first as 207 numbers, 9 per matrix. The rest is 18 coordinates. Decoding
    computes joints from the rotations, the mean skeleton of the training values, and the person's size.
    With `layout = "4m"`, people are written as in 4M-21 (see `published_people`).

    If derived from photographs (setting `labeller`), joints come from networks and distances are estimates.
    """

    settings_class = PoseSettings
    summary = "3D human poses: product codes of the body's pose, coordinates of box, camera and size"
    loss = "smooth_l1"
    aliases = ("human-poses",)
    labelled_from = ("rgb",)
    metrics = (
        Metric(
            name="joint_error",
            unit="mm",
            higher_is_better=False,
            meaning="mean distance of joints to the truth over all true people, pelvis laid on pelvis (MPJPE);"
            f" whoever is not found counts as {MISSED:.0f} mm",
        ),
        Metric(
            name="found_joint_error",
            unit="mm",
            higher_is_better=False,
            meaning=f"the same over the people found; {MISSED:.0f} mm where there are people and none is found",
        ),
        Metric(
            name="found_f1",
            higher_is_better=True,
            meaning="harmonic mean of precision and recall of people; found is a box overlap (IoU) of 0.5 or more",
        ),
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> list[Person]:
        """Detect the people in the sample's rgb picture, most confident first; the list may be empty."""
        return self.options(settings).labeller.people(sample["rgb"])

    def value_spec(self, options: PoseSettings) -> ValueSpec:
        return ValueSpec(
            kind="object",
            items="table",
            unit="metres and radians",
            description='[{"joint_rotations": 24 x 3, "joints_camera": 24 x 3 metres, "joints_image": 24 x 2, '
            '"box": [xmin, ymin, xmax, ymax]}], fractions of the picture, and maybe "shape": [numbers]',
        )

    def axes(self, options: PoseSettings) -> tuple[Axis, ...]:
        if options.layout == "4m":
            return published_people.AXES
        return (*BOX, *CAMERA, *ORIENTATION, *SIZE)

    def spelling(self, options: PoseSettings) -> Spelling | None:
        return published_people.SPELLING if options.layout == "4m" else None

    def item_shape(self, options: PoseSettings) -> tuple[int, ...]:
        return ((JOINTS - 1) * 9,)

    def max_objects(self, options: PoseSettings) -> int:
        return options.max_people

    def split(self, value: Any, options: PoseSettings) -> list[Person]:
        """The people, largest box first."""
        return sorted(validate_people(value), key=lambda person: by_area(person["box"]))

    def items(self, objects: Sequence[Person], options: PoseSettings) -> Array:
        turns = column(objects, "joint_rotations")[:, 1:]
        return body.matrices_of(turns).reshape(len(objects), -1).astype(np.float32)

    def coordinates(self, objects: Sequence[Person], fitted: Mapping[str, Array], options: PoseSettings) -> Array:
        turns, joints, image = (column(objects, name) for name in ROWS)
        boxes = column(objects, "box")
        if options.layout == "4m":
            shapes = shapes_of(objects)
            return published_people.numbers_of(boxes, turns, joints, image, shapes, fitted["skeleton"])
        sizes = body.total_length(body.bones_of(turns, joints)) / body.total_length(fitted["skeleton"])
        pelvis = joints[:, 0]
        depth = np.maximum(-pelvis[:, 2:], body.NEAREST)
        focal = body.focal_lengths(joints, image)
        return np.concatenate(
            [
                boxes,
                body.directions(pelvis),
                np.log(depth),
                image[:, 0],
                np.log(np.maximum(focal, 1e-3)),
                body.six_numbers_of(turns[:, 0]),
                np.log(np.maximum(sizes, 1e-3))[:, None],
            ],
            axis=1,
        )

    def join(
        self, coordinates: Array, items: Array, fitted: Mapping[str, Array], options: PoseSettings
    ) -> list[Person]:
        below = body.vectors_of(items.reshape(-1, JOINTS - 1, 3, 3))
        if options.layout == "4m":
            boxes = widened_boxes(coordinates[:, :4], 1 / (BINS - 1))
            turns, joints, image, shapes = published_people.decode(boxes, coordinates[:, 4:], below, fitted["skeleton"])
            return people_of(boxes, turns, joints, np.clip(image, -MOST_PICTURES, MOST_PICTURES), shapes)
        ends = np.cumsum([4, 2, 1, 2, 2, 6])
        edges, direction, depth, pelvis_image, focal, orientation, size = np.split(coordinates, ends, axis=1)
        turns = np.concatenate([body.vectors_of_six(orientation)[:, None], below], axis=1)
        ahead = np.exp(depth).clip(max=body.FARTHEST)  # exp(log(100)) is more by rounding
        pelvis = ahead * np.concatenate([direction, -np.ones_like(depth)], axis=1)
        joints = body.joints_of(turns, np.exp(size)[:, :, None] * fitted["skeleton"], pelvis)
        image = np.clip(body.image_of(joints, pelvis_image, np.exp(focal)), -MOST_PICTURES, MOST_PICTURES)
        return people_of(widened_boxes(edges, 1 / (options.bins - 1)), turns, joints, image)

    def fitted_shapes(self, options: PoseSettings) -> dict[str, tuple[int, ...]]:
        return {"skeleton": (JOINTS, 3)}

    def fit(self, objects: Sequence[Person], options: PoseSettings) -> dict[str, Array]:
        """The mean skeleton, metres."""
        turns, joints = column(objects, "joint_rotations"), column(objects, "joints_camera")
        return {"skeleton": body.mean_skeleton(body.bones_of(turns, joints))}

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        return {"layout": "4m", "max_people": published_people.MOST}

    def published_fitted(self, options: PoseSettings) -> dict[str, Array]:
        """An adult's skeleton."""
        return {"skeleton": body.ADULT.copy()}

    def crop_value(self, value: Any, crop: Crop, options: PoseSettings) -> list[Person]:
        """People in the frame of the crop; a mirror swaps left and right, a crop leaves the camera where it is."""
        people = validate_people(value)
        if crop.is_whole:
            return people
        boxes = [box_seen_through(crop, person["box"], options.min_visible) for person in people]
        return [{**crop_person(crop, person), "box": box} for person, box in zip(people, boxes, strict=True) if box]

    def read(self, data: bytes, extension: str, options: PoseSettings) -> list[Person]:
        """A `.json` file with the list; rotations of 24 x 3 x 3 numbers are matrices. Raises InvalidValueError."""
        value = read_json(data, extension)
        for index, person in enumerate(value if isinstance(value, list) else ()):
            turns = numbers(person.get("joint_rotations")) if isinstance(person, dict) else None
            if turns is not None and turns.shape == (JOINTS, 3, 3):
                off = float(np.abs(body.nearest_rotations(turns) - turns).max())
                if off > ROUNDED:
                    raise InvalidValueError(
                        f"person {index}: joint_rotations: expected rotation matrices (orthogonal, determinant 1), got"
                        f" numbers that are up to {off:.2g} off"
                    )
                person["joint_rotations"] = body.vectors_of(turns).tolist()
        return validate_people(value)

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """Somebody who stands, in our conventions and in others."""
        person = example_person()
        turns, joints = (np.array(person[name]) for name in ("joint_rotations", "joints_camera"))
        changed: dict[str, dict[str, Any]] = {
            "somebody who stands": {},
            "rotations in degrees": {"joint_rotations": np.degrees(turns).tolist()},
            "axes of a picture: y down, z forward": {"joints_camera": (joints * (1, -1, -1)).tolist()},
        }
        return {name: (json.dumps([person | change]).encode(), "json") for name, change in changed.items()}

    def write(self, value: Any, options: PoseSettings) -> tuple[bytes, str]:
        return json.dumps(validate_people(value), allow_nan=False).encode(), "json"

    def picture(self, value: list[Person], options: PoseSettings) -> PIL.Image.Image:
        """Stick figures: left limbs orange, right limbs blue."""
        return draw_people(value)

    def measure(
        self, predicted: Sequence[list[Person]], target: Sequence[list[Person]], options: PoseSettings
    ) -> dict[str, float]:
        """Over all people of all pictures together."""
        errors = [e for guess, truth in zip(predicted, target, strict=True) for e in joint_errors(guess, truth)]
        guessed, true = sum(map(len, predicted)), sum(map(len, target))
        missed = true - len(errors)
        return {
            "joint_error": (sum(errors) + MISSED * missed) / true if true else 0.0,
            "found_joint_error": sum(errors) / len(errors) if errors else MISSED if true else 0.0,
            "found_f1": 2 * len(errors) / (guessed + true) if guessed + true else 1.0,
        }


def validate_people(value: Any) -> list[Person]:
    """The list itself. Raises InvalidValueError, naming the person, where it is no list of people."""
    if not isinstance(value, list):
        raise InvalidValueError(f"expected a list of people (empty where there are none), got {type(value).__name__}")
    for index, person in enumerate(value):
        if error := person_error(person):
            raise InvalidValueError(f"person {index}: {error}")
    return value


def person_error(person: Any) -> str | None:
    """Describe the first problem of a person, or return None."""
    if not isinstance(person, dict):
        return f"expected a table with {', '.join(REQUIRED)}, got {type(person).__name__}"
    if missing := [name for name in REQUIRED if name not in person]:
        return f"lacks {', '.join(missing)}; of a person only shape may be missing"
    if unknown := [str(name) for name in person if name not in (*REQUIRED, "shape")]:
        return f"unknown keys {', '.join(unknown):.80}; expected {', '.join(REQUIRED)} and maybe shape"
    arrays = {name: numbers(value) for name, value in person.items()}
    for name, shape in ROWS.items():
        if (rows := arrays[name]) is None or rows.shape != shape:
            shape_text = "something else" if rows is None else " x ".join(map(str, rows.shape)) or "one number"
            return f"{name}: expected {shape[0]} x {shape[1]} finite numbers (one row per joint), got {shape_text}"
    box, betas = arrays["box"], arrays.get("shape", np.zeros(0))
    if box is None or box.shape != (4,) or not (box >= 0).all() or not (box[:2] < box[2:]).all() or box.max() > 1:
        return (
            "box: expected [xmin, ymin, xmax, ymax] with xmin < xmax and ymin < ymax, fractions of width and height in"
            f" [0, 1], got {person['box']!r:.80}"
        )
    if betas is None or betas.ndim != 1 or len(betas) > LONGEST_SHAPE:
        return f"shape: expected a list of up to {LONGEST_SHAPE} finite numbers, got {person['shape']!r:.60}"
    turns, joints, image = (np.asarray(arrays[name]) for name in ROWS)
    if (far := float(np.median(np.abs(image)))) > MOST_PICTURES:
        return f"joints_image: expected fractions of width and height, got {far:.4g} mostly; divide pixels by the size"
    if (turn := float(np.linalg.norm(turns, axis=-1).max())) > 2 * np.pi + 1e-3:
        return f"joint_rotations: expected axis-angle vectors in radians, got an angle of {turn:.4g}"
    if not -body.FARTHEST <= joints[0, 2] < 0:
        return (
            f"joints_camera: expected the pelvis at z < 0, up to {body.FARTHEST:g} metres away, got {joints[0, 2]:.4g};"
            " convert to metres, and to axes x right, y up, z towards the viewer"
        )
    return None


def numbers(value: Any) -> Array | None:
    """Lists of finite numbers as an array; None where they are not that."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    listed = isinstance(value, list | tuple) and (array.dtype.kind in "iuf" or array.size == 0)
    return array.astype(np.float64) if listed and bool(np.isfinite(array.astype(np.float64)).all()) else None


def column(people: Sequence[Person], name: str) -> Array:
    """One entry of all people, float64 (people, ...)."""
    return np.array([person[name] for person in people], dtype=np.float64)


def shapes_of(people: Sequence[Person]) -> Array:
    """Stack the published number of shape parameters of all people; missing ones are 0."""
    shapes = np.zeros((len(people), published_people.SHAPE_SIZE))
    for row, person in zip(shapes, people, strict=True):
        betas = person.get("shape", [])[: len(row)]
        row[: len(betas)] = betas
    return shapes


def people_of(boxes: Array, turns: Array, joints: Array, image: Array, shapes: Array | None = None) -> list[Person]:
    """The people of rows; without shape numbers they have no `shape`."""
    rows = {"joint_rotations": turns, "joints_camera": joints, "joints_image": image, "box": boxes}
    rows |= {} if shapes is None else {"shape": shapes}
    return [{name: row[k].tolist() for name, row in rows.items()} for k in range(len(boxes))]


def widened_boxes(boxes: Array, step: float) -> Array:
    """Boxes (people, 4) of any edges in [0, 1], in order and at least a tenth of a level, `step`, wide and high."""
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    thin = (low == high) * step / 20
    return np.concatenate([np.maximum(low - thin, 0), np.minimum(high + thin, 1)], axis=1)


def crop_person(crop: Crop, person: Person) -> Person:
    """A person as the crop shows it, but for the box."""
    image = (column([person], "joints_image")[0] - (crop.left, crop.top)) / (crop.width, crop.height)
    if not crop.flip:
        return {**person, "joints_image": image.tolist()}
    mirror_joints = list(body.OTHER_SIDE)
    image[:, 0] = 1 - image[:, 0]
    return {
        **person,
        "joint_rotations": body.mirrored(column([person], "joint_rotations")[0][mirror_joints]).tolist(),
        "joints_camera": (column([person], "joints_camera")[0][mirror_joints] * body.MIRROR).tolist(),
        "joints_image": image[mirror_joints].tolist(),
    }


plugin = HumanPoses()
