"""Looks at a settled scene: one ray per pixel centre gives depth, normals, geom ids and colours.

Colours come from textures, a lamp with shadows, daylight from a window, and light from everywhere. Light is computed
linearly; sRGB colours are taken as its square roots (gamma 2). Arrays are laid out per coordinate, (3, n), so that each
operation runs over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.scene import BOX, PLANE, Array, Field, Scene
from zoo_scenes.stage import Stage, bundle_sides
from zoo_scenes.textures import EDGE, look_up, pyramids

LAMP = 1.15
DAYLIGHT = 0.9
FILL = 0.16
SKY, GROUND = (0.40, 0.41, 0.43), (0.25, 0.235, 0.22)


@dataclass(slots=True, kw_only=True)
class Hits:
    """Hits of the pixels' rays: points and unit normals in the room (3, n), unit directions to the camera (3, n),
    planar depths (n,), geom ids (n,), and the width of a pixel at depth 1."""

    points: Field
    normals: Field
    views: Field
    depth: Field
    geoms: NDArray[np.intp]
    pixel: float


def dot(a: Field, b: Field) -> Field:
    """Dot products of (3, n) vectors: (n,). Transposed matrices (3, 3, n) turn vectors: (3, n)."""
    result: Field = a[0] * b[0]
    result += a[1] * b[1]
    result += a[2] * b[2]
    return result


def shade(stage: Stage, hits: Hits, lit: NDArray[np.bool_]) -> Field:
    """sRGB colours (3, n) in [0, 1]; `lit` tells which points the lamp reaches."""
    scene = stage.scene
    table = _surface_table(stage)
    rows = table.take(hits.geoms, axis=1, mode="clip")  # faster than checks
    facing = dot(hits.normals, hits.views)
    albedo = _albedo(rows, hits, facing)
    light, highlight = _light(scene, hits, facing, lit)
    glow = rows[_GLOW]
    tint = np.array((1.0, 0.985, 0.955), np.float32)
    colour: Field = albedo * (light * (1 - glow) + glow * np.float32(1.25 / scene.exposure))
    colour += (highlight * rows[_SHINE]) * tint[:, None]
    colour *= np.float32(scene.exposure)
    np.minimum(np.maximum(colour, 0.0, out=colour), 1.0, out=colour)
    return np.sqrt(colour, out=colour)


# Rows of the surface table, one column per geom.
_PLACE, _FRAME, _SCALE, _OFFSET, _COLOURS = slice(0, 3), slice(3, 12), slice(12, 15), slice(15, 18), slice(18, 27)
_SHINE, _GLOW, _TEXTURE, _TURNS = 27, 28, 29, 30


def _surface_table(stage: Stage) -> Field:
    """Per geom: place, frame, texture scale and offset per axis, linear colours, shine, glow, texture, turns around."""
    keys = [id(part.surface) for part in stage.parts]
    surfaces = dict(zip(keys, (part.surface for part in stage.parts), strict=True))
    textures, *_ = pyramids()
    looks = [
        (*first, *second, *third, shine, glow, textures[texture], tile)
        for texture, (first, second, third), tile, shine, glow in surfaces.values()
    ]
    numbers = dict(zip(surfaces, range(len(looks)), strict=True))
    surface_ids = [numbers[key] for key in keys]
    solids = stage.solids
    look = np.array(looks, np.float32).T
    look[:9] **= 2
    table = np.empty((_TURNS + 1, len(surface_ids)), np.float32)
    look.take(surface_ids, axis=1, out=table[_COLOURS.start :])
    tile = table[_TURNS].copy()
    half = np.maximum(solids.halves.T, 1e-6)
    table[_PLACE], table[_FRAME] = solids.centres.T, solids.frames.T
    stretched = tile == 0
    dense = 1 / np.maximum(tile, 1e-6)
    table[_SCALE] = np.where(stretched, 0.5 / half, dense)
    table[_OFFSET] = np.where(stretched, 0.5, np.array(stage.owners) * np.array([[0.37], [0.61], [0.29]]))
    repeats = np.where(stretched, 1, np.maximum(np.round(2 * np.pi * half[0] / np.maximum(tile, 1e-6)), 1))
    table[_TURNS] = np.where((solids.kinds == BOX) | (solids.kinds == PLANE), 0, repeats)
    return table


def _albedo(rows: Field, hits: Hits, facing: Field) -> Field:
    """Linear surface colours (3, n) from the textures at the points, in the geoms' own coordinates.

    `facing` (n,) are the cosines between the normals and the directions to the camera.
    """
    # columns of the frame are the geom's axes: local = frame^T offset
    frame = rows[_FRAME].reshape(3, 3, -1)
    local = dot(frame, hits.points - rows[_PLACE])
    normals = dot(frame, hits.normals)
    np.abs(normals, out=normals)
    scale = rows[_SCALE]
    x, y, z = local * scale + rows[_OFFSET]
    along_x = (normals[0] > normals[1]) & (normals[0] > normals[2])
    along_z = normals[2] >= np.maximum(normals[0], normals[1])
    u, v = np.where(along_x, y, x), np.where(along_z, y, z)
    turns = rows[_TURNS]
    side = np.flatnonzero((turns > 0) & (normals[2] < 0.97) & (rows[_TEXTURE] > 0))
    if side.size:
        u[side] = np.arctan2(local[1].take(side), local[0].take(side)) * turns.take(side) * np.float32(0.5 / np.pi)
        v[side] = z.take(side)
    slant = np.maximum(np.abs(facing), 0.2)
    texels = hits.depth * scale[0] * np.float32(hits.pixel * EDGE) / slant
    weights = look_up(rows[_TEXTURE].astype(np.int32), u, v, texels)
    colours = rows[_COLOURS]
    return colours[0:3] * weights[0] + colours[3:6] * weights[1] + colours[6:9] * weights[2]


def _light(scene: Scene, hits: Hits, facing: Field, lit: NDArray[np.bool_]) -> tuple[Field, Field]:
    """Irradiance (3, n), and the strength of the lamp's highlight (n,); `facing` as for the albedo."""
    normals, points = hits.normals, hits.points
    upward = normals[2] * np.float32(0.5) + np.float32(0.5)
    ambient = np.float32(1) - _occlusion(scene, hits)
    ambient += np.float32(FILL) * np.maximum(facing, 0)
    sky, ground = (np.array(colour, np.float32)[:, None] for colour in (SKY, GROUND))
    light = ground + (sky - ground) * upward
    light *= ambient
    to_lamp = np.array(scene.lamp, np.float32)[:, None] - points
    square = dot(to_lamp, to_lamp)
    to_lamp /= np.sqrt(square)
    reach = np.float32(LAMP) / (np.float32(0.55) + np.float32(0.14) * square)
    reach *= lit
    direct = np.maximum(dot(normals, to_lamp), 0) * reach
    light += np.array((1.0, 0.97, 0.91), np.float32)[:, None] * direct
    if scene.daylight is not None:
        light += np.array((0.92, 0.97, 1.06), np.float32)[:, None] * _daylight(scene.daylight, points, normals)
    half = np.add(to_lamp, hits.views, out=to_lamp)
    half /= np.sqrt(dot(half, half)) + np.float32(1e-6)
    gloss = np.maximum(dot(normals, half), np.float32(0.1))  # less would end in slow denormal numbers
    for _ in range(5):  # to the 32nd power
        gloss *= gloss
    return light, gloss * reach


