"""Images as they were decoded, uint8 and of their full size, one file for a set of images: bit for bit what decoding
gives, in the order of bytes that rendering is fastest with.

Never reduced: a view of a smaller image is another one, by up to seven levels on average. Renders nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.decode import n_pixels
from data.pixels.rendered import decoding_facts, named_by_identity
from data.pixels.slots import SlotFile
from data.reading import read_sample
from data.samples import Sample

_SHAPE_BYTES = 8
"""Before the pixels of a slot: height and width, uint32 each; EXIF may have turned the image."""


class DecodedImages:
    """The decoded images of some samples; those that are missing are decoded, and kept."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        keys = sorted({sample.key for sample in samples})
        self._slot_of = {key: slot for slot, key in enumerate(keys)}
        path_of = {sample.key: sample.path for sample in samples}
        # Of a file without a header that can be read 0: its image is never kept.
        self._sizes = np.array([n_pixels(path_of[key]) for key in keys], np.int64)
        starts = np.concatenate([[0], np.cumsum(3 * self._sizes + _SHAPE_BYTES)]).astype(np.int64)
        identity = {
            "kind": "decoded", "images": hashlib.sha256(b"".join(keys)).hexdigest(),
            "sizes": zlib.crc32(self._sizes.tobytes()), **decoding_facts(),
        }  # fmt: skip
        self.n_bytes = int(starts[-1])
        self.file = SlotFile(named_by_identity(folder, "decoded", identity), identity, len(keys), starts)

    def standing_bytes(self) -> int:
        """How many bytes of images stand already."""
        return int((3 * self._sizes + _SHAPE_BYTES)[self.file.stands()].sum())

    def image(self, sample: Sample) -> Tensor:
        """The decoded image, uint8 [3, H, W], laid out as H, W, 3; the errors of `read_sample`."""
        slot = self._slot_of.get(sample.key)
        if slot is None:
            return read_sample(sample)
        content = np.empty(3 * int(self._sizes[slot]) + _SHAPE_BYTES, np.uint8)
        if self.file.read(slot, memoryview(content.data)):
            height_px, width_px = content[:_SHAPE_BYTES].view("<u4").tolist()
            if 3 * height_px * width_px == len(content) - _SHAPE_BYTES:
                return torch.from_numpy(content[_SHAPE_BYTES:].reshape(height_px, width_px, 3)).permute(2, 0, 1)
        image = read_sample(sample)
        if image.numel() == len(content) - _SHAPE_BYTES:
            content[:_SHAPE_BYTES].view("<u4")[:] = image.shape[1:]
            content[_SHAPE_BYTES:] = image.permute(1, 2, 0).reshape(-1).numpy()
            self.file.write(slot, memoryview(content.data))
        return image
