"""Read a cache by docs/format.md alone: the whole file in memory, and nothing of softlabel's own code."""

import hashlib
import json
import zlib
from pathlib import Path

import h5py
import numpy as np

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def is_big(name: str) -> bool:
    """Whether a CRC table covers the object's bytes; the seal covers those of all others."""
    return name.startswith(("logits/", "features/")) or name in ("rows/params", "rows/witness")


def part(name: str, array: np.ndarray, with_bytes: bool = True) -> bytes:
    """What an object adds to a hash: name, dtype and shape, a NUL after each, then its bytes or none."""
    header = f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0"
    return header.encode() + (array.tobytes() if with_bytes else b"")


class Cache:
    """`objects` is name -> array, `rows` is (key, view) -> row; ValueError unless the file is as it was sealed."""

    def __init__(self, path: str | Path) -> None:
        self.objects: dict[str, np.ndarray] = {}
        take = self.objects.__setitem__
        with h5py.File(path, "r", locking=False) as h5:
            h5.visititems(lambda name, item: take(name, item[()]) if isinstance(item, h5py.Dataset) else None)
        found = sorted(self.objects.items())
        sealed = b"".join(part(name, array, not is_big(name)) for name, array in found if name != "seal")
        if hashlib.sha256(sealed).digest() != self.objects["seal"].tobytes():
            raise ValueError("the seal is not that of the tables")
        for name, array in found:
            crcs = [zlib.crc32(array[at : at + 512].tobytes()) for at in range(0, len(array), 512)]
            if is_big(name) and crcs != self.objects[f"crc32/{name}"].tolist():
                raise ValueError(f"the CRCs of {name} are not those that were sealed")
        raw, pair_tables = self.objects["manifest"].tobytes(), ("samples/key", "samples/first_row", "rows/view")
        self.manifest = json.loads(raw)
        if canonical(self.manifest).encode() != raw or self.manifest["format"] != 1:
            raise ValueError("the manifest is not of format 1")
        keys, first, views = (self.objects[name] for name in pair_tables)
        samples = np.repeat(np.arange(len(keys)), np.diff(first).astype(np.int64))
        pairs = [(keys[sample].tobytes(), int(view)) for sample, view in zip(samples, views, strict=True)]
        if first[0] != 0 or len(set(samples)) < len(keys) or pairs != sorted(set(pairs)):
            raise ValueError("the rows are not in order")
        self.rows = {pair: row for row, pair in enumerate(pairs)}
        self.recipe_id = hashlib.sha256(canonical(self.manifest["identity"]).encode()).hexdigest()
        asked = self.recipe_id.encode() + b"".join(self.objects[name].tobytes() for name in pair_tables)
        self.cache_id = hashlib.sha256(b"softlabel cache_id 1\0" + asked).hexdigest()
        answered = [part(name, array) for name, array in found if is_big(name) or name in pair_tables]
        self.content_id = hashlib.sha256(b"softlabel content_id 1\0" + b"".join(answered)).hexdigest()

    def row(self, image_file: bytes, view: int) -> dict[str, np.ndarray]:
        """Params, witness, logits and features of one view of an image, by object name; KeyError where it is absent."""
        row = self.rows[hashlib.blake2b(image_file, digest_size=16).digest(), view]
        return {name: array[row] for name, array in self.objects.items() if is_big(name)}
