"""Colours from geometry: textures, a lamp with shadows, daylight from a window, and light that comes from everywhere.

Light is computed linearly; sRGB colours are taken as its square roots (gamma 2). Arrays are laid out per coordinate,
(3, n), so that each operation runs over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.stage import Stage
from zoo_scenes.textures import EDGE, TEXTURES, look_up
from zoo_scenes.things import BOX, PLANE, Scene, Surface

Field = NDArray[np.float32]

LAMP = 1.15
DAYLIGHT = 0.9
FILL = 0.16
SKY, GROUND = (0.40, 0.41, 0.43), (0.25, 0.235, 0.22)


@dataclass(slots=True, kw_only=True)
class Hits:
    """What the pixels see: points and unit normals in the room (3, n), unit directions to the camera (3, n),
    planar depths (n,), geom ids (n,), and the width of a pixel at depth 1."""

    points: Field
    normals: Field
    views: Field
    depth: Field
    geoms: NDArray[np.intp]
    pixel: float


def dot(a: Field, b: Field) -> Field:
    """Dot products of (3, n) vectors: (n,)."""
    result: Field = a[0] * b[0]
    result += a[1] * b[1]
    result += a[2] * b[2]
    return result


def shade(stage: Stage, hits: Hits, lit: NDArray[np.bool_] | None) -> Field:
    """sRGB colours (3, n) in [0, 1]; `lit` tells which points the lamp reaches, None for all."""
    scene = stage.scene
    table = _surface_table(stage)
    rows = table.take(hits.geoms, axis=1)
    albedo = _albedo(rows, hits)
    light, highlight = _light(scene, hits, lit)
    glow = rows[_GLOW]
    tint = np.array((1.0, 0.985, 0.955), np.float32)
    colour: Field = albedo * (light * (1 - glow) + glow * np.float32(1.25 / scene.exposure))
    colour += (highlight * rows[_SHINE]) * tint[:, None]
    colour *= np.float32(scene.exposure)
    np.clip(colour, 0.0, 1.0, out=colour)
    return np.sqrt(colour, out=colour)


# Rows of the surface table, one column per geom.
_PLACE, _FRAME, _SCALE, _OFFSET, _COLOURS = slice(0, 3), slice(3, 12), slice(12, 15), slice(15, 18), slice(18, 27)
_SHINE, _GLOW, _TEXTURE, _TURNS = 27, 28, 29, 30


def _surface_table(stage: Stage) -> Field:
    """Per geom: place, frame, texture scale and offset per axis, linear colours, shine, glow, texture, turns around."""
    surfaces: dict[Surface, tuple[float, ...]] = {}
    looks = []
    for part in stage.parts:
        surface = part.surface
        look = surfaces.get(surface)
        if look is None:
            first, second, third = surface.colours
            index = TEXTURES[surface.texture]
            look = (*first, *second, *third, surface.shine, surface.glow, index, surface.tile)
            surfaces[surface] = look
        looks.append(look)
    table = np.empty((len(looks), 31), np.float32)
    table[:, _COLOURS.start :] = looks
    table[:, _COLOURS] **= 2
    tile = table[:, -1:].copy()
    half = np.maximum(stage.model.geom_aabb[:, 3:], 1e-6)
    stretched = tile == 0
    table[:, _PLACE] = stage.places
    table[:, _FRAME] = stage.frames
    table[:, _SCALE] = np.where(stretched, 0.5 / half, 1 / np.maximum(tile, 1e-6))
    shift = np.array(stage.owners)[:, None] * (0.37, 0.61, 0.29)
    table[:, _OFFSET] = np.where(stretched, 0.5, shift)
    around = np.maximum(np.round(2 * np.pi * half[:, :1] / np.maximum(tile, 1e-6)), 1)
    is_round = np.array([part.shape not in (BOX, PLANE) for part in stage.parts])[:, None]
    table[:, _TURNS:] = np.where(is_round, np.where(stretched, 1, around), 0)
    return np.ascontiguousarray(table.T)


def _albedo(rows: Field, hits: Hits) -> Field:
    """Linear surface colours (3, n) from the textures at the points, in the geoms' own coordinates."""
    offset = hits.points - rows[_PLACE]
    frame = rows[_FRAME]
    # columns of the frame are the geom's axes: local = frame^T offset
    local = [frame[k] * offset[0] + frame[k + 3] * offset[1] + frame[k + 6] * offset[2] for k in range(3)]
    facing = [
        np.abs(frame[k] * hits.normals[0] + frame[k + 3] * hits.normals[1] + frame[k + 6] * hits.normals[2])
        for k in range(3)
    ]
    scale = rows[_SCALE]
    x, y, z = (local[k] * scale[k] + rows[_OFFSET][k] for k in range(3))
    along_x = (facing[0] > facing[1]) & (facing[0] > facing[2])
    along_z = facing[2] >= np.maximum(facing[0], facing[1])
    u, v = np.where(along_x, y, x), np.where(along_z, y, z)
    turns = rows[_TURNS]
    side = np.flatnonzero((turns > 0) & (facing[2] < 0.97) & (rows[_TEXTURE] > 0))
    if side.size:
        u[side] = np.arctan2(local[1][side], local[0][side]) * turns[side] * np.float32(0.5 / np.pi)
        v[side] = z[side]
    slant = np.maximum(np.abs(dot(hits.normals, hits.views)), 0.2)
    texels = hits.depth * scale[0] * np.float32(hits.pixel * EDGE) / slant
    weights = look_up(rows[_TEXTURE].astype(np.int32), u, v, texels)
    colours = rows[_COLOURS]
    mixed: Field = colours[0:3] * weights[0] + colours[3:6] * weights[1] + colours[6:9] * weights[2]
    return mixed


