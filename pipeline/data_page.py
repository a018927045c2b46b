"""One page of text about a data set, for people. Computes nothing; what is long is cut, with a count of the rest.

Run: softlabel data check DATA
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cache.errors import printable
from data.duplicates import Conflict, describe_leak
from data.inspection import ImageFormats, Inspection, LookAlike
from data.samples import FOLDER_TASK
from pipeline.data_check import counted, counts_of, groups_of, origin_of_splits, split_counts, unlabelled, verdict

_LISTED = 5
"""Things of a kind that are listed."""
_MAX_CLASSES = 24
"""Rows of a table; of more classes the largest and the smallest are shown."""
_NAME_WIDTH = 32
_MODES = {
    "1": "1-bit", "L": "gray", "LA": "gray with alpha", "P": "palette", "PA": "palette with alpha", "I": "32-bit gray",
    "I;16": "16-bit gray", "I;16B": "16-bit gray", "I;16L": "16-bit gray",
}  # fmt: skip
"""Pillow's name -> one for people, where they differ."""


def page(found: Inspection) -> str:
    """The whole page."""
    lines = [*_head(found), ""]
    for task in found.survey.classes:
        lines += [*_table(found, task), ""]
    for name, told in _sections(found):
        first, *others = told
        lines += [f"{name:17}{first}", *(f"{'':17}{line}" for line in others)]
    return "\n".join(map(printable, [*lines, "", verdict(found)]))


def _head(found: Inspection) -> Iterator[str]:
    data = found.survey
    splits = ", ".join(f"{split} {n:,}" for split, n in split_counts(data.samples).items())
    yield f"{data.words[0]}: {counted(len(data.samples), 'image')}{': ' * bool(splits)}{splits}"
    if data.samples:
        yield f"splits: {origin_of_splits(found)}"


def _table(found: Inspection, task: str) -> Iterator[str]:
    """Classes by splits, with counts and shares of the labelled images, and how unequal they are."""
    counts, without = counts_of(found.survey, task), unlabelled(found.survey, task)
    splits = list(split_counts(found.survey.samples))
    totals = {split: sum(of_class[split] for of_class in counts.values()) for split in splits}
    whole = Counter({name: of_class.total() for name, of_class in counts.items()})
    rows = [(task if task == FOLDER_TASK else f"task {task}", *splits, *["all"] * (len(splits) > 1))]
    for name in _shown(whole):
        if name is None:
            rows.append((f"... {len(counts) - _MAX_CLASSES:,} classes between them", *[""] * (len(rows[0]) - 1)))
            continue
        cells = [_with_share(counts[name][split], totals[split]) for split in splits]
        rows.append((_cut(name), *cells, *[_with_share(whole[name], whole.total())] * (len(splits) > 1)))
    if without:
        bare = [f"{without[split]:,}{'':8}" for split in splits]
        rows.append(("(no label)", *bare, *[f"{without.total():,}{'':8}"] * (len(splits) > 1)))
    yield from _columns(rows)
    (largest, most), (smallest, least) = whole.most_common()[0], whole.most_common()[-1]
    if len(whole) > 1:
        both = f"{_cut(largest)} {most:,}, {_cut(smallest)} {least:,}"
        yield f"largest to smallest class: {most / least:,.1f} to 1 ({both})"
    lacking = [name for name in counts if "train" in splits and not counts[name]["train"]]
    if lacking:
        yield f"no image in train: {_listed_in_line(map(_cut, lacking))}"


