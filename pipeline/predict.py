"""Class probabilities of image files and folders, by a run folder's student or an exported one. Never trains.

Files are read and rendered by threads while the student answers; few images are in memory at a time, however many
there are. Run: softlabel predict student_model.pt IMAGE...
B images of a batch, V views of an image, N = B * V views of a batch, K columns of all tasks, S pixels.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from data.decode import decode
from data.errors import BadFile, BadImage, UnreadableImage, bullet_list
from data.files import read_file
from data.samples import content_key
from data.views import ViewPolicy, draw, render
from pipeline.errors import RunError, SettingError
from pipeline.image_paths import check_model_and_images, image_paths
from pipeline.inference import load_student
from pipeline.process import resolve_device

log = logging.getLogger(__name__)

MAX_VIEWS = 64
_BATCH_VIEWS = 64
"""Views that the student sees at a time, so that even the most views of one image are a single batch."""
_VIEW_SEED = 0


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How images are asked about."""

    tta: int = 1
    """Views of each image whose probabilities are averaged, in 1..64; 1: the clean image alone."""

    def __post_init__(self) -> None:
        if not 1 <= self.tta <= MAX_VIEWS:
            raise SettingError(f"tta must be in 1..{MAX_VIEWS} views, got {self.tta}")


@dataclass(frozen=True)
class Prediction:
    """What a student says of one image."""

    path: str
    labels: dict[str, str]
    """Task -> its most probable class."""
    probabilities: dict[str, float]
    """Class, of several tasks `task: class` -> softmax of the task's raw logits, in [0, 1]; of several views
    the mean."""

    @property
    def label(self) -> str:
        """The most probable class of the one task there is."""
        (label,) = self.labels.values()
        return label


def predict(
    model: str | Path,
    images: Sequence[str | Path],
    config: PredictConfig = PredictConfig(),
    *,
    device: str = "auto",
) -> list[Prediction]:
    """A Prediction for each image file, in order; of a folder for each image below it.

    Raises BadImage with all that are no image, and RunError; `Predictor` yields what can be answered one by one.
    """
    check_model_and_images(model, images)
    paths = image_paths(images)
    found = list(Predictor(model, config, device=device)(paths.good))
    bad = [*(one for one in found if isinstance(one, BadFile)), *paths.bad]
    check_bad(bad, len(paths), "remove or replace them", skip=False)
    return [one for one in found if isinstance(one, Prediction)]


def check_bad(bad: Sequence[BadFile], n_images: int, remedy: str, *, skip: bool) -> None:
    """List the files that are no image: as an error, or as a notice where that is to `skip` some of them."""
    if not bad:
        return
    said = f"{len(bad):,} of {n_images:,} images cannot be used"
    lines = bullet_list(f"{file.path}: {file.reason}" for file in bad)
    if len(bad) == n_images:
        raise BadImage(f"{said}: are these the right files?\n{lines}")
    if not skip:
        raise BadImage(f"{said}; {remedy}:\n{lines}")
    log.info("notice   %s, and have no answer:\n%s", said, lines)


class Predictor:
    """A loaded student, asked about any number of image files, which are never all in memory."""

    def __init__(self, model: str | Path, config: PredictConfig = PredictConfig(), *, device: str = "auto") -> None:
        self._student = load_student(model, resolve_device(device))
        self.tasks = self._student.card.every_task
        self._n_views = config.tta
        # Not the policy of the student's own cache: an exported file does not know it, and is to say what its run says.
        self._policy = ViewPolicy(geometry=self._student.card.geometry)

    def __call__(self, paths: Sequence[str | Path]) -> Generator[Prediction | BadFile, None, None]:
        """What it says of each file, in order, or why that is no image, as soon as its batch is answered.

        Raises UnreadableImage where a disk or network fails: that says nothing about the images.
        """
        with closing(self._rendered(paths)) as rendered:
            while batch := list(islice(rendered, max(1, _BATCH_VIEWS // self._n_views))):
                yield from self._answers(batch)

    def _answers(self, batch: Sequence[tuple[str, Tensor | BadFile]]) -> Iterator[Prediction | BadFile]:
        views = [views for _, views in batch if isinstance(views, Tensor)]
        said_BK = iter(self._probabilities(torch.cat(views)) if views else ())
        for path, one in batch:
            if isinstance(one, Tensor):
                yield self._prediction(path, next(said_BK))
            elif one.is_system:
                raise UnreadableImage(f"{one.reason}; repeat the command when it can be read", one.path)
            else:
                yield one

    def _probabilities(self, pixels: Tensor) -> NDArray[np.float64]:
        """Mean softmax of each task over the views of an image: uint8 [N, 3, S, S] -> float64 [B, K].

        Probabilities are averaged, not logits (Krizhevsky et al. 2012, sec. 4.1).
        """
        logits_NK = self._student.logits(pixels).astype(np.float64)
        parts = [softmax(logits_NK[:, columns], axis=1) for columns in self.tasks.columns.values()]
        said_NK = np.concatenate(parts, axis=1)
        return said_NK.reshape(-1, self._n_views, said_NK.shape[1]).mean(axis=1)

    def _prediction(self, path: str, said_K: NDArray[np.float64]) -> Prediction:
        if not np.isfinite(said_K).all():
            raise RunError(f"the student answers {path} with numbers that are not finite: its weights are damaged")
        labels = {task: self.tasks[task][int(said_K[columns].argmax())] for task, columns in self.tasks.columns.items()}
        return Prediction(path, labels, dict(zip(self.tasks.outputs, said_K.tolist(), strict=True)))

    def _rendered(self, paths: Sequence[str | Path]) -> Generator[tuple[str, Tensor | BadFile], None, None]:
        """The views of each file in order, up to two batches ahead of who asks for them."""
        n_threads = min(8, os.cpu_count() or 1)
        n_ahead = n_threads + 2 * max(1, _BATCH_VIEWS // self._n_views)
        # Each renders on one core: eight that share every operation among all cores would wait for each other.
        pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
        waiting: deque[tuple[str, Future[Tensor | BadFile]]] = deque()
        try:
            for path in map(str, paths):
                waiting.append((path, pool.submit(self._views, path)))
                if len(waiting) == n_ahead:
                    first, views = waiting.popleft()
                    yield first, views.result()
            while waiting:
                first, views = waiting.popleft()
                yield first, views.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _views(self, path: str) -> Tensor | BadFile:
        """The clean view of a file and those drawn by its content, uint8 [V, 3, S, S]."""
        encoded = read_file(path)
        if isinstance(encoded, BadFile):
            return encoded
        key, card = content_key(encoded), self._student.card
        try:
            image = decode(encoded, path)
        except BadImage as error:
            return BadFile(path, error.reason, key=key)
        rows = (draw(self._policy, key, view, _VIEW_SEED) for view in range(self._n_views))
        return torch.stack([render(image, row, card.size_px, card.geometry) for row in rows])
