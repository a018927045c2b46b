"""Views as they were rendered, uint8, one file for a table of views and a size: bit for bit what rendering gives.

Renders nothing (`data.pixels.source` does). S pixels, R rows of the table, B batch.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import features

from data.decode import DECODER_VERSION
from data.pixels.slots import SUFFIX, SlotFile, header_of
from data.views import DRAW_VERSION, INTERPOLATION


def decoding_facts() -> dict[str, str | int]:
    """All that decoded pixels depend on, beside the file."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg") or ""
    return {"decoder": DECODER_VERSION, "pillow": PIL.__version__, "jpeg": jpeg, "webp": features.version("webp") or ""}


def rendering_facts() -> dict[str, str | int]:
    """All that a view's bits depend on, beside its image, its numbers, its size and its geometry.

    They may differ by the width of the processor's vectors.
    """
    return {
        **decoding_facts(), "draw": DRAW_VERSION, "interpolation": INTERPOLATION,
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "machine": platform.machine(), "vectors": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def named_by_identity(folder: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Files of another identity have another name, and stand beside each other."""
    return folder / f"{name}-{hashlib.sha256(header_of(identity)).hexdigest()[:12]}{SUFFIX}"


class RenderedViews:
    """The rendered views of a table, row by row, as [S, S, 3]: what is missing is absent."""

    def __init__(self, folder: Path, table_id: str, n_rows: int, size_px: int, geometry: str) -> None:
        self.size_px, self.geometry = size_px, geometry
        self.row_bytes = 3 * size_px**2
        identity = {
            "kind": "views", "table": table_id, "rows": n_rows, "size_px": size_px, "geometry": geometry,
            **rendering_facts(),
        }  # fmt: skip
        path = named_by_identity(folder, f"views-{size_px}px-{geometry}", identity)
        self.file = SlotFile(path, identity, n_rows, self.row_bytes)

    def read(self, rows_B: NDArray[np.int64], into_BHWC: NDArray[np.uint8]) -> list[int]:
        """Fill in what is there, uint8 [B, S, S, 3]; the positions of what is not."""
        read, into = self.file.read, memoryview(into_BHWC.reshape(-1).data)
        n_bytes = self.row_bytes
        return [
            at for at, row in enumerate(rows_B.tolist())
            if row < 0 or not read(row, into[at * n_bytes : (at + 1) * n_bytes])
        ]  # fmt: skip

    def write(self, row: int, view_HWC: NDArray[np.uint8]) -> None:
        """Keep one view, uint8 [S, S, 3]."""
        self.file.write(row, memoryview(view_HWC.reshape(-1).data))

    def lacks(self, row: int) -> bool:
        """Whether it is worth rendering a view that nobody asked for yet: nobody wrote it, and it would be kept."""
        return self.file.lacks(row)
