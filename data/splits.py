"""The remembered split of an unsplit folder: a CSV of (split, path, key), joined by content key.

Renaming or moving images does not move them between splits; images added later join train, so that
validation and test scores stay comparable.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadSamples, DataError

if TYPE_CHECKING:
    from data.samples import Sample

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VAL_FRACTION, TEST_FRACTION = 0.15, 0.15
_COLUMNS = ("split", "path", "key")


def load_or_make(
    label_of: Mapping[bytes, str], name_of: Mapping[bytes, str], path: Path, seed: int = 0, *, save: bool = True
) -> dict[bytes, str]:
    """Content key -> split, from the CSV at `path`; makes it where there is none (by class, seeded)."""
    if path.exists():
        assigned = _read(path)
        new = set(label_of) - set(assigned)
        if new:
            log.info("%s images are not in %s: they join train", f"{len(new):,}", path)
        return {**dict.fromkeys(new, "train"), **assigned}
    rare = [f"{label} ({count})" for label, count in sorted(Counter(label_of.values()).items()) if count < 3]
    if rare:
        raise BadSamples(f"cannot split three ways: too few images of {', '.join(rare)}; at least 3 are needed")
    test = stratified_subset(label_of, TEST_FRACTION, seed)
    rest = {key: label for key, label in label_of.items() if key not in test}
    val = stratified_subset(rest, VAL_FRACTION / (1 - TEST_FRACTION), seed)
    assigned = {key: "test" if key in test else "val" if key in val else "train" for key in label_of}
    if save:
        _write(assigned, name_of, path)
    counts = Counter(assigned.values())
    how = "split once by class, saved in" if save else "would be split by class and saved in"
    log.info("%s %s: %s", how, path, ", ".join(f"{counts[s]:,} {s}" for s in SPLITS))
    return assigned


def stratified_subset(label_of: Mapping[bytes, str], fraction: float, seed: int) -> set[bytes]:
    """The keys of a seeded random `fraction` of the samples with the class shares of the whole.

    Depends on keys and labels only, not on their order. Raises BadSamples where a class is too small.
    """
    from sklearn.model_selection import train_test_split

    counts = Counter(label_of.values())
    rare = [f"{label} ({count})" for label, count in sorted(counts.items()) if count < 2]
    if rare:
        raise BadSamples(f"cannot split by class: too few images of {', '.join(rare)}; at least 2 are needed")
    keys = sorted(label_of)
    wanted = max(round(fraction * len(keys)), len(counts))
    if len(keys) - wanted < len(counts):
        raise BadSamples(f"cannot split {len(keys)} images of {len(counts)} classes by class: add images")
    _, subset = train_test_split(
        keys, test_size=wanted, random_state=seed % 2**32, stratify=[label_of[key] for key in keys]
    )
    return set(subset)


def hold_out(samples: Sequence[Sample], fraction: float, seed: int) -> set[bytes]:
    """The keys of a seeded random `fraction` of the samples with the class shares of the whole."""
    return stratified_subset({s.key: " ".join(s.labels.values()) for s in samples}, fraction, seed)


def _read(path: Path) -> dict[bytes, str]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != _COLUMNS:
                raise BadSamples(f"{path} is not a split file: expected the columns {', '.join(_COLUMNS)}")
            assigned = {bytes.fromhex(row["key"]): row["split"] for row in reader}
            if any(len(key) != 16 for key in assigned):
                raise ValueError("a key is not 32 hex digits")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): restore it, or pass --split-file FILE") from error
    except (ValueError, UnicodeDecodeError, TypeError) as error:
        if isinstance(error, BadSamples):
            raise
        raise BadSamples(f"{path} is damaged ({error}); restore it, or delete it to split anew") from error
    if unknown := set(assigned.values()) - set(SPLITS):
        raise BadSamples(f"{path} names the splits {', '.join(sorted(unknown))}; expected {', '.join(SPLITS)}")
    return assigned


def _write(assigned: Mapping[bytes, str], name_of: Mapping[bytes, str], path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(_COLUMNS)
    writer.writerows((split, name_of[key], key.hex()) for key, split in assigned.items())
    content = table.getvalue().encode("utf-8", "surrogateescape")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(
            f"the split of this folder ({len(content):,} bytes) cannot be saved in {path} ({error.strerror}): "
            "make room or pass --split-file FILE"
        ) from error
