"""One request and its whole answer, within a time and a size. Knows nothing of what the course server means.

Nothing is ever sent twice and no redirect is followed. The exceptions of the HTTP libraries end here, as their texts
have the address in them, and that the token. Proxies and certificates are those of the environment, a .netrc is not
read.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import queue
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.course.token import Token
from pipeline.errors import CourseError, SettingError

if TYPE_CHECKING:
    import requests

MAX_ANSWER_BYTES = 1_000_000
_CONNECT_S = 20.0
"""Also the longest that one piece of an upload may take."""
_SLOWEST_UPLOAD = 50_000
"""Bytes a second: 25 MB may take eight minutes."""
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a server may take."""

    timeout_s: float = 30.0
    """From the end of the question to the end of the answer."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= 3600:
            raise SettingError(f"timeout_s must be above 0 and at most 3600, got {self.timeout_s}")


@dataclass(frozen=True)
class Answer:
    """What came back, whole."""

    status: int
    kind: str
    """Its media type in lower case, such as text/html; empty where it says none."""
    content: bytes
    retry_after: str
    location: str
    """The host that a redirect leads to."""

    @property
    def text(self) -> str:
        """As UTF-8, or where it is none as Latin-1."""
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return self.content.decode("latin-1")


class NoAnswer(CourseError):
    """There is no answer to go by; `was_sent` says whether the server may have got all of the question."""

    def __init__(self, problem: str, *, was_sent: bool) -> None:
        super().__init__(problem)
        self.was_sent = was_sent


class Form(io.BytesIO):
    """A multipart form that is read piece by piece as it is sent, and knows how far it is."""

    def __init__(self, fields: dict[str, Any]) -> None:
        from urllib3.filepost import encode_multipart_formdata

        content, self.content_type = encode_multipart_formdata(fields)
        super().__init__(content)
        self.n_bytes = len(content)
        self.ended_s: float | None = None
        """When the last piece was asked for, on the monotonic clock."""
        self.has_begun = self.is_stopped = False

    def read(self, size: int | None = -1, /) -> bytes:
        """The next piece; OSError once nobody waits for the answer any more."""
        self.has_begun = True  # before it looks: who stops it and then asks is never told too little
        if self.is_stopped:
            raise OSError("stopped")
        piece = super().read(size)
        if self.tell() == self.n_bytes and self.ended_s is None:
            self.ended_s = time.monotonic()
        return piece


def exchange(method: str, url: str, *, token: Token | None, form: Form | None, limits: Limits) -> Answer:
    """The answer to one request; NoAnswer where there is none within the limits, be it slow, broken or too large."""
    outcomes: queue.Queue[Answer | str] = queue.Queue()
    stop = threading.Event()

    def ask() -> None:
        outcome: Answer | str = "could not be asked, for a reason that the HTTP library keeps to itself"
        # What nobody foresaw must not be shown either: a thread would print it, address and all.
        with contextlib.suppress(Exception), token.kept_from_logs() if token else contextlib.nullcontext():
            outcome = _ask(method, url, form, limits, stop)
        outcomes.put(outcome)

    # In a thread of its own, as neither looking up a name nor a dripping header ends by a timeout of its own.
    begun_s = time.monotonic()
    threading.Thread(target=ask, daemon=True, name="course server").start()
    outcome: Answer | str | None = None
    try:
        while outcome is None:
            with contextlib.suppress(queue.Empty):
                outcome = outcomes.get(timeout=_POLL_S)
            if outcome is None and time.monotonic() > _deadline_s(begun_s, form, limits):
                outcome = _too_slow(form, limits)
    finally:
        stop.set()
        if form is not None:
            form.is_stopped = True
    if isinstance(outcome, str):
        raise NoAnswer(outcome, was_sent=form is None or form.has_begun)
    return outcome


def _deadline_s(begun_s: float, form: Form | None, limits: Limits) -> float:
    if form is None:
        return begun_s + limits.timeout_s
    if form.ended_s is None:
        return begun_s + limits.timeout_s + form.n_bytes / _SLOWEST_UPLOAD
    return form.ended_s + limits.timeout_s


def _too_slow(form: Form | None, limits: Limits) -> str:
    if form is not None and form.ended_s is None:
        return f"took less than {_SLOWEST_UPLOAD // 1000} kB/s of the upload"
    return f"gave no whole answer within {limits.timeout_s:g} s"


def _ask(method: str, url: str, form: Form | None, limits: Limits, stop: threading.Event) -> Answer | str:
    """The answer, or what was the matter, in words that are ours."""
    import requests
    import urllib3

    class Staying(requests.Session):
        """Does not even look where a redirect leads, and so does not fail at an address that is none."""

        def get_redirect_target(self, resp: requests.Response) -> None:
            """Nowhere."""

    headers = {"Accept-Encoding": "identity", "User-Agent": "softlabel"}
    if form is not None:
        headers["Content-Type"] = form.content_type
    try:
        with Staying() as session:
            response = session.request(
                method, url, data=form, headers=headers, stream=True, allow_redirects=False,
                timeout=(min(_CONNECT_S, limits.timeout_s), limits.timeout_s), auth=_as_it_is,
            )  # fmt: skip
            return _answer(response, stop)
    # LookupError: an unknown encoding; ValueError: a host that no name can be.
    except (
        requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError,
        LookupError,
    ) as error:  # fmt: skip
        return _in_words(error, limits)


def _as_it_is(request: Any) -> Any:
    """Instead of what a .netrc says of the host, or of any host."""
    return request


def _answer(response: requests.Response, stop: threading.Event) -> Answer | str:
    """The whole of it, or what was the matter; the connection is closed after."""
    with response:
        content = bytearray()
        for piece in response.iter_content(16_384):
            content += piece
            if len(content) > MAX_ANSWER_BYTES:
                return f"answered with more than {MAX_ANSWER_BYTES // 1_000_000} MB"
            if stop.is_set():
                return "was not waited for"
    headers = response.headers
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    try:
        location = urllib.parse.urlsplit(headers.get("Location", "")).netloc.rpartition("@")[2]
    except ValueError:
        location = ""
    return Answer(response.status_code, kind, bytes(content), headers.get("Retry-After", ""), location)


def _in_words(error: BaseException, limits: Limits) -> str:
    import requests
    from urllib3 import exceptions as urllib3

    chain = list(_causes(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if is_any(requests.exceptions.ProxyError, urllib3.ProxyError):
        return "cannot be reached through the proxy of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)"
    if is_any(requests.exceptions.SSLError, urllib3.SSLError):
        return "offers no TLS connection that this machine trusts (https:// where it speaks http://?)"
    if is_any(urllib3.NameResolutionError):
        return "has a name that this network does not know"
    if is_any(urllib3.NewConnectionError):  # which is a ConnectTimeoutError, too
        number = next((one.errno for one in chain if isinstance(one, OSError) and one.errno), None)
        return f"takes no connection ({os.strerror(number) if number else 'no reason given'})"
    if is_any(urllib3.ConnectTimeoutError):
        return f"takes no connection within {min(_CONNECT_S, limits.timeout_s):g} s"
    if is_any(requests.exceptions.Timeout, urllib3.ReadTimeoutError, TimeoutError):
        return f"gave no whole answer within {limits.timeout_s:g} s"
    if is_any(requests.exceptions.InvalidURL, urllib3.LocationValueError, UnicodeError):
        return "has an address that cannot be"
    if is_any(urllib3.IncompleteRead, http.client.IncompleteRead):
        return "broke off in the middle of its answer"
    if is_any(ConnectionError):
        return "dropped the connection before its answer was whole"
    return "answered with something that is no HTTP"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised for, also where a library keeps it in its arguments."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            yield one
            waiting += [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]
