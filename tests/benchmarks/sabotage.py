"""Let a campaign look at commands that are sabotaged, and write what it counts. Has a process of its own for that.

Run by the tests: python sabotage.py test_kill_builds FOLDER
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

from conftest import load


def sabotaged_forks(sabotage: Callable[[], None]) -> AbstractContextManager[object]:
    """Inside, each process that the campaign forks is sabotaged; the campaign that looks at its work is not."""
    forks = load("reliability.forks")
    fork = forks.fork
    return mock.patch.object(forks, "fork", lambda work: fork(lambda: (sabotage(), work())))


def main(test: str, folder: Path) -> None:
    """Name of a sabotage -> what the test's `counter` returns of it, as counts.json in the folder."""
    folder.mkdir()
    module, counts = importlib.import_module(test), {}
    count = module.counter(load, folder)
    for sabotage, *expected in module.SABOTAGES:
        with sabotaged_forks(sabotage):
            counts[sabotage.__name__] = count(*expected)
    (folder / "counts.json").write_text(json.dumps(counts), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
