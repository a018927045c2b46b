"""How many images a step learns from where nobody says so: as many as leave the run enough steps.

Larger batches cost less per image (64 instead of 32: 1.2 times on a CPU), and learn less in a short run: on 3,087
images and in 30 epochs, batches of 64 came to a macro F1 of 0.403, batches of 32 to 0.449 (docs/results.md).
"""

from __future__ import annotations

import dataclasses

from pipeline.training.config import TrainConfig

_SIZES = {"cpu": (32, 64, 128)}
_OTHER_SIZES = (32, 64, 128, 256, 512)
_ENOUGH_STEPS = 5_000
"""Of the whole run; the short runs above had 1,230 and 2,460."""


def with_batch_size(config: TrainConfig, n_train: int, device: str) -> TrainConfig:
    """The settings with the batch size that is used, for so many train images."""
    if config.batch_size:
        return config
    return dataclasses.replace(config, batch_size=automatic_batch_size(n_train * config.epochs, device))


def automatic_batch_size(n_shown: int, device: str) -> int:
    """The largest usual size that leaves a run of `n_shown` images (images times epochs) enough steps; at least 32."""
    sizes = _SIZES.get(device, _OTHER_SIZES)
    return max(size for size in sizes if size == sizes[0] or n_shown >= size * _ENOUGH_STEPS)
