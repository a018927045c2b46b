"""Views: a ViewPolicy draws a row of numbers for (sample key, view index); a row renders to one uint8 view.

The same row renders at the teacher's size in stage one and at the student's size in stage two. Nothing here
uses a global random generator, an image's path or its position. N samples, V views, P columns, S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from data.philox import doubles

COLUMNS = (
    "crop_x", "crop_y", "crop_w", "crop_h",  # fractions of the image (geometry `pad`: of the padded square)
    "hflip", "vflip",                        # 0 or 1
    "quarter_turns",                         # 0..3, counter-clockwise
    "brightness", "contrast", "saturation",  # factors, 1 changes nothing
)  # fmt: skip
DRAW_VERSION = 1
INTERPOLATION = "bilinear-antialias"
CLEAN_ROW = np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 1], dtype=np.float32)

# Word 1 of the Philox counter keeps the streams apart.
_STREAM_VIEW, _STREAM_SCHEDULE = 0, 1
_STRETCH = 1 << 17
"""Samples whose orders are drawn at a time."""


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """How views are drawn. The defaults suit skin images, which have no up and no left."""

    crop_area_min: float = 0.5
    """Smallest share of the image's area that a crop keeps, in (0, 1]; the largest is 1."""
    crop_ratio_max: float = 4 / 3
    """Largest stretch of the crop's aspect ratio relative to the image's own; the smallest is its inverse."""
    hflip_probability: float = 0.5
    vflip_probability: float = 0.5
    quarter_turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees with equal chances."""
    brightness: float = 0.2
    """Factors are uniform in [1 - value, 1 + value]; 0 leaves it alone. The same for the next two."""
    contrast: float = 0.2
    saturation: float = 0.2
    geometry: str = "warp"
    """`warp`: the crop fills the square (the course's transform). `pad`: bars keep the proportions; they are black
    before the colours are drawn, which apply to the whole view."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        if not 0 < self.crop_area_min <= 1:
            raise ValueError(f"crop_area_min must be in (0, 1], got {self.crop_area_min}")
        if not 1 <= self.crop_ratio_max < math.inf:
            raise ValueError(f"crop_ratio_max must be at least 1, got {self.crop_ratio_max}")
        for name in ("hflip_probability", "vflip_probability", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.geometry not in ("warp", "pad"):
            raise ValueError(f"geometry must be 'warp' or 'pad', got {self.geometry!r}")

    def to_identity(self) -> dict[str, str | bool | int]:
        """The policy as it stands in a cache's identity: floats as C99 hex strings, so the text is exact."""
        described: dict[str, str | bool | int] = {
            name: value.hex() if isinstance(value, float) else value for name, value in asdict(self).items()
        }
        return {**described, "interpolation": INTERPOLATION, "draw_version": DRAW_VERSION}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> ViewPolicy:
        """The inverse of `to_identity`; ValueError for a draw version or interpolation that is not this code's."""
        expected = {"interpolation": INTERPOLATION, "draw_version": DRAW_VERSION}
        for name, value in expected.items():
            if identity.get(name) != value:
                raise ValueError(f"views with {name} {identity.get(name)!r}; this version renders {value!r}")
        kinds = {field.name: field.type for field in fields(cls)}
        if unknown := set(identity) - set(kinds) - set(expected):
            raise ValueError(f"unknown view settings: {', '.join(sorted(unknown))}")
        if lacking := set(kinds) - set(identity):
            raise ValueError(f"view settings that are missing: {', '.join(sorted(lacking))}")
        settings: dict[str, Any] = {
            name: float.fromhex(identity[name]) if kind == "float" else identity[name] for name, kind in kinds.items()
        }
        return cls(**settings)


def draw(policy: ViewPolicy, key: bytes, view: int, seed: int) -> NDArray[np.float32]:
    """The numbers of one view, float32 [P] in the order of COLUMNS; view 0 is the clean image.

    Only the raw doubles of Philox (key = sample key, counter = [0, 0, view, seed]) are used: NumPy guarantees
    their bits for ever, and double i belongs to column i whether it is used or not.
    """
    if view == 0:
        return CLEAN_ROW.copy()
    u = _philox(key, _STREAM_VIEW, view, seed).random(len(COLUMNS))
    area = policy.crop_area_min + u[0] * (1 - policy.crop_area_min)
    stretch = math.exp((2 * u[1] - 1) * math.log(policy.crop_ratio_max))
    width, height = min(1.0, math.sqrt(area * stretch)), min(1.0, math.sqrt(area / stretch))
    # Where one side was cut to 1, the other alone has to keep the smallest area.
    width, height = max(policy.crop_area_min, width), max(policy.crop_area_min, height)
    row = [
        u[2] * (1 - width), u[3] * (1 - height), width, height,
        float(u[4] < policy.hflip_probability), float(u[5] < policy.vflip_probability),
        math.floor(u[6] * 4) if policy.quarter_turns else 0.0,
        1 + (2 * u[7] - 1) * policy.brightness,
        1 + (2 * u[8] - 1) * policy.contrast,
        1 + (2 * u[9] - 1) * policy.saturation,
    ]  # fmt: skip
    return np.array(row, dtype=np.float32)


def view_orders(keys: NDArray[np.uint8], views: int, cycle: int, run_seed: int) -> NDArray[np.uint16]:
    """The order in which a run shows each sample's V views during one cycle of V epochs, uint16 [N, V].

    `keys` are uint8 [N, 16]. Each view once a cycle; epoch e shows entry e mod V of cycle e // V. Epoch 0 is therefore
    not all clean.
    """
    orders, counter = np.empty((len(keys), views), np.uint16), (_STREAM_SCHEDULE, cycle, checked_seed(run_seed))
    for start in range(0, len(keys), _STRETCH):  # what is in between takes eight times the memory
        part = slice(start, start + _STRETCH)
        orders[part] = np.argsort(doubles(keys[part], views, counter), axis=1, kind="stable")
    return orders


def checked_seed(seed: int) -> int:
    """The seed; ValueError where the generators cannot count with it."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"a seed must be in [0, 2**63), got {seed}")
    return seed


def _philox(key: bytes, stream: int, index: int, seed: int) -> np.random.Generator:
    counter = [0, stream, index, checked_seed(seed)]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=counter))


def render(image: Tensor, row: NDArray[np.float32], size_px: int, geometry: str = "warp") -> Tensor:
    """One view, uint8 [3, S, S], of a decoded image, uint8 [3, H, W]; `row` is float32 [P] as stored.

    Order: crop and antialiased bilinear resize, hflip, vflip, quarter turns, brightness, contrast, saturation;
    uint8 after each. Bit-equal within one set of library versions and CPU vector width, else within one level.
    """
    crop_x, crop_y, crop_w, crop_h, hflip, vflip, turns, brightness, contrast, saturation = (float(v) for v in row)
    crop = _crop_padded if geometry == "pad" else _crop_warped
    view = crop(image, (crop_x, crop_y, crop_w, crop_h), size_px)
    if hflip:
        view = F.horizontal_flip(view)
    if vflip:
        view = F.vertical_flip(view)
    if turns:
        view = torch.rot90(view, int(turns), dims=(-2, -1))
    if brightness != 1:
        view = F.adjust_brightness(view, brightness)
    if contrast != 1:
        view = F.adjust_contrast(view, contrast)
    if saturation != 1:
        view = F.adjust_saturation(view, saturation)
    return view


def _edges(start_frac: float, length_frac: float, full_px: int) -> tuple[int, int]:
    """Both edges are rounded, not start and length; at least one pixel, inside the image."""
    low = min(math.floor(start_frac * full_px + 0.5), full_px - 1)
    high = math.floor((start_frac + length_frac) * full_px + 0.5)
    return low, min(max(high, low + 1), full_px)


def _resize(image: Tensor, height_px: int, width_px: int) -> Tensor:
    return F.resize(image, [height_px, width_px], interpolation=F.InterpolationMode.BILINEAR, antialias=True)


def _crop_warped(image: Tensor, crop_xywh_frac: tuple[float, float, float, float], size_px: int) -> Tensor:
    height_px, width_px = image.shape[-2:]
    left, right = _edges(crop_xywh_frac[0], crop_xywh_frac[2], width_px)
    top, bottom = _edges(crop_xywh_frac[1], crop_xywh_frac[3], height_px)
    return _resize(image[:, top:bottom, left:right], size_px, size_px)


def _crop_padded(image: Tensor, crop_xywh_frac: tuple[float, float, float, float], size_px: int) -> Tensor:
    """The crop of the zero-padded square, without making that square: only the crop itself is padded."""
    view = torch.zeros(3, size_px, size_px, dtype=torch.uint8)
    side_px = max(image.shape[-2:])
    inside, bars = [], []
    for start, length, full_px in zip(crop_xywh_frac[:2], crop_xywh_frac[2:], image.shape[:-3:-1], strict=True):
        low, high = _edges(start, length, side_px)
        offset = (side_px - full_px) // 2
        first, last = max(low, offset), min(high, offset + full_px)
        if last <= first:
            return view
        inside.append(slice(first - offset, last - offset))
        bars.append((first - low, high - last))
    part = image[:, inside[1], inside[0]]
    return _resize(F.pad(part, [bars[0][0], bars[1][0], bars[0][1], bars[1][1]]), size_px, size_px)


def witness(view: Tensor) -> NDArray[np.uint8]:
    """The means of the four quadrants of a uint8 view [3, S, S], rounded: uint8 [12] (channel, then row, column).

    Proves crop, flips, turns and colours of a view at another size within one level from 64 pixels on, two below;
    does not prove interpolation or decoder.
    """
    half = view.shape[-1] / 2
    first = (half - torch.arange(view.shape[-1], dtype=torch.float64)).clamp(0, 1)
    halves = torch.stack([first, first.flip(0)])  # a middle row of odd sizes belongs to both halves by half
    means = (halves @ view.double() @ halves.T / half**2).flatten(1)
    return (means + 0.5).floor().to(torch.uint8).flatten().numpy()


WITNESS_LIMIT = 8
"""Levels by which no two witnesses of one view were seen to differ, and those of two views of an image mostly do: all
but 8 % of 240 pairs of CT and MR views, all but 0.4 % of 750 pairs of dermatoscopic ones."""


def witness_tolerance(size_px: int) -> int:
    """How far two witnesses of nearly every view differ at most, in levels of 255, when one was rendered at this size.

    Of none of 2,220 dermatoscopic views, but of up to one in thirty on CT and MR images, whose edges between black and
    white do not scale as evenly: by 3 levels at 64 pixels, by 5 at 32.
    """
    return 1 if size_px >= 64 else 2
