"""Caches that a team shares in a folder or behind any fsspec URL: push, pull, list, look into.

Never changes and never deletes what stands in a store, and never opens a stranger's bytes with HDF5 before they are
what their manifest says (sha256) and a child process has looked at them. Run: `softlabel cache list URL`
"""

from cache.store.address import StoreAddress
from cache.store.entry import Entry
from cache.store.store import Pushed, RowTables, Stood, Store
from cache.store.trouble import ObjectRefused, Patience, StoreError

__all__ = ["Entry", "ObjectRefused", "Patience", "Pushed", "RowTables", "Stood", "Store", "StoreAddress", "StoreError"]
