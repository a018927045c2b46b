"""Batches of views: from the file of rendered ones, out of the file of decoded images, or decoded and rendered now.

Decides nothing: `pipeline.training.pixels` chooses the files. What comes out is the same, bit for bit, whichever there
are. B batch, S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pixels.decoded import DecodedImages
from data.pixels.rendered import RenderedViews
from data.reading import read_sample
from data.view_batches import ViewItem, chosen, rows_of
from data.views import render

Siblings = Callable[[int], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Row -> the rows of all views of its image that are going to be shown, and their numbers, [V, P]."""


Pixels = NDArray[np.uint8]


def one_by_one(work: Callable[[ViewItem, Pixels], None], items: Sequence[ViewItem], views: Sequence[Pixels]) -> None:
    """Do it for each item here and now."""
    for item, view in zip(items, views, strict=True):
        work(item, view)


@dataclass(frozen=True)
class PixelSource:
    """Pixels of views of one size and geometry."""

    size_px: int
    geometry: str
    rendered: RenderedViews | None = None
    decoded: DecodedImages | None = None
    siblings: Siblings | None = None
    """With it, an image that was decoded for one view is rendered to all that are missing: they are decoded once. It
    stays behind where the source is sent to another process."""

    def begin(self) -> None:
        """From now on what is missing may be written."""
        for kept in (self.rendered, self.decoded):
            if kept is not None:
                kept.file.begin()

    def stand(self, batches: Sequence[Sequence[ViewItem]]) -> bool:
        """Whether all of these views stand, as far as this process knows."""
        if self.rendered is None or not batches:
            return False
        rows = np.concatenate([rows_of(items) for items in batches])
        return bool((rows >= 0).all() and self.rendered.file.stands()[rows].all())

    def batch(
        self, items: Sequence[ViewItem], each: Callable[..., None] = one_by_one, *, pinned: bool = False
    ) -> Tensor:
        """The views, uint8 [B, 3, S, S], laid out as B, S, S, 3; BadImage where a file is no image any more.

        `each` is how those are gone through that have to be rendered.
        """
        pixels = torch.empty(len(items), self.size_px, self.size_px, 3, dtype=torch.uint8, pin_memory=pinned)
        # Written to as an array: another thread must not write to a tensor that was made in inference mode.
        into = pixels.numpy()
        missing = range(len(items)) if self.rendered is None else self.rendered.read(rows_of(items), into)
        if missing:
            each(self._render, chosen(items, missing), [into[at] for at in missing])
        return pixels.permute(0, 3, 1, 2)

    @torch.inference_mode()  # a twentieth of the time to render is spent on what backward passes would need
    def _render(self, item: ViewItem, into_HWC: Pixels) -> None:
        """One view that no file has."""
        image = read_sample(item.sample) if self.decoded is None else self.decoded.image(item.sample)
        into_HWC[:] = render(image, item.params, self.size_px, self.geometry).permute(1, 2, 0).numpy()
        if self.rendered is None or item.row < 0:
            return
        self.rendered.write(item.row, into_HWC)
        if self.siblings is not None:
            self._render_siblings(image, *self.siblings(item.row))

    def _render_siblings(self, image: Tensor, rows_V: NDArray[np.int64], params_VP: NDArray[np.float32]) -> None:
        assert self.rendered is not None
        for row, params in zip(rows_V.tolist(), params_VP, strict=True):
            if self.rendered.lacks(row):
                view = render(image, params, self.size_px, self.geometry).permute(1, 2, 0)
                self.rendered.write(row, view.contiguous().numpy())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "siblings": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
