"""A procedural skin-lesion data set: five classes whose attributes overlap. Not medicine, only shaped like it.

Each image is drawn from attributes (colour, border, network, dots, lagoons, rim); each class is a centre in that
space, and part of the images lie between two classes. A classifier therefore meets doubt that is real: the best
possible score is well below 1. S pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float64]


@dataclass(frozen=True)
class Lesion:
    """What one lesion looks like; shares are in [0, 1], colours are RGB in [0, 1]."""

    radius: float
    """Share of half the image."""
    stretch: float
    """Long axis over short axis, minus 1."""
    ragged: float
    """Irregularity of the border."""
    softness: float
    """Width of the border."""
    red: float
    green: float
    blue: float
    variegation: float
    """Strength of a second, darker or bluer colour in patches."""
    network: float
    """Strength of a fine pigment net."""
    dots: float
    """Density of small bright cysts and dark openings."""
    lagoons: float
    """Strength of red-purple lakes."""
    rim: float
    """Brightness of a pearly rim."""


CLASSES: Mapping[str, Lesion] = {
    "basal cell carcinoma": Lesion(0.50, 0.25, 0.10, 0.10, 0.76, 0.48, 0.44, 0.20, 0.05, 0.10, 0.20, 0.55),
    "melanocytic nevus": Lesion(0.45, 0.15, 0.05, 0.07, 0.52, 0.34, 0.25, 0.12, 0.50, 0.08, 0.00, 0.05),
    "melanoma": Lesion(0.58, 0.32, 0.20, 0.05, 0.40, 0.26, 0.23, 0.55, 0.38, 0.15, 0.06, 0.05),
    "seborrheic keratosis": Lesion(0.54, 0.28, 0.12, 0.03, 0.50, 0.36, 0.27, 0.25, 0.10, 0.60, 0.00, 0.12),
    "vascular lesion": Lesion(0.45, 0.18, 0.08, 0.05, 0.62, 0.26, 0.30, 0.22, 0.02, 0.05, 0.55, 0.12),
}
_SPREAD = Lesion(0.10, 0.12, 0.06, 0.03, 0.08, 0.06, 0.06, 0.14, 0.13, 0.13, 0.12, 0.13)
_SHARE_BETWEEN_CLASSES = 0.45


def draw_lesion(label: str, rng: np.random.Generator) -> Lesion:
    """The attributes of one lesion of a class: near its centre, or on the way to another class."""
    own, other = _vector(CLASSES[label]), _vector(CLASSES[str(rng.choice(list(CLASSES)))])
    way = rng.uniform(0.2, 0.6) if rng.random() < _SHARE_BETWEEN_CLASSES else 0.0
    values = own + way * (other - own) + _vector(_SPREAD) * rng.standard_normal(len(own))
    return Lesion(*np.clip(values, 0.0, 1.0).tolist())


def _vector(lesion: Lesion) -> Field:
    return np.array([getattr(lesion, field.name) for field in fields(Lesion)])


def paint(lesion: Lesion, size_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image of a lesion on skin, uint8 [S, S, 3]."""
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    skin = np.array([0.86, 0.66, 0.55]) + rng.normal(0, 0.05, 3) + rng.normal(0, 0.02, 3)
    canvas = skin + 0.05 * _clouds(size_px, 3, rng)[..., None]
    inside, depth = _shape(lesion, x, y, rng)
    colour = np.broadcast_to(np.array([lesion.red, lesion.green, lesion.blue]), canvas.shape).copy()
    patches = np.clip(_clouds(size_px, 4, rng) - 0.1, 0, 1)[..., None]
    second = colour * 0.35 + np.array([0.02, 0.03, 0.10])
    colour += 1.6 * lesion.variegation * patches * (second - colour)
    frequency = rng.uniform(11, 15)
    warp = 0.25 * _clouds(size_px, 3, rng)
    net = np.abs(np.sin(frequency * (x + warp)) * np.sin(frequency * (y - warp)))[..., None]
    colour *= 1 - 0.75 * lesion.network * (1 - net) ** 2
    lakes = np.clip(_clouds(size_px, 5, rng), 0, 1)[..., None]
    colour += 1.5 * lesion.lagoons * lakes * (np.array([0.50, 0.06, 0.16]) - colour)
    colour += _dots(lesion.dots, size_px, rng)[..., None]
    colour += 0.35 * lesion.rim * np.exp(-((depth / 0.12) ** 2))[..., None]
    canvas += inside[..., None] * (colour - canvas)
    _draw_hairs(canvas, x, y, rng)
    canvas = canvas * rng.uniform(0.85, 1.12) + rng.normal(0, 0.02, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)


def _shape(lesion: Lesion, x: Field, y: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """(share of lesion in [0, 1], distance inside the border), both [S, S]."""
    shift_x, shift_y, angle = *rng.normal(0, 0.08, 2), rng.uniform(0, np.pi)
    across, along = x - shift_x, y - shift_y
    u = np.cos(angle) * across + np.sin(angle) * along
    v = (np.cos(angle) * along - np.sin(angle) * across) * (1 + lesion.stretch)
    theta = np.arctan2(v, u)
    border = np.full_like(x, max(lesion.radius, 0.15))
    for k in range(2, 9):
        border += lesion.radius * lesion.ragged * rng.normal() * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) / k**0.5
    depth = border - np.hypot(u, v)
    return 1 / (1 + np.exp(-depth / (0.01 + 0.4 * lesion.softness))), depth


def _clouds(size_px: int, cells: int, rng: np.random.Generator) -> Field:
    """Smooth noise with about `cells` bumps a side, standard deviation near 0.5, [S, S]."""
    coarse = Image.fromarray(rng.standard_normal((cells + 2, cells + 2)).astype(np.float32))
    return np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float64)


def _dots(density: float, size_px: int, rng: np.random.Generator) -> Field:
    """Bright cysts and dark openings of 2 px, [S, S]."""
    marks = np.zeros((size_px, size_px))
    count = rng.poisson(density * 90)
    rows, columns = rng.integers(0, size_px - 1, (2, count))
    signs = rng.choice([-0.3, 0.35], count)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        marks[rows + dy, columns + dx] = signs
    return marks


def _draw_hairs(canvas: Field, x: Field, y: Field, rng: np.random.Generator) -> None:
    for _ in range(rng.poisson(0.7)):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.9, 0.9), rng.normal(0, 0.3)
        along = np.cos(angle) * x + np.sin(angle) * y
        away = np.cos(angle) * y - np.sin(angle) * x - offset - bend * along**2
        canvas *= 1 - 0.7 * np.exp(-((away / 0.015) ** 2))[..., None]


def write_lesions(root: Path, images_per_class: Mapping[str, int], *, size_px: int = 96, seed: int = 0) -> None:
    """Write `root/<split>/<class>/*.png` with so many images a class in each split; every image has its own stream."""
    for split_number, (split, count) in enumerate(images_per_class.items()):
        for class_number, label in enumerate(CLASSES):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                rng = np.random.default_rng([seed, split_number, class_number, number])
                image = paint(draw_lesion(label, rng), size_px, rng)
                Image.fromarray(image).save(folder / f"{number:05}.png", compress_level=1)
