"""Say in words how two recipes differ: by the option of a build that made it so, or by the command that made one.

Knows some fields that `softlabel cache build` writes, by name; what else differs is told field by field. Decides
nothing. Run: `softlabel cache merge A.h5 B.h5 -o OUT.h5`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.manifest import differences

_COMMANDS = ("probe", "rehead")
_OF_THE_TOWER = ("kind", "weights_sha256", "architecture", "tokenizer_sha256")


@dataclass(frozen=True)
class Apart:
    """The parts of a message about two recipes that are not the same."""

    reason: str
    """After "is of another recipe": ", with another --seed (stored against wanted)"."""
    fields: str
    """All that differs, each field on a line of its own; empty where the reason says enough."""


def apart(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str], order: str) -> Apart | None:
    """How two identities differ, which a message calls `names`; None where they are the same.

    `order` says of the listed fields which value is whose, such as "stored against wanted".
    """
    if not (found := differences(one, other)):
        return None
    commands = _command(one), _command(other)
    if commands[0] != commands[1]:
        made = [
            f"{name} comes from `softlabel cache {command}`"
            for name, command in zip(names, commands, strict=True)
            if command
        ]
        return Apart(f", as {' and '.join(made)}", "")
    words = list(_words(one, other))
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return Apart(f"{', with ' if listed else ''}{listed} ({order})", "".join(f"\n  {line}" for line in found))


def _command(identity: Mapping[str, Any]) -> str:
    """The one that writes such a cache, where that is not `build`; empty otherwise."""
    teacher = _part(identity, "teacher")
    if teacher.get("kind") == "imported":
        return "import"
    head = teacher.get("head")
    return head if isinstance(head, str) and head in _COMMANDS else ""


def _words(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs of the settings that have a name on the command line."""
    teachers = _part(one, "teacher"), _part(other, "teacher")

    def differs(name: str, sides: tuple[Mapping[str, Any], Mapping[str, Any]] = (one, other)) -> bool:
        return sides[0].get(name) != sides[1].get(name)

    has_other_classes = differs("tasks")
    found = {
        "another --teacher": any(differs(name, teachers) for name in _OF_THE_TOWER),
        "other scores": differs("scores_sha256", teachers),
        "other classes": has_other_classes,
        # Those of other classes are others in any case.
        "other --prompts": not has_other_classes and differs("prompts", teachers),
        "another --precision": differs("precision"),
        "another --seed": differs("seed", (_part(one, "views"), _part(other, "views"))),
    }
    return [words for words, is_so in found.items() if is_so]


def _part(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = identity.get(name)
    return found if isinstance(found, dict) else {}
