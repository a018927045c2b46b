"""Where a cache's logits come from, by its own word, and which commands can give it better ones. Reads no row.

Loads no torch: `softlabel cache info FILE` asks here, too.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cache import CacheReader
from pipeline.scores.table import imported_from

EMBEDDING = "embedding"
PROBE, REHEAD = "probe", "rehead"
PROMPTED_KINDS = ("siglip", "clip")
"""Kinds of teachers, in an identity, whose logits follow from prompts: those of `pipeline.teachers.dual_encoder`."""


def derived_by(identity: Mapping[str, Any]) -> str | None:
    """`probe` or `rehead` for a derived cache, None for one that a teacher's own answers stand in."""
    head = _teacher(identity).get("head")
    return head if head in (PROBE, REHEAD) else None


def takes_prompts(reader: CacheReader) -> bool:
    """Whether the teacher has a text side, so that its embeddings can be given the answers to other prompts."""
    return _teacher(reader.manifest.identity).get("kind") in PROMPTED_KINDS


def without_embeddings(reader: CacheReader) -> str:
    """Why a cache has no embeddings, and what to do."""
    identity, found = reader.manifest.identity, f"{reader.path} holds no embeddings, from which logits could be made: "
    if scores := imported_from(reader.manifest):
        return f"{found}it was imported from {scores}, and scores have none"
    if _teacher(identity).get("head") == "outputs":
        return f"{found}its teacher is a classifier that cannot be taken apart. Take a teacher that can"
    if head := derived_by(identity):
        return f"{found}{head} its parent anew with --embedding"
    return f"{found}build it anew with --embedding"


def advice_near_chance(reader: CacheReader, cache: str, words: Sequence[str]) -> str:
    """What to try where the answers of `cache` tell nothing of the images of DATA, whose words these are."""
    head, (file, merging) = derived_by(reader.manifest.identity), in_one_file(reader, cache)
    ideas, commands = ["Look at its class names"], [_info(reader, cache)]
    if takes_prompts(reader) and head != PROBE:
        ideas = ["Look at its prompts", "try others"]
        again = _reheading(reader, file)
        commands += [*merging, *again] if again else []
    if EMBEDDING in reader.features and head != PROBE:
        ideas.append("fit a head to its embeddings")
        commands += [one for one in merging if one not in commands]
        commands.append(f"softlabel cache probe {file} {shlex.join(words)} -o probe.h5")
    elif head == PROBE:
        ideas = ["Its embeddings were probed already: look at their teacher", "take another one"]
    else:
        ideas.append("take another teacher")
    return f"{', '.join(ideas[:-1])}, or {ideas[-1]}:\n" + "\n".join(f"  {command}" for command in commands)


def advice_renamed(reader: CacheReader, cache: str) -> str:
    """How the class names of `cache` are put right."""
    identity, (file, merging) = reader.manifest.identity, in_one_file(reader, cache)
    see = f"See them by\n  {_info(reader, cache)}\n"
    if scores := imported_from(reader.manifest):
        return f"{see}put the names of the columns of {scores} right, and import it anew, to another -o."
    if derived_by(identity) == PROBE:
        return f"{see}put the class folders right, and probe anew the cache that it was made from."
    if not takes_prompts(reader):
        return (
            f"{see}put the teacher's own class list right, by `--teacher-config` with a line `classes: [...]` in the "
            "order of its outputs, and build the cache anew."
        )
    if not (commands := _reheading(reader, file)):
        return f"{see}put the prompts file right, and build the cache anew."
    in_order = "\n  ".join([*merging, commands[0]])
    return f"{see}put the prompts file right, and then\n  {in_order}\nor build the cache anew."


def advice_other_classes(reader: CacheReader, words: Sequence[str]) -> str:
    """What to do with a cache that does not know the classes of DATA, whose words these are."""
    if EMBEDDING in reader.features:
        file, merging = in_one_file(reader, str(reader.path))
        commands = [*merging, f"softlabel cache probe {file} {shlex.join(words)} -o probe.h5"]
        return f"its embeddings can learn them: `{'`, then `'.join(commands)}`"
    return "rename the folders, or choose another teacher"


def in_one_file(reader: CacheReader, cache: str) -> tuple[str, list[str]]:
    """The file for a command that takes one cache, and the commands that make it first: of a union, a merge.

    `cache` is what people call a single one. The file's name is quoted.
    """
    if len(reader.paths) == 1:
        return shlex.quote(cache), []
    merged = merged_name()
    return merged, [shlex.join(["softlabel", "cache", "merge", *map(str, reader.paths), "-o", merged])]


def merged_name() -> str:
    """The file that a union becomes, in messages: all.h5, or the first of all-2.h5, all-3.h5, ... that is not there."""
    names = itertools.chain(["all.h5"], (f"all-{number}.h5" for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def _info(reader: CacheReader, cache: str) -> str:
    """Files of one recipe have the same classes and prompts."""
    return f"softlabel cache info {shlex.quote(cache if len(reader.paths) == 1 else str(reader.paths[0]))}"


def _reheading(reader: CacheReader, file: str) -> list[str]:
    if EMBEDDING not in reader.features:
        return []
    named = reader.manifest.provenance.get("teacher")
    # A hub name loads by itself; of a folder the cache knows its last part alone.
    teacher = "" if isinstance(named, str) and "/" in named else " --teacher DIR"
    return [f"softlabel cache rehead {file}{teacher} --prompts new.yaml -o new.h5"]


def _teacher(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    teacher = identity.get("teacher")
    return teacher if isinstance(teacher, dict) else {}
