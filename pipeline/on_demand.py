"""The teacher of a build: what it says of itself at once, the model itself when a row is to be computed.

Never computes. Run: softlabel cache build DATA -o t.h5
"""

from __future__ import annotations

import logging

from data.samples import SampleSet
from pipeline.errors import TeacherError
from pipeline.process import resolve_device
from pipeline.recipe import BuildConfig, introduce, load_teacher, question
from pipeline.teachers.known import KnownTeachers
from pipeline.teachers.teacher import Teacher, resolve_precision

log = logging.getLogger(__name__)


class TeacherOnDemand:
    """A teacher that is loaded at once, unless it is known from an earlier build.

    Raises TeacherError or SettingError where it is none, or its answers could be of no use for these images.
    """

    def __init__(self, images: SampleSet, config: BuildConfig, known: KnownTeachers) -> None:
        self._images, self._config, self._known = images, config, known
        self._question = question(images, config)
        self._loaded: Teacher | None = None
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        recalled = known.recall(config.teacher, self._question)
        self.facts = recalled or self._load().facts
        introduce(self.facts, images, config)

    @property
    def size_px(self) -> int:
        """Side of the square that it sees."""
        return int(self.facts.preprocessing["size_px"])

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory."""
        return self._loaded is not None

    def load(self) -> Teacher:
        """The model; TeacherError where it is not what was remembered of it."""
        teacher = self._load()
        if teacher.facts != self.facts:
            self._known.forget(self._config.teacher, self._question)
            raise TeacherError(
                f"{self._config.teacher} is another teacher than an earlier build remembered, although none of its "
                "files was touched: nothing was computed, run the same command again"
            )
        return teacher

    def _load(self) -> Teacher:
        if self._loaded is None:
            self._loaded = load_teacher(self._images, self._config)
            self._known.remember(self._config.teacher, self._question, self._loaded.facts)
        return self._loaded