def _light(scene: Scene, hits: Hits, lit: NDArray[np.bool_] | None) -> tuple[Field, Field]:
    """Irradiance (3, n), and the strength of the lamp's highlight (n,)."""
    normals, points = hits.normals, hits.points
    upward = normals[2] * np.float32(0.5) + np.float32(0.5)
    ambient = np.float32(1) - _occlusion(scene, hits)
    ambient += np.float32(FILL) * np.maximum(dot(normals, hits.views), 0)
    sky, ground = (np.array(colour, np.float32)[:, None] for colour in (SKY, GROUND))
    light = ground + (sky - ground) * upward
    light *= ambient
    to_lamp = np.array(scene.lamp, np.float32)[:, None] - points
    square = dot(to_lamp, to_lamp)
    to_lamp /= np.sqrt(square)
    reach = np.float32(LAMP) / (np.float32(0.55) + np.float32(0.14) * square)
    if lit is not None:
        reach *= lit
    direct = np.maximum(dot(normals, to_lamp), 0) * reach
    light += np.array((1.0, 0.97, 0.91), np.float32)[:, None] * direct
    if scene.daylight is not None:
        light += np.array((0.92, 0.97, 1.06), np.float32)[:, None] * _daylight(scene.daylight, points, normals)
    half = to_lamp + hits.views
    half /= np.sqrt(dot(half, half)) + np.float32(1e-6)
    gloss = np.maximum(dot(normals, half), 0)
    for _ in range(5):  # to the 32nd power
        gloss *= gloss
    return light, gloss * reach


def _daylight(daylight: tuple[tuple[float, ...], tuple[float, ...]], points: Field, normals: Field) -> Field:
    """Irradiance from a window without shadows: cosines at both ends over the squared distance (n,)."""
    at, inward = (np.array(vector, np.float32)[:, None] for vector in daylight)
    towards = at - points
    square = dot(towards, towards)
    cosines: Field = np.maximum(dot(normals, towards), 0) * np.maximum(
        -dot(np.broadcast_to(inward, points.shape), towards), 0
    )
    cosines *= np.float32(DAYLIGHT)
    cosines /= np.maximum(square, 1e-6) * (np.float32(0.6) + np.float32(0.25) * square)
    return cosines


def _occlusion(scene: Scene, hits: Hits) -> Field:
    """Share of the light from everywhere that the room's corners keep away (n,)."""
    total: Field = np.zeros_like(hits.depth)
    for axis, extent in enumerate((scene.width, scene.depth, scene.height)):
        place = hits.points[axis]
        gap = np.minimum(place, np.float32(extent) - place)
        total += np.exp(gap * np.float32(-1 / 0.35)) * (np.float32(1) - np.abs(hits.normals[axis]))
    total *= np.float32(0.3)
    return total
