"""A rank for torchrun: `softlabel` with the words given, but rank 1 kills itself at its fifth pass, the first time."""

import os
import signal
import sys
from typing import Any

from pipeline.cli import run
from pipeline.teachers.teacher import Teacher

embed, passes = Teacher.embed, 0


def dying(self: Teacher, pixels: Any) -> Any:
    """The teacher's `embed`, a few times."""
    global passes
    passes += 1
    if passes == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(self, pixels)


if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
    Teacher.embed = dying  # type: ignore[method-assign]
sys.exit(run(sys.argv[1:]))
