"""Errors that a user's images or folders can cause. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class DataError(Exception):
    """Base of every error of this package."""


class DataNotFound(DataError, FileNotFoundError):
    """A folder, split or file that was asked for does not exist."""


class BadImage(DataError, ValueError):
    """A file that is named like an image and cannot be read as one; `reason` says why, without the path."""

    def __init__(self, reason: str, path: object = "") -> None:
        super().__init__(f"{one_line(str(path))}: {reason}" if path else reason)
        self.reason = reason


class UnreadableImage(BadImage):
    """A file whose bytes could not be had as they were hashed; this says nothing about the image in it."""


@dataclass(frozen=True)
class BadFile:
    """A file that is named like an image and cannot be used as one; as a value, so that all can be told at once."""

    path: str
    reason: str
    """In plain words, without the path."""
    is_system: bool = False
    """Whether a disk or network failed, or the file changed: that says nothing about the image in it."""
    key: bytes | None = None
    """Of its content; None where there are no bytes to be known by."""
    is_missing: bool = False
    """Whether a table names it and it is nowhere; `path` is what the table calls it."""


class BadSamples(DataError, ValueError):
    """Samples that contradict each other: leaks, conflicting labels, unknown names."""


class BadOption(DataError, ValueError):
    """A setting of a data set that is out of range, unknown, or contradicts another one."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest known word, or nothing."""
    names = list(known)
    near = [name for name in names if name.casefold() == word.casefold()]
    near = near or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def yaml_fault(error: Exception) -> str:
    """ " (line 2: what is wrong there)" of what a YAML parser raised; empty where it does not say a place."""
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1}: {getattr(error, 'problem', None)})" if mark else ""


def bullet_list(lines: Iterable[str], limit: int = 20) -> str:
    """The lines indented, one each; what is over the limit becomes a count."""
    shown = list(lines)
    rest = len(shown) - limit
    if rest > 0:
        shown = [*shown[:limit], f"... and {rest:,} more"]
    return "\n".join(f"  {one_line(line)}" for line in shown)


def one_line(text: str) -> str:
    """The text with line breaks, terminal escapes and bytes that are no UTF-8, as names may have them, spelt out."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
