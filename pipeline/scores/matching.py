"""Match a table of scores with images: by relative path, file name or stem, and by class name. Never guesses.

Everything that does not match is listed at once. Reads no score but to tell repeated rows apart, and no pixel.
Run: softlabel cache import scores.csv DATA -o t.h5 --as logits
"""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from data.decode import IMAGE_SUFFIXES
from data.errors import bullet_list
from data.reading import is_decodable
from data.samples import SampleSet, content_key
from pipeline.errors import did_you_mean
from pipeline.scores.table import ScoresError, ScoreTable
from pipeline.tasks import Tasks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MatchedScores:
    """Images, and where a table has their scores."""

    images: SampleSet
    row_of: Mapping[bytes, Mapping[int, int]]
    """Content key -> view -> row of the table."""
    is_fixed: bool
    """Whether the scores of the clean image serve all its views."""

    def rows(self, key: bytes, views: Iterable[int]) -> list[int]:
        """The rows of the table for some views of an image; -1 where it has none."""
        found = self.row_of.get(key, {})
        return [found.get(0 if self.is_fixed else view, -1) for view in views]


def check_classes(table: ScoreTable, images: SampleSet) -> None:
    """ScoresError unless the table has a column for each class of the images; columns beyond those are named."""
    wanted = Tasks(images.classes).outputs
    extra = [name for name in table.classes if name not in wanted]
    if missing := [name for name in wanted if name not in table.classes]:
        listed = bullet_list(f"{name}{did_you_mean(name, extra)}" for name in missing)
        raise ScoresError(
            f"{table.path} has no scores for {len(missing)} of the {len(wanted)} classes of {images.root}; it has "
            f"{', '.join(table.classes)}. Give the columns the names of the classes:\n{listed}"
        )
    if extra:
        log.info("classes that %s has no images of, for teacher and student alike: %s", images.root, ", ".join(extra))


def match_images(
    table: ScoreTable, images: SampleSet, views: int, *, partial: bool, skip_bad_images: bool
) -> MatchedScores:
    """The images that have all their scores; ScoresError lists images, names and views without a counterpart.

    If the table has views, a train image needs 0..views-1 and any other the clean one; else each needs one row.
    `partial` leaves out what has no counterpart. What contradicts itself is always an error.
    """
    found = _Rows()
    found.take(table, _ImageNames(images), {sample.key for sample in images.samples}, skip_bad_images)
    n_views: dict[bytes, int] = {}
    for sample in images.samples:
        n_wanted = views if table.has_views and sample.split == "train" else 1
        n_views[sample.key] = max(n_views.get(sample.key, 1), n_wanted)
    kept, missing = [], []
    for sample in images.samples:
        lacking = [view for view in range(n_views[sample.key]) if view not in found.row_of.get(sample.key, {})]
        # A file that is no image could not be scored: whether it may be left out is not decided here.
        if lacking and not (skip_bad_images and not is_decodable(sample)):
            which = f", views {_short(lacking)}" if table.has_views else ""
            missing.append(f"no scores of {sample.name}{which}")
        else:
            kept.append(sample)
    surplus = [
        f"{table.places[row]}: {table.images[row]} has scores of view {view}, expected 0..{n_views[key] - 1}"
        for key, rows in found.row_of.items() for view, row in rows.items() if view >= n_views[key]
    ]  # fmt: skip
    _refuse(table, images, found, surplus, missing, partial=partial, all_missing=not kept)
    for count, what in ((len(missing), "images without scores"), (len(found.unknown) + len(surplus), "rows too many")):
        if count:
            log.info("%s %s are left out", f"{count:,}", what)
    images = replace(images, samples=tuple(kept))
    return MatchedScores(images=images, row_of=found.row_of, is_fixed=not table.has_views)


