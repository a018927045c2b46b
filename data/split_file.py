"""The file that remembers a split: a CSV of (split or fold, path, key), joined by content key.

Draws nothing (`data.splits` does). Run: softlabel cache build DATA --split-file splits.csv -o t.h5
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from data.errors import BadSamples, DataError


def read_splits(path: Path, column: str, known: tuple[str, ...]) -> dict[bytes, str]:
    """Content key -> what stands in `column`, one of the `known` words; BadSamples where the file is another one."""
    columns = (column, "path", "key")
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != columns:
                raise BadSamples(f"{path} is not a {column} file: expected the columns {', '.join(columns)}")
            assigned = {bytes.fromhex(row["key"]): row[column] for row in reader}
            if any(len(key) != 16 for key in assigned):
                raise ValueError("a key is not 32 hex digits")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): restore it, or pass --split-file FILE") from error
    except (ValueError, UnicodeDecodeError, TypeError) as error:
        if isinstance(error, BadSamples):
            raise
        raise BadSamples(f"{path} is damaged ({error}); restore it, or delete it to split anew") from error
    if unknown := set(assigned.values()) - set(known):
        raise BadSamples(f"{path} names the {column}s {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    return assigned


def write_splits(assigned: Mapping[bytes, str], name_of: Mapping[bytes, str], path: Path, column: str) -> None:
    """Write all of it or nothing; DataError where it cannot be saved."""
    # Jobs of an array may write it at once, and process ids repeat on other machines and in containers.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow((column, "path", "key"))
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
