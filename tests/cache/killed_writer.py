"""A child process that writes a cache and kills itself at one step. Arguments: OUT STEP COUNT.

COUNT is the how-manieth passage of the step kills; the writer's segments hold 4 rows.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_maker

from cache import durable

OUT, STEP, COUNT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
passages = 0


def step_is(step: str, happens: bool) -> None:
    global passages
    if happens and step == STEP:
        passages += 1
        if passages == COUNT:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        is_out = any(arg == OUT for arg in args)
        step_is(f"before {name}", not is_out)
        step_is(f"before {name} of out", is_out)
        result = function(*args)
        step_is(f"after {name}", not is_out)
        step_is(f"after {name} of out", is_out)
        return result

    return wrapper


for each in ("allocate", "fsync_file", "publish_new", "publish_replace", "write_atomic", "remove"):
    setattr(durable, each, killed(each, getattr(durable, each)))
cache_maker.build(OUT, cache_maker.table(n_samples=8))