def _shown(whole: Counter[str]) -> list[str | None]:
    """Classes in order of their names; of too many, the largest and the smallest ones around a None."""
    if len(whole) <= _MAX_CLASSES:
        return list(whole)
    by_size = [name for name, _ in whole.most_common()]
    return [*by_size[: _MAX_CLASSES // 2], None, *by_size[-_MAX_CLASSES // 2 :]]


def _sections(found: Inspection) -> Iterator[tuple[str, list[str]]]:
    data = found.survey
    yield "groups", [_groups(found)]
    if found.formats.formats:
        yield "images", list(_images(found.formats))
    yield "bad files", list(_bad_files(found))
    yield "same bytes", _listed([_conflict(one) for one in data.conflicts], "in two classes, splits or groups")
    if groups_of(data):
        yield "group leaks", _listed([describe_leak(leak) for leak in data.leaks], "in two splits")
    yield "near-duplicates", list(_look_alikes(found))
    if data.notices:
        yield "notices", _lines(line for notice in data.notices for line in notice.split("\n"))


def _bad_files(found: Inspection) -> Iterator[str]:
    """Each of a few; of many how many have which reason, most first, with one of them."""
    if len(found.bad) <= _LISTED:
        yield from _listed([f"{file.path}: {file.reason}" for file in found.bad], f"of {found.n_files:,}")
        return
    by_reason = defaultdict[str, list[str]](list)
    for file in found.bad:
        by_reason[re.sub(r"\d+", "N", file.reason)].append(file.path)
    yield f"{len(found.bad):,} of {found.n_files:,}"
    usual = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_LISTED]
    for reason, paths in usual:
        yield f"{len(paths):,} {reason}: {paths[0]}{', ...' * (len(paths) > 1)}"
    if rest := len(found.bad) - sum(len(paths) for _, paths in usual):
        yield f"{rest:,} for other reasons (--json lists all)"


def _groups(found: Inspection) -> str:
    groups = groups_of(found.survey)
    if groups is None:
        return "none known (--csv FILE --group-column COLUMN names lesions or patients)"
    said = f"{groups.n:,} of {groups.median:g} images (median), {groups.largest:,} at most"
    return said + f"; {counted(groups.n_without, 'image')} in none" * (groups.n_without > 0)


def _images(formats: ImageFormats) -> Iterator[str]:
    n_images = formats.sizes_px.total()
    modes = Counter[str]()
    for mode, n in formats.modes.items():
        modes[_MODES.get(mode, mode)] += n
    yield _counts(formats.formats)
    yield _counts(modes)
    sizes = [formats.quantile_px(share) for share in (0, 0.5, 1)]
    if len(formats.sizes_px) == 1:
        yield f"all {_size(sizes[0])}"
    else:
        yield "; ".join(
            f"{word} {_size(size)}" for word, size in zip(("smallest", "median", "largest"), sizes, strict=True)
        )
    if formats.n_turned:
        yield f"{formats.n_turned:,} of {n_images:,} are turned upright, as their EXIF says"
    if several := formats.several_frames:
        yield f"{len(several):,} have several frames or pages, of which the first is used: {_listed_in_line(several)}"


def _look_alikes(found: Inspection) -> Iterator[str]:
    near = found.look_alikes
    if near is None:
        yield "not looked for (--near-duplicates does)"
        return
    asked = f"hashes within {near.config.max_hamming} bits, correlation from {near.config.min_correlation:g}"
    yield f"{counted(len(near.across_splits), 'pair')} in two splits ({asked})"
    yield from _lines(map(_pair, near.across_splits))
    if near.across_labels:
        yield f"{counted(len(near.across_labels), 'pair')} in two classes of one split, which is no leak:"
        yield from _lines(map(_pair, near.across_labels))
    if near.n_flat:
        yield f"{counted(near.n_flat, 'image')} of one colour not compared"


def _pair(pair: LookAlike) -> str:
    how = f"{pair.correlation:.3f}, {pair.hamming} bits{', mirrored or turned' * pair.is_turned}"
    return f"{pair.one.name} ~ {pair.other.name} ({how})"


def _conflict(conflict: Conflict) -> str:
    kinds = {"classes": conflict.in_labels, "splits": conflict.in_splits, "groups": conflict.in_groups}
    return f"{' = '.join(conflict.names)} (two {' and '.join(kind for kind, is_so in kinds.items() if is_so)})"


def _listed(lines: Sequence[str], where: str) -> list[str]:
    return [f"{len(lines):,} {where}", *_lines(lines)] if lines else [f"none {where}"]


def _lines(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    rest = len(found) - _LISTED
    return [*found[:_LISTED], *[f"... and {rest:,} more (--json lists all)"] * (rest > 0)]


def _listed_in_line(names: Iterable[str]) -> str:
    found = list(names)
    rest = len(found) - _LISTED
    return ", ".join(found[:_LISTED]) + f" and {rest:,} more" * (rest > 0)


def _counts(counts: Mapping[str, int]) -> str:
    return _listed_in_line(f"{name} {n:,}" for name, n in Counter(counts).most_common())


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,} px ({size[0] * size[1] / 1e6:.2g} MP)"


def _with_share(n: int, total: int) -> str:
    return f"{n:,} {100 * n / total:5.1f} %" if total else f"{n:,}{'':8}"


def _cut(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 3]}..."


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned cells: names to the left, numbers to the right, headers above the counts."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([f"{name:{widths[0]}}", *numbers]).rstrip())
    return lines