def _daylight(daylight: tuple[tuple[float, ...], tuple[float, ...]], points: Field, normals: Field) -> Field:
    """Irradiance from a window without shadows: cosines at both ends over the squared distance (n,)."""
    at, inward = (np.array(vector, np.float32) for vector in daylight)
    towards = at[:, None] - points
    square = dot(towards, towards)
    cosines: Field = np.maximum(dot(normals, towards), 0) * np.maximum(-dot(inward, towards), 0)
    cosines *= np.float32(DAYLIGHT)
    cosines /= np.maximum(square, 1e-6) * (np.float32(0.6) + np.float32(0.25) * square)
    return cosines


def _occlusion(scene: Scene, hits: Hits) -> Field:
    """Share of the light from everywhere that the room's corners keep away (n,)."""
    extent = np.array(((scene.width,), (scene.depth,), (scene.height,)), np.float32)
    gap = np.minimum(hits.points, extent - hits.points)
    gap *= np.float32(-1 / 0.35)
    share = np.exp(gap, out=gap)
    share *= np.float32(1) - np.abs(hits.normals)
    total: Field = share[0] + share[1]
    total += share[2]
    total *= np.float32(0.3)
    return total


_TILE = 16


@dataclass(slots=True)
class View:
    """A square picture: rgb (3, h, w) in [0, 1], planar depth (h, w) in metres, normals (3, h, w) in camera axes
    (x right, y up, z towards the viewer), and geom ids (h, w)."""

    rgb: Field
    depth: Field
    normals: Field
    geoms: NDArray[np.intp]


@lru_cache(maxsize=8)
def _tiling(size: int) -> tuple[Array, NDArray[np.intp], Field]:
    """Pixel centres (3, n), right and up in [-1, 1] and 1, tile by tile; each pixel's place among them;
    and the sides of the tiles as lines of the picture (4, 3, b).

    Tiles are squares of up to 16 pixels, some 8 x 8 of them up to 128; rows where no divisor of the size is 4 or more.
    """
    max_edge = min(_TILE, max(size // 8, 8))
    edge = max(part for part in range(1, max_edge + 1) if size % part == 0)
    high, wide = (edge, edge) if edge >= 4 else (1, size)
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    up, right = np.meshgrid(-steps, steps, indexing="ij")
    tiled = np.arange(size * size).reshape(size // high, high, size // wide, wide).swapaxes(1, 2).reshape(-1)
    centres = np.stack([right, up, np.ones_like(up)]).reshape(3, -1).take(tiled, axis=1)
    # the third coordinate of `bundle_sides` is up
    sides = bundle_sides(centres[[2, 0, 1]], size * size // (high * wide))[:, [1, 2, 0]]
    return centres, np.argsort(tiled).reshape(size, size), sides


def render(stage: Stage, size: int, shadows: bool = True) -> View:
    """Cast one ray per pixel of a `size` x `size` picture and shade the hits."""
    camera = stage.scene.camera
    centres, pixels, sides = _tiling(size)
    rays = camera.rays(centres)
    depth, geoms, normals = stage.cast(camera.position, rays, camera.planes(sides))
    points = np.array(camera.position)[:, None] + depth * rays
    to_points = points - np.array(stage.scene.lamp)[:, None]
    lit = ~stage.blocked(stage.scene.lamp, to_points, sides.shape[2]) if shadows else np.ones(len(geoms), bool)
    views = rays.astype(np.float32)
    views /= -np.sqrt(dot(views, views))
    hits = Hits(
        points=points.astype(np.float32),
        normals=normals,
        views=views,
        depth=depth.astype(np.float32),
        geoms=geoms,
        pixel=2 * camera.scale / size,
    )
    # After rotation in single precision, an axis-aligned vector may be one unit in the last place too long.
    facing = np.clip(camera.axes.astype(np.float32) @ hits.normals, -1, 1)
    arrays: tuple[NDArray[Any], ...] = shade(stage, hits, lit), hits.depth, facing, hits.geoms
    return View(*(values.take(pixels, axis=-1) for values in arrays))
