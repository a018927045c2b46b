"""A child process that exports and kills itself at one step. Arguments: RUN FOLDER REPLACE [STEP]...

Each case is a fork of a process that has imported all but computed nothing; its file is FOLDER/<number>/m.pt.
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
from pipeline import export as module
from pipeline.export import ExportConfig, export
from pipeline.formats.fresh import FreshProcess


def kill_at(step: str) -> None:
    """Let the first passage of a step be the last."""

    def passing(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            passing(f"before {name}")
            result = function(*args, **options)
            passing(f"after {name}")
            return result

        return wrapper

    def fsync_file(fd: int) -> None:
        if step == "half written":
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
        passing("half written")
        synced(fd)

    synced, durable.fsync_file = durable.fsync_file, fsync_file
    module.torchscript.to_bytes = around("to_bytes", module.torchscript.to_bytes)
    FreshProcess.logits = around("logits", FreshProcess.logits)
    durable.publish_new = around("publish", durable.publish_new)
    durable.publish_replace = around("publish", durable.publish_replace)
    durable.remove = around("remove", durable.remove)


torch.set_num_threads(1)
run, folder, replace, *steps = sys.argv[1:]
for number, step in enumerate(steps):
    if not (child := os.fork()):
        kill_at(step)
        export(run, Path(folder, str(number), "m.pt"), ExportConfig(replace=replace == "replace"))
        os._exit(0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()  # the next fork would inherit it