def _refuse(
    table: ScoreTable, images: SampleSet, found: _Rows, surplus: Sequence[str], missing: Sequence[str], *,
    partial: bool, all_missing: bool,
) -> None:  # fmt: skip
    if found.contradictions or not (partial or all_missing):
        problems = [*found.contradictions, *(() if partial else (*found.unknown, *surplus, *missing))]
        hint = "" if partial or found.contradictions else "; --partial leaves out what has no counterpart"
        if problems:
            raise ScoresError(f"{table.path} and {images.root} do not fit together{hint}:\n{bullet_list(problems)}")
    elif all_missing:
        raise ScoresError(
            f"{table.path} has all scores of none of the {len(images.samples):,} images of {images.root}; expected "
            f"names such as {images.samples[0].name}, or the end of it:\n{bullet_list([*found.unknown, *missing])}"
        )


@dataclass
class _Rows:
    """Where a table has the scores of which image, and what is wrong with its names."""

    row_of: dict[bytes, dict[int, int]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)

    def take(self, table: ScoreTable, names: _ImageNames, known: set[bytes], skip_bad_images: bool) -> None:
        """Go through all rows of the table."""
        named: dict[tuple[bytes, int], str] = {}
        for row, (place, text) in enumerate(zip(table.places, table.images, strict=True)):
            view = int(table.views_R[row])
            found = names.find(text)
            keys = {names.key(name) for name in found}
            key = next(iter(keys), None)
            if len(keys) > 1:
                listed = " or ".join([*found[:3], *(["..."] if len(found) > 3 else [])])
                self.contradictions.append(f"{place}: {text} may mean {listed}")
            elif key in known and key is not None:
                earlier = self.row_of.setdefault(key, {}).setdefault(view, row)
                before = named.setdefault((key, view), found[0])
                differ = (table.scores_RC[row] != table.scores_RC[earlier]).any()
                if earlier != row and (before == found[0] or differ):
                    same = "the image" if before == found[0] else "the very bytes, with other scores,"
                    self.contradictions.append(
                        f"{place}: {text} is {same} of {table.places[earlier]}: {table.images[earlier]}"
                    )
            elif not (found and key is None and skip_bad_images):  # an empty file that the scan left out
                self.unknown.append(f"{place}: no image {text}")


class _ImageNames:
    """The names of all image files below a data folder, and the ends of their paths."""

    def __init__(self, images: SampleSet) -> None:
        self._root = images.root
        self._key_of: dict[str, bytes | None] = {sample.name: sample.key for sample in images.samples}
        # A scan keeps one of several files with the same bytes; a table may well name the others.
        files = (path for path in self._root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        names = {*self._key_of, *(path.relative_to(self._root).as_posix() for path in files)}
        self._by_path = {_plain(name): name for name in names}
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for plain, name in sorted(self._by_path.items()):
            for end in {*_ends(plain), *_ends(str(PurePosixPath(plain).with_suffix("")))}:
                self._by_end[end].append(name)

    def find(self, text: str) -> list[str]:
        """The relative paths that a text may mean: none, the one, or several.

        The text is a path that ends in a whole relative one, or the end of a relative one: with suffix or without.
        """
        plain = _plain(text)
        for end in _ends(plain):
            if end in self._by_path:
                return [self._by_path[end]]
        return self._by_end.get(plain, [])

    def key(self, name: str) -> bytes | None:
        """The content key of a relative path; None for a file that cannot be read or is empty."""
        if name not in self._key_of:
            path = self._root / name
            try:
                encoded = path.read_bytes() if path.is_file() else b""  # reading a named pipe would wait for ever
            except OSError:
                encoded = b""
            self._key_of[name] = content_key(encoded) if encoded else None
        return self._key_of[name]


def _short(views: list[int]) -> str:
    return ", ".join([*map(str, views[:8]), *(["..."] if len(views) > 8 else [])])


def _plain(text: str) -> str:
    """One spelling: slashes, no leading ./, composed accents (macOS's own file names have them apart)."""
    return unicodedata.normalize("NFC", text).replace("\\", "/").removeprefix("./")


def _ends(path: str) -> list[str]:
    """'train/mel/a.jpg' -> itself, 'mel/a.jpg', 'a.jpg'."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
