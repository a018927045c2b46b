"""The errors of this package: each says what was found, what was expected and the next command.

Never prints and never decides what is an error. The command line shows `str(error)` alone: `softlabel --debug ...`.
"""


def printable(text: str) -> str:
    """One line; what a stranger's file may have put in it, line breaks and terminal escapes, is shown, not obeyed."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def shortened(text: str, limit: int = 300) -> str:
    """The text, or its two ends: a stranger's name may have millions of characters."""
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


class CacheError(Exception):
    """Anything that a user, a file or a disk did to a cache; catch this one."""


class CacheNotFound(CacheError, FileNotFoundError):
    """There is no file of that name."""


class CacheDamaged(CacheError, ValueError):
    """The file is not a sealed cache, or no longer the one that was sealed."""


class CacheNewer(CacheError, ValueError):
    """The file is of a format that a later version of this package writes."""


class ManifestError(CacheError, ValueError):
    """The manifest breaks a rule of its format."""


class CacheMismatch(CacheError, ValueError):
    """Two things that should agree (recipes, rows, shapes, names) do not."""


class CacheBusy(CacheError):
    """Another process is writing this output."""


class CacheDiskFull(CacheError):
    """The disk, a quota or a file size limit refuses the bytes."""


class RowAbsent(CacheError, LookupError):
    """A row number that the cache does not have, such as the -1 of a missing view."""
