"""What makes a command start soon. Imports nothing but the standard library itself.

Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Inside, nobody looks for garbage; what stands at its end, such as modules, is never looked through again.

    The imports of torch, torchvision and scikit-learn leave no garbage, and the looking is half of their time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries of torch's report at the end that their functions were leaked
        gc.enable()
