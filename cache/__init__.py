"""What the teacher said: a table of (sample, view) rows in one sealed HDF5 file.

Never knows of images, models or training, and imports no torch. Run: `softlabel cache info FILE.h5`.
"""

from cache.combine import merge
from cache.errors import CacheError
from cache.layout import Table
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.union import open_caches
from cache.writer import SegmentedWriter

__all__ = ["CacheError", "CacheReader", "Manifest", "SegmentedWriter", "Table", "merge", "open_caches"]
