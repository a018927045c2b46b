"""Run by `cache.quarantine` in a process of its own: limit it, check a file, say five values or what is wrong.

Imports nothing before the limits stand. Run: python -I quarantine_child.py '{"path": HEX, "folders": [...], ...}'
"""

import contextlib
import json
import os
import signal
import sys
from typing import Any

STARTED = b"started"
MAX_FILES = 64


def limit(asked: dict[str, Any]) -> None:
    """What this process may use; where the system has no such limit, it has none."""
    try:
        import resource
    except ImportError:  # Windows
        return
    signal.alarm(asked["wall"])  # should the parent be gone
    wanted = {
        "RLIMIT_AS": asked["memory"], "RLIMIT_CPU": asked["cpu"], "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": MAX_FILES,
    }  # fmt: skip
    for name, value in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS refuses some
            _, hard = resource.getrlimit(getattr(resource, name))
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, name), (value, value))


def use_package(folder: str) -> None:
    """Make `import cache` mean the package in this folder, whatever is installed, and nothing else in its parent."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("cache", os.path.join(folder, "__init__.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules["cache"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def check(path: str) -> dict[str, Any]:
    """The ids and sizes of a sound file; CacheError where it is none."""
    from pathlib import Path

    from cache.guard import inspect, opened
    from cache.names import refuse_names, refuse_texts
    from cache.reader import CacheReader

    with opened(Path(path)) as file:
        inspected = inspect(file, Path(path))
    refuse_texts(inspected.manifest)
    if "samples/name" in inspected.small:
        refuse_names(inspected.small["samples/name"])
    seal = inspected.seal
    del inspected  # its tables are read once more
    with CacheReader(path, memory_map=False) as reader:
        reader.verify()
        if reader.seal != seal:
            return {"error": "damaged", "text": f"{path} was replaced while it was checked"}
        return {
            "recipe_id": reader.recipe_id, "cache_id": reader.cache_id, "content_id": reader.content_id,
            "n_samples": reader.n_samples, "n_rows": reader.n_rows,
        }  # fmt: skip


def main(words: str) -> None:
    """Say that it started, then one line of JSON."""
    asked = json.loads(words)
    limit(asked)
    sys.path += [folder for folder in asked["folders"] if folder not in sys.path]
    use_package(os.path.dirname(os.path.abspath(__file__)))
    from cache.errors import CacheDamaged, CacheError, CacheNewer

    os.write(1, STARTED + b"\n")
    try:
        answer = check(os.fsdecode(bytes.fromhex(asked["path"])))
    except MemoryError:
        answer = {"error": "memory", "text": ""}
    except CacheError as error:
        kind = "newer" if isinstance(error, CacheNewer) else "damaged" if isinstance(error, CacheDamaged) else "other"
        answer = {"error": kind, "text": str(error)[:1500]}
    os.write(1, json.dumps(answer).encode())


if __name__ == "__main__":
    main(sys.argv[1])
