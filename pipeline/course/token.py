"""The token of the course server: where it comes from, and how it stays out of all that is shown or logged.

Never writes it to a disk, nor a hash of it. Run: softlabel course status --server URL --token-file FILE
"""

from __future__ import annotations

import contextlib
import html
import logging
import os
import re
import shlex
import stat
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from pipeline.errors import CourseError

log = logging.getLogger(__name__)

VARIABLE = "SOFTLABEL_COURSE_TOKEN"
_MAX_CHARACTERS = 4096
"""A longer one is some other file."""
_HIDDEN = "***"
_LOGGERS = ("urllib3", "requests")
"""The libraries that log the address of a request, in which the token stands."""


class Token:
    """A secret that shows itself to nobody but who calls `reveal` or `in_path`."""

    def __init__(self, text: str, option: str = "") -> None:
        text = text.strip()
        self.option = option
        """The words of the command line that name it again, without it."""
        if not text:
            raise CourseError(f"the token is empty: write it into the file of --token-file, or into {VARIABLE}")
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
            raise CourseError("the token has several lines or control characters: it is one line and nothing else")
        if len(text) > _MAX_CHARACTERS or text in (".", ".."):
            raise CourseError("that is no token (not shown): copy it again from where the course gave it")
        self._text = text
        self._pattern = re.compile("".join(map(_spellings, text)), re.IGNORECASE)

    def __repr__(self) -> str:
        return f"Token({_HIDDEN})"

    def reveal(self) -> str:
        """The token itself, for the body of a request."""
        return self._text

    def in_path(self) -> str:
        """As one segment of a URL's path."""
        return urllib.parse.quote(self._text, safe="")

    def redact(self, text: str) -> str:
        """A text without the token, however it is escaped there: for URLs, JSON, HTML, or in a wrong encoding."""
        return self._pattern.sub(_HIDDEN, text)

    @contextlib.contextmanager
    def kept_from_logs(self) -> Iterator[None]:
        """Inside, what the HTTP libraries log, at whatever level, has no token."""
        import_module("requests")  # which makes the loggers
        known = [*_LOGGERS, *(name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS))]
        loggers = [logging.getLogger(name) for name in known]
        redaction = _Redaction(self)
        for logger in loggers:
            logger.addFilter(redaction)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(redaction)


class _Redaction(logging.Filter):
    def __init__(self, token: Token) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes, its text redacted and without a traceback, whose text nobody can vouch for."""
        record.msg, record.args = self._token.redact(record.getMessage()), None
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def find_token(file: Path | None, variable: str | None, ask: Callable[[], str] | None) -> Token:
    """The token of a file, else of the environment variable's value, else asked for; CourseError without any."""
    if file is not None:
        return Token(_read(file), shlex.join(["--token-file", str(file)]))
    if variable is not None:
        return Token(variable)
    if ask is not None:
        return Token(ask())
    raise CourseError(
        f"the token is missing: name a file that holds it with --token-file FILE, or set {VARIABLE}; "
        "on a terminal it is asked for"
    )


def _read(file: Path) -> str:
    # The name is not repeated: who takes the option for the token itself would read it in the error.
    problem = ""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(4 * _MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "no file can have that name"
    if problem:
        raise CourseError(f"cannot read the file of --token-file ({problem}): it takes the name of a file, not a token")
    if sys.platform != "win32" and stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("others can read the file of --token-file: chmod 600 it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass  # its error holds the bytes
    raise CourseError("the file of --token-file is no text in UTF-8: it holds the token on one line and nothing else")


def _spellings(character: str) -> str:
    """A pattern of every way in which a server, a library or a page may write one character of a token."""
    encoded = character.encode()
    utf_16 = character.encode("utf-16-be").hex()
    written = {character, html.escape(character), encoded.decode("latin-1"), encoded.decode("cp1252", "replace")}
    patterns = {re.escape(text) for text in written}
    patterns.add("".join(f"%(?:25)*{byte:02x}" for byte in encoded))
    patterns.add("".join(rf"\\+u{utf_16[at : at + 4]}" for at in range(0, len(utf_16), 4)))
    patterns.add("".join(rf"\\+x{byte:02x}" for byte in encoded))
    patterns.add(rf"\\+u\{{?0*{ord(character):x}\}}?")
    patterns |= {f"&#0*{ord(character)};?", f"&#x0*{ord(character):x};?", rf"\\+{re.escape(character)}"}
    if character == " ":
        patterns.add(r"\+")
    if not character.isascii():
        patterns |= {"\ufffd+", r"\?+", rf"\\+x{ord(character):02x}"}
    if name := html.entities.codepoint2name.get(ord(character)):
        patterns.add(f"&{name};?")
    return f"(?:{'|'.join(sorted(patterns, key=len, reverse=True))})"
