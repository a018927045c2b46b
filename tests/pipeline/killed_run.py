"""A child process that trains and kills itself at one step. Arguments: DATA CACHE RUNS [STEP COUNT]...

Each case is a fork of a process that has imported all but computed nothing; its run is RUNS/<number of the case>.
Prints one exit status a line.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cache import durable
from pipeline.train import train
from pipeline.training.config import TrainConfig
from pipeline.training.learner import Learner

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)


def kill_at(step: str, count: int) -> None:
    """Let the `count`-th passage of a step be the last."""
    passages = 0

    def passing(name: str) -> None:
        nonlocal passages
        passages += name == step
        if passages == count and name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            passing(f"before {name}")
            result = function(*args)
            passing(f"after {name}")
            return result

        return wrapper

    def write_atomic(path: Path, content: bytes) -> None:
        passing(f"before {path.name}")
        if step == f"within {path.name}" and passages + 1 == count:
            durable.temp_name(path).write_bytes(content[: len(content) // 2])  # what a kill in the middle leaves
        passing(f"within {path.name}")
        write(path, content)

    write, durable.write_atomic = durable.write_atomic, write_atomic
    Learner.step = around("step", Learner.step)


torch.set_num_threads(1)
data, cache, runs, *cases = sys.argv[1:]
for number, (step, count) in enumerate(zip(cases[::2], cases[1::2], strict=True)):
    if not (child := os.fork()):
        kill_at(step, int(count))
        train(data, cache, Path(runs) / str(number), CONFIG, workers=0, device="cpu")
        os._exit(0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()  # the next fork would inherit it
