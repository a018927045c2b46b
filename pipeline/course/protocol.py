"""What the answers of a course server say, and which are none. Sends nothing; each error is a sentence of ours.

`POST /submit` -> {message, attempt?} or {error}
`GET /submission-status/TOKEN` -> [{attempt, score, model_size, status}]
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from cache.errors import printable
from pipeline.course.exchange import Answer
from pipeline.course.token import Token
from pipeline.errors import CourseError

_JSON_KINDS = ("", "application/json", "text/json", "text/plain")
"""Media types of an answer that is read as JSON; empty: it says none."""
_MAX_SAID = 200
"""Characters of a server's own words that are repeated."""
_MAX_RETRY_S = 86_400
_MEANINGS = {
    401: "it does not know the token",
    403: "it does not take the token",
    404: "there is no course server at that address",
    405: "there is no course server at that address",
    407: "the proxy on the way wants a password",
    408: "it got the question too slowly",
    413: "the file is too large for it",
    415: "it does not take such a file",
    422: "it does not take the form",
    502: "the server behind it does not answer",
    503: "it is down or too busy",
    504: "the server behind it does not answer",
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A submission that the server knows."""

    attempt: int
    score: float | None
    """None until it is scored."""
    model_size: float | None
    """In the server's own unit."""
    status: str
    """pending, successful or failed; another word is shown as it is."""

    @property
    def is_open(self) -> bool:
        """Whether it is still to be scored."""
        return self.score is None and self.status != "failed"


@dataclass(frozen=True)
class Accepted:
    """What the server said to a file that it took."""

    message: str
    attempt: int | None


class BadAnswer(CourseError):
    """An answer that does not say what was asked."""


class Refused(CourseError):
    """The server says that it did not take the file."""


class TooEarly(Refused):
    """It takes none yet; `wait_s` where it says for how long."""

    def __init__(self, said: str, wait_s: float | None) -> None:
        super().__init__(said)
        self.wait_s = wait_s


def attempts_of(answer: Answer, token: Token) -> list[Attempt]:
    """Every attempt of a token, oldest first; 404 is how the server says that there is none."""
    if answer.status == 404:
        return []
    _check_status(answer, token)
    found = _json(answer, token)
    if not isinstance(found, list):
        raise BadAnswer(f"answered with JSON that is {_shape(found)} instead of a list of attempts")
    return sorted((_attempt(entry, token) for entry in found), key=lambda one: one.attempt)


def accepted_of(answer: Answer, token: Token, now_s: float) -> Accepted:
    """What the server says to a submission: Refused and TooEarly are answers, BadAnswer leaves the outcome open."""
    said = _said(answer, token)
    quoted = f': "{said}"' if said else ""
    if answer.status == 429:
        raise TooEarly(f"takes no submission yet{quoted}", _wait_s(answer.retry_after, now_s))
    # 408 may come of a connection that broke off at its other end.
    if 400 <= answer.status < 500 and answer.status != 408:
        raise Refused(_status_sentence(answer, token))
    _check_status(answer, token)
    found = _json(answer, token)
    if not isinstance(found, dict):
        raise BadAnswer(f"answered with JSON that is {_shape(found)} instead of an object with a message")
    if isinstance(found.get("error"), str):
        raise Refused(f"refuses the file{quoted}")
    if not isinstance(found.get("message"), str):
        raise BadAnswer("answered with JSON that has neither a message nor an error")
    attempt = found.get("attempt")
    if attempt is not None and not _is_count(attempt):
        raise BadAnswer("answered with JSON whose attempt is no number of an attempt")
    return Accepted(_shown(found["message"], token), attempt)


def check_page(answer: Answer) -> str:
    """The HTML text of an answer; BadAnswer for any other."""
    _check_status(answer, None)
    if answer.kind not in ("", "text/html", "application/xhtml+xml"):
        raise BadAnswer(f"answered with {_shown(answer.kind, None)} instead of an HTML page")
    return answer.text


def _check_status(answer: Answer, token: Token | None) -> None:
    if not 200 <= answer.status < 300:
        raise BadAnswer(_status_sentence(answer, token))


def _status_sentence(answer: Answer, token: Token | None) -> str:
    if 300 <= answer.status < 400:
        host = _shown(answer.location, token)
        return f"redirects (HTTP {answer.status}) to {host or 'another page of its own'}, which is not followed"
    said = _said(answer, token)
    meaning = _MEANINGS.get(answer.status, "it failed" if answer.status >= 500 else "it does not take the question")
    return f"answered HTTP {answer.status} ({meaning})" + (f': "{said}"' if said else "")


def _json(answer: Answer, token: Token | None) -> Any:
    if answer.kind in ("text/html", "application/xhtml+xml") or answer.text.lstrip()[:1] == "<":
        raise BadAnswer("answered with an HTML page instead of JSON, as a login page or another server does")
    if answer.kind not in _JSON_KINDS and not answer.kind.endswith("+json"):
        raise BadAnswer(f"answered with {_shown(answer.kind, token)} instead of JSON")
    problem, found = "", None
    try:
        found = json.loads(answer.text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        problem = "answered with something that is no JSON" if answer.text.strip() else "answered with nothing"
    if problem:  # unlinked from the parser's own error, which has all of the text
        raise BadAnswer(problem)
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _attempt(entry: Any, token: Token) -> Attempt:
    if not isinstance(entry, dict):
        raise BadAnswer(f"answered with JSON in whose list there is {_shape(entry)} instead of an attempt")
    for name in ("attempt", "score", "model_size", "status"):
        if name not in entry:
            raise BadAnswer(f"answered with an attempt that has no {name}")
    if not _is_count(entry["attempt"]):
        raise BadAnswer("answered with an attempt whose attempt is no whole number")
    for name in ("score", "model_size"):
        if entry[name] is not None and not _is_number(entry[name]):
            raise BadAnswer(f"answered with an attempt whose {name} is no number")
    status = entry["status"]
    if not isinstance(status, str) or not status.strip():
        raise BadAnswer("answered with an attempt whose status is no word")
    score, size = entry["score"], entry["model_size"]
    return Attempt(attempt=entry["attempt"], score=score, model_size=size, status=_shown(status, token).lower())


def _is_number(value: object) -> bool:
    # The bound: what no float can hold, and what fills a terminal.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e15


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1e15


def _shape(found: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(found), "a number")


def _said(answer: Answer, token: Token | None) -> str:
    """The server's own words, of an answer that is JSON with an error or a message."""
    try:
        found = _json(answer, token)
    except BadAnswer:
        return ""
    words = (found.get("error") or found.get("message")) if isinstance(found, dict) else None
    return _shown(words, token) if isinstance(words, str) else ""


def _shown(text: str, token: Token | None) -> str:
    """A stranger's text as a part of one line of ours."""
    text = printable(" ".join((token.redact(text) if token else text).split()))
    text = token.redact(text) if token else text
    return text if len(text) <= _MAX_SAID else f"{text[:_MAX_SAID]} ..."


def _wait_s(retry_after: str, now_s: float) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), which has them or a date; None where it makes no sense."""
    try:
        wait_s = float(retry_after) if retry_after.strip().isdecimal() else _until(retry_after) - now_s
    except (ValueError, TypeError, OverflowError):
        return None
    return wait_s if 0 <= wait_s <= _MAX_RETRY_S else None


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()
