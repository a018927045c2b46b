"""Look at a stranger's cache file in a child process; this process never opens it with HDF5.

Run: `softlabel cache pull URL/ID -o t.h5`
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cache.errors import CacheDamaged, printable

_LOOK = """
import dataclasses, json, sys
from cache import CacheError, CacheReader
try:
    with CacheReader(sys.argv[1], memory_map=False) as reader:
        reader.verify()
        found = [reader.recipe_id, reader.cache_id, reader.content_id, reader.n_samples, reader.n_rows]
except CacheError as error:
    found = str(error)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Examined:
    """What a sound file is."""

    recipe_id: str
    cache_id: str
    content_id: str
    n_samples: int
    n_rows: int


def examine(path: Path) -> Examined:
    """Check all of a file in a child process; CacheDamaged in one line where it is not sound."""
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, str(path)], capture_output=True, text=True, check=False, timeout=600
    )
    found = json.loads(done.stdout) if done.returncode == 0 else "its child process failed"
    if isinstance(found, str):
        raise CacheDamaged(printable(found))
    return Examined(*found)
